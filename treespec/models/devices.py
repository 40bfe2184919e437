"""Devices: which names there are, what this machine has, and what torch can do there. This module loads without torch."""

import re
from typing import TYPE_CHECKING

from treespec.errors import ModelError, SettingsError

if TYPE_CHECKING:
    import torch

_NAME = re.compile(r"(cpu|mps)(:0)?|(cuda|xpu)(:(0|[1-9]\d?))?")
_KINDS = "cpu, cuda, cuda:N, mps, xpu or xpu:N"
_WORDS = {"cuda": "CUDA GPU", "mps": "Apple GPU (MPS)", "xpu": "Intel GPU (XPU)"}
_OTHER_WORDS = {
    "gpu": "cuda",
    "nvidia": "cuda",
    "amd": "cuda",
    "rocm": "cuda",
    "hip": "cuda",
    "metal": "mps",
    "intel": "xpu",
}
"""Other words for devices, with torch's names of them. To torch, AMD's GPUs are cuda devices too."""


def require_name(device: str) -> None:
    """Raise SettingsError unless this is the name of one device. Whether it is there is found out when it is used."""
    if _NAME.fullmatch(device):
        return
    if re.fullmatch(r"\d\d?", device):
        raise SettingsError(f"`device` {device!r:.60} is a number without its kind; pass cuda:{int(device)}")
    if device in _OTHER_WORDS:
        raise SettingsError(f"`device` {device!r:.60} is not a name that torch knows; pass {_OTHER_WORDS[device]}")
    if re.search(r"[,+;]|\d-\d", device):
        raise SettingsError(
            f"`device` {device!r:.60} names several devices, but a process uses one: pass one of them; a target that does not fit there can be "
            "divided among several GPUs (`treeopt evaluate` with `tensor_parallel`) or offloaded (`treeopt evaluate` with `offload`)"
        )
    raise SettingsError(f"`device` {device!r:.60} is not one of {_KINDS}")


def find(device: str) -> "torch.device":
    """Return the device of this name. Raises SettingsError for other names, and ModelError if this machine does not have it."""
    import torch

    require_name(device)
    where = torch.device(device)
    if where.type == "cpu":
        return where
    there = torch.get_device_module(where)
    count = there.device_count() if there.is_available() else 0
    if not count:
        word, others = _WORDS[where.type], _others(where.type)
        raise ModelError(f"device {device} was asked for, but this torch ({torch.__version__}) finds no {word}; use `device` {others}")
    if (where.index or 0) >= count:
        word, last = _WORDS[where.type], f"{where.type}:{count - 1}"
        had = f"is 1 {word}, {last}; use that" if count == 1 else f"are {count} of kind {word}, {where.type}:0 to {last}; use one of these"
        raise ModelError(f"device {device} was asked for, but there {had}")
    return where


def half_precision(where: "torch.device") -> "torch.dtype":
    """Return bfloat16 if the device computes with it, because it has the range of float32, else float16."""
    import torch

    from treespec.kernels.device import on

    if where.type == "mps":
        known = torch.backends.mps.is_macos_or_newer(14, 0)
    else:
        with on(where):
            known = torch.get_device_module(where).is_bf16_supported()
    return torch.bfloat16 if known else torch.float16


def memory_is_full(error: RuntimeError) -> bool:
    """Return whether torch says by this error that a device has no memory left; each kind of device says it in its own way."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error)


def _others(kind: str) -> str:
    """Return the kinds of devices that this machine has besides one."""
    import torch

    return " or ".join(["cpu", *(name for name in _WORDS if name != kind and torch.get_device_module(name).is_available())])
