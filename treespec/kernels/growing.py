"""Dynamic trees: three launches per level beside the draft's pass, and one launch that chooses the tree in the end.

Written in PyTorch, a level is some thirty operations on a few hundred numbers. Here the first launch reads all logits once: it finds the
largest of each group of tokens and the partial sums of the softmax (`vocabulary`). The second has one program per node: it finds the node's
most likely children and adds their log-probabilities to its own. The third is one program: it keeps the best of all these children and
writes what the draft's next pass reads, ancestor bits included. `plain_growing` defines the results, except for the rounding of
log-probabilities; equal logits have equal ones in both.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from treespec.kernels.dependent_launch import launch_options, overlaps, wait_for_inputs
from treespec.kernels.keys import index_of, largest_keys, make_keys, sort_warps, to_ordered, value_of
from treespec.kernels.vocabulary import LARGEST_COUNT, best_of_row, find_group_maxima
from treespec.trees.growth import Grown, Growth, GrowthShape
from treespec.trees.tensors import TreeTensors

LARGEST_TOTAL = 1024
"""The most nodes, the root and all levels, of which a program of the last kernel sorts the best."""
_BLOCK_ROWS = 16
"""Nodes that one program of the last kernel writes."""


class Nodes(NamedTuple):
    """The tensors of nodes: of those drafted so far, or of the tree that is chosen of them."""

    tokens_ptr: Tensor
    ranks_ptr: Tensor
    ancestors_ptr: Tensor
    bits_ptr: Tensor


def takes(shape: GrowthShape) -> bool:
    """Return whether the kernels take the shape; for logits see `vocabulary`."""
    return shape.depth > 0 and shape.width <= LARGEST_COUNT and shape.total <= LARGEST_TOTAL


def grow_level(logits: Tensor, growth: Growth, depth: int) -> None:
    """Write the level below `depth` as `plain_growing.grow_level` does, where ties between a node's children go to the smaller token.

    `logits` [nodes at `depth`, vocabulary], float16, bfloat16 or float32, with contiguous rows. The growth has `bits`, and `takes` is true
    of its shape. No host synchronisation; three launches, which depend on shapes alone. Raises ValueError for logits; see `top_tokens`.
    """
    shape, bits = growth.shape, _bits(growth)
    width, above = shape.width, shape.level(depth)
    rows, overlap, options = above.stop - above.start, overlaps(logits.device), launch_options(logits.device)
    found = find_group_maxima(logits, width, sums=True)
    assert found.tile_sums is not None
    values = torch.empty(rows, width, dtype=torch.float32, device=logits.device)
    tokens = torch.empty(rows, width, dtype=torch.int64, device=logits.device)
    _children_kernel[(rows,)](
        logits,
        found.maxima,
        found.tile_maxima,
        found.tile_sums,
        growth.values,
        values,
        tokens,
        growth.largest,
        logits.shape[1],
        found.maxima.shape[1],
        found.tile_sums.shape[1],
        width,
        above.start,
        logits.stride(0),
        BLOCK_TILES=triton.next_power_of_2(found.tile_sums.shape[1]),
        COUNT_BITS=found.count_bits,
        GROUP_BITS=found.group_bits,
        GROUPS_BITS=found.groups_bits,
        OVERLAP=overlap,
        num_warps=found.num_warps,
        **options,
    )
    candidate_bits = (rows * width - 1).bit_length()
    _keep_kernel[(1,)](
        values,
        tokens,
        growth.root,
        growth.values,
        Nodes(growth.tokens, growth.ranks, growth.ancestors, bits),
        rows * width,
        width,
        above.start,
        shape.total,
        bits.shape[1],
        CANDIDATE_BITS=candidate_bits,
        WIDTH_BITS=found.count_bits,
        OVERLAP=overlap,
        num_warps=max(sort_warps(candidate_bits), min(8, 1 << found.count_bits >> 2)),  # also for rows of 64 bits
        **options,
    )


def best_nodes(growth: Growth, size: int) -> Grown:
    """Return the tree of the best `size` nodes, 2 or more, as `plain_growing.best_nodes` does. One launch, no host synchronisation."""
    shape, bits, device = growth.shape, _bits(growth), growth.tokens.device
    tokens, ranks, depths, parents, ids = (torch.empty(size, dtype=torch.int64, device=device) for _ in range(5))
    ancestors = torch.empty(size, size, dtype=torch.bool, device=device)
    packed = torch.empty(size, triton.cdiv(size, 64), dtype=torch.int64, device=device)
    total_bits, size_bits = (max(6, (count - 1).bit_length()) for count in (shape.total, size))
    _best_kernel[(triton.cdiv(size, _BLOCK_ROWS),)](
        growth.values,
        Nodes(growth.tokens, growth.ranks, growth.ancestors, bits),
        Nodes(tokens, ranks, ancestors, packed),
        depths,
        parents,
        ids,
        shape.total,
        size,
        shape.width,
        bits.shape[1],
        packed.shape[1],
        BLOCK_ROWS=_BLOCK_ROWS,
        TOTAL_BITS=total_bits,
        SIZE_BITS=size_bits,
        OVERLAP=overlaps(device),
        num_warps=max(4, sort_warps(total_bits)),
        **launch_options(device),
    )
    tree = TreeTensors(shape.depth, depths, parents, ranks, ancestors, bits=packed, ids=shape.ids[:size])
    return Grown(tree, tokens, ids)


def _bits(growth: Growth) -> Tensor:
    if growth.bits is None:
        raise ValueError("the growth has no `bits`; begin it with `packed`")
    return growth.bits


@triton.jit(do_not_specialize=["groups", "tiles", "width", "first"])
def _children_kernel(
    logits_ptr: "Any",
    maxima_ptr: "Any",
    tile_maxima_ptr: "Any",
    tile_sums_ptr: "Any",
    node_values_ptr: "Any",
    values_ptr: "Any",
    tokens_ptr: "Any",
    largest_ptr: "Any",
    vocabulary: "Any",
    groups: "Any",
    tiles: "Any",
    width: "Any",
    first: "Any",
    stride_row: "Any",
    BLOCK_TILES: tl.constexpr,
    COUNT_BITS: tl.constexpr,
    GROUP_BITS: tl.constexpr,
    GROUPS_BITS: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """Find the `width` most likely children of one node per program, and the value of each: its parent's plus its log-probability.

    Row r of the logits [rows, vocabulary] belongs to node `first` + r. Reads maxima [rows, groups], tile_maxima and tile_sums [rows, tiles]
    and node_values [nodes], of which the root's is 0 and not read. Writes values and tokens [rows, width] and the node's largest [nodes].
    Reads early: nothing.
    """
    # Before the wait nothing is read: all of it is written in the step under way.
    wait_for_inputs(OVERLAP)
    row = tl.program_id(0)
    keys = best_of_row(
        logits_ptr + row.to(tl.int64) * stride_row, maxima_ptr + row * groups, vocabulary, groups, COUNT_BITS, GROUP_BITS, GROUPS_BITS
    )
    best = value_of(keys)
    largest = value_of(tl.max(keys, 0))
    tile = tl.arange(0, BLOCK_TILES)
    tile_maxima = tl.load(tile_maxima_ptr + row * tiles + tile, mask=tile < tiles, other=float("-inf"))
    tile_sums = tl.load(tile_sums_ptr + row * tiles + tile, mask=tile < tiles, other=0.0)
    chance = (best - largest) - tl.log(tl.sum(tile_sums * tl.exp(tile_maxima - largest), 0))
    # No child may be better than its parent. NaN, which is not <= 0, comes of logits that are not finite.
    chance = tl.where(chance <= 0, chance, tl.where(chance > 0, 0.0, float("-inf")))
    value = chance + tl.load(node_values_ptr + first + row, mask=first + row > 0, other=0.0)

    slot = tl.arange(0, 2**COUNT_BITS)
    tl.store(values_ptr + row * width + slot, value, mask=slot < width)
    tl.store(tokens_ptr + row * width + slot, index_of(keys).to(tl.int64), mask=slot < width)
    tl.store(largest_ptr + first + row, largest)


@triton.jit(do_not_specialize=["root_ptr", "candidates", "width", "first", "total", "words"])
def _keep_kernel(
    values_ptr: "Any",
    tokens_ptr: "Any",
    root_ptr: "Any",
    node_values_ptr: "Any",
    nodes: "Any",
    candidates: "Any",
    width: "Any",
    first: "Any",
    total: "Any",
    words: "Any",
    CANDIDATE_BITS: tl.constexpr,
    WIDTH_BITS: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """Keep the best `width` candidates as the next level; one program.

    Reads the values and tokens [candidates] of the children of the nodes from `first` on, `width` of each, and the ancestor bits of these
    nodes. Writes values, tokens, ranks, ancestors [total, total] and bits [total, words] of the next nodes; below the root, also the root's.
    Reads early: nothing.
    """
    # Before the wait nothing is read: all of it is written in the step under way.
    wait_for_inputs(OVERLAP)
    candidate = tl.arange(0, 2**CANDIDATE_BITS)
    mask = candidate < candidates
    value = tl.load(values_ptr + candidate, mask=mask, other=0.0)
    keys = make_keys(tl.where(mask, to_ordered(value), -0x80000000), candidate)
    keys = largest_keys(keys, CANDIDATE_BITS, WIDTH_BITS, True)

    slot = tl.arange(0, 2**WIDTH_BITS)
    kept = slot < width
    chosen = tl.where(kept, index_of(keys), 0)
    parent = first + chosen // width
    node = first + candidates // width + slot
    tl.store(node_values_ptr + node, value_of(keys), mask=kept)
    tl.store(nodes.tokens_ptr + node, tl.load(tokens_ptr + chosen), mask=kept)
    tl.store(nodes.ranks_ptr + node, (chosen % width).to(tl.int64), mask=kept)
    below_root = first == 0
    if below_root:
        tl.store(node_values_ptr, 0.0)
        tl.store(nodes.tokens_ptr, tl.load(root_ptr))
        tl.store(nodes.ranks_ptr, tl.full((), 0, tl.int64))

    bit = tl.arange(0, 64)
    for word in range(words):
        column = word * 64 + bit
        root = tl.where(word == 0, 1, 0).to(tl.int64)
        seen = tl.load(nodes.bits_ptr + parent * words + word, mask=kept & (first > 0), other=0)
        seen = tl.where(below_root, root, seen)
        seen |= tl.where(node // 64 == word, tl.full((), 1, tl.int64) << (node % 64).to(tl.int64), 0)
        tl.store(nodes.bits_ptr + node * words + word, seen, mask=kept)
        visible = (seen[:, None] >> bit[None, :].to(tl.int64)) & 1 != 0
        tl.store(nodes.ancestors_ptr + node[:, None] * total + column[None, :], visible, mask=kept[:, None] & (column < total)[None, :])
        if below_root:
            tl.store(nodes.bits_ptr + word, root)
            tl.store(nodes.ancestors_ptr + column, column == 0, mask=column < total)


@triton.jit
def _block_of(vector: "Any", block: "Any", NUM_BLOCKS: tl.constexpr, BLOCK: tl.constexpr) -> "Any":
    """Return one block of a vector of NUM_BLOCKS blocks."""
    chosen = tl.arange(0, NUM_BLOCKS)[:, None] == block
    return tl.sum(tl.where(chosen, tl.reshape(vector, [NUM_BLOCKS, BLOCK]), 0), 0)


@triton.jit(do_not_specialize=["total", "size", "width", "words", "tree_words"])
def _best_kernel(
    values_ptr: "Any",
    nodes: "Any",
    tree: "Any",
    depths_ptr: "Any",
    parents_ptr: "Any",
    ids_ptr: "Any",
    total: "Any",
    size: "Any",
    width: "Any",
    words: "Any",
    tree_words: "Any",
    BLOCK_ROWS: tl.constexpr,
    TOTAL_BITS: tl.constexpr,
    SIZE_BITS: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """Find the best `size` of all nodes, and write BLOCK_ROWS of them per program, numbered anew in the order of their ids.

    Reads the nodes' values, tokens, ranks [total] and bits [total, words]. Writes the tree's tokens, ranks, depths, parents and ids [size],
    ancestors [size, size] and bits [size, tree_words]. All programs sort the same values, which is quicker than a launch between.
    Reads early: nothing.
    """
    # Before the wait nothing is read: all of it is written in the step under way.
    wait_for_inputs(OVERLAP)
    candidate = tl.arange(0, 2**TOTAL_BITS)
    mask = candidate < total
    value = tl.load(values_ptr + candidate, mask=mask, other=0.0)
    best = largest_keys(make_keys(tl.where(mask, to_ordered(value), -0x80000000), candidate), TOTAL_BITS, SIZE_BITS, True)
    place = tl.arange(0, 2**SIZE_BITS)
    by_id = tl.where(place < size, make_keys(place * 0, index_of(best)), -1)
    ids = index_of(largest_keys(by_id, SIZE_BITS, SIZE_BITS, True))  # ascending; 0 where there is no node

    block, lane = tl.program_id(0), tl.arange(0, 64)
    node = block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    kept = node < size
    chosen = _block_of(ids, block, 2**SIZE_BITS // BLOCK_ROWS, BLOCK_ROWS)
    tl.store(tree.tokens_ptr + node, tl.load(nodes.tokens_ptr + chosen), mask=kept)
    tl.store(tree.ranks_ptr + node, tl.load(nodes.ranks_ptr + chosen), mask=kept)
    tl.store(depths_ptr + node, ((chosen + width - 1) // width).to(tl.int64), mask=kept)
    tl.store(ids_ptr + node, chosen.to(tl.int64), mask=kept)

    parent = node * 0  # the last of the ancestors
    for word in range(tree_words):
        column = word * 64 + lane
        column_id = _block_of(ids, word, 2**SIZE_BITS // 64, 64)
        both = kept[:, None] & (column < size)[None, :]
        bits = tl.load(nodes.bits_ptr + chosen[:, None] * words + column_id[None, :] // 64, mask=both, other=0)
        visible = (bits >> (column_id % 64)[None, :].to(tl.int64)) & 1 != 0
        tl.store(tree.ancestors_ptr + node[:, None] * size + column[None, :], visible, mask=both)
        tl.store(tree.bits_ptr + node * tree_words + word, tl.sum(visible.to(tl.int64) << lane[None, :].to(tl.int64), 1), mask=kept)
        before = visible & (column[None, :] < node[:, None])
        parent = tl.maximum(parent, tl.max(tl.where(before, column[None, :], 0), 1))
    tl.store(parents_ptr + node, parent.to(tl.int64), mask=kept)
