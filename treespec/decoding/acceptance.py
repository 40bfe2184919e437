"""Verify a sampled tree along residual chains: which node is accepted last, and what the next token is drawn from. No model, no cache."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from treespec.decoding.residual import residual_chain
from treespec.kernels.plain import deepest
from treespec.trees.tensors import StaticTensors

Verifier = Literal["sequential", "traversal"]


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
        return deepest(hit & ~(self.tree.elder & hit[..., None, :]).any(-1), self.tree)

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
