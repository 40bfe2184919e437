"""Queries, keys and values in one launch against the twin in float32, in caches whose other slots must keep what they hold."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import triton
from torch import Tensor

from treespec.kernels.device import Gpu
from treespec.kernels.linear import linear
from treespec.kernels.product import LARGEST, Stream, Workspace
from treespec.kernels.product_tiles import Tiling, qkv_tiling
from treespec.kernels.qkv import project, reference_project
from treespec.kernels.rotary import rotate_and_store

BOUNDS = {torch.float16: 2e-3, torch.bfloat16: 1e-2, torch.float32: 1e-5}
"""On ||out - exact|| / ||exact||."""
DTYPES = pytest.mark.parametrize("dtype", [torch.float16, torch.float32])


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is allocated holds NaN, so that an element that is not written shows."""
    empty: Callable[..., Tensor] = torch.empty

    def poisoned(*size: Any, **options: Any) -> Tensor:
        out = empty(*size, **options)
        return out.fill_(torch.nan) if out.is_floating_point() else out

    monkeypatch.setattr(torch, "empty", poisoned)


@dataclass(frozen=True)
class Case:
    x: Stream
    weight: Tensor
    bias: Tensor | None
    length: Tensor
    depths: Tensor
    rows: Tensor
    cos: Tensor
    sin: Tensor
    keys: Tensor
    values: Tensor
    workspace: Workspace

    def run(self, tiling: Tiling | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """(queries, keys, values), the latter all of caches that are copies of ours and have the same strides."""
        keys, values = copy_of(self.keys), copy_of(self.values)
        where = (self.length, self.depths, self.rows, self.cos, self.sin, keys, values)
        query = project(self.x, self.weight, self.workspace, *where, bias=self.bias, tiling=tiling)
        return query, keys, values

    def exact(self) -> tuple[Tensor, Tensor, Tensor]:
        keys, values = self.keys.float(), self.values.float()
        x = replace(self.x, plain=self.x.plain.float(), weighted=self.x.weighted.float())
        where = (self.length, self.depths, self.rows, self.cos, self.sin, keys, values)
        bias = None if self.bias is None else self.bias.float()
        return reference_project(x, self.weight.float(), *where, bias=bias), keys, values


def copy_of(x: Tensor) -> Tensor:
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device).copy_(x)


def a_case(
    device: str,
    count: int,
    *,
    heads: int = 4,
    kv_heads: int = 2,
    dim: int = 32,
    inner: int = 64,
    prefix: int = 5,
    positions: int = 200,
    capacity: int = 90,
    parts: int = 3,
    bias: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Case:
    """Random operands; nodes at random depths that go to slots in a random order, some of which stay free."""
    draw = torch.Generator(device).manual_seed(count + 100 * dim + 10000 * inner)
    columns = (heads + 2 * kv_heads) * dim

    def some(*size: int, like: float = 1.0, mean: float = 0.0) -> Tensor:
        return (torch.randn(*size, generator=draw, device=device) * like + mean).to(dtype)

    plain, weight = some(count, inner, like=2.0), some(inner, like=0.3, mean=1.0)
    squares = torch.stack([part.float().square().sum(-1) for part in plain.tensor_split(parts, dim=-1)], dim=-1)
    angles = torch.arange(positions, device=device)[:, None] * 0.7 ** torch.arange(dim // 2, device=device)
    return Case(
        Stream(plain, (plain.float() * weight.float()).to(dtype), squares, 1e-2),
        some(columns, inner, like=inner**-0.5),
        some(columns) if bias else None,
        torch.tensor([prefix], device=device),
        torch.randint(9, (count,), generator=draw, device=device),
        torch.randperm(count + 3, generator=draw, device=device)[:count],
        angles.cos(),
        angles.sin(),
        some(kv_heads, capacity, dim),
        some(kv_heads, capacity, dim),
        Workspace(torch.device(device)),
    )


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact.double()).norm() / exact.double().norm())


