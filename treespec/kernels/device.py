"""The device of a launch: Triton and CUDA events take the process's current one, whatever the tensors are on."""

from contextlib import AbstractContextManager, nullcontext

import torch


def on(device: torch.device) -> AbstractContextManager[object]:
    """Make a CUDA device the current one within the context; on the CPU, do nothing.

    Whatever launches kernels or records events runs in such a context, so that models on several devices live in one process and
    nobody has to set the current device.
    """
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
