"""Rotary positions, norms of heads, and writing K/V rows, in one launch after a product. `qkv` does the same within the product.

`reference_rotate_and_store` defines the result.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from treespec.kernels.dependent_launch import launch_options, overlaps, wait_for_inputs
from treespec.kernels.product import Norm

_BLOCK_HEADS = 16


class Positions(NamedTuple):
    """Pointers that say where a pass's tokens stand; shapes are those of `rotate_and_store`."""

    length_ptr: Any
    depths_ptr: Any
    offsets_ptr: Any
    cos_ptr: Any
    sin_ptr: Any


class Cache(NamedTuple):
    """Pointers to the keys and values of one layer."""

    keys_ptr: Any
    values_ptr: Any


def reference_rotate_and_store(
    qkv: Tensor,
    length: Tensor,
    depths: Tensor,
    offsets: Tensor,
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

    keys.index_copy_(1, length + offsets, rotated(key).transpose(0, 1))
    values.index_copy_(1, length + offsets, value.to(qkv.dtype).transpose(0, 1))
    return rotated(query)


def rotate_and_store(
    qkv: Tensor,
    length: Tensor,
    depths: Tensor,
    offsets: Tensor,
    cos: Tensor,
    sin: Tensor,
    keys: Tensor,
    values: Tensor,
    norms: tuple[Norm, Norm] | None = None,
) -> Tensor:
    """Norm queries and keys (`norms`), rotate them to their positions, store keys and values, and return queries [n, heads, dim].

    qkv [n, (heads + 2 kv_heads) dim], contiguous; `length` int64 [1]; `depths`, `offsets` int64 [n]: position and slot of each node,
    counted from `length`; cos, sin float32 [positions, dim / 2]; keys, values [kv_heads, capacity, dim] with the last dimension contiguous.
    """
    kv_heads, _, dim = keys.shape
    count, heads = qkv.shape[0], qkv.shape[1] // dim - 2 * kv_heads
    query = torch.empty(count, heads, dim, dtype=qkv.dtype, device=qkv.device)
    q_norm, k_norm = norms or (None, None)
    _rotate_kernel[(count, triton.cdiv(heads + 2 * kv_heads, _BLOCK_HEADS))](
        qkv,
        query,
        Positions(length, depths, offsets, cos, sin),
        Cache(keys, values),
        q_norm.weight if q_norm else None,
        k_norm.weight if k_norm else None,
        cos.shape[0],
        q_norm.epsilon if q_norm else 0.0,
        k_norm.epsilon if k_norm else 0.0,
        keys.stride(0),
        keys.stride(1),
        values.stride(0),
        values.stride(1),
        HEADS=heads,
        KV_HEADS=kv_heads,
        HALF=dim // 2,
        BLOCK_HALF=triton.next_power_of_2(dim // 2),
        BLOCK_HEADS=_BLOCK_HEADS,
        NORMS=norms is not None,
        OVERLAP=overlaps(qkv.device),
        num_warps=4,
        **launch_options(qkv.device),
    )
    return query


@triton.jit(do_not_specialize=["num_positions", "stride_key_head", "stride_value_head"])
def _rotate_kernel(
    qkv_ptr: "Any",
    query_ptr: "Any",
    positions: "Any",
    cache: "Any",
    q_norm_ptr: "Any",
    k_norm_ptr: "Any",
    num_positions: "Any",
    q_epsilon: "Any",
    k_epsilon: "Any",
    stride_key_head: "Any",
    stride_key_slot: "Any",
    stride_value_head: "Any",
    stride_value_slot: "Any",
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    NORMS: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """Norm, rotate and store BLOCK_HEADS heads of one node.

    qkv [n, (HEADS + 2 KV_HEADS) 2 HALF]; query [n, HEADS, 2 HALF]; `positions` and `cache` as in `rotate_and_store`. Reads early: length,
    depths, offsets, cos, sin, q_norm, k_norm.
    """
    node = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
    column = tl.arange(0, BLOCK_HALF)
    column_mask = column < HALF
    mask = (head < HEADS + 2 * KV_HEADS)[:, None] & column_mask[None, :]
    if NORMS:
        q_low = tl.load(q_norm_ptr + column, mask=column_mask, other=0.0).to(tl.float32)[None, :]
        q_high = tl.load(q_norm_ptr + HALF + column, mask=column_mask, other=0.0).to(tl.float32)[None, :]
        k_low = tl.load(k_norm_ptr + column, mask=column_mask, other=0.0).to(tl.float32)[None, :]
        k_high = tl.load(k_norm_ptr + HALF + column, mask=column_mask, other=0.0).to(tl.float32)[None, :]
    committed = tl.load(positions.length_ptr)
    slot = committed + tl.load(positions.offsets_ptr + node)
    angle = tl.minimum(committed + tl.load(positions.depths_ptr + node), num_positions - 1) * HALF + column
    cos = tl.load(positions.cos_ptr + angle, mask=column_mask, other=0.0)[None, :]
    sin = tl.load(positions.sin_ptr + angle, mask=column_mask, other=0.0)[None, :]
    # Above: only what is older than the pass: norm weights, the length, the placement, and rotary tables.
    wait_for_inputs(OVERLAP)
    source = qkv_ptr + node * ((HEADS + 2 * KV_HEADS) * 2 * HALF) + head[:, None] * (2 * HALF) + column[None, :]
    low = tl.load(source, mask=mask, other=0.0).to(tl.float32)
    high = tl.load(source + HALF, mask=mask, other=0.0).to(tl.float32)
    is_query = (head < HEADS)[:, None]
    is_key = ((head >= HEADS) & (head < HEADS + KV_HEADS))[:, None]
    if NORMS:
        mean = (tl.sum(low * low, axis=1) + tl.sum(high * high, axis=1)) / (2 * HALF)
        scale = 1 / tl.sqrt(mean + tl.where(head < HEADS, q_epsilon, k_epsilon))
        is_rotated = is_query | is_key
        low = tl.where(is_rotated, low * scale[:, None] * tl.where(is_query, q_low, k_low), low)
        high = tl.where(is_rotated, high * scale[:, None] * tl.where(is_query, q_high, k_high), high)
    new_low = low * cos - high * sin
    new_high = high * cos + low * sin
    dtype = query_ptr.dtype.element_ty
    query_at = query_ptr + (node * HEADS + head[:, None]) * (2 * HALF) + column[None, :]
    tl.store(query_at, new_low.to(dtype), mask=mask & is_query)
    tl.store(query_at + HALF, new_high.to(dtype), mask=mask & is_query)
    key_at = cache.keys_ptr + (head[:, None] - HEADS).to(tl.int64) * stride_key_head + slot * stride_key_slot + column[None, :]
    tl.store(key_at, new_low.to(dtype), mask=mask & is_key)
    tl.store(key_at + HALF, new_high.to(dtype), mask=mask & is_key)
    is_value = (head >= HEADS + KV_HEADS)[:, None]
    kv_head = (head[:, None] - HEADS - KV_HEADS).to(tl.int64)
    value_at = cache.values_ptr + kv_head * stride_value_head + slot * stride_value_slot + column[None, :]
    tl.store(value_at, low.to(dtype), mask=mask & is_value)
    tl.store(value_at + HALF, high.to(dtype), mask=mask & is_value)
