"""Sums over programs that share a row: exact where they must be, whatever their size, and the same in any order."""

import math

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from treespec.kernels.exchange import MOST_SPLITS, receive, receive_exactly, send, send_exactly, splits_of

SIZES = (1.0, 1e-6, 1e-18, 1e-30, 1e-37, 1e-43)


@triton.jit
def _sum(parts, words, out, COUNT: tl.constexpr, EXACTLY: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    for place in range(COUNT):
        part = tl.load(parts + place)
        if EXACTLY:
            send_exactly(words, part)
        else:
            send(words, part)
    tl.store(out, receive_exactly(words, COUNT) if EXACTLY else receive(words, COUNT))


def summed(parts: Tensor, *, exactly: bool) -> float:
    words, out = torch.zeros(4, dtype=torch.int64, device=parts.device), torch.zeros(1, device=parts.device)
    _sum[(1,)](parts, words, out, COUNT=len(parts), EXACTLY=exactly)
    return float(out)


def parts_of(size: float, count: int, device: str) -> Tensor:
    parts = torch.rand(count, generator=torch.Generator().manual_seed(count)) * size / count
    parts[count // 2] = 0.0
    return parts.to(device)


@pytest.mark.parametrize("count", [1, 2, 13, MOST_SPLITS])
@pytest.mark.parametrize("size", SIZES)
def test_small_sums_lose_nothing(size: float, count: int, device: str) -> None:
    parts = parts_of(size, count, device)
    exact = math.fsum(parts.tolist())
    assert summed(parts, exactly=True) == torch.tensor(exact).item()
    assert summed(parts, exactly=False) == pytest.approx(exact, rel=1e-6, abs=count * 2.0**-54)


@pytest.mark.parametrize("exactly", [False, True])
def test_sums_of_parts_of_other_sizes_do_not_depend_on_the_order(exactly: bool, device: str) -> None:
    parts = torch.cat([parts_of(size, 9, device) for size in SIZES])
    found = {summed(parts[torch.randperm(len(parts), generator=torch.Generator().manual_seed(seed))], exactly=exactly) for seed in range(3)}
    assert len(found) == 1
    assert found.pop() == pytest.approx(math.fsum(parts.tolist()), rel=1e-6)


def test_a_part_may_be_all_there_is(device: str) -> None:
    for exactly in (False, True):
        assert summed(torch.ones(1, device=device), exactly=exactly) == 1.0


def test_a_row_is_shared_by_no_more_programs_than_a_device_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    from treespec.kernels import exchange
    from treespec.kernels.device import Gpu

    for multiprocessors in (132, 20):
        monkeypatch.setattr(exchange, "gpu_of", lambda device, count=multiprocessors: Gpu(count))
        for columns in (1, 2048, 2049, 32_000, 151_936, 262_144):
            splits, block, warps = splits_of(columns, 2048, 4, torch.device("cuda"))
            assert splits <= min(multiprocessors, MOST_SPLITS)
            assert (splits - 1) * block < columns <= splits * block
            assert block // warps <= 2048 // 4 or warps == 32
