"""Products for few rows against their twins in float32, and the twins against layers as torch writes them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from treespec.kernels.device import Gpu
from treespec.kernels.linear import linear, linear_add, reference_linear, reference_linear_add, reference_start, start
from treespec.kernels.product import LARGEST, Norm, Stream, Tile, Workspace
from treespec.kernels.product_tiles import Tiling, linear_tiling, prefetched, shares, tile_of

BOUNDS = {torch.float16: 2e-3, torch.bfloat16: 1e-2, torch.float32: 1e-5}
"""On ||out - exact|| / ||exact||."""
DTYPES = pytest.mark.parametrize("dtype", [torch.float16, torch.float32])


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is allocated holds NaN, so that an element that is not written shows."""

    def poisoned(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def made(*args: Any, **options: Any) -> Tensor:
            out = make(*args, **options)
            return out.fill_(torch.nan) if out.is_floating_point() else out

        return made

    monkeypatch.setattr(torch, "empty", poisoned(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))


@dataclass(frozen=True)
class Case:
    x: Tensor
    stream: Stream
    weight: Tensor
    bias: Tensor
    residual: Tensor
    norm: Norm
    """Of the residual stream after the product."""
    workspace: Workspace

    def linear(self, x: Tensor | Stream | None = None, **options: Any) -> Tensor:
        return linear(self.x if x is None else x, self.weight, self.workspace, **options)

    def linear_add(self, **options: Any) -> Stream:
        return linear_add(self.x, self.weight, self.residual, self.norm, self.workspace, **options)


def a_case(
    device: str,
    rows: int,
    columns: int,
    inner: int,
    dtype: torch.dtype = torch.float32,
    *,
    gated: bool = False,
    parts: int = 1,
) -> Case:
    """Random operands of deviation near one, but for the weights, which keep it; the stream is `x` before a norm."""
    draw = torch.Generator(device).manual_seed(rows + 100 * columns + 10000 * inner)

    def some(*size: int, like: float = 1.0, mean: float = 0.0) -> Tensor:
        return (torch.randn(*size, generator=draw, device=device) * like + mean).to(dtype)

    def norm(size: int) -> Norm:
        return Norm(some(size, like=0.3, mean=1.0), 1e-2)

    out = columns * (2 if gated else 1)
    return Case(
        some(rows, inner),
        a_stream(some(rows, inner, like=2.0), norm(inner), parts),
        some(out, inner, like=inner**-0.5),
        some(out),
        some(rows, columns),
        norm(columns),
        Workspace(torch.device(device)),
    )


def a_stream(plain: Tensor, norm: Norm, parts: int = 1) -> Stream:
    squares = torch.stack([part.float().square().sum(-1) for part in plain.tensor_split(parts, dim=-1)], dim=-1)
    return Stream(plain, (plain.float() * norm.weight.float()).to(plain.dtype), squares, norm.epsilon)


def wide(x: Tensor | Stream) -> Any:
    return replace(x, plain=x.plain.float(), weighted=x.weighted.float()) if isinstance(x, Stream) else x.float()


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact.double()).norm() / exact.double().norm())


def agree(case: Case, x: Tensor | Stream | None = None, *, tiling: Tiling | None = None, **options: Any) -> Tensor:
    """`linear` is its twin, repeats to the bit, and leaves the counters as they were."""
    x = case.x if x is None else x
    found = case.linear(x, tiling=tiling, **options)
    bias = options.pop("bias", None)
    exact = reference_linear(wide(x), case.weight.float(), bias=None if bias is None else bias.float(), **options)
    assert found.shape == exact.shape
    assert found.dtype == case.weight.dtype
    assert error(found, exact) < BOUNDS[found.dtype]
    again = case.linear(x, tiling=tiling, bias=bias, **options)
    assert torch.equal(again, found)
    assert not case.workspace.counters.any()
    return found


def agree_to_add(case: Case, *, tiling: Tiling | None = None, bias: Tensor | None = None) -> Stream:
    """`linear_add` is its twin, and what it says of `plain` is so for `plain` as it is written."""
    found = case.linear_add(tiling=tiling, bias=bias)
    exact = reference_linear_add(case.x.float(), case.weight.float(), case.residual.float(), case.norm, bias=bias)
    dtype = case.residual.dtype
    assert found.plain.shape == found.weighted.shape == case.residual.shape
    assert found.plain.dtype == found.weighted.dtype == dtype
    assert found.epsilon == case.norm.epsilon
    assert error(found.plain, exact.plain) < BOUNDS[dtype]
    assert torch.equal(found.weighted, (found.plain.float() * case.norm.weight.float()).to(dtype))
    torch.testing.assert_close(found.squares.sum(1), found.plain.float().square().sum(-1), rtol=1e-5, atol=1e-5)
    again = case.linear_add(tiling=tiling, bias=bias)
    for one, other in zip((again.plain, again.weighted, again.squares), (found.plain, found.weighted, found.squares), strict=True):
        assert torch.equal(one, other)
    assert not case.workspace.counters.any()
    return found


