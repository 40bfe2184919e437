"""The plain twins of the kernels that decoding calls, in PyTorch alone, for any device. They define what the kernels compute."""

import torch
from torch import Tensor

from treespec.kernels.outcome import Outcome
from treespec.trees.tensors import StaticTensors, TreeTensors


def top_tokens(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` largest logits of every row, largest first, and their tokens: [rows, vocabulary] -> [rows, count] twice.

    NaN counts as the largest. For `count` 1, ties go to the smaller token.
    """
    if count == 1:
        tokens = logits.argmax(-1, keepdim=True)
        return logits.gather(-1, tokens), tokens
    best = logits.topk(count, dim=-1)
    return best.values, best.indices


def write_children(logits: Tensor, tree: StaticTensors, depth: int, tokens: Tensor, largest: Tensor) -> None:
    """Write each row's most likely tokens into the children of its node, and its largest logit. See `dispatch.write_children`."""
    level, below = tree.tree.levels[depth], tree.tree.levels[depth + 1]
    best, children = top_tokens(logits, tree.branches[depth])
    largest[level.start : level.stop] = best[:, 0]
    tokens[below.start : below.stop] = children[tree.source[depth]]


def settle(tokens: Tensor, last: Tensor, following: Tensor, tree: TreeTensors, largest: Tensor, drafted: Tensor, length: Tensor) -> Outcome:
    """Commit the path to node `last` int64 [] and the token `following` int64 [] after it.

    `tokens` int64 [n] are the tree's tokens, after `length` int64 [1] committed ones. `largest` [n] has the target's largest logit at each
    node; only those on the path are checked. `drafted` [any number] has the draft's largest logits; all of them are checked.
    """
    path = tree.path_to(last)
    count = tree.depths.index_select(0, last[None])  # indexing by a tensor of no dimension waits for its value
    below = torch.cat([tokens[path[1:]], following[None]])
    emitted = following.where(torch.arange(tree.depth + 1, device=tokens.device) == count, below)
    health = torch.stack([part.isfinite().all() for part in (largest[path], drafted)]).to(torch.int64)
    report = torch.cat([emitted, tree.ranks[path], count, health])
    state = torch.cat([tokens.index_select(0, path[-1:]), emitted.index_select(0, count), length + count + 1])
    return Outcome(path, report, state)


def last_matching(tokens: Tensor, choices: Tensor, tree: TreeTensors) -> Tensor:
    """Return the last accepted node of target matching, int64 []: the deepest one whose path follows the target's choices.

    `tokens` int64 [n] are the tree's tokens (the root's included), `choices` int64 [n] the target's choice after every
    node. Siblings must carry different tokens, so at most one path matches.
    """
    matched = tokens == choices[tree.parents]
    matched[:1].fill_(True)
    return deepest(matched, tree)


def finish_step(tokens: Tensor, choices: Tensor, tree: TreeTensors, largest: Tensor, drafted: Tensor, length: Tensor) -> Outcome:
    """Walk down the tree along the target's `choices` int64 [n] and commit the accepted path. See `settle`."""
    last = last_matching(tokens, choices, tree)
    return settle(tokens, last, choices.index_select(0, last[None])[0], tree, largest, drafted, length)


def deepest(taken: Tensor, tree: TreeTensors) -> Tensor:
    """Return the deepest node whose whole path is `taken`: bool [..., n] -> int64 [...]. No two siblings may be taken."""
    reached = ~(tree.ancestors & ~taken[..., None, :]).any(-1)
    return tree.depths.where(reached, -1).argmax(-1)
