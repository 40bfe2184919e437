"""What tests of several kernels share."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """New memory holds 0x5A5A...: a large maximum, no token, no node."""
    empty: Callable[..., Tensor] = torch.empty

    def poisoned(*shape: Any, **options: Any) -> Tensor:
        out = empty(*shape, **options)
        out.untyped_storage().fill_(0x5A)  # type: ignore[attr-defined]
        return out

    monkeypatch.setattr(torch, "empty", poisoned)
