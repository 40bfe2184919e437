"""Linear layers for few rows: the weights are read once, at the memory's speed, and the work around the product is done in the same launch.

A pass over a small tree multiplies each weight matrix with a few rows, so its time is the time to read the weights. The kernel spreads a
matrix over all multiprocessors in tiles of columns. If these are too few, it also splits the inner dimension (split-K); the last program of
each tile then adds the partial sums in a fixed order. Bias, activation and residual are applied while the tile is in registers. RMSNorm is
divided in two: the kernel that writes the residual stream also writes it times the next norm's weight, and the sums of squares of its
tiles; the product then needs one factor per row. `reference_linear` and `reference_linear_add` define the results.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from treespec.kernels.dependent_launch import launch_options, overlaps, wait_for_inputs
from treespec.kernels.device import gpu_of
from treespec.kernels.product import (
    Norm,
    Stream,
    Workspace,
    load_squares,
    norm_factors,
    prefetch_weights,
    rows_of,
    silu,
    slice_of,
    stream_product,
    sum_splits,
)
from treespec.kernels.product_tiles import Tiling, linear_tiling, overlap_of, tile_of


class Inputs(NamedTuple):
    """Pointers to what a product reads; all but the first two may be None."""

    x_ptr: Any
    weight_ptr: Any
    bias_ptr: Any = None
    squares_ptr: Any = None
    """float32 [rows, parts], if `x` is a stream."""
    residual_ptr: Any = None
    norm_ptr: Any = None
    """[columns], the weight of the norm after the residual."""


class Outputs(NamedTuple):
    """Pointers to what a product writes: the result, or the parts of a residual stream."""

    out_ptr: Any
    weighted_ptr: Any = None
    squares_ptr: Any = None


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
    read = x.weighted if isinstance(x, Stream) else x
    columns = weight.shape[0] // 2 if gated else weight.shape[0]
    plan = tiling or linear_tiling(read.shape[0], columns, read.shape[1], gated, weight.dtype, gpu_of(weight.device))
    out = torch.empty(read.shape[0], columns, dtype=weight.dtype, device=weight.device)
    inputs = Inputs(read, weight, bias, x.squares if isinstance(x, Stream) else None)
    _launch(inputs, Outputs(out), workspace, plan, gated, x.epsilon if isinstance(x, Stream) else 0.0)
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
    plan = tiling or linear_tiling(rows, columns, x.shape[1], False, weight.dtype, gpu_of(weight.device))
    plain, weighted = torch.empty_like(residual), torch.empty_like(residual)
    squares = torch.empty(rows, triton.cdiv(columns, plan.columns), dtype=torch.float32, device=x.device)
    inputs = Inputs(x, weight, bias, residual_ptr=residual, norm_ptr=norm.weight)
    _launch(inputs, Outputs(plain, weighted, squares), workspace, plan, False, 0.0)
    return Stream(plain, weighted, squares, norm.epsilon)


def _launch(inputs: Inputs, outputs: Outputs, workspace: Workspace, plan: Tiling, gated: bool, epsilon: float) -> None:
    (rows, inner), columns, weight = inputs.x_ptr.shape, outputs.out_ptr.shape[1], inputs.weight_ptr
    parts = 0 if inputs.squares_ptr is None else inputs.squares_ptr.shape[1]
    tiles, tile = triton.cdiv(columns, plan.columns), tile_of(plan, weight, rows, paired=gated)
    row_blocks = triton.cdiv(rows, tile.BLOCK_ROWS)
    _linear_kernel[(tiles, plan.splits, row_blocks)](
        inputs,
        outputs,
        workspace.partials(tiles * row_blocks, plan.splits, tile),
        rows,
        columns,
        inner,
        parts,
        plan.splits,
        epsilon,
        TILE=tile,
        BLOCK_PARTS=triton.next_power_of_2(max(1, parts)),
        OVERLAP=overlap_of(weight, tile.BLOCK_ROWS),
        num_warps=plan.warps,
        **launch_options(weight.device),
    )


@triton.jit
def _start_kernel(
    embedding_ptr: "Any",
    tokens_ptr: "Any",
    norm_ptr: "Any",
    plain_ptr: "Any",
    weighted_ptr: "Any",
    squares_ptr: "Any",
    inner: "Any",
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """Write one row of the residual stream: a token's row of the embedding. plain, weighted [rows, inner], squares [rows, 1].

    Reads early: norm, the weight of the first norm.
    """
    row, column = tl.program_id(0), tl.arange(0, BLOCK)
    mask = column < inner
    norm = tl.load(norm_ptr + column, mask=mask, other=0.0).to(tl.float32)
    # Above: only what is older than the pass: the norm's weight. The embedding may be a table that was just written (pictures).
    wait_for_inputs(OVERLAP)
    token = tl.load(tokens_ptr + row)
    value = tl.load(embedding_ptr + token * inner + column, mask=mask, other=0.0)
    tl.store(plain_ptr + row * inner + column, value, mask=mask)
    exact = value.to(tl.float32)
    tl.store(weighted_ptr + row * inner + column, (exact * norm).to(value.dtype), mask=mask)
    tl.store(squares_ptr + row, tl.sum(exact * exact, axis=0))


@triton.jit(do_not_specialize=["rows", "splits"])
def _linear_kernel(
    inputs: "Any",
    outputs: "Any",
    partials: "Any",
    rows: "Any",
    columns: "Any",
    inner: "Any",
    parts: "Any",
    splits: "Any",
    epsilon: "Any",
    TILE: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """Compute one tile of columns of `linear` or `linear_add`, or with split-K one slice of its inner dimension.

    x, weighted [rows, inner]; weight [columns, inner], or [2 columns, inner] if PAIRED; residual, out [rows, columns]; squares out [rows, tiles].
    Reads early: bias and norm (the weight of the next norm); of weight the first numbers of each row are prefetched.
    """
    tile, split = tl.program_id(0), tl.program_id(1)
    row, column = rows_of(TILE), tile * TILE.COLUMNS + tl.arange(0, TILE.BLOCK_COLUMNS)
    row_mask, column_mask = row < rows, column < tl.minimum((tile + 1) * TILE.COLUMNS, columns)
    mask = row_mask[:, None] & column_mask[None, :]
    first, stop = slice_of(inner, split, splits, TILE)
    # Addresses are computed before the first loop: after a loop, the compiler would multiply them in 64 bits.
    main_at = inputs.weight_ptr + column.to(tl.int64) * inner
    other_at = inputs.weight_ptr + (columns + column).to(tl.int64) * inner
    out_at = row[:, None].to(tl.int64) * columns + column[None, :]
    valid = tl.where(column_mask, column, tile * TILE.COLUMNS)
    main_prefetch_at = inputs.weight_ptr + valid.to(tl.int64) * inner
    other_prefetch_at = inputs.weight_ptr + (columns + valid).to(tl.int64) * inner
    prefetch_weights(main_prefetch_at, other_prefetch_at, first, stop, TILE)
    # What the epilogue needs is loaded before the product, so that the memory answers while the weights stream.
    if inputs.bias_ptr is not None:
        main_bias = tl.load(inputs.bias_ptr + column, mask=column_mask, other=0.0)
        if TILE.PAIRED:
            other_bias = tl.load(inputs.bias_ptr + columns + column, mask=column_mask, other=0.0)
    if inputs.residual_ptr is not None:
        norm = tl.load(inputs.norm_ptr + column, mask=column_mask, other=0.0)
    # Above: only what is older than the pass: weights, biases and norm weights.
    wait_for_inputs(OVERLAP)
    if inputs.squares_ptr is not None:
        squares = load_squares(inputs.squares_ptr, rows, parts, TILE, BLOCK_PARTS)
    if inputs.residual_ptr is not None:
        residual = tl.load(inputs.residual_ptr + out_at, mask=mask, other=0.0)
    main, other, is_last = stream_product(inputs.x_ptr, main_at, other_at, partials, rows, inner, splits, first, stop, column_mask, TILE)
    if is_last:
        main, other = sum_splits(main, other, partials, splits, TILE)
        if inputs.squares_ptr is not None:
            scale = norm_factors(squares, inner, epsilon)
            main *= scale
            other *= scale
        if inputs.bias_ptr is not None:
            main += main_bias.to(tl.float32)[None, :]
            if TILE.PAIRED:
                other += other_bias.to(tl.float32)[None, :]
        if TILE.PAIRED:
            main = silu(main) * other
        dtype = outputs.out_ptr.dtype.element_ty
        if inputs.residual_ptr is not None:
            main += residual.to(tl.float32)
            rounded = main.to(dtype).to(tl.float32)
            tl.store(outputs.weighted_ptr + out_at, (rounded * norm.to(tl.float32)[None, :]).to(dtype), mask=mask)
            sums = tl.sum(tl.where(mask, rounded * rounded, 0.0), axis=1)
            tl.store(outputs.squares_ptr + row * tl.num_programs(0) + tile, sums, mask=row_mask)
        tl.store(outputs.out_ptr + out_at, main.to(dtype), mask=mask)