def agree(case: Case, tiling: Tiling | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """The kernel is its twin, repeats to the bit where splits meet, and leaves counters and other slots as they were."""
    found, exact = case.run(tiling), case.exact()
    slots = case.length + case.rows
    others = torch.ones(case.keys.shape[1], dtype=torch.bool, device=slots.device).index_fill_(0, slots, False)
    dtype = case.weight.dtype
    assert found[0].shape == exact[0].shape
    assert found[0].dtype == dtype
    assert found[0].is_contiguous()
    assert error(found[0], exact[0]) < BOUNDS[dtype]
    for one, other, before in zip(found[1:], exact[1:], (case.keys, case.values), strict=True):
        assert error(one[:, slots], other[:, slots]) < BOUNDS[dtype]
        assert torch.equal(one[:, others], before[:, others])
    if tiling is None or tiling.splits > 1:
        for one, again in zip(found, case.run(tiling), strict=True):
            assert torch.equal(again, one)
    assert not case.workspace.counters.any()
    return found


# -- the twin -----------------------------------------------------------------------------------------------------------


def test_the_twin_is_three_layers_and_a_complex_product() -> None:
    case = a_case("cpu", 5, dim=8, bias=True)
    query, keys, values = case.exact()
    mean = case.x.plain.square().mean(-1, keepdim=True)
    x = case.x.weighted / (mean + case.x.epsilon).sqrt()
    assert case.bias is not None
    q, k, v = (x @ case.weight.T + case.bias).view(5, 8, 8).tensor_split([4, 6], dim=1)
    for node in range(5):
        position, slot = case.length + case.depths[node], int(case.length + case.rows[node])
        turn = torch.complex(case.cos[position], case.sin[position])
        for found, part in ((query[node], q[node]), (keys[:, slot], k[node])):
            turned = torch.complex(part[:, :4], part[:, 4:]) * turn
            torch.testing.assert_close(found, torch.cat([turned.real, turned.imag], dim=-1))
        torch.testing.assert_close(values[:, slot], v[node])


# -- the kernel ---------------------------------------------------------------------------------------------------------


@DTYPES
@pytest.mark.parametrize(("count", "splits"), [(1, 1), (1, 3), (16, 4), (17, 1), (17, 2), (64, 1), (64, 2), (64, 4)])
def test_rows_and_splits(device: str, count: int, splits: int, dtype: torch.dtype) -> None:
    agree(a_case(device, count, heads=1, kv_heads=1, inner=128, bias=splits == 2, dtype=dtype), Tiling(16, 32, splits, 4, 2))


@pytest.mark.parametrize("splits", [1, 2])
def test_several_blocks_of_rows(device: str, splits: int) -> None:
    agree(a_case(device, 37, heads=2, kv_heads=1, inner=128, bias=True), Tiling(16, 32, splits, 4, 2, rows=16))


@pytest.mark.parametrize(("dim", "columns"), [(8, 16), (20, 16), (40, 16), (64, 16), (96, 32), (64, 24), (128, 48), (32, 12)])
def test_tiles_that_end_anywhere_in_heads(device: str, dim: int, columns: int) -> None:
    agree(a_case(device, 3, heads=1, kv_heads=1, dim=dim, bias=True), Tiling(columns, 32, 2, 4, 2))


@DTYPES
@pytest.mark.parametrize("columns", [12, 24, 40, 64])
def test_tiles_of_queries_keys_and_values_at_once(device: str, columns: int, dtype: torch.dtype) -> None:
    agree(a_case(device, 19, heads=3, kv_heads=2, dim=32, bias=True, dtype=dtype), Tiling(columns, 32, 1, 4, 2))


@DTYPES
@pytest.mark.parametrize("splits", [1, 4])
@pytest.mark.parametrize("inner", [16, 31, 100])
def test_inner_sizes_that_fill_no_tile_and_splits_that_get_nothing(device: str, inner: int, splits: int, dtype: torch.dtype) -> None:
    agree(a_case(device, 3, heads=1, kv_heads=1, inner=inner, dtype=dtype), Tiling(16, 32, splits, 4, 3))


@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (3, 3), (6, 2), (7, 1)])
def test_groups(device: str, heads: int, kv_heads: int) -> None:
    agree(a_case(device, 2, heads=heads, kv_heads=kv_heads), Tiling(16, 64, 1, 4, 2))


@pytest.mark.parametrize("parts", [1, 2, 64])
def test_squares_in_any_number_of_parts(device: str, parts: int) -> None:
    agree(a_case(device, 5, heads=1, kv_heads=1, parts=parts), Tiling(16, 64, 1, 4, 2))


