"""Attention of a tree's nodes over a static cache. Its cost follows the committed length, which only the device knows.

The cache holds the committed tokens first, which every node sees. The tree's own slots follow; the ancestor bits say which node sees which.
Few nodes attend to many slots, so most of the time goes into reading keys and values. Therefore the query heads of a group are packed into
one block of rows that shares them, and many slots are split over programs that fill the device (flash-decoding). A second, small kernel
combines the splits. Both are in `attention_kernel`; `attention_tiles` cuts their work. Launches depend on shapes alone, so they can be
captured in a CUDA graph. `reference_attention` defines the result.
"""

import torch
import triton
from torch import Tensor

from treespec.kernels.ancestors import Ancestors, pack
from treespec.kernels.attention_kernel import Mode, Shape, Strides, Tensors, Tile, attention_kernel, combine_kernel
from treespec.kernels.attention_tiles import choose_splits, choose_tiling
from treespec.kernels.dependent_launch import launch_options, overlaps
from treespec.kernels.device import gpu_of

_PREFETCHED_SLOTS = 128
"""Number of slots whose keys and values are prefetched into L2 before `wait_for_inputs`, if one program takes all slots."""
_LOG2_E = 1.4426950408889634


def reference_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    length: Tensor,
    visible: Tensor,
    *,
    scale: float,
    window: int | None = None,
    depths: Tensor | None = None,
    cap: float | None = None,
) -> Tensor:
    """Define the result of `tree_attention`, in float32 (float64 for float64). Waits for the device."""
    exact = torch.float64 if query.dtype == torch.float64 else torch.float32
    prefix, group = int(length), query.shape[0] // keys.shape[0]
    used = prefix + visible.shape[1]
    k, v = (rows[:, :used].to(exact).repeat_interleave(group, 0) for rows in (keys, values))
    committed = visible.new_ones(visible.shape[0], prefix)
    if window is not None and depths is not None:
        committed = (prefix + depths)[:, None] - torch.arange(prefix, device=query.device) < window
    seen = torch.cat([committed, visible], dim=1)
    scores = query.to(exact) @ k.transpose(1, 2) * scale
    if cap is not None:
        scores = cap * (scores / cap).tanh()
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1).masked_fill(~seen, 0)
    return (weights @ v).to(query.dtype).transpose(0, 1).contiguous()


