"""Triton's interpreter as tests have it: it replaces the names of its language once per launch, and puts them back."""

from typing import Any

import pytest
import torch
from triton import language
from triton.runtime import interpreter

from treespec.kernels.vocabulary import reference_top_tokens, top_tokens


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels run on the GPU")
def test_names_are_replaced_once_per_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Although the kernels call device functions over and over. If this fails, all tests of kernels take twice as long."""
    replaced: list[Any] = []
    launches: list[Any] = []
    replace, launch, load = interpreter._patch_builtin, interpreter.GridExecutor.__call__, language.load
    monkeypatch.setattr(interpreter, "_patch_builtin", lambda package, *rest: replaced.append(package) or replace(package, *rest))
    monkeypatch.setattr(
        interpreter.GridExecutor, "__call__", lambda grid, *rest, **more: launches.append(grid) or launch(grid, *rest, **more)
    )
    logits = torch.randn(2, 300, generator=torch.Generator().manual_seed(0))
    found, wanted = top_tokens(logits, 5), reference_top_tokens(logits, 5)
    assert 0 < replaced.count(language) <= len(launches)
    assert language.load is load
    for one, other in zip(found, wanted, strict=True):
        assert one.tolist() == other.tolist()
