"""The kernels of tree attention, and the tuples of their arguments. `attention` launches them and says what they compute."""

from typing import Any, NamedTuple  # "Any" is quoted in kernels: Triton cannot resolve it there

import triton
import triton.language as tl

from treespec.kernels.dependent_launch import wait_for_inputs
from treespec.kernels.product import prefetch


class Tensors(NamedTuple):
    """Pointers to what attention reads and writes; shapes are those of `tree_attention`."""

    query_ptr: Any
    keys_ptr: Any
    values_ptr: Any
    out_ptr: Any
    partial_ptr: Any
    """float32 [splits, n, heads, dim], or None: what each split has added up."""
    logs_ptr: Any
    """float32 [splits, n, heads], or None: the binary logarithm of each split's sum of weights."""


class Tree(NamedTuple):
    """The tree's own slots, and which node sees which of them. It is made in the kernel: integers in tuples would be specialised."""

    bits_ptr: Any
    depths_ptr: Any
    nodes: Any
    slots: Any
    bit_columns: Any


class Strides(NamedTuple):
    """Elements between neighbours."""

    query_head: Any
    query_node: Any
    key_head: Any
    key_slot: Any
    value_head: Any
    value_slot: Any


class Shape(NamedTuple):
    """The model's shape, which each compilation is for."""

    HEADS: int
    GROUP: int
    """Query heads per K/V head."""
    DIM: int
    BLOCK_DIM: int
    """DIM rounded up to a power of two."""


class Tile(NamedTuple):
    """One of `attention_tiles`' choices."""

    BLOCK_ROWS: int
    BLOCK_SLOTS: int
    NUM_STAGES: int


class Mode(NamedTuple):
    """The kind of work that a launch does."""

    WINDOWED: bool
    CAPPED: bool
    SPLIT: bool
    """Whether several programs may share the slots."""
    UNSPLIT_TILES: int
    """Up to this many tiles of slots stay with one program all the same."""
    PRECISION: str


@triton.jit
def _first_bits(count: "Any") -> "Any":
    """Return an int64 whose first `count` bits are set: all of them for 64 or more, none for 0 or less."""
    return tl.where(count < 64, (1 << tl.maximum(count, 0).to(tl.int64) % 64) - 1, -1)


@triton.jit
def _sharing(prefix: "Any", m: "Any", window: "Any", splits: "Any", BLOCK_SLOTS: tl.constexpr, MODE: tl.constexpr) -> "Any":
    """Return the number of programs that share the slots: all `splits`, or 1 if there are at most UNSPLIT_TILES tiles of slots."""
    span = prefix
    if MODE.WINDOWED:
        span = tl.minimum(prefix, window)
    return tl.where(tl.cdiv(span, BLOCK_SLOTS) + tl.cdiv(m, BLOCK_SLOTS) > MODE.UNSPLIT_TILES, splits, 1)


