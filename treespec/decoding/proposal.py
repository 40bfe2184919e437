"""A proposal: the tree of tokens that a drafter makes and a verifier judges."""

from dataclasses import dataclass

from torch import Tensor

from treespec.trees.tensors import TreeTensors


@dataclass(frozen=True)
class Proposal:
    """A tree of n drafted tokens to verify."""

    tree: TreeTensors
    tokens: Tensor
    """int64 [n]; the root is the last committed token."""
    largest: Tensor
    """[nodes that the draft read]; each one's largest draft logit, in any order. Empty if no model was used."""
    q: Tensor | None = None
    """[nodes above the last level, tokens]; the distributions that children were sampled from, over the first tokens of the vocabulary. None
    if they were not sampled."""
    replacement: bool = False
    """Whether children were sampled with replacement, so that siblings may carry the same token."""
    offsets: Tensor | None = None
    """int64 [n]; the slot in which the draft keeps each node, minus the root's slot. None if these are the node ids."""