# -- the twins ----------------------------------------------------------------------------------------------------------


def test_the_twin_of_a_stream_is_a_norm_and_a_layer() -> None:
    case = a_case("cpu", 5, 12, 30, parts=3)
    norm = Norm(torch.rand(30) + 0.5, 1e-2)
    normed = F.rms_norm(case.stream.plain, (30,), norm.weight, norm.epsilon)
    found = reference_linear(a_stream(case.stream.plain, norm, 3), case.weight, bias=case.bias)
    torch.testing.assert_close(found, F.linear(normed, case.weight, case.bias))


def test_the_twin_of_gates_is_two_layers() -> None:
    case = a_case("cpu", 5, 12, 30, gated=True)
    gate = F.linear(case.x, case.weight[:12], case.bias[:12])
    up = F.linear(case.x, case.weight[12:], case.bias[12:])
    torch.testing.assert_close(reference_linear(case.x, case.weight, bias=case.bias, gated=True), F.silu(gate) * up)


def test_the_twins_of_starting_and_adding_lead_to_the_norm_of_the_sum() -> None:
    case = a_case("cpu", 5, 30, 30)
    tokens = torch.tensor([3, 0, 4, 3, 1])
    for stream, plain in (
        (reference_start(case.residual, tokens, case.norm), case.residual[tokens]),
        (reference_linear_add(case.x, case.weight, case.residual, case.norm), F.linear(case.x, case.weight) + case.residual),
    ):
        torch.testing.assert_close(stream.plain, plain)
        normed = F.rms_norm(plain, (30,), case.norm.weight, case.norm.epsilon)
        torch.testing.assert_close(reference_linear(stream, torch.eye(30)), normed)


# -- the start ----------------------------------------------------------------------------------------------------------


@DTYPES
@pytest.mark.parametrize("inner", [16, 31, 100])
@pytest.mark.parametrize("rows", [1, 3, 64])
def test_start(device: str, rows: int, inner: int, dtype: torch.dtype) -> None:
    torch.manual_seed(rows)
    embedding = torch.randn(11, inner).to(device, dtype)
    tokens = torch.randint(11, (rows,)).to(device)
    norm = Norm((torch.rand(inner) + 0.5).to(device, dtype), 1e-3)
    found, expected = start(embedding, tokens, norm), reference_start(embedding, tokens, norm)
    assert torch.equal(found.plain, expected.plain)
    assert torch.equal(found.weighted, expected.weighted)
    torch.testing.assert_close(found.squares, expected.squares)
    assert found.epsilon == 1e-3


# -- the product --------------------------------------------------------------------------------------------------------


@DTYPES
@pytest.mark.parametrize("splits", [1, 2, 3, 4])
@pytest.mark.parametrize("rows", [1, 16, 17, 64])
def test_rows_and_splits(device: str, rows: int, splits: int, dtype: torch.dtype) -> None:
    case = a_case(device, rows, 40, 128, dtype, parts=3)
    agree(case, case.stream if splits % 2 else case.x, tiling=Tiling(32, 32, splits, 4, 2))


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("rows", [17, 32, 50])
def test_several_blocks_of_rows(device: str, rows: int, splits: int) -> None:
    """Blocks share no partial sums, and each has its own rows of the inputs, the residual and the squares."""
    tiling = Tiling(16, 32, splits, 4, 2, rows=16)
    case = a_case(device, rows, 40, 104, gated=True, parts=3)
    agree(case, case.stream, tiling=tiling, gated=True, bias=case.bias)
    agree_to_add(a_case(device, rows, 40, 104), tiling=tiling)


@DTYPES
@pytest.mark.parametrize("splits", [1, 4])
@pytest.mark.parametrize("inner", [16, 31, 100])
def test_inner_sizes_that_fill_no_tile_and_splits_that_get_nothing(device: str, inner: int, splits: int, dtype: torch.dtype) -> None:
    agree(a_case(device, 3, 16, inner, dtype, gated=True), tiling=Tiling(16, 32, splits, 4, 3), gated=True)