@DTYPES
def test_the_usual_tiling(device: str, dtype: torch.dtype) -> None:
    agree(a_case(device, 5, heads=2, kv_heads=1, dim=48, inner=160, dtype=dtype))


def test_positions_beyond_the_table_are_its_last(device: str) -> None:
    case = a_case(device, 7, positions=9)
    assert int((case.length + case.depths).max()) > 8
    found = agree(case)
    longer = replace(case, cos=case.cos.repeat(3, 1), sin=case.sin.repeat(3, 1), depths=case.depths.clamp_max(3))
    for one, other in zip(longer.run(), found, strict=True):
        assert torch.equal(one, other)


def test_strides_of_caches(device: str) -> None:
    case = a_case(device, 4)
    rows = torch.stack([case.keys.transpose(0, 1), case.values.transpose(0, 1)], dim=2)  # [capacity, kv_heads, 2, dim]
    keys, values = (each.transpose(0, 1) for each in rows.unbind(2))
    other = replace(case, keys=keys, values=values)
    where = (case.length, case.depths, case.rows, case.cos, case.sin)
    expected = agree(case)
    query = project(other.x, other.weight, other.workspace, *where, keys, values)
    for one, two in zip((query, keys, values), expected, strict=True):
        assert torch.equal(one, two)


def test_it_is_the_product_and_what_was_a_launch_of_its_own(device: str) -> None:
    case = a_case(device, 9, bias=True)
    keys, values = case.keys.clone(), case.values.clone()
    qkv = linear(case.x, case.weight, case.workspace, bias=case.bias)
    query = rotate_and_store(qkv, case.length, case.depths, case.rows, case.cos, case.sin, keys, values)
    for one, other in zip(case.run(), (query, keys, values), strict=True):
        torch.testing.assert_close(one, other)


# -- mistakes -----------------------------------------------------------------------------------------------------------


def test_a_wrong_depth_shows_in_the_queries_and_keys_of_its_node_alone(device: str) -> None:
    case = a_case(device, 6, dtype=torch.float16)
    right, slots = agree(case), case.length + case.rows
    case.depths[4] += 1
    query, keys, values = case.run()
    others = torch.arange(6, device=device) != 4
    assert torch.equal(query[others], right[0][others])
    assert torch.equal(keys[:, slots[others]], right[1][:, slots[others]])
    assert torch.equal(values, right[2])
    assert error(query[4], right[0][4]) > 20 * BOUNDS[torch.float16]
    assert error(keys[:, slots[4]], right[1][:, slots[4]]) > 20 * BOUNDS[torch.float16]


@pytest.mark.parametrize(("head", "place"), [(1, 0), (4, 1), (7, 2)])
def test_a_wrong_weight_shows_in_its_head_alone(device: str, head: int, place: int) -> None:
    """Of a query, a key and a value."""
    case = a_case(device, 6, dtype=torch.float16)
    right, slots = agree(case), case.length + case.rows
    case.weight[head * 32 + 20, 63] += 1.0
    found = [each if at == 0 else each[:, slots].transpose(0, 1) for at, each in enumerate(case.run())]
    before = [each if at == 0 else each[:, slots].transpose(0, 1) for at, each in enumerate(right)]
    whole, expected = torch.cat(found, dim=1), torch.cat(before, dim=1)
    others = torch.arange(8, device=device) != head
    assert torch.equal(whole[:, others], expected[:, others])
    assert error(whole[:, head], expected[:, head]) > 20 * BOUNDS[torch.float16]
    same = [torch.equal(one, other) for one, other in zip(found, before, strict=True)]
    assert same == [at != place for at in range(3)]


def test_planted_mistakes_are_seen(device: str) -> None:
    case = a_case(device, 6, bias=True)
    right, slots = agree(case), case.length + case.rows
    assert case.bias is not None
    for wrong in (
        replace(case, sin=-case.sin),
        replace(case, length=case.length + 1),
        replace(case, rows=case.rows.roll(1)),
        replace(case, bias=case.bias.roll(1)),
        replace(case, x=replace(case.x, squares=case.x.squares[:, :2].contiguous())),
        replace(case, x=replace(case.x, epsilon=0.1)),
    ):
        query, keys, values = wrong.exact()
        pairs = ((query, right[0]), (keys[:, slots], right[1][:, slots]), (values[:, slots], right[2][:, slots]))
        assert max(error(one, other) for one, other in pairs) > 20 * BOUNDS[torch.float32]


