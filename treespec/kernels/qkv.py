"""Queries, keys and values of few rows in one launch: the product of `linear`, whose tiles are rotated and stored while in registers.

A program owns columns of the lower halves of heads and the same columns of their upper halves, because rotary positions mix these.
`reference_project` defines the results.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from treespec.kernels.dependent_launch import launch_options, wait_for_inputs
from treespec.kernels.device import gpu_of
from treespec.kernels.linear import Inputs, reference_linear
from treespec.kernels.product import (
    Stream,
    Workspace,
    load_squares,
    norm_factors,
    prefetch_weights,
    rows_of,
    slice_of,
    stream_product,
    sum_splits,
)
from treespec.kernels.product_tiles import Tiling, overlap_of, qkv_tiling, tile_of
from treespec.kernels.rotary import Cache, Positions, reference_rotate_and_store


class Strides(NamedTuple):
    """Elements between neighbours. They are specialised: multiples of 16 for all usual dims and any capacity, which makes wide stores cheap."""

    key_head: int
    key_slot: int
    value_head: int
    value_slot: int


def reference_project(
    x: Stream,
    weight: Tensor,
    length: Tensor,
    depths: Tensor,
    offsets: Tensor,
    cos: Tensor,
    sin: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    bias: Tensor | None = None,
) -> Tensor:
    """Define the result of `project`, except that this rounds the product before it rotates it."""
    return reference_rotate_and_store(reference_linear(x, weight, bias=bias), length, depths, offsets, cos, sin, keys, values)


def project(
    x: Stream,
    weight: Tensor,
    workspace: Workspace,
    length: Tensor,
    depths: Tensor,
    offsets: Tensor,
    cos: Tensor,
    sin: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    bias: Tensor | None = None,
    tiling: Tiling | None = None,
) -> Tensor:
    """Compute `linear` and then `rotate_and_store`: store keys and values and return queries [n, heads, dim], n <= 64.

    weight [(heads + 2 kv_heads) dim, inner], contiguous. The columns of a tiling count those of the halves of heads, side by side.
    """
    kv_heads, _, dim = keys.shape
    heads = weight.shape[0] // dim - 2 * kv_heads
    (rows, inner), half = x.weighted.shape, dim // 2
    plan = tiling or qkv_tiling(rows, heads + 2 * kv_heads, dim, inner, weight.dtype, gpu_of(weight.device))
    tiles, tile = triton.cdiv((heads + 2 * kv_heads) * half, plan.columns), tile_of(plan, weight, rows, paired=True)
    row_blocks = triton.cdiv(rows, tile.BLOCK_ROWS)
    query = torch.empty(rows, heads, dim, dtype=weight.dtype, device=weight.device)
    _project_kernel[(tiles, plan.splits, row_blocks)](
        Inputs(x.weighted, weight, bias, x.squares),
        Positions(length, depths, offsets, cos, sin),
        query,
        Cache(keys, values),
        workspace.partials(tiles * row_blocks, plan.splits, tile),
        rows,
        inner,
        x.squares.shape[1],
        plan.splits,
        cos.shape[0],
        x.epsilon,
        Strides(keys.stride(0), keys.stride(1), values.stride(0), values.stride(1)),
        HEADS=heads,
        KV_HEADS=kv_heads,
        HALF=half,
        TILE=tile,
        BLOCK_PARTS=triton.next_power_of_2(x.squares.shape[1]),
        OVERLAP=overlap_of(weight, tile.BLOCK_ROWS),
        num_warps=plan.warps,
        **launch_options(weight.device),
    )
    return query


@triton.jit(do_not_specialize=["rows", "splits", "num_positions"])
def _project_kernel(
    inputs: "Any",
    positions: "Any",
    query_ptr: "Any",
    cache: "Any",
    partials: "Any",
    rows: "Any",
    inner: "Any",
    parts: "Any",
    splits: "Any",
    num_positions: "Any",
    epsilon: "Any",
    strides: "Any",
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """Compute one tile of pairs of columns of `project`, or with split-K one slice of its inner dimension.

    A pair is a column of the lower half of a head, `main`, and the same column of its upper half, `other`. Shapes are those of `project`.
    Reads early: length, depths, offsets, cos and sin; of weight the first numbers of each row are prefetched.
    """
    tile, split = tl.program_id(0), tl.program_id(1)
    PAIRS: tl.constexpr = (HEADS + 2 * KV_HEADS) * HALF
    row, pair = rows_of(TILE), tile * TILE.COLUMNS + tl.arange(0, TILE.BLOCK_COLUMNS)
    head, column = pair // HALF, pair % HALF
    row_mask, pair_mask = row < rows, pair < tl.minimum((tile + 1) * TILE.COLUMNS, PAIRS)
    low_column = head * (2 * HALF) + column
    first, stop = slice_of(inner, split, splits, TILE)
    # Addresses are computed before the first loop: after a loop, the compiler would multiply them in 64 bits.
    low_at = inputs.weight_ptr + low_column.to(tl.int64) * inner
    high_at = inputs.weight_ptr + (HALF + low_column).to(tl.int64) * inner
    prefetch_at = inputs.weight_ptr + tl.where(pair_mask, low_column, 0).to(tl.int64) * inner
    prefetch_weights(prefetch_at, prefetch_at + HALF * inner, first, stop, TILE)
    committed = tl.load(positions.length_ptr).to(tl.int32)
    depth = tl.load(positions.depths_ptr + row, mask=row_mask, other=0).to(tl.int32)
    offset = tl.load(positions.offsets_ptr + row, mask=row_mask, other=0).to(tl.int32)
    angle = tl.minimum(committed + depth, num_positions - 1)[:, None] * HALF + column[None, :]
    is_rotated = row_mask[:, None] & (pair_mask & (head < HEADS + KV_HEADS))[None, :]
    cos = tl.load(positions.cos_ptr + angle, mask=is_rotated, other=0.0)
    sin = tl.load(positions.sin_ptr + angle, mask=is_rotated, other=0.0)
    # Above: only what is older than the pass: weights, the length, the placement, and rotary tables.
    wait_for_inputs(OVERLAP)
    squares = load_squares(inputs.squares_ptr, rows, parts, TILE, BLOCK_PARTS)  # the memory answers while the weights stream
    low, high, is_last = stream_product(inputs.x_ptr, low_at, high_at, partials, rows, inner, splits, first, stop, pair_mask, TILE)
    if is_last:
        low, high = sum_splits(low, high, partials, splits, TILE)
        scale = norm_factors(squares, inner, epsilon)
        low *= scale
        high *= scale
        if inputs.bias_ptr is not None:
            low += tl.load(inputs.bias_ptr + low_column, mask=pair_mask, other=0.0).to(tl.float32)[None, :]
            high += tl.load(inputs.bias_ptr + low_column + HALF, mask=pair_mask, other=0.0).to(tl.float32)[None, :]
        dtype = query_ptr.dtype.element_ty
        slot = (committed + offset).to(tl.int64)[:, None]
        value_head = (head - HEADS - KV_HEADS).to(tl.int64)[None, :]
        value_at = cache.values_ptr + value_head * strides.value_head + slot * strides.value_slot + column[None, :]
        value_mask = row_mask[:, None] & (pair_mask & (head >= HEADS + KV_HEADS))[None, :]
        tl.store(value_at, low.to(dtype), mask=value_mask)
        tl.store(value_at + HALF, high.to(dtype), mask=value_mask)
        new_low = (low * cos - high * sin).to(dtype)
        new_high = (high * cos + low * sin).to(dtype)
        query_at = query_ptr + row[:, None] * (HEADS * 2 * HALF) + low_column[None, :]
        query_mask = row_mask[:, None] & (pair_mask & (head < HEADS))[None, :]
        tl.store(query_at, new_low, mask=query_mask)
        tl.store(query_at + HALF, new_high, mask=query_mask)
        key_at = cache.keys_ptr + (head - HEADS).to(tl.int64)[None, :] * strides.key_head + slot * strides.key_slot + column[None, :]
        key_mask = row_mask[:, None] & (pair_mask & (head >= HEADS) & (head < HEADS + KV_HEADS))[None, :]
        tl.store(key_at, new_low, mask=key_mask)
        tl.store(key_at + HALF, new_high, mask=key_mask)
