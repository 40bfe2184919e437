"""The end of a step in one launch: the walk down the tree along the target's choices, and the report of it.

Written in PyTorch, the end of a step is about thirty operations on a few dozen numbers, each of which takes a microsecond or two to
launch. Here one program does them all. `plain.finish_step` defines the result.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from treespec.kernels.ancestors import pack
from treespec.kernels.dependent_launch import launch_options, overlaps, wait_for_inputs
from treespec.kernels.outcome import Outcome, ReportLayout
from treespec.trees.tensors import StaticTensors, TreeTensors

LARGEST = 512
"""The largest tree, in nodes, that one program takes."""


def settle_matching(tokens: Tensor, choices: Tensor, tree: TreeTensors, largest: Tensor, drafted: Tensor, length: Tensor) -> Outcome:
    """Return the outcome that `plain.finish_step` defines, in one launch.

    `tokens`, `choices` int64 [n], n <= 512: the tree's tokens and the target's choice after each. Siblings must have different tokens.
    `largest` [n] and `drafted` [any number], of any type and stride: the largest logits of the target and the draft. `length` int64 [1].
    """
    n, depth = tree.size, tree.depth
    device = tokens.device
    bits = tree.nodes.bits if isinstance(tree, StaticTensors) else None
    bits = pack(tree.ancestors).words if bits is None else bits
    path = torch.empty(depth + 1, dtype=torch.int64, device=device)
    layout = ReportLayout(depth)
    report = torch.empty(layout.size, dtype=torch.int64, device=device)
    state = torch.empty(3, dtype=torch.int64, device=device)
    nodes = max(64, triton.next_power_of_2(n))
    _settle_kernel[(1,)](
        tokens,
        choices,
        largest,
        drafted,
        tree.parents,
        tree.depths,
        tree.ranks,
        bits,
        length,
        path,
        report,
        state,
        n,
        depth,
        layout.ranks,
        layout.count,
        bits.shape[1],
        drafted.shape[0],
        choices.stride(0),
        largest.stride(0),
        NODES=nodes,
        LEVELS=triton.next_power_of_2(depth + 1),
        DRAFTED=triton.next_power_of_2(max(1, drafted.shape[0])),
        OVERLAP=overlaps(device),
        num_warps=max(4, nodes // 64),
        **launch_options(device),
    )
    return Outcome(path, report, state)


@triton.jit
def _finite(x: "Any") -> "Any":
    """Return where x is neither NaN nor infinite."""
    return tl.abs(x.to(tl.float32)) < float("inf")


@triton.jit(do_not_specialize=["n", "depth", "ranks_at", "count_at", "words", "drafts", "choice_stride", "largest_stride"])
def _settle_kernel(
    tokens: "Any",
    choices: "Any",
    largest: "Any",
    drafted: "Any",
    parents: "Any",
    depths: "Any",
    ranks: "Any",
    bits: "Any",
    length: "Any",
    path: "Any",
    report: "Any",
    state: "Any",
    n: "Any",
    depth: "Any",
    ranks_at: "Any",
    count_at: "Any",
    words: "Any",
    drafts: "Any",
    choice_stride: "Any",
    largest_stride: "Any",
    NODES: tl.constexpr,
    LEVELS: tl.constexpr,
    DRAFTED: tl.constexpr,
    OVERLAP: tl.constexpr,
) -> None:
    node, draft, level = tl.arange(0, NODES), tl.arange(0, DRAFTED), tl.arange(0, LEVELS)
    there = node < n
    committed = tl.load(length)
    rank = tl.load(ranks + node, mask=there, other=0)
    deep = tl.load(depths + node, mask=there, other=-1)
    parent = tl.load(parents + node, mask=there, other=0)
    wait_for_inputs(OVERLAP)
    token = tl.load(tokens + node, mask=there, other=0)
    sound = _finite(tl.load(largest + node * largest_stride, mask=there, other=0.0))
    drafts_sound = tl.min(_finite(tl.load(drafted + draft, mask=draft < drafts, other=0.0)).to(tl.int64), axis=0)

    # A node is reached where neither it nor one above it is other than what the target chose after its parent.
    missed = there & (node > 0) & (token != tl.load(choices + parent * choice_stride, mask=there, other=0))
    missed_words = tl.sum(tl.reshape(missed.to(tl.int64) << (node % 64).to(tl.int64), [NODES // 64, 64]), axis=1)
    word = tl.arange(0, NODES // 64)
    above = tl.load(bits + node[:, None] * words + word[None, :], mask=there[:, None] & (word < words)[None, :], other=0)
    blocked = tl.max(((above & missed_words[None, :]) != 0).to(tl.int32), axis=1)
    reached = tl.where(blocked == 0, deep, -1)
    count, last = tl.max(reached, axis=0), tl.argmax(reached, axis=0)
    choice, token_there, rank_there = tl.load(choices + last * choice_stride), tl.load(tokens + last), tl.load(ranks + last)

    on_path = there & ((tl.load(bits + last * words + node // 64, mask=there, other=0) >> (node % 64).to(tl.int64)) & 1 != 0)
    behind = (level > count) & (level <= depth)  # what no one reads, written all the same
    tl.store(path + deep, node.to(tl.int64), mask=on_path)
    tl.store(path + level, (last + level * 0).to(tl.int64), mask=behind)
    tl.store(report + deep - 1, token, mask=on_path & (node > 0))
    tl.store(report + level, tl.where((level == count) | (level == depth), choice, token_there), mask=behind | (level == count))
    tl.store(report + ranks_at + deep, rank, mask=on_path)
    tl.store(report + ranks_at + level, rank_there + level * 0, mask=behind)
    end = report + count_at
    tl.store(end, count)
    tl.store(end + 1, tl.min((sound | ~on_path).to(tl.int64), axis=0))
    tl.store(end + 2, drafts_sound)
    tl.store(state, token_there)
    tl.store(state + 1, choice)
    tl.store(state + 2, committed + count + 1)
