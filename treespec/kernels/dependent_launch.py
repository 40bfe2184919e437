"""Programmatic dependent launch: on Hopper, a kernel starts while the one before it still runs, and waits before it touches its results.

Between the kernels of a small pass, launching and filling the device takes as long as a tenth of the work.

What was there before a pass may be read before the wait: lengths, places, what a static tree is, rotary tables. The pass's first kernel,
`linear.start`, makes it safe: it lets no other begin before it need not wait itself, so everything older than the pass is written by then.
"""

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@cache
def overlaps(device: torch.device) -> bool:
    """Whether kernels on this device may start early."""
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device)[0] >= 9


def launch_options(device: torch.device) -> dict[str, Any]:
    """Launch options of kernels that call `wait_for_inputs`."""
    return {"launch_pdl": True} if overlaps(device) else {}


@triton.jit
def wait_for_inputs(OVERLAP: tl.constexpr) -> None:
    """Let the next kernel start, then wait until everything before this one has been written. Call it before reading or writing results.

    With OVERLAP 2 the next kernel starts once this one need not wait any more: of kernels that are over in a few microseconds, half a dozen
    would otherwise stand on the device at once and get into each other's way.
    """
    if OVERLAP == 2:
        gdc_wait()
        gdc_launch_dependents()
    elif OVERLAP:
        gdc_launch_dependents()
        gdc_wait()
