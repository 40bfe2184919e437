"""The plain twins of the kernels that decoding calls: PyTorch alone, on any device. They define what the kernels compute."""

from dataclasses import dataclass

import torch
from torch import Tensor

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
    """Write the most likely tokens of each row into the children of its node, and each row's largest logit. See `dispatch.write_children`."""
    level, below = tree.tree.levels[depth], tree.tree.levels[depth + 1]
    best, children = top_tokens(logits, tree.branches[depth])
    largest[level.start : level.stop] = best[:, 0]
    tokens[below.start : below.stop] = children[tree.source[depth]]


@dataclass(frozen=True)
class Accepted:
    """The outcome of one step, on the device: nothing has been read by the host yet."""

    path: Tensor
    """int64 [d + 1]; node ids from the root to the last accepted node, which is repeated to the end."""
    emitted: Tensor
    """int64 [d + 1]; the tokens that the step commits, the target's own next token included; `count + 1` of them are valid."""
    count: Tensor
    """int64 []; accepted drafted tokens."""


def accept(tokens: Tensor, last: Tensor, following: Tensor, tree: TreeTensors) -> Accepted:
    """Commit the path to node `last` int64 [] and the token `following` int64 [] after it. `tokens` int64 [n]: the tree's."""
    path = tree.path_to(last)
    count = tree.depths.index_select(0, last[None])[0]  # indexing by a tensor of no dimension waits for its value
    below = torch.cat([tokens[path[1:]], following[None]])
    emitted = following.where(torch.arange(tree.depth + 1, device=tokens.device) == count, below)
    return Accepted(path=path, emitted=emitted, count=count)


@dataclass(frozen=True)
class Settled:
    """What a step leaves, on the device."""

    path: Tensor
    """int64 [d + 1]; see `Accepted`."""
    report: Tensor
    """int64 [2 (d + 1) + 3]: committed tokens, ranks on the path, number accepted, health of the target's and the draft's logits."""
    state: Tensor
    """int64 [3]: the last two committed tokens, and how many tokens the caches hold."""


def settle(accepted: Accepted, tokens: Tensor, tree: TreeTensors, largest: Tensor, drafted: Tensor, length: Tensor) -> Settled:
    """Write down what was accepted of a tree `tokens` int64 [n] behind `length` int64 [1].

    `largest` [n]: each node's largest logit of the target; those of rejected nodes decide nothing. `drafted` [any number]: the draft's.
    """
    path, count = accepted.path, accepted.count[None]
    health = torch.stack([part.isfinite().all() for part in (largest[path], drafted)]).to(torch.int64)
    report = torch.cat([accepted.emitted, tree.ranks[path], count, health])
    state = torch.cat([tokens.index_select(0, path[-1:]), accepted.emitted.index_select(0, count), length + count + 1])
    return Settled(path, report, state)


def last_matching(tokens: Tensor, choices: Tensor, tree: TreeTensors) -> Tensor:
    """Target matching: the deepest node reached by children that are the token which the target chose after their parent.

    `tokens` int64 [n] are the tree's tokens (the root's included), `choices` int64 [n] the target's choice after every
    node. Siblings must carry different tokens, so at most one path matches. Returns int64 [].
    """
    matched = tokens == choices[tree.parents]
    matched[:1].fill_(True)
    return deepest(matched, tree)


def finish_step(tokens: Tensor, choices: Tensor, tree: TreeTensors, largest: Tensor, drafted: Tensor, length: Tensor) -> Settled:
    """Walk down the tree along the target's `choices` int64 [n], and write down what was accepted. See `settle`."""
    last = last_matching(tokens, choices, tree)
    return settle(accept(tokens, last, choices.index_select(0, last[None])[0], tree), tokens, tree, largest, drafted, length)


def deepest(taken: Tensor, tree: TreeTensors) -> Tensor:
    """The deepest node all of whose path is `taken`, where no two siblings are. Bool [..., n] -> int64 [...]."""
    reached = ~(tree.ancestors & ~taken[..., None, :]).any(-1)
    return tree.depths.where(reached, -1).argmax(-1)