@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.parametrize("columns", [2, 33])
def test_columns_that_fill_no_tile(device: str, columns: int, splits: int) -> None:
    agree(a_case(device, 2, columns, 64, gated=True), tiling=Tiling(32, 32, splits, 4, 2), gated=True)
    agree_to_add(a_case(device, 2, columns, 64), tiling=Tiling(32, 32, splits, 4, 2))


@DTYPES
@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("tile", [4, 12, 20, 36])
def test_tiles_of_any_number_of_columns(device: str, tile: int, splits: int, dtype: torch.dtype) -> None:
    for columns in (tile, 2 * tile, 43):
        case = a_case(device, 3, columns, 96, dtype, gated=True)
        agree(case, case.stream, tiling=Tiling(tile, 32, splits, 4, 2), gated=True, bias=case.bias)
        agree_to_add(a_case(device, 3, columns, 96, dtype), tiling=Tiling(tile, 32, splits, 4, 2))


@DTYPES
@pytest.mark.parametrize("splits", [1, 3])
def test_gates_and_bias(device: str, splits: int, dtype: torch.dtype) -> None:
    case = a_case(device, 6, 24, 96, dtype, gated=True, parts=5)
    agree(case, case.stream, tiling=Tiling(16, 32, splits, 4, 2), gated=True, bias=case.bias)
    agree(case, case.x, tiling=Tiling(16, 32, splits, 4, 2), gated=True)


@pytest.mark.parametrize("splits", [1, 2])
def test_bias(device: str, splits: int) -> None:
    case = a_case(device, 6, 24, 64)
    plain = agree(case, tiling=Tiling(16, 32, splits, 4, 2))
    assert torch.allclose(agree(case, tiling=Tiling(16, 32, splits, 4, 2), bias=case.bias), plain + case.bias, atol=1e-5)


@pytest.mark.parametrize("parts", [1, 2, 5, 64])
def test_squares_in_any_number_of_parts(device: str, parts: int) -> None:
    case = a_case(device, 5, 32, 64, parts=parts)
    agree(case, case.stream)


@DTYPES
def test_the_usual_tiling(device: str, dtype: torch.dtype) -> None:
    case = a_case(device, 5, 70, 160, dtype, gated=True)
    agree(case, case.stream, gated=True)
    agree_to_add(a_case(device, 5, 70, 160, dtype))


def test_a_product_may_run_between_others_in_the_same_workspace(device: str) -> None:
    one, other = a_case(device, 3, 32, 128), a_case(device, 20, 16, 100)
    other = replace(other, workspace=one.workspace)
    for splits in (4, 2, 3):
        agree(one, tiling=Tiling(16, 32, splits, 4, 2))
        agree_to_add(other, tiling=Tiling(16, 32, splits, 4, 2))


# -- the product onto the stream ----------------------------------------------------------------------------------------


@DTYPES
@pytest.mark.parametrize("splits", [1, 2, 3, 4])
@pytest.mark.parametrize("rows", [1, 64])
def test_adding_rows_and_splits(device: str, rows: int, splits: int, dtype: torch.dtype) -> None:
    case = a_case(device, rows, 40, 104, dtype)
    found = agree_to_add(case, tiling=Tiling(32, 32, splits, 4, 2), bias=case.bias if splits > 2 else None)
    assert found.squares.shape == (rows, 2)


@DTYPES
def test_a_layer_of_a_model(device: str, dtype: torch.dtype) -> None:
    """The embedding, a product after a norm, one onto the stream, and one after the norm of that."""
    first, second = a_case(device, 5, 64, 48, dtype), a_case(device, 5, 48, 64, dtype)
    space = first.workspace
    embedding, tokens = torch.cat([second.residual, second.residual]), torch.tensor([9, 2, 0, 5, 5], device=device)
    stream = start(embedding, tokens, Norm(first.bias[:48], 1e-3))
    middle = linear(stream, first.weight, space)
    stream = linear_add(middle, second.weight, stream.plain, second.norm, space)
    found = linear(stream, first.weight, space)

    x = embedding[tokens].float()
    hidden = F.linear(F.rms_norm(x, (48,), first.bias[:48].float(), 1e-3), first.weight.float())
    x = x + F.linear(hidden, second.weight.float())
    exact = F.linear(F.rms_norm(x, (48,), second.norm.weight.float(), second.norm.epsilon), first.weight.float())
    assert error(found, exact) < BOUNDS[dtype]


