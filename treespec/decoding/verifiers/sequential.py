"""Sequential verification: residual chains from the root down. Every node's children are verified on their own. Sources: see `residual`."""

from torch import Tensor

from treespec.decoding.verifiers.base import SampledVerifier, Verdict
from treespec.decoding.verifiers.residual import residual_chain
from treespec.kernels.plain import deepest
from treespec.trees.tensors import StaticTensors


class Sequential(SampledVerifier):
    """Verifies from the root down. A node's chance holds given that its parent is accepted and its elder siblings were rejected."""

    order = "root first"

    def weigh(self, tokens: Tensor, p: Tensor, q: Tensor, tree: StaticTensors, *, replacement: bool) -> Verdict:
        """See `SampledVerifier.weigh`. The chains of all nodes are computed side by side."""
        chance, cut = p.new_zeros(tree.size), p.new_zeros(tree.size)
        family = tree.whole
        nodes = family.parents
        chain = residual_chain(p[nodes], q[nodes], tokens[family.children], family.active, None, replacement=replacement)
        cut[nodes] = chain.cut
        chance[family.below] = chain.accept.flatten()[family.place]
        return Verdict(tree, chance, cut, p, q, tokens, replacement)

    def last(self, verdict: Verdict, uniforms: Tensor) -> Tensor:
        """See `SampledVerifier.last`. It is the deepest node whose path was hit, with no elder sibling hit before it."""
        hit = uniforms < verdict.chance
        hit[..., :1].fill_(True)
        return deepest(hit & ~(verdict.tree.elder & hit[..., None, :]).any(-1), verdict.tree)

    def mean_accepted(self, verdict: Verdict) -> Tensor:
        """See `SampledVerifier.mean_accepted`."""
        taken = verdict.chance * (1 - verdict.chance).where(verdict.tree.elder, 1.0).prod(-1)
        taken[:1].fill_(1)
        return taken.where(verdict.tree.ancestors, 1.0).prod(-1)[1:].sum()
