"""Rows exchanged between processes: the sum of all parts and its norm, in each of them the same bits, call after call."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.reference.ranks import of_ranks
from treespec.kernels.peers import Peers, add_norm_of_peers
from treespec.kernels.pointwise import add_norm, reference_add_norm
from treespec.kernels.product import Norm

ROWS, INNER = 5, 12
COUNTS = (5, 2, 5, 1, 3, 5, 4)
"""The rows of calls, one behind another, so that those of a row do not all take the same buffer."""
NORM = Norm(torch.linspace(0.5, 1.5, INNER), 1e-2)


def of(what: str, call: int, rank: int, dtype: torch.dtype) -> Tensor:
    """x of a call, which is the same in all processes, or the part of one of them."""
    seed = 100 * call + (0 if what == "x" else 1 + rank)
    return torch.randn(COUNTS[call], INNER, generator=torch.Generator().manual_seed(seed)).to(dtype)


def shared_memory(size: int, dtype: torch.dtype, begin: int) -> tuple[list[Tensor], list[Tensor]]:
    """The buffers and the flags of all processes, after so many calls: forked ones see them at the same addresses."""
    buffers = [torch.full((2, ROWS * INNER), float("nan"), dtype=dtype).share_memory_() for _ in range(size)]
    return buffers, [torch.full((ROWS, size), begin, dtype=torch.int32).share_memory_() for _ in range(size)]


def in_a_rank(size: int, dtype: torch.dtype, buffers: list[Tensor], flags: list[Tensor], begin: int) -> list[tuple[Any, ...]]:
    import os

    rank = int(os.environ["RANK"])
    addresses = (torch.tensor([memory.data_ptr() for memory in each]) for each in (buffers, flags))
    calls = torch.full((ROWS,), begin, dtype=torch.int32)
    peers = Peers(rank, *addresses, calls, ROWS * INNER, dtype)
    norm = replace(NORM, weight=NORM.weight.to(dtype))
    found = []
    for call in range(len(COUNTS)):
        total, out = add_norm_of_peers(of("x", call, 0, dtype), norm, of("part", call, rank, dtype), peers)
        found.append((total.numpy(), out.numpy()))
    assert [(after - begin) % (1 << 32) for after in calls.tolist()] == [sum(count > row for count in COUNTS) for row in range(ROWS)]
    return found


@pytest.mark.parametrize(
    ("size", "dtype", "begin"),
    [(2, torch.float16, 0), (3, torch.float32, 0), (2, torch.float32, 2**31 - 3)],
    ids=["two", "three", "calls begin again below zero"],
)
def test_every_process_gets_the_sum_of_all_parts(size: int, dtype: torch.dtype, begin: int) -> None:
    if torch.cuda.is_available():
        pytest.skip("processes are forked here, and a GPU needs others")
    ranks = of_ranks(size, in_a_rank, size, dtype, *shared_memory(size, dtype, begin), begin)
    for call in range(len(COUNTS)):
        parts = torch.stack([of("part", call, rank, dtype) for rank in range(size)])
        norm = replace(NORM, weight=NORM.weight.to(dtype))
        wanted = reference_add_norm(of("x", call, 0, dtype), norm, parts)
        for rank in ranks:
            for found, exact in zip(rank[call], wanted, strict=True):
                assert torch.allclose(torch.from_numpy(found), exact, rtol=2e-3, atol=2e-3)
            assert all((mine == first).all() for mine, first in zip(rank[call], ranks[0][call], strict=True))
        plain = add_norm(of("x", call, 0, dtype), norm, parts)
        assert all((mine == one.numpy()).all() for mine, one in zip(ranks[0][call], plain, strict=True))
        assert not torch.allclose(wanted[0], reference_add_norm(of("x", call, 0, dtype), norm, parts[:1])[0], rtol=2e-3, atol=2e-3)


def test_what_fits() -> None:
    peers = Peers(0, torch.zeros(2), torch.zeros(2), torch.zeros(8, dtype=torch.int32), 32, torch.float16)
    assert peers.fit(torch.zeros(8, 4, dtype=torch.float16))
    assert not peers.fit(torch.zeros(9, 2, dtype=torch.float16))
    assert not peers.fit(torch.zeros(8, 5, dtype=torch.float16))
    assert not peers.fit(torch.zeros(8, 4))
