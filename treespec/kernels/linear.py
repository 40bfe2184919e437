"""Linear layers for few rows: the weights are read once, at the memory's speed, and the work around the product is done in the same launch.

A pass over a small tree multiplies each weight matrix with a few rows, so its time is the time to read the weights. The kernel spreads a
matrix over all multiprocessors in tiles of columns. If these are too few, it also splits the inner dimension (split-K); the last program of
each tile then adds the partial sums in a fixed order. Bias, activation and residual are applied while the tile is in registers. RMSNorm is
divided in two: the kernel that writes the residual stream also writes it times the next norm's weight, and the sums of squares of its
tiles; the product then needs one factor per row. `reference_linear` and `reference_linear_add` define the results.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from treespec.kernels.dependent_launch import launch_options, overlaps, wait_for_inputs
from treespec.kernels.product import (
    LARGEST,
    SHARED,
    Norm,
    Stream,
    Tiling,
    Workspace,
    ahead,
    ask,
    block_of,
    collect,
    deposit,
    fitting,
    load_squares,
    multiply,
    norm_factors,
    shared_bytes,
    shares,
    silu,
    slice_of,
    small,
)


def reference_start(embedding: Tensor, tokens: Tensor, norm: Norm) -> Stream:
    """Define the result of `start`."""
    plain = embedding[tokens]
    weighted = (plain.float() * norm.weight.float()).to(plain.dtype)
    return Stream(plain, weighted, plain.float().square().sum(-1, keepdim=True), norm.epsilon)


def reference_linear(x: Tensor | Stream, weight: Tensor, *, bias: Tensor | None = None, gated: bool = False) -> Tensor:
    """Define the result of `linear`, in float32."""
    if isinstance(x, Stream):
        mean = x.squares.sum(1) / x.plain.shape[1]
        out = (x.weighted.float() @ weight.float().T) * torch.rsqrt(mean + x.epsilon)[:, None]
    else:
        out = x.float() @ weight.float().T
    if bias is not None:
        out = out + bias.float()
    if gated:
        gate, up = out.chunk(2, dim=-1)
        out = torch.nn.functional.silu(gate) * up
    return out.to(weight.dtype)


def reference_linear_add(x: Tensor, weight: Tensor, residual: Tensor, norm: Norm, *, bias: Tensor | None = None) -> Stream:
    """Define the result of `linear_add`, except for the number of parts of the squares."""
    out = x.float() @ weight.float().T + residual.float()
    if bias is not None:
        out = out + bias.float()
    plain = out.to(x.dtype)
    return Stream(plain, (plain.float() * norm.weight.float()).to(x.dtype), plain.float().square().sum(-1, keepdim=True), norm.epsilon)


def start(embedding: Tensor, tokens: Tensor, norm: Norm) -> Stream:
    """Return the residual stream before the first layer. embedding [vocabulary, inner], tokens int64 [rows]."""
    rows, inner = tokens.shape[0], embedding.shape[1]
    plain = torch.empty(rows, inner, dtype=embedding.dtype, device=embedding.device)
    weighted, squares = torch.empty_like(plain), torch.empty(rows, 1, dtype=torch.float32, device=embedding.device)
    _start_kernel[(rows,)](
        embedding,
        tokens,
        norm.weight,
        plain,
        weighted,
        squares,
        inner,
        BLOCK=triton.next_power_of_2(inner),
        OVERLAP=2 if overlaps(embedding.device) else 0,  # see `dependent_launch`
        num_warps=4,
        **launch_options(embedding.device),
    )
    return Stream(plain, weighted, squares, norm.epsilon)


def linear(
    x: Tensor | Stream,
    weight: Tensor,
    workspace: Workspace,
    *,
    bias: Tensor | None = None,
    gated: bool = False,
    tiling: Tiling | None = None,
) -> Tensor:
    """Return x W^T + bias [rows, columns]; x [rows <= 64, inner], or a stream, whose RMSNorm is taken first; weight [columns, inner].

    `gated`: the first half of the weight's rows (and of `bias`) are gates. Their silu multiplies the second half, so the result has half as
    many columns. All tensors must be contiguous. No host synchronisation.
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
    """Return the residual stream x W^T + bias + residual, prepared for `norm`. residual [rows, columns]; the others as in `linear`."""
    rows, columns = residual.shape
    plan = tiling or choose_tiling(rows, columns, x.shape[1], False, weight.dtype, shared_bytes(weight.device))
    plain, weighted = torch.empty_like(residual), torch.empty_like(residual)
    squares = torch.empty(rows, triton.cdiv(columns, plan.columns), dtype=torch.float32, device=x.device)
    _launch_linear(x, weight, workspace, bias, residual, norm, False, plain, weighted, squares, plan)
    return Stream(plain, weighted, squares, norm.epsilon)


