"""Walk a verified tree down to the last accepted node, and say which token follows it. No model, no cache."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from treespec.residual import residual_chain
from treespec.tree_tensors import StaticTensors, TreeTensors

Verifier = Literal["sequential", "traversal"]


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


def settle_matching(tokens: Tensor, choices: Tensor, tree: TreeTensors, largest: Tensor, drafted: Tensor, length: Tensor) -> Settled:
    """`last_matching` of the target's `choices` int64 [n], settled; in one launch on CUDA."""
    if tokens.is_cuda:
        from treespec.kernels import settling

        if tree.size <= settling.LARGEST:
            return Settled(*settling.settle_matching(tokens, choices, tree, largest, drafted, length))
    last = last_matching(tokens, choices, tree)
    return settle(accept(tokens, last, choices.index_select(0, last[None])[0], tree), tokens, tree, largest, drafted, length)


def last_matching(tokens: Tensor, choices: Tensor, tree: TreeTensors) -> Tensor:
    """Target matching: the deepest node reached by children that are the token which the target chose after their parent.

    `tokens` int64 [n] are the tree's tokens (the root's included), `choices` int64 [n] the target's choice after every
    node. Siblings must carry different tokens, so at most one path matches. Returns int64 [].
    """
    matched = tokens == choices[tree.parents]
    matched[:1].fill_(True)
    return _deepest(matched, tree)


@dataclass(frozen=True)
class Verdict:
    """How likely a verifier accepts each node of a sampled tree, before any draw is looked at."""

    tree: StaticTensors
    chance: Tensor
    """[n]; sequential: given that the parent is accepted and its elder siblings were not; traversal: given that no node
    before it in bottom-up order was."""
    cut: Tensor
    """[n]; once all its children were rejected, what is left of the target after a node is max(p - cut q, 0)."""
    p: Tensor
    """[n, vocabulary]; the target's distribution after every node."""
    q: Tensor
    """[nodes above the last level, vocabulary]; the draft's."""
    verifier: Verifier

    def last(self, uniforms: Tensor) -> Tensor:
        """The last accepted node for draws from [0, 1): [..., n] -> int64 [...]."""
        hit = uniforms < self.chance
        hit[..., :1].fill_(True)
        if self.verifier == "traversal":
            return self.tree.bottom_up.where(hit, self.tree.size).argmin(-1)
        return _deepest(hit & ~(self.tree.elder & hit[..., None, :]).any(-1), self.tree)

    def mean_accepted(self) -> Tensor:
        """[]: expected number of accepted drafted tokens, given the tree's tokens."""
        if self.verifier == "traversal":
            order = self.tree.bottom_up.argsort()
            missed = (1 - self.chance[order]).cumprod(0).roll(1)
            missed[:1].fill_(1)
            return (missed * self.chance[order] * self.tree.depths[order]).sum()
        taken = self.chance * (1 - self.chance).where(self.tree.elder, 1.0).prod(-1)
        taken[:1].fill_(1)
        return taken.where(self.tree.ancestors, 1.0).prod(-1)[1:].sum()

    def rest(self, last: Tensor) -> Tensor:
        """[vocabulary]: weights, not normalised, from which the token after node `last` int64 [] is to be drawn."""
        row = last[None]
        if not len(self.q):  # the root alone
            return self.p[0]
        drafted = self.q.index_select(0, row.clamp_max(len(self.q) - 1))  # below those, the cut is 0
        return torch.addcmul(self.p.index_select(0, row), drafted, self.cut[row, None], value=-1).clamp_min_(0)[0]


def verify(tokens: Tensor, p: Tensor, q: Tensor, tree: StaticTensors, *, replacement: bool, verifier: Verifier) -> Verdict:
    """Run the residual chains of all nodes of a sampled tree (sources: see `residual`).

    `tokens` int64 [n]; `p` [n, vocabulary] the target's distribution after every node; `q` [nodes above the last level,
    vocabulary] the draft's, from which children were sampled, with or without replacement. Float32 or float64.

    `sequential` goes from the root down: every node's children are verified on their own, all nodes side by side.
    `traversal` goes from the leaves up: a child enters with the weight that its parent's chain gives it, and a node is
    accepted, with all of its path, with the weight that is left once the subtrees of all its children were rejected.
    These weights do not depend on the draws, so they can be computed level by level from the root.
    """
    down = verifier == "sequential"
    chance, cut = p.new_zeros(tree.size), p.new_zeros(tree.size)
    entered = p.new_zeros(tree.size)  # the weight that a path has when its node is reached
    entered[:1].fill_(1)
    for family in (tree.whole,) if down else tree.levels:
        nodes = family.parents
        weight = None if down else entered[nodes]
        chain = residual_chain(p[nodes], q[nodes], tokens[family.children], family.active, weight, replacement=replacement)
        cut[nodes] = chain.cut
        if not down:
            chance[nodes] = chain.weight
        entered[family.below] = chance[family.below] = chain.accept.flatten()[family.place]
    return Verdict(tree, chance, cut, p, q, verifier)


def _deepest(taken: Tensor, tree: TreeTensors) -> Tensor:
    """The deepest node all of whose path is `taken`, where no two siblings are. Bool [..., n] -> int64 [...]."""
    reached = ~(tree.ancestors & ~taken[..., None, :]).any(-1)
    return tree.depths.where(reached, -1).argmax(-1)
