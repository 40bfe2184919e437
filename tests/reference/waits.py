"""Which operations make the host wait for the device: seen on any device, by the operations that are dispatched."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique_dim", "_unique2", "repeat_interleave")


class Waits(TorchDispatchMode):
    """Collects the names of operations that read a value on the host, have a shape that depends on values, or copy a number to
    the device (as `x[0] = 1` does where `x[0]` has no dimension; numbers for slices are arguments of a kernel).

    Not within `torch.inference_mode`, where some of them do not come by. `tolist` on the CPU never does.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._numbers: list[torch.Tensor] = []

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        masks = name == "index" and any(index is not None and index.dtype == torch.bool for index in args[1])
        copies = name == "copy_" and any(args[1] is number for number in self._numbers)
        if name in WAITING or masks or copies:
            self.found.append(name)
        result = func(*args, **(kwargs or {}))
        if name == "lift_fresh":
            self._numbers.append(result)
        return result
