"""Walk a verified tree down to the deepest accepted node. No model, no cache."""

from dataclasses import dataclass

from torch import Tensor

from treespec.tree_tensors import TreeTensors


@dataclass(frozen=True)
class Accepted:
    """The outcome of one step, on the device: nothing has been read by the host yet."""

    path: Tensor
    """int64 [d + 1]; node ids from the root to the last accepted node, which is repeated to the end."""
    emitted: Tensor
    """int64 [d + 1]; the tokens that the step commits, the target's own next token included; `count + 1` of them are valid."""
    count: Tensor
    """int64 []; accepted drafted tokens."""


def accept_matching(tokens: Tensor, choices: Tensor, tensors: TreeTensors) -> Accepted:
    """Target matching: a child is accepted when it is the token that the target chose after its parent.

    `tokens` [n] are the tree's tokens (the root's included), `choices` [n] the target's choice after every node. Siblings
    carry different tokens, so at most one path matches; the accepted tokens and the target's next one are then just the
    choices along it.
    """
    unmatched = tokens != choices[tensors.parents]
    unmatched[0] = False
    accepted = ~(tensors.ancestors & unmatched).any(1)
    depths = tensors.depths.where(accepted, -1)
    count, last = depths.max(0)
    path = tensors.paths[last]
    return Accepted(path=path, emitted=choices[path], count=count)