# -- how it is launched -------------------------------------------------------------------------------------------------


@DTYPES
@pytest.mark.parametrize(("heads", "dim", "inner"), [(96, 128, 4096), (48, 128, 4096), (18, 64, 896), (32, 128, 1024), (12, 256, 2560)])
def test_tilings_fill_the_device_with_equal_shares(heads: int, dim: int, inner: int, dtype: torch.dtype) -> None:
    for count in (1, 16, 32, 33, LARGEST):
        plan = qkv_tiling(count, heads, dim, inner, dtype)
        assert all(n & (n - 1) == 0 for n in (plan.inner, plan.splits, plan.warps))
        assert plan.stages * plan.inner * dtype.itemsize * (2 * triton.next_power_of_2(plan.columns) + max(16, count)) < 220_000
        if dtype == torch.float16:
            programs = triton.cdiv(heads * dim // 2, plan.columns) * triton.cdiv(count, plan.rows or LARGEST) * plan.splits
            assert programs >= 96 or inner // plan.splits < 1024
            assert programs <= Gpu().multiprocessors or plan.columns == 16


# -- on a GPU -----------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "inner", "bias"),
    [(32, 32, 4096, False), (32, 8, 4096, False), (28, 4, 3584, True)],
    ids=["llama-2-7b", "llama-3-8b", "qwen2-7b"],
)
def test_large(device: str, heads: int, kv_heads: int, inner: int, bias: bool, dtype: torch.dtype) -> None:
    for count in (1, 5, 16, 17, 33, 64):
        case = a_case(
            device,
            count,
            heads=heads,
            kv_heads=kv_heads,
            dim=128,
            inner=inner,
            prefix=1900,
            positions=2048,
            capacity=2048,
            parts=64,
            bias=bias,
            dtype=dtype,
        )
        agree(case)


@pytest.mark.gpu
@pytest.mark.parametrize("splits", [1, 2, 4])
@pytest.mark.parametrize("dim", [64, 96, 128])
def test_large_tilings(device: str, dim: int, splits: int) -> None:
    for columns, inner, warps in ((16, 128, 4), (24, 128, 4), (32, 64, 4), (48, 128, 4), (64, 64, 8)):
        for count in (3, 64):
            case = a_case(device, count, heads=16, kv_heads=4, dim=dim, inner=2048, capacity=100, dtype=torch.float16)
            agree(case, Tiling(columns, inner, splits, warps, 4))


@pytest.mark.gpu
def test_a_captured_graph_follows_its_inputs(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    case = a_case(device, 9, heads=8, dim=128, inner=2048, capacity=1000, dtype=torch.float16)
    where = (case.length, case.depths, case.rows, case.cos, case.sin, case.keys, case.values)

    def run() -> Tensor:
        return project(case.x, case.weight, case.workspace, *where)

    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = run()
    for prefix in (100, 150, 700):
        case.length.fill_(prefix)
        case.rows.copy_(torch.randperm(9, device=device))
        case.x.weighted.copy_(torch.randn_like(case.x.weighted))
        graph.replay()
        for one, other in zip((found, case.keys, case.values), case.exact(), strict=True):
            assert error(one, other) < BOUNDS[torch.float16]


@pytest.mark.gpu
def test_no_tree_and_no_cache_needs_another_compilation(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []

    def run(count: int, parts: int, splits: int, positions: int, capacity: int) -> None:
        case = a_case(device, count, dim=64, inner=1024, positions=positions, capacity=capacity, parts=parts, dtype=torch.float16)
        case.run(Tiling(32, 64, splits, 4, 4))

    run(7, 5, 3, 77, 99)
    monkeypatch.setattr(triton.knobs.runtime, "jit_post_compile_hook", lambda **facts: compiled.append(facts["repr"]))
    for sizes in ((1, 6, 2, 64, 64), (2, 7, 4, 1, 101), (8, 8, 8, 200, 1024), (16, 8, 16, 333, 77)):
        run(*sizes)
    assert compiled == []
