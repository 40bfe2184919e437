"""The device of a launch: Triton and CUDA events use the process's current device, wherever the tensors are."""

from contextlib import AbstractContextManager, nullcontext

import torch


def on(device: torch.device) -> AbstractContextManager[object]:
    """Make a CUDA device the current one within the context; on the CPU, do nothing.

    Rule: code that launches kernels or records events runs in such a context. So models on several devices can share one process, and
    nobody has to set the current device.
    """
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