def _launch_linear(
    x: Tensor | Stream,
    weight: Tensor,
    workspace: Workspace,
    bias: Tensor | None,
    residual: Tensor | None,
    norm: Norm | None,
    gated: bool,
    out: Tensor,
    weighted: Tensor | None,
    squares: Tensor | None,
    tiling: Tiling | None,
) -> None:
    read = x.weighted if isinstance(x, Stream) else x
    (rows, inner), columns = read.shape, out.shape[1]
    block = block_of(rows)
    plan = tiling or choose_tiling(rows, columns, inner, gated, weight.dtype, shared_bytes(weight.device))
    tiles, wide = triton.cdiv(columns, plan.columns), triton.next_power_of_2(plan.columns)
    partial = workspace.floats(tiles * plan.splits * block * wide * (2 if gated else 1)) if plan.splits > 1 else None
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
        x.squares.shape[1] if isinstance(x, Stream) else 0,
        columns,
        inner,
        x.epsilon if isinstance(x, Stream) else 0.0,
        BLOCK=block,
        COLUMNS=plan.columns,
        WIDE=wide,
        INNER=plan.inner,
        SPLIT=plan.splits > 1,
        SCALED=isinstance(x, Stream),
        PARTS=triton.next_power_of_2(x.squares.shape[1]) if isinstance(x, Stream) else 1,
        BIAS=bias is not None,
        RESIDUAL=residual is not None,
        GATED=gated,
        EVEN=inner % plan.inner == 0,
        PRECISION="ieee" if weight.dtype == torch.float32 else "tf32",
        STAGES=plan.stages,
        AHEAD=ahead(weight, rows, plan.columns * (2 if gated else 1)) if overlap else 0,
        OVERLAP=(2 if small(weight, rows) and block < LARGEST else 1) if overlap else 0,
        num_warps=plan.warps,
        **launch_options(weight.device),
    )


def choose_tiling(rows: int, columns: int, inner: int, gated: bool, dtype: torch.dtype, shared: int = SHARED) -> Tiling:
    """Return tiles that keep the memory of an H200 busy (benchmarks/log/products.md), with stages that fit into `shared` bytes."""
    if dtype == torch.float32:
        return Tiling(16 if gated else 32, 32, 1, 4, 2)
    few = rows <= 16
    share = shares(columns, 128)
    if gated:
        plan = Tiling(share, 128 if few else 64, 1, 8, 5) if share > 32 else Tiling(32, 128, 1, 4, 6 if few else 4)
    elif columns >= 16_384:
        plan = Tiling(64, 128, 1, 4, 5) if few else Tiling(128, 128, 1, 8, 4)
    elif few and columns > 8192:
        plan = Tiling(share, 128, 1, 4, 5)
    elif few:
        deep = 256 if inner >= 2048 else 128
        plan = Tiling(64, deep, 1, 4, 4) if share > 16 else Tiling(32, deep, 1, 4, 6)
    elif share > 32:
        plan = Tiling(share, 128, 1, 4 if share <= 64 else 8, 5)
    elif inner > 8192:  # half as many tiles, each split in two, read the inputs half as often
        plan = Tiling(64, 128, 1, 4, 5)
    elif share > 16:
        plan = Tiling(32, 256 if inner >= 2048 else 128, 1, 4, 4)
    else:
        plan = Tiling(16, 128, 1, 4, 6) if inner >= 2048 else Tiling(32, 256, 1, 4, 3)
    return fitting(plan, rows, triton.cdiv(columns, plan.columns), inner, 2 if gated else 1, shared)


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


@triton.jit(do_not_specialize=["rows", "splits"])
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
    WIDE: tl.constexpr,
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
    AHEAD: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    tile, split = tl.program_id(0), tl.program_id(1)
    row, column = tl.arange(0, BLOCK), tile * COLUMNS + tl.arange(0, WIDE)
    there = row < rows
    inside = column < tl.minimum((tile + 1) * COLUMNS, columns)
    first, stop = slice_of(inner, split, splits, INNER)
    w_row = weight + column.to(tl.int64) * inner
    u_row = weight + (columns + column).to(tl.int64) * inner
    where = row[:, None].to(tl.int64) * columns + column[None, :]
    written = there[:, None] & inside[None, :]
    if AHEAD > 0:
        near = tl.where(inside, column, tile * COLUMNS).to(tl.int64) * inner
        LINES: tl.constexpr = AHEAD // 64 if AHEAD < 1024 else 16
        until = tl.minimum(stop, first + AHEAD)
        ask(weight + near, first, until, LINES)
        if GATED:
            ask(weight + columns.to(tl.int64) * inner + near, first, until, LINES)
    # What the tile meets after the product is asked for before it, so that the memory answers while the weights stream.
    if BIAS:
        main_bias = tl.load(bias + column, mask=inside, other=0.0)
        if GATED:
            other_bias = tl.load(bias + columns + column, mask=inside, other=0.0)
    if RESIDUAL:
        factor = tl.load(norm + column, mask=inside, other=0.0)
    wait_for_inputs(OVERLAP)
    if SCALED:
        loaded = load_squares(squares_in, rows, parts, BLOCK, PARTS)
    if RESIDUAL:
        before = tl.load(residual + where, mask=written, other=0.0)
    main, other = multiply(x, w_row, u_row, rows, inside, first, stop, inner, BLOCK, WIDE, INNER, GATED, EVEN, PRECISION, STAGES)
    last = True
    if SPLIT:
        last = deposit(main, other, partial, counters, tile, split, splits, BLOCK, WIDE, GATED)
    if last:
        if SPLIT:
            main, other = collect(partial, counters, tile, splits, BLOCK, WIDE, GATED)
        if SCALED:
            scale = norm_factors(loaded, inner, epsilon)
            main *= scale[:, None]
            other *= scale[:, None]
        if BIAS:
            main += main_bias.to(tl.float32)[None, :]
            if GATED:
                other += other_bias.to(tl.float32)[None, :]
        if GATED:
            main = silu(main) * other
        kind = out.dtype.element_ty
        if RESIDUAL:
            main += before.to(tl.float32)
            rounded = main.to(kind).to(tl.float32)
            tl.store(weighted + where, (rounded * factor.to(tl.float32)[None, :]).to(kind), mask=written)
            squares = tl.sum(tl.where(written, rounded * rounded, 0.0), axis=1)
            tl.store(squares_out + row * tl.num_programs(0) + tile, squares, mask=there)
        tl.store(out + where, main.to(kind), mask=written)
