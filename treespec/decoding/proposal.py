"""A proposal: the tree of tokens that a drafter makes and a verifier judges."""

from dataclasses import dataclass

from torch import Tensor

from treespec.trees.tensors import TreeTensors


@dataclass(frozen=True)
class Proposal:
    """A tree of n tokens to verify."""

    tree: TreeTensors
    tokens: Tensor
    """int64 [n]; the root is the last committed token."""
    largest: Tensor
    """[nodes that the draft read]; each one's largest draft logit, in any order. Empty where no model was asked."""
    q: Tensor | None = None
    """[nodes above the last level, vocabulary]; what children were sampled from, where they were."""
    replacement: bool = False
    """Whether they were sampled with replacement, so that siblings may carry the same token."""
    offsets: Tensor | None = None
    """int64 [n]; where the draft keeps each node, counted from the root's slot; None: at its id."""
