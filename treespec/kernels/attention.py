"""Attention of a tree's nodes over a static cache. Its cost follows the committed length, which only the device knows.

The cache holds the committed tokens first, which every node sees. The tree's own slots follow; the ancestor bits say which node sees which.
Few nodes attend to many slots, so most of the time goes into reading keys and values. Therefore the query heads of a group are packed into
one block of rows that shares them, and many slots are split over programs that fill the device (flash-decoding). A second, small kernel
combines the splits.
Launches depend on shapes alone, so they can be captured in a CUDA graph. `reference_attention` defines the result.
"""

from typing import Any  # quoted below: Triton cannot resolve it in a kernel

import torch
import triton
import triton.language as tl
from torch import Tensor

from treespec.kernels.ancestors import Ancestors, pack
from treespec.kernels.attention_tiles import choose_splits, choose_tiling
from treespec.kernels.dependent_launch import launch_options, overlaps, wait_for_inputs
from treespec.kernels.product import ask, shared_bytes

_NEAR = 128
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
) -> Tensor:
    """Return softmax(scale query keys^T) values over the slots that each node sees: [n, heads, dim], contiguous, in query's dtype.

    `query` [heads, n, dim]; `keys` and `values` [kv_heads, capacity, dim], float16, bfloat16 or float32, of any strides with a
    contiguous last dimension; heads / kv_heads consecutive query heads share a K/V head. `length` int64 [1]: the first `length` slots are
    committed and seen by all nodes. `visible` bool [n, m], or its bits from `pack`, says which of the m slots after them each node sees.
    Rule: length + m <= capacity; this is not checked. Slots after these are not read. With a `window`, node i is at position
    length + depths[i] (int64 [n]) and sees the committed slots less than `window` positions before it; `visible` is used as it is.
    With a `cap`, scaled scores s become cap tanh(s / cap). A node that sees nothing gets zeros. No host synchronisation.

    Raises ValueError if keys and values have different shapes, if a last dimension is not contiguous, if the scale is not positive, or if
    there is a window without depths.
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
    plan = choose_tiling(n * group, dim, query.dtype, kv_heads, reach, shared_bytes(query.device))
    blocks = triton.cdiv(n * group, plan.rows)
    whole = 0 if splits is not None else plan.whole
    if splits is None:
        splits = choose_splits(blocks * kv_heads, triton.cdiv(reach, plan.slots), plan)
    few = plan.few if splits == 1 else None
    early_rows = overlaps(query.device) and splits == 1 and window is None and keys.element_size() == 2
    out = torch.empty(n, heads, dim, dtype=query.dtype, device=query.device)
    partial, logs = None, None
    if splits > 1:
        partial = torch.empty(splits, n, heads, dim, dtype=torch.float32, device=query.device)
        logs = torch.empty(splits, n, heads, dtype=torch.float32, device=query.device)
    _attention_kernel[(blocks, kv_heads, splits)](
        query,
        keys,
        values,
        length,
        seen.words,
        depths,
        out,
        partial,
        logs,
        n,
        seen.slots,
        0 if window is None else window,
        seen.words.shape[1],
        query.stride(0),
        query.stride(1),
        keys.stride(0),
        keys.stride(1),
        values.stride(0),
        values.stride(1),
        scale * _LOG2_E if cap is None else 2 * _LOG2_E * scale / cap,
        0.0 if cap is None else cap * _LOG2_E,
        HEADS=heads,
        GROUP=group,
        DIM=dim,
        WIDE=max(16, triton.next_power_of_2(dim)),
        ROWS=plan.rows,
        SLOTS=plan.slots,
        STAGES=plan.stages,
        WHOLE=whole,
        FEW=few.most if few else 0,
        FEW_ROWS=few.rows if few else 0,
        FEW_SLOTS=few.slots if few else 0,
        FEW_STAGES=few.stages if few else 0,
        WINDOWED=window is not None,
        CAPPED=cap is not None,
        SPLIT=splits > 1,
        NEAR=_NEAR if early_rows else 0,
        PRECISION="ieee" if query.dtype == torch.float32 else "tf32",
        OVERLAP=overlaps(query.device),
        num_warps=plan.warps,
        **launch_options(query.device),
    )
    if splits > 1:
        parts = triton.next_power_of_2(splits)
        together = max(1, 2048 // (parts * triton.next_power_of_2(dim)))
        _combine_kernel[(triton.cdiv(n * heads, together),)](
            partial,
            logs,
            out,
            length,
            seen.slots,
            0 if window is None else window,
            splits,
            n * heads,
            DIM=dim,
            WIDE=triton.next_power_of_2(dim),
            SPLITS=parts,
            ROWS=together,
            SLOTS=plan.slots,
            WHOLE=whole,
            WINDOWED=window is not None,
            OVERLAP=overlaps(query.device),
            num_warps=2,
            **launch_options(query.device),
        )
    return out


@triton.jit
def _first_bits(count: "Any") -> "Any":
    """Return a word whose first `count` bits are set: all of them for 64 or more, none for 0 or less."""
    return tl.where(count < 64, (1 << tl.maximum(count, 0).to(tl.int64) % 64) - 1, -1)


@triton.jit
def _parts(
    prefix: "Any", m: "Any", window: "Any", splits: "Any", SLOTS: tl.constexpr, WHOLE: tl.constexpr, WINDOWED: tl.constexpr
) -> "Any":
    """Return the number of programs that share the slots: all `splits`, or 1 if there are at most WHOLE tiles of slots."""
    span = prefix
    if WINDOWED:
        span = tl.minimum(prefix, window)
    return tl.where(tl.cdiv(span, SLOTS) + tl.cdiv(m, SLOTS) > WHOLE, splits, 1)


@triton.jit
def _attend(
    query: "Any",
    keys: "Any",
    values: "Any",
    bits: "Any",
    depths: "Any",
    out: "Any",
    partial: "Any",
    logs: "Any",
    block: "Any",
    kv_head: "Any",
    prefix: "Any",
    n: "Any",
    m: "Any",
    window: "Any",
    words: "Any",
    query_head: "Any",
    query_node: "Any",
    key_slot: "Any",
    value_slot: "Any",
    factor: "Any",
    cap: "Any",
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    SLOTS: tl.constexpr,
    STAGES: tl.constexpr,
    WHOLE: tl.constexpr,
    WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr,
    SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """Compute one program's work: a block of rows (query heads of one K/V head) over its share of the slots."""
    row = block * ROWS + tl.arange(0, ROWS)
    node, head = row // GROUP, kv_head * GROUP + row % GROUP
    there = node < n
    place = tl.arange(0, WIDE)

    split, splits = tl.program_id(2), tl.num_programs(2)
    if SPLIT:
        splits = _parts(prefix, m, window, splits, SLOTS, WHOLE, WINDOWED)
        there = there & (split < splits)
    q_at = query + (head * query_head + node.to(tl.int64) * query_node)[:, None] + place[None, :]
    q = tl.load(q_at, mask=there[:, None] & (place < DIM)[None, :], other=0.0)
    total = prefix + m
    first = 0  # the first tile that any row sees
    oldest = row * 0
    newest = 0
    if WINDOWED:
        oldest = prefix - window + 1 + tl.load(depths + node, mask=there, other=0).to(tl.int32)
        first = tl.minimum(tl.maximum(tl.min(oldest, axis=0), 0), prefix) // SLOTS
        newest = tl.max(oldest, axis=0)
    committed = tl.cdiv(prefix, SLOTS)
    tiles = committed + tl.cdiv(m, SLOTS) - first
    # The first programs take a tile more: the last one has the tree's own rows and their masks. Those beyond `splits` take none.
    begin, end = first + tl.cdiv(tiles * split, splits), first + tl.minimum(tl.cdiv(tiles * (split + 1), splits), tiles)

    slot = tl.arange(0, SLOTS)
    k_at = slot[:, None] * key_slot + place[None, :]
    v_at = slot[:, None] * value_slot + place[None, :]
    bits += node * words

    raw = 1.0 if CAPPED else factor  # makes scores exponents of two
    highest = tl.full((ROWS,), float("-inf"), dtype=tl.float32)
    mass = tl.zeros((ROWS,), dtype=tl.float32)
    sums = tl.zeros((ROWS, WIDE), dtype=tl.float32)
    for tile in tl.range(begin, end, num_stages=STAGES):
        behind = tile >= committed  # of the tree's own rows, which begin a tile of their own
        start = tl.where(behind, prefix + (tile - committed) * SLOTS, tile * SLOTS)
        there_are = tl.minimum(tl.where(behind, total, prefix) - start, SLOTS)
        inside = (slot < there_are)[:, None]
        k = tl.load(keys + start.to(tl.int64) * key_slot + k_at, mask=inside & (place < DIM)[None, :], other=0.0)
        v = tl.load(values + start.to(tl.int64) * value_slot + v_at, mask=inside & (place < DIM)[None, :], other=0.0)
        own = (start - prefix) * behind.to(tl.int32)
        word = tl.load(bits + own // 64, mask=there & behind, other=_first_bits(there_are)) >> (own % 64)
        if SLOTS > 64:  # 128
            beyond = own // 64 + 1
            second = tl.load(bits + beyond, mask=there & behind & (beyond < words), other=_first_bits(there_are - 64))
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        if CAPPED:
            scores *= factor
            small = tl.exp2(-tl.abs(scores))  # e^(-2 |s| / cap)
            scores = tl.where(scores < 0, -cap, cap) * (1 - small) / (1 + small)
        if behind or there_are < SLOTS or (WINDOWED and start < newest):  # not all rows see all slots
            bit = (slot % 64)[None, :].to(tl.int64)
            seen = (word[:, None] >> bit) & 1 != 0
            if SLOTS > 64:
                seen = tl.where(slot[None, :] < 64, seen, (second[:, None] >> bit) & 1 != 0)
            if WINDOWED:
                seen = seen & (behind | (start + slot[None, :] >= oldest[:, None]))
            scores = tl.where(seen, scores, float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, axis=1) * raw)
        against = tl.where(higher == float("-inf"), 0.0, higher)  # a row that has seen nothing yet
        weights = tl.exp2(scores * raw - against[:, None])
        shrink = tl.exp2(highest - against)
        mass = mass * shrink + tl.sum(weights, axis=1)
        sums = tl.dot(weights.to(v.dtype), v, sums * shrink[:, None], input_precision=PRECISION)
        highest = higher

    mass = tl.where(mass > 0, mass, 1.0)
    sums = sums * (1 / mass)[:, None]
    target = node.to(tl.int64) * HEADS + head
    inside = there[:, None] & (place < DIM)[None, :]
    if SPLIT and splits > 1:
        target += split.to(tl.int64) * n * HEADS
        tl.store(logs + target, highest + tl.log2(mass), mask=there)  # -inf where nothing was seen
        if begin < end:
            tl.store(partial + target[:, None] * DIM + place[None, :], sums, mask=inside)
    else:
        tl.store(out + target[:, None] * DIM + place[None, :], sums.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["length", "bits", "depths", "n", "m", "window", "words"])
