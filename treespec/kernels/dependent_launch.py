"""Programmatic dependent launch: on Hopper, a kernel starts while the one before it still runs, and waits before it uses its results.

This saves time, because between the kernels of a small pass launching and filling the device takes as long as a tenth of the work.

Rule: before `wait_for_inputs` a kernel may read only what was written before its *pass* began: weights, rotary tables, the length, where the
pass's tokens stand, the shape of the tree. It may prefetch keys and values of committed tokens. It writes nothing. What each kernel reads
early stands in its docstring, above its wait, and in the table of docs/kernels.md; tests/treespec/kernels/test_early_reads.py reads the
sources and allows nothing else, because no other test can find such a race.

Why it is safe: the pass's first kernel, `linear.start`, lets its successor start only after its own wait (OVERLAP 2). So all work from before
the pass has been written when any later kernel of the pass starts. Other passes begin with a kernel of torch, which neither starts early nor
lets others do so.
"""

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@cache
def overlaps(device: torch.device) -> bool:
    """Return whether kernels on this device may start before the previous one has ended."""
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device)[0] >= 9


def launch_options(device: torch.device) -> dict[str, Any]:
    """Return the launch options for kernels that call `wait_for_inputs`."""
    return {"launch_pdl": True} if overlaps(device) else {}


@triton.jit
def wait_for_inputs(OVERLAP: tl.constexpr) -> None:
    """Let the next kernel start, and wait until all earlier kernels have written their results.

    Rule: call it before reading what an earlier kernel of this pass wrote, and before writing anything.

    OVERLAP 0: do nothing. OVERLAP 1: trigger the next kernel at once, then wait. OVERLAP 2: wait, then trigger the next kernel; this is for
    kernels of a few microseconds, several of which would otherwise be on the device at once and slow each other down, and for `start`.
    """
    if OVERLAP == 2:
        gdc_wait()
        gdc_launch_dependents()
    elif OVERLAP:
        gdc_launch_dependents()
        gdc_wait()
