"""The residual chains of all nodes of a sampled tree in one launch, sequential or traversal. `decoding.verifiers.residual` has the mathematics.

One program per node that has children walks over them rank by rank. Each rank needs one pass over the node's rows of p and q, because the
next cut depends on the mass that this one leaves. So the launch takes as long as its longest chain: the largest number of children in
sequential verification, and in traversal verification the largest sum of children on a path from the root, since a child's chain starts with
the weight that its parent's chain gives it. There a program waits until its node's weight arrives; programs take their nodes in order of id by
a ticket, so the one that it waits for is always running already. `reference_chains` defines the result.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from treespec.kernels.dependent_launch import launch_options, overlaps, wait_for_inputs
from treespec.kernels.noise import is_below, random_words
from treespec.trees.tensors import StaticTensors

LARGEST_FAMILY = 64
"""The most children of a node that a program takes."""
NO_CHILD = -1


@dataclass(frozen=True)
class Chains:
    """The results of the chains of n nodes, of which the first m have rows of q."""

    chance: Tensor
    """float32 [n]; the chance of each node, as in `decoding.verifiers.base.Verdict`."""
    cut: Tensor
    """float32 [m]; when all children of a node were rejected, max(p - cut q, 0) is left of the target there."""
    taken: Tensor
    """int64 [m]; sequential: the id of the first child of a node that its draw accepts, or NO_CHILD."""


def run_chains(p: Tensor, q: Tensor, tokens: Tensor, tree: StaticTensors, seed: Tensor, *, replacement: bool, traversal: bool) -> Chains:
    """Run the chains of all nodes, in one launch.

    `p` float32 [n, vocabulary], the target's distribution after every node, is overwritten: children that the draft could not have drawn are
    taken out of their parent's row. `q` float32 [m, any number of first tokens], that of the draft at the nodes above the last level.
    `tokens` int64 [n], `seed` int64 [1]. Nodes have at most 64 children.
    """
    size, above = tree.size, q.shape[0]
    first, count = tree.families
    # One fill: the ticket starts at -1, and a chance that has not arrived yet has the bits of -1, which are those of no chance.
    state = torch.full((size + 1,), -1, dtype=torch.int32, device=p.device) if traversal else None
    chance = torch.empty(size, dtype=torch.float32, device=p.device) if state is None else state[:size].view(torch.float32)
    cut = torch.empty(above, dtype=torch.float32, device=p.device)
    taken = torch.empty(above, dtype=torch.int64, device=p.device)
    if above == 0:
        return Chains(chance, cut, taken)
    block = min(8192, triton.next_power_of_2(p.shape[1]))
    _chain_kernel[(above,)](
        p,
        q,
        tokens,
        first,
        count,
        seed,
        chance,
        cut,
        taken,
        state,
        size,
        p.stride(0),
        q.stride(0),
        p.shape[1],
        q.shape[1],
        FAMILY=triton.next_power_of_2(max(1, tree.tree.max_branch)),
        BLOCK=block,
        REPLACEMENT=replacement,
        TRAVERSAL=traversal,
        OVERLAP=overlaps(p.device),
        num_warps=max(4, min(16, block // 512)),
        **launch_options(p.device),
    )
    return Chains(chance, cut, taken)


@triton.jit
def _at(values: "Any", index: "Any", rank: "Any") -> "Any":
    """Return the number with this rank in a block."""
    return tl.sum(tl.where(index == rank, values, tl.zeros_like(values)), 0)


@triton.jit
def _remaining(p_ptr: "Any", q_ptr: "Any", cut: "Any", vocabulary: "Any", drafted: "Any", BLOCK: tl.constexpr) -> "Any":
    """Return the sum of max(p - cut q, 0) over a row. q has the first `drafted` tokens and is 0 behind them."""
    sums = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in tl.range(0, vocabulary, BLOCK):
        column = start + tl.arange(0, BLOCK)
        p = tl.load(p_ptr + column, mask=column < vocabulary, other=0.0)
        q = tl.load(q_ptr + column, mask=column < drafted, other=0.0)
        sums += tl.maximum(p - cut * q, 0.0)
    return tl.sum(sums, 0)


@triton.jit
def _mass_of_others(q_ptr: "Any", tokens: "Any", rank: "Any", count: "Any", drafted: "Any", BLOCK: tl.constexpr) -> "Any":
    """Return q's mass without the children. It only adds, so a small rest of a sharp draft stays exact."""
    sums = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in tl.range(0, drafted, BLOCK):
        column = start + tl.arange(0, BLOCK)
        q = tl.load(q_ptr + column, mask=column < drafted, other=0.0)
        for k in range(count):
            q = tl.where(column == _at(tokens, rank, k), 0.0, q)
        sums += q
    return tl.sum(sums, 0)