@triton.jit
def _attend(
    tensors: "Any",
    tree: "Any",
    block: "Any",
    kv_head: "Any",
    prefix: "Any",
    window: "Any",
    strides: "Any",
    factor: "Any",
    cap: "Any",
    SHAPE: tl.constexpr,
    TILE: tl.constexpr,
    MODE: tl.constexpr,
) -> None:
    """Compute one program's work: a block of rows (query heads of one K/V head) over its share of the slots."""
    BLOCK_ROWS: tl.constexpr = TILE.BLOCK_ROWS
    BLOCK_SLOTS: tl.constexpr = TILE.BLOCK_SLOTS
    BLOCK_DIM: tl.constexpr = SHAPE.BLOCK_DIM
    row = block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    node, head = row // SHAPE.GROUP, kv_head * SHAPE.GROUP + row % SHAPE.GROUP
    row_mask = node < tree.nodes
    column = tl.arange(0, BLOCK_DIM)
    column_mask = (column < SHAPE.DIM)[None, :]

    split, splits = tl.program_id(2), tl.num_programs(2)
    if MODE.SPLIT:
        splits = _sharing(prefix, tree.slots, window, splits, BLOCK_SLOTS, MODE)
        row_mask = row_mask & (split < splits)
    query_at = tensors.query_ptr + (head * strides.query_head + node.to(tl.int64) * strides.query_node)[:, None] + column[None, :]
    query = tl.load(query_at, mask=row_mask[:, None] & column_mask, other=0.0)
    total = prefix + tree.slots
    first = 0  # the first tile that any row sees
    oldest = row * 0
    newest = 0
    if MODE.WINDOWED:
        oldest = prefix - window + 1 + tl.load(tree.depths_ptr + node, mask=row_mask, other=0).to(tl.int32)
        first = tl.minimum(tl.maximum(tl.min(oldest, axis=0), 0), prefix) // BLOCK_SLOTS
        newest = tl.max(oldest, axis=0)
    committed = tl.cdiv(prefix, BLOCK_SLOTS)
    tiles = committed + tl.cdiv(tree.slots, BLOCK_SLOTS) - first
    # The first programs take a tile more: the last one has the tree's own slots and their masks. Those beyond `splits` take none.
    begin, end = first + tl.cdiv(tiles * split, splits), first + tl.minimum(tl.cdiv(tiles * (split + 1), splits), tiles)

    slot = tl.arange(0, BLOCK_SLOTS)
    keys = tensors.keys_ptr + kv_head * strides.key_head
    values = tensors.values_ptr + kv_head * strides.value_head
    keys_at = slot[:, None] * strides.key_slot + column[None, :]
    values_at = slot[:, None] * strides.value_slot + column[None, :]
    bits_ptr = tree.bits_ptr + node * tree.bit_columns

    exponent = 1.0 if MODE.CAPPED else factor  # makes scores exponents of two
    highest = tl.full((BLOCK_ROWS,), float("-inf"), dtype=tl.float32)
    mass = tl.zeros((BLOCK_ROWS,), dtype=tl.float32)
    sums = tl.zeros((BLOCK_ROWS, BLOCK_DIM), dtype=tl.float32)
    for tile in tl.range(begin, end, num_stages=TILE.NUM_STAGES):
        is_tree = tile >= committed  # the tree's own slots begin a tile of their own
        start = tl.where(is_tree, prefix + (tile - committed) * BLOCK_SLOTS, tile * BLOCK_SLOTS)
        valid = tl.minimum(tl.where(is_tree, total, prefix) - start, BLOCK_SLOTS)
        tile_mask = (slot < valid)[:, None] & column_mask
        k = tl.load(keys + start.to(tl.int64) * strides.key_slot + keys_at, mask=tile_mask, other=0.0)
        v = tl.load(values + start.to(tl.int64) * strides.value_slot + values_at, mask=tile_mask, other=0.0)
        own = (start - prefix) * is_tree.to(tl.int32)
        bits = tl.load(bits_ptr + own // 64, mask=row_mask & is_tree, other=_first_bits(valid)) >> (own % 64)
        if BLOCK_SLOTS > 64:  # 128
            next_column = own // 64 + 1
            next_mask = row_mask & is_tree & (next_column < tree.bit_columns)
            next_bits = tl.load(bits_ptr + next_column, mask=next_mask, other=_first_bits(valid - 64))
        scores = tl.dot(query, tl.trans(k), input_precision=MODE.PRECISION)
        if MODE.CAPPED:
            scores *= factor
            small = tl.exp2(-tl.abs(scores))  # e^(-2 |s| / cap)
            scores = tl.where(scores < 0, -cap, cap) * (1 - small) / (1 + small)
        if is_tree or valid < BLOCK_SLOTS or (MODE.WINDOWED and start < newest):  # not all rows see all slots
            bit = (slot % 64)[None, :].to(tl.int64)
            seen = (bits[:, None] >> bit) & 1 != 0
            if BLOCK_SLOTS > 64:
                seen = tl.where(slot[None, :] < 64, seen, (next_bits[:, None] >> bit) & 1 != 0)
            if MODE.WINDOWED:
                seen = seen & (is_tree | (start + slot[None, :] >= oldest[:, None]))
            scores = tl.where(seen, scores, float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, axis=1) * exponent)
        shift = tl.where(higher == float("-inf"), 0.0, higher)  # a row that has seen nothing yet
        weights = tl.exp2(scores * exponent - shift[:, None])
        shrink = tl.exp2(highest - shift)
        mass = mass * shrink + tl.sum(weights, axis=1)
        sums = tl.dot(weights.to(v.dtype), v, sums * shrink[:, None], input_precision=MODE.PRECISION)
        highest = higher

    mass = tl.where(mass > 0, mass, 1.0)
    sums = sums * (1 / mass)[:, None]
    out_row = node.to(tl.int64) * SHAPE.HEADS + head
    out_mask = row_mask[:, None] & column_mask
    if MODE.SPLIT and splits > 1:
        out_row += split.to(tl.int64) * tree.nodes * SHAPE.HEADS
        tl.store(tensors.logs_ptr + out_row, highest + tl.log2(mass), mask=row_mask)  # -inf where nothing was seen
        if begin < end:
            tl.store(tensors.partial_ptr + out_row[:, None] * SHAPE.DIM + column[None, :], sums, mask=out_mask)
    else:
        out_at = tensors.out_ptr + out_row[:, None] * SHAPE.DIM + column[None, :]
        tl.store(out_at, sums.to(tensors.out_ptr.dtype.element_ty), mask=out_mask)


