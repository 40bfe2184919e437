"""Queries, keys and values of few rows in one launch: the product of `linear`, whose tiles are rotated and stored while in registers.

A program owns columns of the lower halves of heads and the same columns of their upper halves, because rotary positions mix these.
`reference_project` defines the results.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from treespec.kernels.dependent_launch import launch_options, overlaps, wait_for_inputs
from treespec.kernels.linear import reference_linear
from treespec.kernels.pointwise import reference_rotate_and_store
from treespec.kernels.product import (
    LARGEST,
    SHARED,
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
    slice_of,
    small,
)


def reference_project(
    x: Stream,
    weight: Tensor,
    length: Tensor,
    depths: Tensor,
    rows: Tensor,
    cos: Tensor,
    sin: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    bias: Tensor | None = None,
) -> Tensor:
    """Define the result of `project`, except that this rounds the product before it rotates it."""
    return reference_rotate_and_store(reference_linear(x, weight, bias=bias), length, depths, rows, cos, sin, keys, values)


def project(
    x: Stream,
    weight: Tensor,
    workspace: Workspace,
    length: Tensor,
    depths: Tensor,
    rows: Tensor,
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
    (count, inner), half = x.weighted.shape, dim // 2
    block = block_of(count)
    plan = tiling or choose_tiling(count, heads + 2 * kv_heads, dim, inner, weight.dtype, shared_bytes(weight.device))
    tiles, wide = triton.cdiv((heads + 2 * kv_heads) * half, plan.columns), triton.next_power_of_2(plan.columns)
    overlap = overlaps(weight.device)
    query = torch.empty(count, heads, dim, dtype=weight.dtype, device=weight.device)
    _project_kernel[(tiles, plan.splits)](
        x.weighted,
        weight,
        bias,
        x.squares,
        length,
        depths,
        rows,
        cos,
        sin,
        query,
        keys,
        values,
        workspace.floats(tiles * plan.splits * block * wide * 2) if plan.splits > 1 else None,
        workspace.counters,
        count,
        plan.splits,
        x.squares.shape[1],
        inner,
        x.epsilon,
        cos.shape[0],
        keys.stride(0),
        keys.stride(1),
        values.stride(0),
        values.stride(1),
        HEADS=heads,
        KV_HEADS=kv_heads,
        HALF=half,
        BLOCK=block,
        COLUMNS=plan.columns,
        WIDE=wide,
        INNER=plan.inner,
        SPLIT=plan.splits > 1,
        PARTS=triton.next_power_of_2(x.squares.shape[1]),
        BIAS=bias is not None,
        EVEN=inner % plan.inner == 0,
        PRECISION="ieee" if weight.dtype == torch.float32 else "tf32",
        STAGES=plan.stages,
        AHEAD=ahead(weight, count, 2 * plan.columns) if overlap else 0,
        OVERLAP=(2 if small(weight, count) and block < LARGEST else 1) if overlap else 0,
        num_warps=plan.warps,
        **launch_options(weight.device),
    )
    return query


def choose_tiling(rows: int, heads: int, dim: int, inner: int, dtype: torch.dtype, shared: int = SHARED) -> Tiling:
    """Return tiles that keep the memory of an H200 busy. `heads` counts the heads of queries, keys and values."""
    if dtype == torch.float32:
        return Tiling(16, 32, 1, 4, 2)
    pairs = heads * (dim // 2)
    share = shares(pairs, 64)
    plan = Tiling(share, 128, 1, 4, 4 if share > 32 else 5) if share >= 24 else Tiling(32 if rows <= 16 else 16, 128, 1, 4, 6)
    return fitting(plan, rows, triton.cdiv(pairs, plan.columns), inner, 2, shared)


# Strides are specialised: multiples of 16 for all usual dims and any capacity, which makes wide stores of far fewer registers.
@triton.jit(do_not_specialize=["count", "splits", "positions"])
def _project_kernel(
    x: "Any",
    weight: "Any",
    bias: "Any",
    squares: "Any",
    length: "Any",
    depths: "Any",
    rows: "Any",
    cos: "Any",
    sin: "Any",
    query: "Any",
    keys: "Any",
    values: "Any",
    partial: "Any",
    counters: "Any",
    count: "Any",
    splits: "Any",
    parts: "Any",
    inner: "Any",
    epsilon: "Any",
    positions: "Any",
    k_head: "Any",
    k_slot: "Any",
    v_head: "Any",
    v_slot: "Any",
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDE: tl.constexpr,
    INNER: tl.constexpr,
    SPLIT: tl.constexpr,
    PARTS: tl.constexpr,
    BIAS: tl.constexpr,
    EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
    AHEAD: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    tile, split = tl.program_id(0), tl.program_id(1)
    PAIRS: tl.constexpr = (HEADS + 2 * KV_HEADS) * HALF
    row, pair = tl.arange(0, BLOCK), tile * COLUMNS + tl.arange(0, WIDE)
    head, column = pair // HALF, pair % HALF
    there = row < count
    inside = pair < tl.minimum((tile + 1) * COLUMNS, PAIRS)
    first, stop = slice_of(inner, split, splits, INNER)
    low_column = head * (2 * HALF) + column
    low_row = weight + low_column.to(tl.int64) * inner
    high_row = weight + (HALF + low_column).to(tl.int64) * inner
    if AHEAD > 0:
        LINES: tl.constexpr = AHEAD // 64 if AHEAD < 1024 else 16
        near = weight + tl.where(inside, low_column, 0).to(tl.int64) * inner
        until = tl.minimum(stop, first + AHEAD)
        ask(near, first, until, LINES)
        ask(near + HALF * inner, first, until, LINES)
    committed = tl.load(length).to(tl.int32)
    depth = tl.load(depths + row, mask=there, other=0).to(tl.int32)
    offset = tl.load(rows + row, mask=there, other=0).to(tl.int32)
    at = tl.minimum(committed + depth, positions - 1)[:, None] * HALF + column[None, :]
    turned = there[:, None] & (inside & (head < HEADS + KV_HEADS))[None, :]
    c = tl.load(cos + at, mask=turned, other=0.0)
    s = tl.load(sin + at, mask=turned, other=0.0)
    wait_for_inputs(OVERLAP)
    loaded = load_squares(squares, count, parts, BLOCK, PARTS)  # here, so that the memory answers while the weights stream
    low, high = multiply(x, low_row, high_row, count, inside, first, stop, inner, BLOCK, WIDE, INNER, True, EVEN, PRECISION, STAGES)
    last = True
    if SPLIT:
        last = deposit(low, high, partial, counters, tile, split, splits, BLOCK, WIDE, True)
    if last:
        if SPLIT:
            low, high = collect(partial, counters, tile, splits, BLOCK, WIDE, True)
        scale = norm_factors(loaded, inner, epsilon)[:, None]
        low *= scale
        high *= scale
        if BIAS:
            low += tl.load(bias + low_column, mask=inside, other=0.0).to(tl.float32)[None, :]
            high += tl.load(bias + low_column + HALF, mask=inside, other=0.0).to(tl.float32)[None, :]
        kind = query.dtype.element_ty
        slot = (committed + offset).to(tl.int64)[:, None]
        is_value = inside & (head >= HEADS + KV_HEADS)
        value = values + (head - HEADS - KV_HEADS).to(tl.int64)[None, :] * v_head + slot * v_slot + column[None, :]
        written = there[:, None] & is_value[None, :]
        tl.store(value, low.to(kind), mask=written)
        tl.store(value + HALF, high.to(kind), mask=written)
        new_low = (low * c - high * s).to(kind)
        new_high = (high * c + low * s).to(kind)
        written = there[:, None] & (inside & (head < HEADS))[None, :]
        target = query + row[:, None] * (HEADS * 2 * HALF) + low_column[None, :]
        tl.store(target, new_low, mask=written)
        tl.store(target + HALF, new_high, mask=written)
        written = there[:, None] & (inside & (head >= HEADS) & (head < HEADS + KV_HEADS))[None, :]
        key = keys + (head - HEADS).to(tl.int64)[None, :] * k_head + slot * k_slot + column[None, :]
        tl.store(key, new_low, mask=written)
        tl.store(key + HALF, new_high, mask=written)