@triton.jit(do_not_specialize=["size", "vocabulary", "drafted"])
def _chain_kernel(
    p_ptr: "Any",
    q_ptr: "Any",
    tokens_ptr: "Any",
    first_ptr: "Any",
    count_ptr: "Any",
    seed_ptr: "Any",
    chance_ptr: "Any",
    cut_ptr: "Any",
    taken_ptr: "Any",
    state_ptr: "Any",
    size: "Any",
    stride_p: "Any",
    stride_q: "Any",
    vocabulary: "Any",
    drafted: "Any",
    FAMILY: tl.constexpr,
    BLOCK: tl.constexpr,
    REPLACEMENT: tl.constexpr,
    TRAVERSAL: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """Run the chain of one node's children.

    Reads early: nothing.
    """
    rank = tl.arange(0, FAMILY)
    # Above: arithmetic on launch arguments alone.
    wait_for_inputs(OVERLAP)
    node = tl.program_id(0)
    weight = 1.0
    if TRAVERSAL:
        node = tl.atomic_add(state_ptr + size, 1) + 1
        if node > 0:
            arrived = tl.load(state_ptr + node, volatile=True)
            while arrived == -1:
                arrived = tl.load(state_ptr + node, volatile=True)
            weight = arrived.to(tl.float32, bitcast=True)
    first, count = tl.load(first_ptr + node), tl.load(count_ptr + node).to(tl.int32)
    mask = rank < count
    token = tl.load(tokens_ptr + first + rank, mask=mask, other=-1)
    p_row, q_row = p_ptr + node.to(tl.int64) * stride_p, q_ptr + node.to(tl.int64) * stride_q
    p = tl.load(p_row + token, mask=mask, other=0.0)
    q = tl.load(q_row + token, mask=mask & (token < drafted), other=0.0)
    others = 0.0
    if not REPLACEMENT and count > 1:
        others = _mass_of_others(q_row, token, rank, count, drafted, BLOCK)
    cut, above = 0.0, 1.0
    accept = tl.zeros((FAMILY,), dtype=tl.float32)
    for k in tl.range(0, count):
        chance_k, drafted_k = _at(p, rank, k), _at(q, rank, k)
        left = 1.0
        if not REPLACEMENT and k > 0:
            left = others + tl.sum(tl.where(rank >= k, q, 0.0), 0)
        spent = left * weight
        step = above / spent
        step = tl.where((drafted_k > 0) & (spent > 0) & (step < float("inf")), step, 0.0)
        accepted = tl.where(step > 0, (chance_k / drafted_k - cut) / step, 0.0)
        if not REPLACEMENT and drafted_k <= 0:  # chosen without any look at the target: see `decoding.verifiers.residual`
            accepted = chance_k / above * weight
            tl.store(p_row + _at(token, rank, k), 0.0)
            tl.debug_barrier()  # the row is read without it from here on
        accept = tl.where(rank == k, tl.minimum(tl.maximum(accepted, 0.0), 1.0), accept)
        further = cut + step
        remaining = _remaining(p_row, q_row, further, vocabulary, drafted, BLOCK)
        if TRAVERSAL:
            surplus = weight * remaining / above
            whole = surplus + (1 - weight)
            weight = tl.where(whole > 0, surplus / whole, weight)
        cut = tl.where(remaining > 0, further, cut)
        above = tl.where(remaining > 0, remaining, above)
    tl.store(cut_ptr + node, cut)
    tl.store(chance_ptr + first + rank, accept, mask=mask)
    if TRAVERSAL:
        if count > 0 or node == 0:
            tl.store(chance_ptr + node, weight)
    else:
        bits, _, _, _ = random_words(tl.load(seed_ptr), 0, (first + rank).to(tl.int32))
        hit = mask & is_below(bits, accept)
        earliest = tl.min(tl.where(hit, rank, FAMILY), 0)
        tl.store(taken_ptr + node, tl.where(earliest < FAMILY, first + earliest, -1))
        if node == 0:
            tl.store(chance_ptr, 0.0)
