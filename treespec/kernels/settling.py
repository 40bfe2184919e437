"""The end of a step: the walk down the tree along the target's choices, and the report of it, in one launch.

Written in PyTorch, the end of a step is about thirty operations on a few dozen numbers, each of which takes a microsecond or two to
launch. Here one program does them all. `plain.finish_step` defines the result. `settling_sampled` ends steps whose children were sampled.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from treespec.kernels.ancestors import pack
from treespec.kernels.dependent_launch import launch_options, overlaps, wait_for_inputs
from treespec.kernels.outcome import Outcome, ReportLayout
from treespec.trees.tensors import TreeTensors

LARGEST = 512
"""The largest tree, in nodes, that one program takes."""


def settle_matching(tokens: Tensor, choices: Tensor, tree: TreeTensors, largest: Tensor, drafted: Tensor, length: Tensor) -> Outcome:
    """Return the outcome that `plain.finish_step` defines, in one launch.

    `tokens`, `choices` int64 [n], n <= 512: the tree's tokens and the target's choice after each. Siblings must have different tokens.
    `largest` [n] and `drafted` [any number], of any type and stride: the largest logits of the target and the draft. `length` int64 [1].
    """
    outcome, bits = empty_outcome(tree), bits_of(tree)
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
        **blocks_of(tree, drafted),
        **launch_options(tokens.device),
    )
    return outcome


def empty_outcome(tree: TreeTensors) -> Outcome:
    """Return the outcome of a step with a tree, not written yet."""
    sizes = tree.depth + 1, ReportLayout(tree.depth).size, 3
    return Outcome(*(torch.empty(size, dtype=torch.int64, device=tree.depths.device) for size in sizes))


def bits_of(tree: TreeTensors) -> Tensor:
    """Return the tree's ancestors as packed bits."""
    return pack(tree.ancestors).words if tree.bits is None else tree.bits


def blocks_of(tree: TreeTensors, drafted: Tensor) -> dict[str, Any]:
    """Return the constants of a launch in which one program takes a whole tree."""
    nodes = max(64, triton.next_power_of_2(tree.size))
    return {
        "NODES": nodes,
        "LEVELS": triton.next_power_of_2(tree.depth + 1),
        "DRAFTED": triton.next_power_of_2(max(1, drafted.shape[0])),
        "OVERLAP": overlaps(tree.depths.device),
        "num_warps": max(4, nodes // 64),
    }


@triton.jit
def is_finite(x: "Any") -> "Any":
    """Return where x is neither NaN nor infinite."""
    return tl.abs(x.to(tl.float32)) < float("inf")


@triton.jit
def deepest(missed: "Any", node: "Any", depth: "Any", mask: "Any", bits_ptr: "Any", words: "Any", NODES: tl.constexpr) -> "Any":
    """Return the deepest node such that neither it nor one above it was missed."""
    missed_words = tl.sum(tl.reshape(missed.to(tl.int64) << (node % 64).to(tl.int64), [NODES // 64, 64]), axis=1)
    word = tl.arange(0, NODES // 64)
    above = tl.load(bits_ptr + node[:, None] * words + word[None, :], mask=mask[:, None] & (word < words)[None, :], other=0)
    blocked = tl.max(((above & missed_words[None, :]) != 0).to(tl.int32), axis=1)
    return tl.argmax(tl.where(mask & (blocked == 0), depth, -1), axis=0)


@triton.jit
def write_outcome(
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
    is_sound = is_finite(tl.load(largest_ptr + node * stride_largest, mask=mask, other=0.0))
    drafts_sound = tl.min(is_finite(tl.load(drafted_ptr + draft, mask=draft < drafts, other=0.0)).to(tl.int64), axis=0)
    # A node is reached where neither it nor one above it is other than what the target chose after its parent.
    missed = mask & (node > 0) & (token != tl.load(choices_ptr + parent * stride_choice, mask=mask, other=0))
    last = deepest(missed, node, depth, mask, bits_ptr, words, NODES)
    following = tl.load(choices_ptr + last * stride_choice)
    write_outcome(
        last, following, node, depth, rank, token, is_sound, drafts_sound, mask, committed,
        tokens_ptr, depths_ptr, ranks_ptr, bits_ptr, path_ptr, report_ptr, state_ptr, levels, words, LEVELS,
    )  # fmt: skip
