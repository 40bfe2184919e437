"""Linear layers for few rows: the weights are read once at the memory's speed, and what surrounds the product rides along.

A pass over a small tree multiplies each weight matrix with a handful of rows, so its time is that of reading the weights. The kernel
spreads a matrix over all multiprocessors, in column tiles and, where these are too few, in slices of the inner dimension, whose
partial sums the last program of each tile adds up in a fixed order. Bias, activation and residual are applied to the tile while it is in
registers. RMSNorm is split: whoever writes the residual stream also writes it times the next norm's weight, and the sums of squares of
its tiles; the product then needs one factor per row. `reference_linear` and `reference_linear_add` define the results.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from treespec.kernels.overlap import early, overlaps, shared_bytes, wait_for_inputs

Activation = Literal["silu", "gelu_tanh"]

LARGEST = 64
"""Rows up to which these kernels are used; cuBLAS is faster beyond."""
SHARED = 200_000
"""Bytes of shared memory that a program may take on Hopper."""
_TILES = 1 << 14


@dataclass(frozen=True)
class Norm:
    """RMSNorm of rows."""

    weight: Tensor
    """[inner]"""
    epsilon: float


@dataclass(frozen=True)
class Stream:
    """The residual stream on its way to the next norm."""

    plain: Tensor
    """[rows, inner]"""
    weighted: Tensor
    """[rows, inner]; times the weight of the next norm."""
    squares: Tensor
    """float32 [parts, rows]; sums of squares of `plain` over parts of the inner dimension."""
    epsilon: float
    """Of the next norm."""


@dataclass(frozen=True)
class Workspace:
    """Counters and partial sums that launches on one stream share. Counters are zero between launches."""

    device: torch.device
    counters: Tensor = field(init=False)
    partial: dict[int, Tensor] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "counters", torch.zeros(_TILES, dtype=torch.int32, device=self.device))

    def floats(self, count: int) -> Tensor:
        """float32 [>= count]; the same memory at every call for the same size, so that captured launches stay valid."""
        rounded = 1 << (count - 1).bit_length()
        if rounded not in self.partial:
            self.partial[rounded] = torch.empty(rounded, dtype=torch.float32, device=self.device)
        return self.partial[rounded]


@dataclass(frozen=True)
class Tiling:
    """How one product is spread over the device."""

    columns: int
    inner: int
    splits: int
    warps: int
    stages: int


def reference_start(embedding: Tensor, tokens: Tensor, norm: Norm) -> Stream:
    """The twin that defines `start`."""
    plain = embedding[tokens]
    weighted = (plain.float() * norm.weight.float()).to(plain.dtype)
    return Stream(plain, weighted, plain.float().square().sum(-1)[None], norm.epsilon)


def reference_linear(x: Tensor | Stream, weight: Tensor, *, bias: Tensor | None = None, gated: Activation | None = None) -> Tensor:
    """The twin that defines `linear`, in float32. See there."""
    if isinstance(x, Stream):
        mean = x.squares.sum(0) / x.plain.shape[1]
        out = (x.weighted.float() @ weight.float().T) * torch.rsqrt(mean + x.epsilon)[:, None]
    else:
        out = x.float() @ weight.float().T
    if bias is not None:
        out = out + bias.float()
    if gated is not None:
        gate, up = out.chunk(2, dim=-1)
        out = (torch.nn.functional.silu(gate) if gated == "silu" else torch.nn.functional.gelu(gate, approximate="tanh")) * up
    return out.to(weight.dtype)


def reference_linear_add(x: Tensor, weight: Tensor, residual: Tensor, norm: Norm, *, bias: Tensor | None = None) -> Stream:
    """The twin that defines `linear_add`, but for the number of parts of the squares. See there."""
    out = x.float() @ weight.float().T + residual.float()
    if bias is not None:
        out = out + bias.float()
    plain = out.to(x.dtype)
    return Stream(plain, (plain.float() * norm.weight.float()).to(x.dtype), plain.float().square().sum(-1)[None], norm.epsilon)


def start(embedding: Tensor, tokens: Tensor, norm: Norm) -> Stream:
    """The residual stream before the first layer. embedding [vocabulary, inner], tokens int64 [rows]."""
    rows, inner = tokens.shape[0], embedding.shape[1]
    plain = torch.empty(rows, inner, dtype=embedding.dtype, device=embedding.device)
    weighted, squares = torch.empty_like(plain), torch.empty(1, rows, dtype=torch.float32, device=embedding.device)
    _start_kernel[(rows,)](
        embedding,
        tokens,
        norm.weight,
        plain,
        weighted,
        squares,
        inner,
        BLOCK=triton.next_power_of_2(inner),
        OVERLAP=overlaps(embedding.device),
        num_warps=4,
        **early(embedding.device),
    )
    return Stream(plain, weighted, squares, norm.epsilon)


def linear(
    x: Tensor | Stream,
    weight: Tensor,
    workspace: Workspace,
    *,
    bias: Tensor | None = None,
    gated: Activation | None = None,
    tiling: Tiling | None = None,
) -> Tensor:
    """act(x W^T + bias); x [rows <= 64, inner], or a stream, whose RMSNorm is multiplied; weight [columns, inner] -> [rows, columns].

    `gated`: the first half of the weight's rows (and of `bias`) are gates, the second half what they multiply, so the result has half the
    columns. All contiguous. No host synchronisation.
    """
    rows = (x.weighted if isinstance(x, Stream) else x).shape[0]
    columns = weight.shape[0] // 2 if gated else weight.shape[0]
    out = torch.empty(rows, columns, dtype=weight.dtype, device=weight.device)
    _launch_linear(x, weight, workspace, bias, None, None, gated, out, None, None, tiling)
    return out


def linear_add(
    x: Tensor,
    weight: Tensor,
    residual: Tensor,
    norm: Norm,
    workspace: Workspace,
    *,
    bias: Tensor | None = None,
    tiling: Tiling | None = None,
) -> Stream:
    """The residual stream x W^T + bias + residual on its way to `norm`. As `linear`; residual [rows, columns]."""
    rows, columns = residual.shape
    plan = tiling or choose_tiling(rows, columns, x.shape[1], False, weight.dtype, shared_bytes(weight.device))
    plain, weighted = torch.empty_like(residual), torch.empty_like(residual)
    squares = torch.empty(triton.cdiv(columns, plan.columns), rows, dtype=torch.float32, device=x.device)
    _launch_linear(x, weight, workspace, bias, residual, norm, None, plain, weighted, squares, plan)
    return Stream(plain, weighted, squares, norm.epsilon)


def _launch_linear(
    x: Tensor | Stream,
    weight: Tensor,
    workspace: Workspace,
    bias: Tensor | None,
    residual: Tensor | None,
    norm: Norm | None,
    gated: Activation | None,
    out: Tensor,
    weighted: Tensor | None,
    squares: Tensor | None,
    tiling: Tiling | None,
) -> None:
    read = x.weighted if isinstance(x, Stream) else x
    (rows, inner), columns = read.shape, out.shape[1]
    block = block_of(rows)
    plan = tiling or choose_tiling(rows, columns, inner, bool(gated), weight.dtype, shared_bytes(weight.device))
    tiles = triton.cdiv(columns, plan.columns)
    partial = workspace.floats(tiles * plan.splits * block * plan.columns * (2 if gated else 1)) if plan.splits > 1 else None
    overlap = overlaps(weight.device)
    _linear_kernel[(tiles, plan.splits)](
        read,
        weight,
        bias,
        x.squares if isinstance(x, Stream) else None,
        residual,
        norm.weight if norm else None,
        out,
        weighted,
        squares,
        partial,
        workspace.counters,
        rows,
        plan.splits,
        x.squares.shape[0] if isinstance(x, Stream) else 0,
        columns,
        inner,
        x.epsilon if isinstance(x, Stream) else 0.0,
        BLOCK=block,
        COLUMNS=plan.columns,
        INNER=plan.inner,
        SPLIT=plan.splits > 1,
        SCALED=isinstance(x, Stream),
        PARTS=triton.next_power_of_2(x.squares.shape[0]) if isinstance(x, Stream) else 1,
        BIAS=bias is not None,
        RESIDUAL=residual is not None,
        GATED=gated or "",
        EVEN=inner % plan.inner == 0,
        PRECISION="ieee" if weight.dtype == torch.float32 else "tf32",
        STAGES=plan.stages,
        OVERLAP=overlap,
        num_warps=plan.warps,
        **early(weight.device),
    )


def block_of(rows: int) -> int:
    """Rows that a program multiplies: 16, or 64 as the tensor cores take them at once (32 would take longer than 64)."""
    return 16 if rows <= 16 else LARGEST


def choose_tiling(rows: int, columns: int, inner: int, gated: bool, dtype: torch.dtype, shared: int = SHARED) -> Tiling:
    """Tiles that keep an H200 reading (benchmarks/NOTES.md), of stages that fit into `shared` bytes of a multiprocessor."""
    if dtype == torch.float32:
        return Tiling(16 if gated else 32, 32, 1, 4, 2)
    few = rows <= 16
    if gated:
        plan = Tiling(32, 128 if few else 64, 1, 4, 4)
    elif columns >= 16_384:
        plan = Tiling(128, 128, 1, 4 if few else 8, 4)
    elif few and columns > 5120:
        plan = Tiling(32, 128, 1, 4, 6)
    else:
        plan = Tiling(64 if few else 32, 256 if inner >= 2048 else 128, 1, 4, 4)
    return fitting(plan, rows, triton.cdiv(columns, plan.columns), inner, 2 if gated else 1, shared)


def fitting(plan: Tiling, rows: int, tiles: int, inner: int, pairs: int, shared: int) -> Tiling:
    """The tiling with as many splits as fill the device, and an inner size whose stages fit into shared memory."""
    splits, at_once = 1, plan.inner
    while tiles * splits < 110 and inner // (splits * 2) >= 512:
        splits *= 2
    while at_once > 32 and plan.stages * at_once * 2 * (pairs * plan.columns + block_of(rows)) > shared:
        at_once //= 2
    return replace(plan, inner=at_once, splits=splits)


@triton.jit
def _start_kernel(
    embedding: "Any",
    tokens: "Any",
    norm: "Any",
    plain: "Any",
    weighted: "Any",
    squares: "Any",
    inner: "Any",
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    row, column = tl.program_id(0), tl.arange(0, BLOCK)
    there = column < inner
    factor = tl.load(norm + column, mask=there, other=0.0).to(tl.float32)
    wait_for_inputs(OVERLAP)
    token = tl.load(tokens + row)
    value = tl.load(embedding + token * inner + column, mask=there, other=0.0)
    tl.store(plain + row * inner + column, value, mask=there)
    wide = value.to(tl.float32)
    tl.store(weighted + row * inner + column, (wide * factor).to(value.dtype), mask=there)
    tl.store(squares + row, tl.sum(wide * wide, axis=0))


@triton.jit
def _activate(x: "Any", GATED: tl.constexpr) -> "Any":
    if GATED == "silu":
        return x / (1 + tl.exp(-x))
    inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)
    return x / (1 + tl.exp(-2 * inner))


@triton.jit
def slice_of(inner: "Any", split: "Any", splits: "Any", INNER: tl.constexpr) -> "Any":
    """(first, stop) of the inner dimension that `split` multiplies; nothing, for the last ones, where stop <= first."""
    steps = tl.cdiv(tl.cdiv(inner, INNER), splits)
    first = split * steps * INNER
    return first, tl.minimum(first + steps * INNER, inner)


@triton.jit
def multiply(
    x: "Any",
    w_row: "Any",
    u_row: "Any",
    rows: "Any",
    inside: "Any",
    first: "Any",
    stop: "Any",
    inner: "Any",
    BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
    PAIRED: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
) -> "Any":
    """float32 [BLOCK, COLUMNS] twice: first .. stop of x times the weights at `w_row` and, if PAIRED, at `u_row`; else zeros.

    x [rows, inner]; `w_row`, `u_row` [COLUMNS] point to rows of `inner` weights, which are streamed once, where `inside`.
    EVEN: `inner` is a multiple of INNER.
    """
    row, place = tl.arange(0, BLOCK), tl.arange(0, INNER)
    there = row < rows
    main = tl.zeros((BLOCK, COLUMNS), dtype=tl.float32)
    other = tl.zeros((BLOCK, COLUMNS), dtype=tl.float32)
    x_row = x + row[:, None] * inner
    for step in tl.range(0, tl.cdiv(stop - first, INNER), num_stages=STAGES):
        at = first + step * INNER + place
        if EVEN:
            read = tl.load(x_row + at[None, :], mask=there[:, None], other=0.0)
            weights = tl.load(w_row[:, None] + at[None, :], mask=inside[:, None], other=0.0, eviction_policy="evict_first")
        else:
            read = tl.load(x_row + at[None, :], mask=there[:, None] & (at < inner)[None, :], other=0.0)
            weights = tl.load(
                w_row[:, None] + at[None, :], mask=inside[:, None] & (at < inner)[None, :], other=0.0, eviction_policy="evict_first"
            )
        main = tl.dot(read, tl.trans(weights), main, input_precision=PRECISION)
        if PAIRED:
            if EVEN:
                ups = tl.load(u_row[:, None] + at[None, :], mask=inside[:, None], other=0.0, eviction_policy="evict_first")
            else:
                ups = tl.load(
                    u_row[:, None] + at[None, :], mask=inside[:, None] & (at < inner)[None, :], other=0.0, eviction_policy="evict_first"
                )
            other = tl.dot(read, tl.trans(ups), other, input_precision=PRECISION)
    return main, other


@triton.jit
def deposit(
    main: "Any",
    other: "Any",
    partial: "Any",
    counters: "Any",
    tile: "Any",
    split: "Any",
    splits: "Any",
    BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,
    PAIRED: tl.constexpr,
) -> "Any":
    """Leave the partial sums of one split for the last program of the tile; whether this is it, which then must `collect`."""
    grid = tl.arange(0, BLOCK)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    WIDE: tl.constexpr = BLOCK * COLUMNS * (2 if PAIRED else 1)
    mine = partial + (tile * splits + split).to(tl.int64) * WIDE
    tl.store(mine + grid, main)
    if PAIRED:
        tl.store(mine + BLOCK * COLUMNS + grid, other)
    tl.debug_barrier()
    return tl.atomic_add(counters + tile, 1, sem="acq_rel") == splits - 1


@triton.jit
def collect(
    partial: "Any", counters: "Any", tile: "Any", splits: "Any", BLOCK: tl.constexpr, COLUMNS: tl.constexpr, PAIRED: tl.constexpr
) -> "Any":
    """The sums of what all splits of a tile left, in their order. Puts the counter back to zero."""
    tl.store(counters + tile, 0)
    grid = tl.arange(0, BLOCK)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    WIDE: tl.constexpr = BLOCK * COLUMNS * (2 if PAIRED else 1)
    base = partial + (tile * splits).to(tl.int64) * WIDE
    main = tl.zeros((BLOCK, COLUMNS), dtype=tl.float32)
    other = tl.zeros((BLOCK, COLUMNS), dtype=tl.float32)
    for each in range(splits):
        main += tl.load(base + each * WIDE + grid, cache_modifier=".cg")
        if PAIRED:
            other += tl.load(base + each * WIDE + BLOCK * COLUMNS + grid, cache_modifier=".cg")
    return main, other


@triton.jit
def norm_factors(
    squares: "Any", rows: "Any", parts: "Any", inner: "Any", epsilon: "Any", BLOCK: tl.constexpr, PARTS: tl.constexpr
) -> "Any":
    """float32 [BLOCK]: what RMSNorm multiplies each row with. squares [parts, rows], as in `Stream`."""
    row, part = tl.arange(0, BLOCK), tl.arange(0, PARTS)
    there = (part < parts)[:, None] & (row < rows)[None, :]
    loaded = tl.load(squares + part[:, None] * rows + row[None, :], mask=there, other=0.0)
    return 1 / tl.sqrt(tl.sum(loaded, axis=0) / inner + epsilon)


@triton.jit(do_not_specialize=["rows", "splits", "parts"])
def _linear_kernel(
    x: "Any",
    weight: "Any",
    bias: "Any",
    squares_in: "Any",
    residual: "Any",
    norm: "Any",
    out: "Any",
    weighted: "Any",
    squares_out: "Any",
    partial: "Any",
    counters: "Any",
    rows: "Any",
    splits: "Any",
    parts: "Any",
    columns: "Any",
    inner: "Any",
    epsilon: "Any",
    BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
    SPLIT: tl.constexpr,
    SCALED: tl.constexpr,
    PARTS: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    GATED: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    tile, split = tl.program_id(0), tl.program_id(1)
    row, column = tl.arange(0, BLOCK), tile * COLUMNS + tl.arange(0, COLUMNS)
    there = row < rows
    inside = column < columns
    first, stop = slice_of(inner, split, splits, INNER)
    w_row = weight + column.to(tl.int64) * inner
    u_row = weight + (columns + column).to(tl.int64) * inner
    wait_for_inputs(OVERLAP)
    main, other = multiply(x, w_row, u_row, rows, inside, first, stop, inner, BLOCK, COLUMNS, INNER, GATED != "", EVEN, PRECISION, STAGES)
    last = True
    if SPLIT:
        last = deposit(main, other, partial, counters, tile, split, splits, BLOCK, COLUMNS, GATED != "")
    if last:
        if SPLIT:
            main, other = collect(partial, counters, tile, splits, BLOCK, COLUMNS, GATED != "")
        if SCALED:
            scale = norm_factors(squares_in, rows, parts, inner, epsilon, BLOCK, PARTS)
            main *= scale[:, None]
            other *= scale[:, None]
        if BIAS:
            main += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)[None, :]
            if GATED != "":
                other += tl.load(bias + columns + column, mask=inside, other=0.0).to(tl.float32)[None, :]
        if GATED != "":
            main = _activate(main, GATED) * other
        where = row[:, None].to(tl.int64) * columns + column[None, :]
        written = there[:, None] & inside[None, :]
        kind = out.dtype.element_ty
        if RESIDUAL:
            main += tl.load(residual + where, mask=written, other=0.0).to(tl.float32)
            rounded = main.to(kind).to(tl.float32)
            factor = tl.load(norm + column, mask=inside, other=0.0).to(tl.float32)
            tl.store(weighted + where, (rounded * factor[None, :]).to(kind), mask=written)
            tl.store(squares_out + tile * rows + row, tl.sum(tl.where(written, rounded * rounded, 0.0), axis=1), mask=there)
        tl.store(out + where, main.to(kind), mask=written)
