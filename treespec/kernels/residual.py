"""The residual chains of all nodes of a sampled tree in one launch, sequential or traversal. `decoding.verifiers.residual` has the mathematics.

A chain goes from child to child: the chance of the next one depends on the mass that the cuts before it have left, a sum over the whole
vocabulary. Several programs share a node: each keeps its part of the node's rows of p and q in registers, and after every child they add up
their parts of the sum in one word of memory and wait for one another there. So a child takes one exchange between programs, whatever the
vocabulary, and the launch takes as long as its longest chain: the largest number of children in sequential verification, and in traversal
verification the largest sum of children on a path from the root, since a child's chain starts with the weight that its parent's gives it.

Programs take their nodes in order of id; see `exchange` for why none waits forever. The verifiers of `decoding.verifiers` define the results.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from treespec.kernels.dependent_launch import launch_options, overlaps, wait_for_inputs
from treespec.kernels.exchange import receive, receive_exactly, send, send_exactly, splits_of, take_ticket
from treespec.kernels.noise import is_below, random_words
from treespec.trees.tensors import StaticTensors

LARGEST_FAMILY = 64
"""The most children of a node that a program takes."""
_BLOCK, _WARPS = 2048, 4
"""Tokens that a program keeps in registers, and its warps (benchmarks/log/sampling.md)."""


@dataclass(frozen=True)
class Chains:
    """The results of the chains of n nodes, of which the first m have rows of q."""

    chance: Tensor
    """float32 [n]; the chance of each node, as in `decoding.verifiers.base.Verdict`."""
    cut: Tensor
    """float32 [m]; when all children of a node were rejected, max(p - cut q, 0) is left of the target there."""
    taken: Tensor
    """int64 [m]; sequential: the id of the first child of a node that its draw accepts, or -1."""


def run_chains(p: Tensor, q: Tensor, tokens: Tensor, tree: StaticTensors, seed: Tensor, *, replacement: bool, leaves_first: bool) -> Chains:
    """Run the chains of all nodes, in one launch.

    `p` float32 [n, vocabulary], the target's distribution after every node, is overwritten: children that the draft could not have drawn are
    taken out of their parent's row. `q` float32 [m, any number of first tokens], that of the draft at the nodes above the last level.
    `tokens` int64 [n], `seed` int64 [1]. Nodes have at most 64 children.
    """
    size, above, vocabulary = tree.size, q.shape[0], p.shape[1]
    chance = torch.empty(size, dtype=torch.float32, device=p.device)
    cut = torch.empty(above, dtype=torch.float32, device=p.device)
    taken = torch.empty(above, dtype=torch.int64, device=p.device)
    if above == 0:
        return Chains(chance, cut, taken)
    first, count = tree.families
    family = triton.next_power_of_2(max(1, tree.tree.max_branch))
    splits, block, warps = splits_of(vocabulary, _BLOCK, _WARPS, p.device)
    words = torch.zeros(1 + size + above * (family + 4), dtype=torch.int64, device=p.device)
    _chain_kernel[(above * splits,)](
        p,
        q,
        tokens,
        first,
        count,
        seed,
        chance,
        cut,
        taken,
        words,
        words[1:],
        words[1 + size :],
        p.stride(0),
        q.stride(0),
        vocabulary,
        q.shape[1],
        SPLITS=splits,
        FAMILY=family,
        BLOCK=block,
        REPLACEMENT=replacement,
        LEAVES_FIRST=leaves_first,
        OVERLAP=overlaps(p.device),
        num_warps=warps,
        **launch_options(p.device),
    )
    return Chains(chance, cut, taken)


@triton.jit
def _at(values: "Any", index: "Any", rank: "Any") -> "Any":
    """Return the number with this rank in a block."""
    return tl.sum(tl.where(index == rank, values, tl.zeros_like(values)), 0)


@triton.jit(do_not_specialize=["vocabulary", "drafted"])
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
    ticket_ptr: "Any",
    entered_ptr: "Any",
    sums_ptr: "Any",
    stride_p: "Any",
    stride_q: "Any",
    vocabulary: "Any",
    drafted: "Any",
    SPLITS: tl.constexpr,
    FAMILY: tl.constexpr,
    BLOCK: tl.constexpr,
    REPLACEMENT: tl.constexpr,
    LEAVES_FIRST: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    """Run the chain of one node's children, over one part of the vocabulary. The first part's program writes the results.

    Words of memory, int64, 0 at first: the ticket; per node, twice the bits of the weight it was entered with, and 1; per node and rank, a
    sum (see `exchange.send`), and four for the mass of q without the children, which a sharp draft leaves as small as a float can be.
    Reads early: nothing.
    """
    rank = tl.arange(0, FAMILY)
    # Above: arithmetic on launch arguments alone.
    wait_for_inputs(OVERLAP)
    ticket = take_ticket(ticket_ptr)
    node, split = ticket // SPLITS, ticket % SPLITS
    first, count = tl.load(first_ptr + node), tl.load(count_ptr + node).to(tl.int32)
    sums_ptr += node * (FAMILY + 4)
    mask = rank < count
    token = tl.load(tokens_ptr + first + rank, mask=mask, other=-1)
    p_row, q_row = p_ptr + node.to(tl.int64) * stride_p, q_ptr + node.to(tl.int64) * stride_q
    child_p = tl.load(p_row + token, mask=mask, other=0.0)
    child_q = tl.load(q_row + token, mask=mask & (token < drafted), other=0.0)
    column = split * BLOCK + tl.arange(0, BLOCK)
    p = tl.load(p_row + column, mask=(column < vocabulary) & (count > 0), other=0.0)
    q = tl.load(q_row + column, mask=(column < drafted) & (count > 0), other=0.0)
    if not REPLACEMENT and count > 1:  # only additions, so a small rest of a sharp draft stays exact
        others = q
        for k in range(count):
            others = tl.where(column == _at(token, rank, k), 0.0, others)
        send_exactly(sums_ptr + FAMILY, tl.sum(others, 0))
    weight = 1.0
    if LEAVES_FIRST and node > 0 and count > 0:
        entered = tl.load(entered_ptr + node, volatile=True)
        while entered == 0:
            entered = tl.load(entered_ptr + node, volatile=True)
        weight = (entered >> 1).to(tl.int32).to(tl.float32, bitcast=True)
    cut, above, mass_of_others = 0.0, 1.0, 0.0
    accept = tl.zeros((FAMILY,), dtype=tl.float32)
    for k in range(count):
        chance_k, drafted_k = _at(child_p, rank, k), _at(child_q, rank, k)
        left = 1.0
        if not REPLACEMENT and k > 0:
            if k == 1:
                mass_of_others = receive_exactly(sums_ptr + FAMILY, SPLITS)
            left = mass_of_others + tl.sum(tl.where(rank >= k, child_q, 0.0), 0)
        spent = left * weight
        step = above / spent
        step = tl.where((drafted_k > 0) & (spent > 0) & (step < float("inf")), step, 0.0)
        accepted = tl.where(step > 0, (chance_k / drafted_k - cut) / step, 0.0)
        if not REPLACEMENT and drafted_k <= 0:  # chosen without any look at the target: see `decoding.verifiers.residual`
            accepted = chance_k / above * weight
            p = tl.where(column == _at(token, rank, k), 0.0, p)
        accept = tl.where(rank == k, tl.minimum(tl.maximum(accepted, 0.0), 1.0), accept)
        further = cut + step
        send(sums_ptr + k, tl.sum(tl.maximum(p - further * q, 0.0), 0))
        remaining = receive(sums_ptr + k, SPLITS)
        if LEAVES_FIRST:
            surplus = weight * remaining / above
            whole = surplus + (1 - weight)
            weight = tl.where(whole > 0, surplus / whole, weight)
        cut = tl.where(remaining > 0, further, cut)
        above = tl.where(remaining > 0, remaining, above)
    if split == 0:
        tl.store(cut_ptr + node, cut)
        childless = mask
        if LEAVES_FIRST:  # children that have children write what their own chains leave
            above_last = first + rank < tl.num_programs(0) // SPLITS
            childless = mask & (tl.load(count_ptr + first + rank, mask=mask & above_last, other=0) == 0)
        tl.store(chance_ptr + first + rank, accept, mask=childless)
        if not REPLACEMENT:
            tl.store(p_row + token, 0.0, mask=mask & (child_q <= 0))  # now that every program has read the row
        if LEAVES_FIRST:
            tl.store(entered_ptr + first + rank, (accept.to(tl.int32, bitcast=True).to(tl.int64) << 1) | 1, mask=mask)
            if count > 0:
                tl.store(chance_ptr + node, weight)
        else:
            bits, _, _, _ = random_words(tl.load(seed_ptr), 0, (first + rank).to(tl.int32))
            hit = mask & is_below(bits, accept)
            earliest = tl.min(tl.where(hit, rank, FAMILY), 0)
            tl.store(taken_ptr + node, tl.where(earliest < FAMILY, first + earliest, -1))
            if node == 0:
                tl.store(chance_ptr, 0.0)
