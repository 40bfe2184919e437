"""Traversal verification (arXiv 2505.12398): residual chains from the leaves up, which accept at least as much as sequential ones.

A child starts with the weight that its parent's chain gives it. A node is accepted, together with its whole path, with the weight that
is left when the subtrees of all its children were rejected. These weights do not depend on the draws, so they can be computed level by
level from the root.
"""

from torch import Tensor

from treespec.decoding.verifiers.base import SampledVerifier, Verdict
from treespec.decoding.verifiers.residual import residual_chain
from treespec.trees.tensors import StaticTensors


class Traversal(SampledVerifier):
    """Verifies from the leaves up. A node's chance holds given that no node before it in bottom-up order was accepted."""

    order = "leaves first"

    def weigh(self, tokens: Tensor, p: Tensor, q: Tensor, tree: StaticTensors, *, replacement: bool) -> Verdict:
        """See `SampledVerifier.weigh`. The chains are computed level by level."""
        chance, cut = p.new_zeros(tree.size), p.new_zeros(tree.size)
        entered = p.new_zeros(tree.size)  # the weight that a path has when its node is reached
        entered[:1].fill_(1)
        for family in tree.levels:
            nodes = family.parents
            chain = residual_chain(p[nodes], q[nodes], tokens[family.children], family.active, entered[nodes], replacement=replacement)
            cut[nodes], chance[nodes] = chain.cut, chain.weight
            entered[family.below] = chance[family.below] = chain.accept.flatten()[family.place]
        return Verdict(tree, chance, cut, p, q, tokens, replacement)

    def last(self, verdict: Verdict, uniforms: Tensor) -> Tensor:
        """See `SampledVerifier.last`. It is the first node in bottom-up order that was hit."""
        hit = uniforms < verdict.chance
        hit[..., :1].fill_(True)
        return verdict.tree.bottom_up.where(hit, verdict.tree.size).argmin(-1)

    def mean_accepted(self, verdict: Verdict) -> Tensor:
        """See `SampledVerifier.mean_accepted`."""
        tree = verdict.tree
        order = tree.bottom_up.argsort()
        missed = (1 - verdict.chance[order]).cumprod(0).roll(1)
        missed[:1].fill_(1)
        return (missed * verdict.chance[order] * tree.depths[order]).sum()
