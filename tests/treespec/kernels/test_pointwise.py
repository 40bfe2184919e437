"""Norms, gates, rotary positions, stored and moved K/V rows: single launches against their twins."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from treespec.kernels.pointwise import add_norm, gate, move_rows, reference_add_norm, reference_gate, reference_move_rows
from treespec.kernels.product import Norm
from treespec.kernels.rotary import reference_rotate_and_store, rotate_and_store

BOUNDS = {torch.float16: 2e-3, torch.bfloat16: 1e-2, torch.float32: 1e-5}
"""On ||out - twin|| / ||twin||."""
DTYPES = pytest.mark.parametrize("dtype", [torch.float16, torch.float32])


def some(*size: int, device: str, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed + sum(size))).to(device, dtype)


def close(found: Tensor, wanted: Tensor) -> bool:
    return found.dtype == wanted.dtype and float((found.double() - wanted.double()).norm()) <= BOUNDS[found.dtype] * float(
        wanted.double().norm()
    )


@DTYPES
@pytest.mark.parametrize("inner", [16, 96, 100])
@pytest.mark.parametrize("parts", [(), (5,), (1, 5), (2, 5), (3, 5)])
def test_a_norm_of_a_sum(inner: int, parts: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    x = some(5, inner, device=device, dtype=dtype)
    delta = some(*parts, inner, device=device, dtype=dtype, seed=1) if parts else None
    norm = Norm(some(inner, device=device, dtype=dtype) + 1, 1e-2)
    for found, wanted in zip(add_norm(x, norm, delta), reference_add_norm(x, norm, delta), strict=True):
        assert close(found, wanted)
    if delta is not None:
        assert torch.equal(reference_add_norm(x, norm, delta)[0], (x.float() + delta.float().reshape(-1, 5, inner).sum(0)).to(dtype))
        assert not close(add_norm(x, norm, delta.roll(1, dims=-2))[0], reference_add_norm(x, norm, delta)[0])
    wrong = replace(norm, epsilon=1.0)
    assert not close(add_norm(x, wrong, delta)[1], reference_add_norm(x, norm, delta)[1])


@DTYPES
@pytest.mark.parametrize("inner", [7, 1024, 1500])
def test_gates(inner: int, dtype: torch.dtype, device: str) -> None:
    x = 3 * some(3, 2 * inner, device=device, dtype=dtype)
    assert close(gate(x), reference_gate(x))
    assert not close(gate(x), reference_gate(x.roll(inner, dims=1)))


@dataclass(frozen=True)
class Rows:
    """Nodes in scattered slots behind a prefix."""

    qkv: Tensor
    length: Tensor
    depths: Tensor
    rows: Tensor
    cos: Tensor
    sin: Tensor
    keys: Tensor
    values: Tensor
    norms: tuple[Norm, Norm] | None

    @classmethod
    def of(cls, heads: int, kv_heads: int, dim: int, normed: bool, device: str, dtype: torch.dtype, nodes: int = 6) -> "Rows":
        angles = torch.arange(40, device=device)[:, None] * 0.8 ** torch.arange(dim // 2, device=device)
        norms = tuple(Norm(some(dim, device=device, dtype=dtype, seed=seed) + 1, 10.0**-seed) for seed in (1, 2))
        return cls(
            some(nodes, (heads + 2 * kv_heads) * dim, device=device, dtype=dtype),
            torch.tensor([11], device=device),
            torch.tensor([0, 1, 1, 2, 2, 3], device=device)[:nodes],
            torch.tensor([0, 5, 2, 3, 9, 1], device=device)[:nodes],
            angles.cos(),
            angles.sin(),
            some(kv_heads, 40, dim, device=device, dtype=dtype, seed=5),
            some(kv_heads, 40, dim, device=device, dtype=dtype, seed=6),
            (norms[0], norms[1]) if normed else None,
        )

    def run(self, twin: bool) -> tuple[Tensor, Tensor, Tensor]:
        keys, values = self.keys.clone(), self.values.clone()
        function = reference_rotate_and_store if twin else rotate_and_store
        query = function(self.qkv, self.length, self.depths, self.rows, self.cos, self.sin, keys, values, self.norms)
        return query, keys, values


@DTYPES
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 2, 16), (5, 5, 48), (8, 1, 64), (3, 3, 20)])
def test_heads_are_turned_and_stored(heads: int, kv_heads: int, dim: int, normed: bool, dtype: torch.dtype, device: str) -> None:
    case = Rows.of(heads, kv_heads, dim, normed, device, dtype)
    found, wanted = case.run(False), case.run(True)
    assert all(close(one, other) for one, other in zip(found, wanted, strict=True))
    untouched = torch.ones(40, dtype=torch.bool, device=device).index_fill_(0, case.length + case.rows, False)
    assert torch.equal(found[1][:, untouched], case.keys[:, untouched])
    assert torch.equal(found[2][:, untouched], case.values[:, untouched])


def test_planted_mistakes_in_positions_slots_and_norms_are_seen(device: str) -> None:
    case = Rows.of(4, 2, 16, True, device, torch.float32)
    wanted = case.run(True)
    assert case.norms is not None
    for wrong in (
        replace(case, depths=case.depths + 1),
        replace(case, rows=case.rows.roll(1)),
        replace(case, length=case.length - 1),
        replace(case, sin=-case.sin),
        replace(case, norms=case.norms[::-1]),
    ):
        assert not all(close(one, other) for one, other in zip(wrong.run(False), wanted, strict=True))


def test_positions_beyond_the_table_are_its_last(device: str) -> None:
    case = Rows.of(4, 2, 16, False, device, torch.float32)
    short = replace(case, cos=case.cos[:12], sin=case.sin[:12])
    assert all(close(one, other) for one, other in zip(short.run(False), short.run(True), strict=True))


@DTYPES
@pytest.mark.parametrize("source", [[2, 5, 6], [1, 2, 3], [], [7], [3, 3, 3, 3, 3]])
def test_rows_move_as_if_all_were_read_first(source: list[int], dtype: torch.dtype, device: str) -> None:
    storage = some(3, 1, 2, 30, 20, device=device, dtype=dtype)
    found, wanted = storage.clone(), storage.clone()
    length, rows = torch.tensor([9], device=device), torch.tensor(source, dtype=torch.int64, device=device)
    move_rows(found, length, rows, 1)
    reference_move_rows(wanted, length, rows, 1)
    assert torch.equal(found, wanted)
    assert torch.equal(found, storage) == (source in ([], [1, 2, 3]))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_sizes_of_models(dtype: torch.dtype, device: str) -> None:
    x, delta = some(300, 4096, device=device, dtype=dtype), some(300, 4096, device=device, dtype=dtype, seed=1)
    norm = Norm(some(4096, device=device, dtype=dtype) + 1, 1e-5)
    for found, wanted in zip(add_norm(x, norm, delta), reference_add_norm(x, norm, delta), strict=True):
        assert close(found, wanted)
    gates = some(300, 22016, device=device, dtype=dtype)
    assert close(gate(gates), reference_gate(gates))
    for heads, kv_heads, dim in ((32, 32, 128), (32, 8, 128), (12, 12, 64), (16, 8, 256)):
        case = Rows.of(heads, kv_heads, dim, True, device, dtype)
        assert all(close(one, other) for one, other in zip(case.run(False), case.run(True), strict=True))
    storage = some(64, 1, 32, 500, 128, device=device, dtype=dtype)
    found, wanted = storage.clone(), storage.clone()
    rows = torch.tensor([1, 5, 6, 40, 41, 63, 100, 101, 102], device=device)
    for _ in range(20):
        move_rows(found, torch.tensor([300], device=device), rows, 1)
        reference_move_rows(wanted, torch.tensor([300], device=device), rows, 1)
        assert torch.equal(found, wanted)
