"""The end of a step: the walk down the tree to the last accepted node, the token after it, and the report of both.

Written in PyTorch, the end of a step is about thirty operations on a few dozen numbers, each of which takes a microsecond or two to
launch. Here one program does them all where the target's choices decide (`settle_matching`; `plain.finish_step` defines the result). For
sampled children (`settle_sampled`), the token after the last node is drawn from what is left of the target there, which takes a program per
tile of the vocabulary; each of these finds the last node by itself, and a last program writes the report.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from treespec.kernels.ancestors import pack
from treespec.kernels.dependent_launch import launch_options, overlaps, wait_for_inputs
from treespec.kernels.keys import _index, _keys, _ordered
from treespec.kernels.noise import exponential, is_below, random_block, random_words
from treespec.kernels.outcome import Outcome, ReportLayout
from treespec.kernels.racing import TILE
from treespec.kernels.residual import Chains
from treespec.trees.tensors import StaticTensors, TreeTensors

LARGEST = 512
"""The largest tree, in nodes, that one program takes."""


def settle_matching(tokens: Tensor, choices: Tensor, tree: TreeTensors, largest: Tensor, drafted: Tensor, length: Tensor) -> Outcome:
    """Return the outcome that `plain.finish_step` defines, in one launch.

    `tokens`, `choices` int64 [n], n <= 512: the tree's tokens and the target's choice after each. Siblings must have different tokens.
    `largest` [n] and `drafted` [any number], of any type and stride: the largest logits of the target and the draft. `length` int64 [1].
    """
    outcome, bits = _empty_outcome(tree), _bits(tree)
    _match_kernel[(1,)](
        tokens,
        choices,
        largest,
        drafted,
        tree.parents,
        tree.depths,
        tree.ranks,
        bits,
        length,
        outcome.path,
        outcome.report,
        outcome.state,
        tree.size,
        tree.depth,
        bits.shape[1],
        drafted.shape[0],
        choices.stride(0),
        largest.stride(0),
        **_blocks(tree, drafted),
        **launch_options(tokens.device),
    )
    return outcome


def settle_sampled(
    tokens: Tensor,
    p: Tensor,
    q: Tensor,
    chains: Chains,
    tree: StaticTensors,
    seed: Tensor,
    largest: Tensor,
    drafted: Tensor,
    length: Tensor,
    *,
    leaves_first: bool,
) -> Outcome:
    """Draw the last accepted node and the token after it from the chances of `residual.run_chains`, and return the outcome.

    `p` float32 [n, vocabulary], n <= 512, and `q` float32 [m, any number of first tokens], `chains` and `leaves_first` as `run_chains` was
    given and returned; `seed` int64 [1]; the others as in `settle_matching`. Takes two launches.
    """
    outcome, bits = _empty_outcome(tree), _bits(tree)
    tiles = triton.cdiv(p.shape[1], TILE)
    best = torch.empty(tiles, dtype=torch.int64, device=p.device)
    last = torch.empty(1, dtype=torch.int64, device=p.device)
    blocks = _blocks(tree, drafted)
    _draw_kernel[(tiles,)](
        p,
        q,
        chains.chance,
        chains.cut,
        chains.taken,
        tree.parents,
        tree.depths,
        tree.bottom_up,
        bits,
        seed,
        best,
        last,
        tree.size,
        q.shape[0],
        bits.shape[1],
        p.shape[1],
        q.shape[1],
        p.stride(0),
        q.stride(0),
        NODES=blocks["NODES"],
        TILE=TILE,
        LEAVES_FIRST=leaves_first,
        OVERLAP=blocks["OVERLAP"],
        num_warps=max(4, blocks["NODES"] // 64),
        **launch_options(tokens.device),
    )
    _drawn_kernel[(1,)](
        tokens,
        best,
        last,
        largest,
        drafted,
        tree.depths,
        tree.ranks,
        bits,
        length,
        outcome.path,
        outcome.report,
        outcome.state,
        tree.size,
        tree.depth,
        bits.shape[1],
        drafted.shape[0],
        tiles,
        TILES=triton.next_power_of_2(tiles),
        **blocks,
        **launch_options(tokens.device),
    )
    return outcome


def _empty_outcome(tree: TreeTensors) -> Outcome:
    sizes = tree.depth + 1, ReportLayout(tree.depth).size, 3
    return Outcome(*(torch.empty(size, dtype=torch.int64, device=tree.depths.device) for size in sizes))


def _bits(tree: TreeTensors) -> Tensor:
    """Return the tree's ancestors as packed bits."""
    return pack(tree.ancestors).words if tree.bits is None else tree.bits


