"""The device of a launch: its context, because Triton and CUDA events use the process's current device, and the limits that tilings keep to."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch


@dataclass(frozen=True)
class Gpu:
    """The limits of a device that tilings keep to. The defaults are those of an H100 or H200, on which all tilings were measured."""

    multiprocessors: int = 132
    shared_bytes: int = 209_000
    """Shared memory that a program may use; some is left for what the compiler adds."""


@cache
def gpu_of(device: torch.device) -> Gpu:
    """Return the limits of a CUDA device; those of an H200 for any other, so that tests and the interpreter see the tilings of one."""
    if device.type != "cuda":
        return Gpu()
    properties: Any = torch.cuda.get_device_properties(device)
    return Gpu(int(properties.multi_processor_count), int(properties.shared_memory_per_block_optin) * 9 // 10)


def on(device: torch.device) -> AbstractContextManager[object]:
    """Make a CUDA device the current one within the context; on the CPU, do nothing.

    Rule: code that launches kernels or records events runs in such a context. So models on several devices can share one process, and
    nobody has to set the current device.
    """
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
