"""Tensors that say they are on a CUDA GPU, so that `dispatch` chooses kernels; where there is no GPU, Triton's interpreter runs these."""

import torch
from torch import Tensor


class OnCuda(Tensor):
    """Stays such a tensor through slices and operations."""

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True


def on_cuda(values: Tensor) -> Tensor:
    """The same values, on the CPU, as they would be on a GPU."""
    return values.as_subclass(OnCuda)


def seeds(generator: torch.Generator | None, count: int, device: torch.device) -> Tensor:
    """What `dispatch.seeds` draws on a GPU."""
    return torch.empty(count, dtype=torch.int64).random_(generator=generator)