def _blocks(tree: TreeTensors, drafted: Tensor) -> dict[str, Any]:
    nodes = max(64, triton.next_power_of_2(tree.size))
    return {
        "NODES": nodes,
        "LEVELS": triton.next_power_of_2(tree.depth + 1),
        "DRAFTED": triton.next_power_of_2(max(1, drafted.shape[0])),
        "OVERLAP": overlaps(tree.depths.device),
        "num_warps": max(4, nodes // 64),
    }


@triton.jit
def _finite(x: "Any") -> "Any":
    """Return where x is neither NaN nor infinite."""
    return tl.abs(x.to(tl.float32)) < float("inf")


@triton.jit
def _deepest(missed: "Any", node: "Any", depth: "Any", mask: "Any", bits_ptr: "Any", words: "Any", NODES: tl.constexpr) -> "Any":
    """Return the deepest node such that neither it nor one above it was missed."""
    missed_words = tl.sum(tl.reshape(missed.to(tl.int64) << (node % 64).to(tl.int64), [NODES // 64, 64]), axis=1)
    word = tl.arange(0, NODES // 64)
    above = tl.load(bits_ptr + node[:, None] * words + word[None, :], mask=mask[:, None] & (word < words)[None, :], other=0)
    blocked = tl.max(((above & missed_words[None, :]) != 0).to(tl.int32), axis=1)
    return tl.argmax(tl.where(mask & (blocked == 0), depth, -1), axis=0)


@triton.jit
def _write_outcome(
    last: "Any",
    following: "Any",
    node: "Any",
    depth: "Any",
    rank: "Any",
    token: "Any",
    is_sound: "Any",
    drafts_sound: "Any",
    mask: "Any",
    committed: "Any",
    tokens_ptr: "Any",
    depths_ptr: "Any",
    ranks_ptr: "Any",
    bits_ptr: "Any",
    path_ptr: "Any",
    report_ptr: "Any",
    state_ptr: "Any",
    levels: "Any",
    words: "Any",
    LEVELS: tl.constexpr,
) -> None:
    """Write path, report (see `ReportLayout`) and state of a step that ends at node `last` and commits the token `following` after it."""
    level = tl.arange(0, LEVELS)
    count, token_there, rank_there = tl.load(depths_ptr + last), tl.load(tokens_ptr + last), tl.load(ranks_ptr + last)
    on_path = mask & ((tl.load(bits_ptr + last * words + node // 64, mask=mask, other=0) >> (node % 64).to(tl.int64)) & 1 != 0)
    behind = (level > count) & (level <= levels)  # what no one reads, written all the same
    tl.store(path_ptr + depth, node.to(tl.int64), mask=on_path)
    tl.store(path_ptr + level, (last + level * 0).to(tl.int64), mask=behind)
    tl.store(report_ptr + depth - 1, token, mask=on_path & (node > 0))
    tl.store(report_ptr + level, tl.where((level == count) | (level == levels), following, token_there), mask=behind | (level == count))
    tl.store(report_ptr + levels + 1 + depth, rank, mask=on_path)
    tl.store(report_ptr + levels + 1 + level, rank_there + level * 0, mask=behind)
    end = report_ptr + 2 * (levels + 1)
    tl.store(end, count)
    tl.store(end + 1, tl.min((is_sound | ~on_path).to(tl.int64), axis=0))
    tl.store(end + 2, drafts_sound)
    tl.store(state_ptr, token_there)
    tl.store(state_ptr + 1, following)
    tl.store(state_ptr + 2, committed + count + 1)


@triton.jit(do_not_specialize=["size", "levels", "words", "drafts", "stride_choice", "stride_largest"])
def _match_kernel(
    tokens_ptr: "Any",
    choices_ptr: "Any",
    largest_ptr: "Any",
    drafted_ptr: "Any",
    parents_ptr: "Any",
    depths_ptr: "Any",
    ranks_ptr: "Any",
    bits_ptr: "Any",
    length_ptr: "Any",
    path_ptr: "Any",
    report_ptr: "Any",
    state_ptr: "Any",
    size: "Any",
    levels: "Any",
    words: "Any",
    drafts: "Any",
    stride_choice: "Any",
    stride_largest: "Any",
    NODES: tl.constexpr,
    LEVELS: tl.constexpr,
    DRAFTED: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """Walk down the tree along the target's choices, and write the outcome.

    Reads early: the committed length and the shape of the tree. A dynamic tree is older than the target's pass, too.
    """
    node, draft = tl.arange(0, NODES), tl.arange(0, DRAFTED)
    mask = node < size
    committed = tl.load(length_ptr)
    rank = tl.load(ranks_ptr + node, mask=mask, other=0)
    depth = tl.load(depths_ptr + node, mask=mask, other=-1)
    parent = tl.load(parents_ptr + node, mask=mask, other=0)
    # Above: only what is older than the pass: the committed length, the shape of the tree.
    wait_for_inputs(OVERLAP)
    token = tl.load(tokens_ptr + node, mask=mask, other=0)
    is_sound = _finite(tl.load(largest_ptr + node * stride_largest, mask=mask, other=0.0))
    drafts_sound = tl.min(_finite(tl.load(drafted_ptr + draft, mask=draft < drafts, other=0.0)).to(tl.int64), axis=0)
    # A node is reached where neither it nor one above it is other than what the target chose after its parent.
    missed = mask & (node > 0) & (token != tl.load(choices_ptr + parent * stride_choice, mask=mask, other=0))
    last = _deepest(missed, node, depth, mask, bits_ptr, words, NODES)
    following = tl.load(choices_ptr + last * stride_choice)
    _write_outcome(
        last, following, node, depth, rank, token, is_sound, drafts_sound, mask, committed,
        tokens_ptr, depths_ptr, ranks_ptr, bits_ptr, path_ptr, report_ptr, state_ptr, levels, words, LEVELS,
    )  # fmt: skip


@triton.jit(do_not_specialize=["size", "above", "words", "vocabulary", "drafted"])
def _draw_kernel(
    p_ptr: "Any",
    q_ptr: "Any",
    chance_ptr: "Any",
    cut_ptr: "Any",
    taken_ptr: "Any",
    parents_ptr: "Any",
    depths_ptr: "Any",
    order_ptr: "Any",
    bits_ptr: "Any",
    seed_ptr: "Any",
    best_ptr: "Any",
    last_ptr: "Any",
    size: "Any",
    above: "Any",
    words: "Any",
    vocabulary: "Any",
    drafted: "Any",
    stride_p: "Any",
    stride_q: "Any",
    NODES: tl.constexpr,
    TILE: tl.constexpr,
    LEAVES_FIRST: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """Find the last accepted node, and the fastest token of one tile in a race by what is left of the target there.

    Writes the fastest token's key [tiles]; the first tile's program writes the node.
    Reads early: the shape of a static tree.
    """
    tile, node = tl.program_id(0), tl.arange(0, NODES)
    mask = node < size
    parent = tl.load(parents_ptr + node, mask=mask, other=0)
    depth = tl.load(depths_ptr + node, mask=mask, other=-1)
    order = tl.load(order_ptr + node, mask=mask, other=NODES)
    # Above: only what is older than the pass: the shape of a static tree.
    wait_for_inputs(OVERLAP)
    seed = tl.load(seed_ptr)
    if LEAVES_FIRST:
        bits, _, _, _ = random_words(seed, 0, node)
        hit = mask & ((node == 0) | is_below(bits, tl.load(chance_ptr + node, mask=mask, other=0.0)))
        last = tl.argmin(tl.where(hit, order, NODES), axis=0)  # the first in bottom-up order
    else:
        missed = mask & (node > 0) & (node != tl.load(taken_ptr + parent, mask=mask & (node > 0), other=-1))
        last = _deepest(missed, node, depth, mask, bits_ptr, words, NODES)
    column = tile * TILE + tl.arange(0, TILE // 4)[:, None] * 4 + tl.arange(0, 4)[None, :]
    p = tl.load(p_ptr + last.to(tl.int64) * stride_p + column, mask=column < vocabulary, other=0.0)
    cut = tl.load(cut_ptr + last, mask=last < above, other=0.0)
    q = tl.load(q_ptr + last.to(tl.int64) * stride_q + column, mask=(column < drafted) & (last < above), other=0.0)
    speed = tl.maximum(p - cut * q, 0.0) / exponential(random_block(seed, 1, tile * TILE, TILE // 4))
    keys = _keys(tl.where(column < vocabulary, _ordered(speed), -0x80000000), column)
    tl.store(best_ptr + tile, tl.max(tl.reshape(keys, [TILE]), 0))
    if tile == 0:
        tl.store(last_ptr, last.to(tl.int64))


@triton.jit(do_not_specialize=["size", "levels", "words", "drafts", "tiles"])
def _drawn_kernel(
    tokens_ptr: "Any",
    best_ptr: "Any",
    last_ptr: "Any",
    largest_ptr: "Any",
    drafted_ptr: "Any",
    depths_ptr: "Any",
    ranks_ptr: "Any",
    bits_ptr: "Any",
    length_ptr: "Any",
    path_ptr: "Any",
    report_ptr: "Any",
    state_ptr: "Any",
    size: "Any",
    levels: "Any",
    words: "Any",
    drafts: "Any",
    tiles: "Any",
    TILES: tl.constexpr,
    NODES: tl.constexpr,
    LEVELS: tl.constexpr,
    DRAFTED: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """Take the fastest token of all tiles, and write the outcome.

    Reads early: the committed length and the shape of a static tree.
    """
    node, draft, tile = tl.arange(0, NODES), tl.arange(0, DRAFTED), tl.arange(0, TILES)
    mask = node < size
    committed = tl.load(length_ptr)
    rank = tl.load(ranks_ptr + node, mask=mask, other=0)
    depth = tl.load(depths_ptr + node, mask=mask, other=-1)
    # Above: only what is older than the pass: the committed length, the shape of a static tree.
    wait_for_inputs(OVERLAP)
    token = tl.load(tokens_ptr + node, mask=mask, other=0)
    is_sound = _finite(tl.load(largest_ptr + node, mask=mask, other=0.0))
    drafts_sound = tl.min(_finite(tl.load(drafted_ptr + draft, mask=draft < drafts, other=0.0)).to(tl.int64), axis=0)
    last = tl.load(last_ptr)
    following = _index(tl.max(tl.load(best_ptr + tile, mask=tile < tiles, other=-0x8000000000000000), 0)).to(tl.int64)
    _write_outcome(
        last, following, node, depth, rank, token, is_sound, drafts_sound, mask, committed,
        tokens_ptr, depths_ptr, ranks_ptr, bits_ptr, path_ptr, report_ptr, state_ptr, levels, words, LEVELS,
    )  # fmt: skip