# -- mistakes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("splits", [1, 3])
def test_a_wrong_weight_shows_in_its_column_alone(device: str, splits: int) -> None:
    case, tiling = a_case(device, 4, 40, 96, torch.float16), Tiling(16, 32, splits, 4, 2)
    right = agree(case, tiling=tiling)
    case.weight[37, 95] += 1.0
    found = case.linear(tiling=tiling)
    others = torch.arange(40, device=device) != 37
    assert torch.equal(found[:, others], right[:, others])
    assert error(found[:, 37], right[:, 37]) > 20 * BOUNDS[torch.float16]


def test_planted_mistakes_are_seen(device: str) -> None:
    case = a_case(device, 4, 40, 96, gated=True, parts=3)
    found = agree(case, case.stream, gated=True, bias=case.bias)

    def against(stream: Stream = case.stream, weight: Tensor = case.weight, bias: Tensor = case.bias) -> float:
        return error(found, reference_linear(stream, weight, bias=bias, gated=True))

    assert against() < BOUNDS[torch.float32]
    assert against(replace(case.stream, squares=case.stream.squares[:, :2].contiguous())) > 20 * BOUNDS[torch.float32]
    assert against(replace(case.stream, epsilon=2e-2)) > 20 * BOUNDS[torch.float32]
    assert against(weight=case.weight.roll(40, dims=0)) > 20 * BOUNDS[torch.float32]
    assert against(bias=case.bias.roll(1)) > 20 * BOUNDS[torch.float32]


def test_a_split_that_is_left_out_shows_and_so_does_its_counter(device: str) -> None:
    """A counter that was not zero makes another program than the last one add up."""
    if device == "cuda":
        pytest.skip("which program comes last is a matter of luck there")
    case, tiling = a_case(device, 4, 16, 96), Tiling(16, 32, 3, 4, 2)
    agree(case, tiling=tiling)
    case.workspace.counters[0] = 1
    case.linear(tiling=tiling)
    assert case.workspace.counters.any()
    with pytest.raises(AssertionError):
        agree(case, tiling=tiling)
    assert error(case.x[:, :64] @ case.weight[:, :64].T, reference_linear(case.x, case.weight)) > 20 * BOUNDS[torch.float32]


# -- how it is launched -------------------------------------------------------------------------------------------------


def test_a_workspace_gives_the_same_memory_for_the_same_size(device: str) -> None:
    space = Workspace(torch.device(device))
    first, larger = space.floats(1000), space.floats(5000)
    assert first.numel() >= 1000
    assert larger.numel() >= 5000
    assert space.floats(1000).data_ptr() == space.floats(900).data_ptr() == first.data_ptr()
    assert larger.data_ptr() != first.data_ptr()


def test_more_tiles_than_counters_are_refused(device: str) -> None:
    space, tile = Workspace(torch.device(device)), a_tile(columns=16)
    assert space.partials(1 << 20, 1, tile).partial_ptr is None  # no split needs a counter
    assert len(space.counters) == 16_384
    with pytest.raises(
        ValueError, match="split-K over 16,385 tiles needs as many counters, and the workspace has 16,384; use wider tiles or one split"
    ):
        space.partials(16_385, 2, tile)


def a_tile(columns: int) -> Tile:
    return tile_of(Tiling(columns, 32, 2, 4, 2), torch.empty(columns, 64), 1, paired=False)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("gated", [False, True])
def test_tilings_fill_the_device(gated: bool, dtype: torch.dtype) -> None:
    for rows in (1, 16, 33, LARGEST):
        for columns, inner in ((12288, 4096), (4096, 4096), (4096, 11008), (11008, 4096), (14336, 4096), (32000, 4096), (1024, 4096)):
            plan = linear_tiling(rows, columns, inner, gated, dtype)
            assert all(n & (n - 1) == 0 for n in (plan.inner, plan.splits, plan.warps))
            assert plan.columns % 4 == 0
            if dtype == torch.float16:
                assert triton.cdiv(columns, plan.columns) * plan.splits >= 128 or inner // plan.splits <= 1024
            wide = triton.next_power_of_2(plan.columns)
            assert plan.stages * plan.inner * dtype.itemsize * (wide * (2 if gated else 1) + max(16, rows)) < 220_000