def tree_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    length: Tensor,
    visible: Tensor | Ancestors,
    *,
    scale: float,
    window: int | None = None,
    depths: Tensor | None = None,
    cap: float | None = None,
    splits: int | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Return softmax(scale query keys^T) values over the slots that each node sees: [n, heads, dim], contiguous, in query's dtype.

    `query` [heads, n, dim]; `keys` and `values` [kv_heads, capacity, dim], float16, bfloat16 or float32, of any strides with a
    contiguous last dimension; heads / kv_heads consecutive query heads share a K/V head. `length` int64 [1]: the first `length` slots are
    committed and seen by all nodes. `visible` bool [n, m], or its bits from `pack`, says which of the m slots after them each node sees.
    Slots after these are not read. With a `window`, node i is at position length + depths[i] (int64 [n]) and sees the committed slots less
    than `window` positions before it; `visible` is used as it is. With a `cap`, scaled scores s become cap tanh(s / cap). A node that sees
    nothing gets zeros. With `out` [n or more, heads, dim], contiguous, its first n rows are written and all of it is returned. No host
    synchronisation.

    Rule: length + m <= capacity. Only the device knows the length, so the host cannot check it here; `CacheBudget.allocate` makes caches that
    hold a whole tree after the last slot that counts, and `TreeModel` checks the passes whose length it knows. With TRITON_DEBUG=1 the kernel
    asserts it.

    Raises ValueError if keys and values have different shapes, if a last dimension is not contiguous, if the scale is not positive, if
    there is a window without depths, or if `out` is too small or not contiguous.
    """
    heads, n, dim = query.shape
    kv_heads, capacity, _ = keys.shape
    if keys.shape != values.shape:
        raise ValueError(
            f"keys are {list(keys.shape)} and values {list(values.shape)}; tree attention reads rows of one width, so use the model's own attention"
        )
    if query.stride(2) != 1 or keys.stride(2) != 1 or values.stride(2) != 1:
        raise ValueError("query, keys and values need a last dimension of stride 1; pass them through contiguous()")
    if scale <= 0:
        raise ValueError(f"scale {scale} is not positive; negate the query instead")
    if window is not None and depths is None:
        raise ValueError(f"window {window} counts back from each node's position; pass depths")
    seen = visible if isinstance(visible, Ancestors) else pack(visible)
    group = heads // kv_heads
    reach = capacity if window is None else min(capacity, window + seen.slots)
    gpu = gpu_of(query.device)
    plan = choose_tiling(n * group, dim, query.dtype, kv_heads, reach, gpu)
    blocks = triton.cdiv(n * group, plan.rows)
    unsplit_tiles = 0 if splits is not None else plan.unsplit_tiles
    if splits is None:
        splits = choose_splits(blocks * kv_heads, triton.cdiv(reach, plan.slots), plan, gpu)
    short = plan.short if splits == 1 else None
    overlap = overlaps(query.device)
    prefetches = overlap and splits == 1 and window is None and keys.element_size() == 2
    if out is None:
        out = torch.empty(n, heads, dim, dtype=query.dtype, device=query.device)
    elif out.shape[0] < n or out.shape[1:] != (heads, dim) or out.dtype != query.dtype or not out.is_contiguous():
        raise ValueError(f"`out` is {out.dtype} {list(out.shape)}; pass a contiguous {query.dtype} [{n} or more, {heads}, {dim}]")
    partial, logs = None, None
    if splits > 1:
        partial = torch.empty(splits, n, heads, dim, dtype=torch.float32, device=query.device)
        logs = torch.empty(splits, n, heads, dtype=torch.float32, device=query.device)
    precision = "ieee" if query.dtype == torch.float32 else "tf32"
    mode = Mode(window is not None, cap is not None, splits > 1, unsplit_tiles, precision)
    attention_kernel[(blocks, kv_heads, splits)](
        Tensors(query, keys, values, out, partial, logs),
        length,
        seen.words,
        depths,
        n,
        seen.slots,
        seen.words.shape[1],
        window or 0,
        capacity,
        Strides(query.stride(0), query.stride(1), keys.stride(0), keys.stride(1), values.stride(0), values.stride(1)),
        scale * _LOG2_E if cap is None else 2 * _LOG2_E * scale / cap,
        0.0 if cap is None else cap * _LOG2_E,
        SHAPE=Shape(heads, group, dim, max(16, triton.next_power_of_2(dim))),
        TILE=Tile(plan.rows, plan.slots, plan.stages),
        SHORT_TILE=Tile(short.rows, short.slots, short.stages) if short else None,
        SHORT_SLOTS=short.max_slots if short else 0,
        MODE=mode,
        PREFETCHED_SLOTS=_PREFETCHED_SLOTS if prefetches else 0,
        OVERLAP=overlap,
        num_warps=plan.warps,
        **launch_options(query.device),
    )
    if splits > 1:
        block_splits = triton.next_power_of_2(splits)
        block_rows = max(1, 2048 // (block_splits * triton.next_power_of_2(dim)))
        combine_kernel[(triton.cdiv(n * heads, block_rows),)](
            partial,
            logs,
            out,
            length,
            seen.slots,
            window or 0,
            splits,
            n * heads,
            DIM=dim,
            BLOCK_DIM=triton.next_power_of_2(dim),
            BLOCK_SPLITS=block_splits,
            BLOCK_ROWS=block_rows,
            BLOCK_SLOTS=plan.slots,
            MODE=mode,
            OVERLAP=overlap,
            num_warps=2,
            **launch_options(query.device),
        )
    return out