def _attention_kernel(
    query: "Any",
    keys: "Any",
    values: "Any",
    length: "Any",
    bits: "Any",
    depths: "Any",
    out: "Any",
    partial: "Any",
    logs: "Any",
    n: "Any",
    m: "Any",
    window: "Any",
    words: "Any",
    query_head: "Any",
    query_node: "Any",
    key_head: "Any",
    key_slot: "Any",
    value_head: "Any",
    value_slot: "Any",
    factor: "Any",
    cap: "Any",
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    SLOTS: tl.constexpr,
    STAGES: tl.constexpr,
    WHOLE: tl.constexpr,
    FEW: tl.constexpr,
    FEW_ROWS: tl.constexpr,
    FEW_SLOTS: tl.constexpr,
    FEW_STAGES: tl.constexpr,
    WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr,
    SPLIT: tl.constexpr,
    NEAR: tl.constexpr,
    PRECISION: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    prefix = tl.load(length).to(tl.int32)
    kv_head = tl.program_id(1).to(tl.int64)
    keys += kv_head * key_head
    values += kv_head * value_head
    if NEAR > 0:
        near = tl.maximum(tl.minimum(tl.arange(0, NEAR), prefix - 1), 0)
        ask(keys + near * key_slot, 0, DIM, (WIDE + 63) // 64)
        ask(values + near * value_slot, 0, DIM, (WIDE + 63) // 64)
    wait_for_inputs(OVERLAP)
    block = tl.program_id(0)
    if FEW > 0 and prefix + m <= FEW:
        if block % (FEW_ROWS // ROWS) == 0:
            _attend(
                query,
                keys,
                values,
                bits,
                depths,
                out,
                partial,
                logs,
                block // (FEW_ROWS // ROWS),
                kv_head,
                prefix,
                n,
                m,
                window,
                words,
                query_head,
                query_node,
                key_slot,
                value_slot,
                factor,
                cap,
                HEADS,
                GROUP,
                DIM,
                WIDE,
                FEW_ROWS,
                FEW_SLOTS,
                FEW_STAGES,
                WHOLE,
                WINDOWED,
                CAPPED,
                SPLIT,
                PRECISION,
            )
    else:
        _attend(
            query,
            keys,
            values,
            bits,
            depths,
            out,
            partial,
            logs,
            block,
            kv_head,
            prefix,
            n,
            m,
            window,
            words,
            query_head,
            query_node,
            key_slot,
            value_slot,
            factor,
            cap,
            HEADS,
            GROUP,
            DIM,
            WIDE,
            ROWS,
            SLOTS,
            STAGES,
            WHOLE,
            WINDOWED,
            CAPPED,
            SPLIT,
            PRECISION,
        )


@triton.jit(do_not_specialize=["length", "m", "window", "splits", "rows"])
def _combine_kernel(
    partial: "Any",
    logs: "Any",
    out: "Any",
    length: "Any",
    m: "Any",
    window: "Any",
    splits: "Any",
    rows: "Any",
    DIM: tl.constexpr,
    WIDE: tl.constexpr,
    SPLITS: tl.constexpr,
    ROWS: tl.constexpr,
    SLOTS: tl.constexpr,
    WHOLE: tl.constexpr,
    WINDOWED: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    prefix = tl.load(length).to(tl.int32)
    wait_for_inputs(OVERLAP)
    if _parts(prefix, m, window, splits, SLOTS, WHOLE, WINDOWED) > 1:
        row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        split, place = tl.arange(0, SPLITS), tl.arange(0, WIDE)
        there, inside = row < rows, place < DIM
        at = split[None, :].to(tl.int64) * rows + row[:, None]
        log = tl.load(logs + at, mask=there[:, None] & (split < splits)[None, :], other=float("-inf"))
        weights = tl.exp2(log - tl.maximum(tl.max(log, axis=1), -1e38)[:, None])
        part_at = partial + at[:, :, None] * DIM + place[None, None, :]
        parts = tl.load(part_at, mask=(log > float("-inf"))[:, :, None] & inside[None, None, :], other=0.0)
        mass = tl.sum(weights, axis=1)
        mixed = tl.sum(parts * weights[:, :, None], axis=1) / tl.where(mass > 0, mass, 1.0)[:, None]
        out_at = out + row[:, None].to(tl.int64) * DIM + place[None, :]
        tl.store(out_at, mixed.to(out.dtype.element_ty), mask=there[:, None] & inside[None, :])