@pytest.mark.parametrize("columns", [4868, 11008, 12288, 14336, 28672, 29568])
@pytest.mark.parametrize("rows", [1, LARGEST])
def test_all_multiprocessors_have_as_many_columns_of_gates(rows: int, columns: int) -> None:
    plan = linear_tiling(rows, columns, 4096, True, torch.float16)
    waves = columns / plan.columns / Gpu().multiprocessors
    assert 0.92 < waves / -(-waves // 1) <= 1
    assert plan.splits == 1


@pytest.mark.parametrize("most", [64, 128])
def test_shares_are_the_smallest_that_fill_as_few_waves(most: int) -> None:
    for columns in (1, 4, 528, 529, 4096, 8448, 8452, 11008, 100_000):
        share = shares(columns, most, Gpu())
        assert share % 4 == 0
        assert 0 < share <= most
        waves = -(-columns // (share * Gpu().multiprocessors))
        assert waves == -(-columns // (most * Gpu().multiprocessors))
        assert share == 4 or (share - 4) * Gpu().multiprocessors * waves < columns


@pytest.mark.parametrize("rows", [1, LARGEST])
def test_what_is_prefetched_is_all_of_a_small_matrix_and_little_of_a_large_one(rows: int) -> None:
    def numbers_of(columns: int, inner: int, width: int, dtype: torch.dtype = torch.float16) -> int:
        return prefetched(torch.empty(columns, inner, dtype=dtype, device="meta"), rows, width)

    assert numbers_of(768, 768, 32) >= 768
    for columns, inner in ((22016, 4096), (4096, 11008), (28672, 8192)):
        for width in (32, 64, 96, 168, 224, 512):
            numbers = numbers_of(columns, inner, width)
            assert 64 <= numbers <= 512
            assert numbers & (numbers - 1) == 0
            assert 2 * width * numbers <= 1 << 16
            assert 4 * width * numbers > 1 << 16 or numbers == 512
    assert numbers_of(768, 768, 32, torch.float32) == 0


# -- on a GPU -----------------------------------------------------------------------------------------------------------

LLAMA_2_7B = {"qkv": (12288, 4096), "out": (4096, 4096), "up": (11008, 4096), "down": (4096, 11008), "head": (32000, 4096)}


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", LLAMA_2_7B)
def test_large(device: str, name: str, dtype: torch.dtype) -> None:
    columns, inner = LLAMA_2_7B[name]
    for rows in (1, 5, 16, 17, 33, 64):
        case = a_case(device, rows, columns, inner, dtype, gated=name == "up", parts=64)
        if name in ("out", "down"):
            agree_to_add(case)
        else:
            agree(case, case.stream, gated=name == "up")


@pytest.mark.gpu
@pytest.mark.parametrize("splits", [1, 2, 4])
def test_large_tilings(device: str, splits: int) -> None:
    case = a_case(device, 23, 4096, 4096, torch.float16, parts=128)
    for columns, warps in ((32, 4), (64, 4), (84, 8), (128, 8)):
        agree(case, case.stream, tiling=Tiling(columns, 64, splits, warps, 4))
        agree_to_add(case, tiling=Tiling(columns, 64, splits, warps, 4))


@pytest.mark.gpu
def test_a_captured_graph_follows_its_input(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    case = a_case(device, 9, 1024, 1024, torch.float16)
    tiling = Tiling(32, 128, 4, 4, 4)
    linear(case.linear_add(tiling=tiling), case.weight, case.workspace, tiling=tiling)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        stream = case.linear_add(tiling=tiling)
        found = linear(stream, case.weight, case.workspace, tiling=tiling)
    for _ in range(3):
        case.x.copy_(torch.randn_like(case.x))
        graph.replay()
        exact = reference_linear_add(case.x.float(), case.weight.float(), case.residual.float(), case.norm)
        assert error(stream.plain, exact.plain) < BOUNDS[torch.float16]
        assert error(found, reference_linear(wide(stream), case.weight.float())) < BOUNDS[torch.float16]


@pytest.mark.gpu
def test_no_number_of_rows_parts_or_splits_needs_another_compilation(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []

    def run(rows: int, parts: int, splits: int) -> None:
        case = a_case(device, rows, 256, 1024, torch.float16, parts=parts)
        case.linear(case.stream, tiling=Tiling(64, 64, splits, 4, 4))
        case.linear_add(tiling=Tiling(64, 64, splits, 4, 4))

    run(7, 5, 3)
    monkeypatch.setattr(triton.knobs.runtime, "jit_post_compile_hook", lambda **facts: compiled.append(facts["repr"]))
    for sizes in ((1, 6, 2), (2, 7, 4), (8, 8, 8), (16, 8, 16)):
        run(*sizes)
    assert compiled == []
