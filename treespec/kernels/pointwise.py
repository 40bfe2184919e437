"""The work between the products of a decoder layer: norms, gating, rotary positions and writing K/V, with one launch each."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from treespec.kernels.dependent_launch import launch_options, overlaps, wait_for_inputs
from treespec.kernels.product import Norm, silu

_HEADS_AT_ONCE = 16


def reference_add_norm(x: Tensor, norm: Norm, delta: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Define the result of `add_norm`."""
    total = x if delta is None else (x.float() + delta.float().view(-1, *x.shape).sum(0)).to(x.dtype)
    wide = total.float()
    return total, (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + norm.epsilon) * norm.weight.float()).to(x.dtype)


def add_norm(x: Tensor, norm: Norm, delta: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return x + delta and its RMSNorm, each [rows, inner].

    x [rows, inner]; delta [rows, inner], or [parts, rows, inner], whose parts are summed. Both must be contiguous.
    """
    rows, inner = x.shape
    total = torch.empty_like(x) if delta is not None else x
    out = torch.empty_like(x)
    _add_norm_kernel[(rows,)](
        x,
        delta,
        norm.weight,
        total,
        out,
        inner,
        norm.epsilon,
        PARTS=0 if delta is None else delta.numel() // x.numel(),
        BLOCK=triton.next_power_of_2(inner),
        OVERLAP=overlaps(x.device),
        num_warps=8 if inner > 2048 else 4,
        **launch_options(x.device),
    )
    return total, out


@triton.jit
def _add_norm_kernel(
    x: "Any",
    delta: "Any",
    weight: "Any",
    total: "Any",
    out: "Any",
    inner: "Any",
    epsilon: "Any",
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64) * inner
    column = tl.arange(0, BLOCK)
    there = column < inner
    factor = tl.load(weight + column, mask=there, other=0.0).to(tl.float32)
    wait_for_inputs(OVERLAP)
    value = tl.load(x + row + column, mask=there, other=0.0).to(tl.float32)
    if PARTS > 0:
        for part in tl.static_range(PARTS):
            value += tl.load(delta + part * tl.num_programs(0).to(tl.int64) * inner + row + column, mask=there, other=0.0).to(tl.float32)
        rounded = value.to(total.dtype.element_ty)
        tl.store(total + row + column, rounded, mask=there)
        value = rounded.to(tl.float32)
    scale = 1 / tl.sqrt(tl.sum(value * value, axis=0) / inner + epsilon)
    tl.store(out + row + column, (value * scale * factor).to(out.dtype.element_ty), mask=there)


def reference_gate(x: Tensor) -> Tensor:
    """Define the result of `gate`."""
    first, second = x.float().chunk(2, dim=-1)
    return (torch.nn.functional.silu(first) * second).to(x.dtype)


def gate(x: Tensor) -> Tensor:
    """Return silu(first half) * second half of every row: x [rows, 2 inner], contiguous -> [rows, inner]."""
    rows, inner = x.shape[0], x.shape[1] // 2
    out = torch.empty(rows, inner, dtype=x.dtype, device=x.device)
    block = 1024
    _gate_kernel[(rows, triton.cdiv(inner, block))](
        x, out, inner, BLOCK=block, OVERLAP=overlaps(x.device), num_warps=4, **launch_options(x.device)
    )
    return out


@triton.jit
def _gate_kernel(x: "Any", out: "Any", inner: "Any", BLOCK: tl.constexpr, OVERLAP: tl.constexpr) -> None:
    wait_for_inputs(OVERLAP)
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = column < inner
    first = tl.load(x + row * 2 * inner + column, mask=there, other=0.0).to(tl.float32)
    second = tl.load(x + row * 2 * inner + inner + column, mask=there, other=0.0).to(tl.float32)
    tl.store(out + row * inner + column, (silu(first) * second).to(out.dtype.element_ty), mask=there)


def reference_rotate_and_store(
    qkv: Tensor,
    length: Tensor,
    depths: Tensor,
    rows: Tensor,
    cos: Tensor,
    sin: Tensor,
    keys: Tensor,
    values: Tensor,
    norms: tuple[Norm, Norm] | None = None,
) -> Tensor:
    """Define the result of `rotate_and_store`."""
    kv_heads, _, dim = keys.shape
    wide = qkv.float().view(qkv.shape[0], -1, dim)  # [n, heads + 2 kv_heads, dim]
    query, key, value = torch.split(wide, [wide.shape[1] - 2 * kv_heads, kv_heads, kv_heads], dim=1)
    if norms is not None:
        query, key = (
            part * torch.rsqrt(part.square().mean(-1, keepdim=True) + norm.epsilon) * norm.weight.float()
            for part, norm in zip((query, key), norms, strict=True)
        )
    at = (length + depths).clamp_max(cos.shape[0] - 1)
    c, s = cos[at][:, None], sin[at][:, None]

    def rotated(part: Tensor) -> Tensor:
        low, high = part.chunk(2, dim=-1)
        return torch.cat([low * c - high * s, high * c + low * s], dim=-1).to(qkv.dtype)

    keys.index_copy_(1, length + rows, rotated(key).transpose(0, 1))
    values.index_copy_(1, length + rows, value.to(qkv.dtype).transpose(0, 1))
    return rotated(query)


def rotate_and_store(
    qkv: Tensor,
    length: Tensor,
    depths: Tensor,
    rows: Tensor,
    cos: Tensor,
    sin: Tensor,
    keys: Tensor,
    values: Tensor,
    norms: tuple[Norm, Norm] | None = None,
) -> Tensor:
    """Norm queries and keys (`norms`), rotate them to their positions, store keys and values, and return queries [n, heads, dim].

    qkv [n, (heads + 2 kv_heads) dim], contiguous; `length` int64 [1]; `depths`, `rows` int64 [n]: position and slot of each node, counted
    from `length`; cos, sin float32 [positions, dim / 2]; keys, values [kv_heads, capacity, dim] with the last dimension contiguous.
    """
    kv_heads, _, dim = keys.shape
    count, heads = qkv.shape[0], qkv.shape[1] // dim - 2 * kv_heads
    query = torch.empty(count, heads, dim, dtype=qkv.dtype, device=qkv.device)
    q_norm, k_norm = norms or (None, None)
    _rotate_kernel[(count, triton.cdiv(heads + 2 * kv_heads, _HEADS_AT_ONCE))](
        qkv,
        query,
        length,
        depths,
        rows,
        cos,
        sin,
        keys,
        values,
        q_norm.weight if q_norm else None,
        k_norm.weight if k_norm else None,
        q_norm.epsilon if q_norm else 0.0,
        k_norm.epsilon if k_norm else 0.0,
        cos.shape[0],
        keys.stride(0),
        keys.stride(1),
        values.stride(0),
        values.stride(1),
        HEADS=heads,
        KV_HEADS=kv_heads,
        HALF=dim // 2,
        BLOCK=triton.next_power_of_2(dim // 2),
        AT_ONCE=_HEADS_AT_ONCE,
        NORMS=norms is not None,
        OVERLAP=overlaps(qkv.device),
        num_warps=4,
        **launch_options(qkv.device),
    )
    return query


@triton.jit(do_not_specialize=["positions", "k_head", "v_head"])
def _rotate_kernel(
    qkv: "Any",
    query: "Any",
    length: "Any",
    depths: "Any",
    rows: "Any",
    cos: "Any",
    sin: "Any",
    keys: "Any",
    values: "Any",
    q_norm: "Any",
    k_norm: "Any",
    q_epsilon: "Any",
    k_epsilon: "Any",
    positions: "Any",
    k_head: "Any",
    k_slot: "Any",
    v_head: "Any",
    v_slot: "Any",
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
    AT_ONCE: tl.constexpr,
    NORMS: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    node = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * AT_ONCE + tl.arange(0, AT_ONCE)
    column = tl.arange(0, BLOCK)
    inside = (column < HALF)[None, :]
    there = (head < HEADS + 2 * KV_HEADS)[:, None] & inside
    if NORMS:
        q_low = tl.load(q_norm + column, mask=column < HALF, other=0.0).to(tl.float32)[None, :]
        q_high = tl.load(q_norm + HALF + column, mask=column < HALF, other=0.0).to(tl.float32)[None, :]
        k_low = tl.load(k_norm + column, mask=column < HALF, other=0.0).to(tl.float32)[None, :]
        k_high = tl.load(k_norm + HALF + column, mask=column < HALF, other=0.0).to(tl.float32)[None, :]
    committed = tl.load(length)
    slot = committed + tl.load(rows + node)
    at = tl.minimum(committed + tl.load(depths + node), positions - 1)
    c = tl.load(cos + at * HALF + column, mask=column < HALF, other=0.0)[None, :]
    s = tl.load(sin + at * HALF + column, mask=column < HALF, other=0.0)[None, :]
    wait_for_inputs(OVERLAP)
    source = qkv + node * ((HEADS + 2 * KV_HEADS) * 2 * HALF) + head[:, None] * (2 * HALF) + column[None, :]
    low = tl.load(source, mask=there, other=0.0).to(tl.float32)
    high = tl.load(source + HALF, mask=there, other=0.0).to(tl.float32)
    is_query = (head < HEADS)[:, None]
    is_key = ((head >= HEADS) & (head < HEADS + KV_HEADS))[:, None]
    if NORMS:
        mean = (tl.sum(low * low, axis=1) + tl.sum(high * high, axis=1)) / (2 * HALF)
        scale = 1 / tl.sqrt(mean + tl.where(head < HEADS, q_epsilon, k_epsilon))
        turned = is_query | is_key
        low = tl.where(turned, low * scale[:, None] * tl.where(is_query, q_low, k_low), low)
        high = tl.where(turned, high * scale[:, None] * tl.where(is_query, q_high, k_high), high)
    new_low = low * c - high * s
    new_high = high * c + low * s
    kind = query.dtype.element_ty
    target = query + (node * HEADS + head[:, None]) * (2 * HALF) + column[None, :]
    tl.store(target, new_low.to(kind), mask=there & is_query)
    tl.store(target + HALF, new_high.to(kind), mask=there & is_query)
    key = keys + (head[:, None] - HEADS).to(tl.int64) * k_head + slot * k_slot + column[None, :]
    tl.store(key, new_low.to(kind), mask=there & is_key)
    tl.store(key + HALF, new_high.to(kind), mask=there & is_key)
    is_value = (head >= HEADS + KV_HEADS)[:, None]
    value = values + (head[:, None] - HEADS - KV_HEADS).to(tl.int64) * v_head + slot * v_slot + column[None, :]
    tl.store(value, low.to(kind), mask=there & is_value)
    tl.store(value + HALF, high.to(kind), mask=there & is_value)


def reference_move_rows(storage: Tensor, length: Tensor, source: Tensor, first: int) -> None:
    """Define the result of `move_rows`."""
    moved = storage.index_select(3, length + source)
    storage.index_copy_(3, length + torch.arange(first, first + source.shape[0], device=source.device), moved)


def move_rows(storage: Tensor, length: Tensor, source: Tensor, first: int) -> None:
    """Copy slots `length + source` int64 [m] of every layer and head to slots `length + first ..`.

    All are read before any is written. storage [layers, 1, heads, capacity, dim], contiguous; `length` int64 [1].
    """
    layers, _, heads, capacity, dim = storage.shape
    count = source.shape[0]
    if count == 0:
        return
    _move_kernel[(layers * heads,)](
        storage,
        length,
        source,
        first,
        count,
        capacity,
        DIM=dim,
        BLOCK=triton.next_power_of_2(dim),
        ROWS=triton.next_power_of_2(count),
        OVERLAP=overlaps(storage.device),
        num_warps=4,
        **launch_options(storage.device),
    )


@triton.jit(do_not_specialize=["first", "count", "capacity"])
def _move_kernel(
    storage: "Any",
    length: "Any",
    source: "Any",
    first: "Any",
    count: "Any",
    capacity: "Any",
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    base = storage + tl.program_id(0).to(tl.int64) * capacity * DIM
    row, column = tl.arange(0, ROWS), tl.arange(0, BLOCK)
    committed = tl.load(length)
    wait_for_inputs(OVERLAP)
    there = (row < count)[:, None] & (column < DIM)[None, :]
    slot = committed + tl.load(source + row, mask=row < count, other=0)
    moved = tl.load(base + slot[:, None] * DIM + column[None, :], mask=there, other=0.0)
    tl.debug_barrier()  # every thread has read before any writes
    tl.store(base + (committed + first + row)[:, None] * DIM + column[None, :], moved, mask=there)
