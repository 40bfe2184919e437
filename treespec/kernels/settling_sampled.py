"""The end of a step whose children were sampled: the last accepted node, the token after it, and the report of both, in two launches.

The token after the last node is drawn from what is left of the target there, which takes a program per tile of the vocabulary. Each of these
finds the last node by itself, and a last program takes the fastest token of all tiles and writes the report. The verifiers of
`decoding.verifiers` and `plain.settle` define the results.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from treespec.kernels.dependent_launch import launch_options, wait_for_inputs
from treespec.kernels.keys import index_of, make_keys, to_ordered
from treespec.kernels.noise import exponential, is_below, random_block, random_words
from treespec.kernels.outcome import Outcome
from treespec.kernels.residual import Chains
from treespec.kernels.settling import bits_of, blocks_of, deepest, empty_outcome, is_finite, write_outcome
from treespec.kernels.vocabulary import TILE
from treespec.trees.tensors import StaticTensors


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
    outcome, bits = empty_outcome(tree), bits_of(tree)
    tiles = triton.cdiv(p.shape[1], TILE)
    best = torch.empty(tiles, dtype=torch.int64, device=p.device)
    last = torch.empty(1, dtype=torch.int64, device=p.device)
    blocks = blocks_of(tree, drafted)
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
        last = deepest(missed, node, depth, mask, bits_ptr, words, NODES)
    column = tile * TILE + tl.arange(0, TILE // 4)[:, None] * 4 + tl.arange(0, 4)[None, :]
    p = tl.load(p_ptr + last.to(tl.int64) * stride_p + column, mask=column < vocabulary, other=0.0)
    cut = tl.load(cut_ptr + last, mask=last < above, other=0.0)
    q = tl.load(q_ptr + last.to(tl.int64) * stride_q + column, mask=(column < drafted) & (last < above), other=0.0)
    speed = tl.maximum(p - cut * q, 0.0) / exponential(random_block(seed, 1, tile * TILE, TILE // 4))
    keys = make_keys(tl.where(column < vocabulary, to_ordered(speed), -0x80000000), column)
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
    is_sound = is_finite(tl.load(largest_ptr + node, mask=mask, other=0.0))
    drafts_sound = tl.min(is_finite(tl.load(drafted_ptr + draft, mask=draft < drafts, other=0.0)).to(tl.int64), axis=0)
    last = tl.load(last_ptr)
    following = index_of(tl.max(tl.load(best_ptr + tile, mask=tile < tiles, other=-0x8000000000000000), 0)).to(tl.int64)
    write_outcome(
        last, following, node, depth, rank, token, is_sound, drafts_sound, mask, committed,
        tokens_ptr, depths_ptr, ranks_ptr, bits_ptr, path_ptr, report_ptr, state_ptr, levels, words, LEVELS,
    )  # fmt: skip