@triton.jit(do_not_specialize=["length_ptr", "bits_ptr", "depths_ptr", "n", "m", "bit_columns", "window", "capacity"])
def attention_kernel(
    tensors: "Any",
    length_ptr: "Any",
    bits_ptr: "Any",
    depths_ptr: "Any",
    n: "Any",
    m: "Any",
    bit_columns: "Any",
    window: "Any",
    capacity: "Any",
    strides: "Any",
    factor: "Any",
    cap: "Any",
    SHAPE: tl.constexpr,
    TILE: tl.constexpr,
    SHORT_TILE: tl.constexpr,
    SHORT_SLOTS: tl.constexpr,
    MODE: tl.constexpr,
    PREFETCHED_SLOTS: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """Compute attention of a block of rows of one K/V head, over all of its slots or one split of them.

    Up to SHORT_SLOTS slots, some of the programs take all rows in blocks of SHORT_TILE, and the others do nothing.
    Reads early: length; keys and values of the first slots are prefetched.
    """
    prefix = tl.load(length_ptr).to(tl.int32)
    block, kv_head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    if PREFETCHED_SLOTS > 0:
        slot = tl.maximum(tl.minimum(tl.arange(0, PREFETCHED_SLOTS), prefix - 1), 0)
        LINES: tl.constexpr = (SHAPE.BLOCK_DIM + 63) // 64
        prefetch(tensors.keys_ptr + kv_head * strides.key_head + slot * strides.key_slot, 0, SHAPE.DIM, LINES)
        prefetch(tensors.values_ptr + kv_head * strides.value_head + slot * strides.value_slot, 0, SHAPE.DIM, LINES)
    # Above: only what is older than the pass: the length, and keys and values of committed tokens.
    wait_for_inputs(OVERLAP)
    tl.device_assert(prefix + m <= capacity, "length + m is larger than the capacity of the cache")
    tree = Tree(bits_ptr, depths_ptr, n, m, bit_columns)
    if SHORT_SLOTS > 0 and prefix + m <= SHORT_SLOTS:
        BLOCKS: tl.constexpr = SHORT_TILE.BLOCK_ROWS // TILE.BLOCK_ROWS
        if block % BLOCKS == 0:
            _attend(tensors, tree, block // BLOCKS, kv_head, prefix, window, strides, factor, cap, SHAPE, SHORT_TILE, MODE)
    else:
        _attend(tensors, tree, block, kv_head, prefix, window, strides, factor, cap, SHAPE, TILE, MODE)


@triton.jit(do_not_specialize=["length_ptr", "m", "window", "splits", "rows"])
def combine_kernel(
    partial_ptr: "Any",
    logs_ptr: "Any",
    out_ptr: "Any",
    length_ptr: "Any",
    m: "Any",
    window: "Any",
    splits: "Any",
    rows: "Any",
    DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_SLOTS: tl.constexpr,
    MODE: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """Combine the splits of BLOCK_ROWS rows; do nothing where one program has taken all slots.

    partial [splits, rows, DIM], logs [splits, rows], out [rows, DIM]; rows are nodes times heads. Reads early: length.
    """
    prefix = tl.load(length_ptr).to(tl.int32)
    # Above: only what is older than the pass: the length.
    wait_for_inputs(OVERLAP)
    if _sharing(prefix, m, window, splits, BLOCK_SLOTS, MODE) > 1:
        row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        split, column = tl.arange(0, BLOCK_SPLITS), tl.arange(0, BLOCK_DIM)
        row_mask, column_mask = row < rows, column < DIM
        log_at = split[None, :].to(tl.int64) * rows + row[:, None]
        log = tl.load(logs_ptr + log_at, mask=row_mask[:, None] & (split < splits)[None, :], other=float("-inf"))
        weights = tl.exp2(log - tl.maximum(tl.max(log, axis=1), -1e38)[:, None])
        partial_at = partial_ptr + log_at[:, :, None] * DIM + column[None, None, :]
        parts = tl.load(partial_at, mask=(log > float("-inf"))[:, :, None] & column_mask[None, None, :], other=0.0)
        mass = tl.sum(weights, axis=1)
        mixed = tl.sum(parts * weights[:, :, None], axis=1) / tl.where(mass > 0, mass, 1.0)[:, None]
        out_at = out_ptr + row[:, None].to(tl.int64) * DIM + column[None, :]
        tl.store(out_at, mixed.to(out_ptr.dtype.element_ty), mask=row_mask[:, None] & column_mask[None, :])
