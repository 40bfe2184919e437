"""The choice between a kernel and its plain twin for each function that decoding calls. So decoding does not depend on the device.

The passes of a model are not chosen here: `TreeModel` holds a decoder, with kernels or without.

Kernels are imported at their first use, so a machine without Triton does not need it.
"""

import torch
from torch import Tensor

from treespec.kernels import plain
from treespec.kernels.device import on
from treespec.kernels.outcome import Outcome
from treespec.trees.tensors import StaticTensors, TreeTensors


def top_tokens(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` largest logits of every row, largest first, and their tokens: [rows, vocabulary] -> [rows, count] twice.

    NaN counts as the largest. No host synchronisation. Ties go to the smaller token, on the CPU only if `count` is 1.
    """
    if _vocabulary_kernels_take(logits, count):
        from treespec.kernels import vocabulary

        with on(logits.device):
            return vocabulary.top_tokens(logits, count)
    return plain.top_tokens(logits, count)


def write_children(logits: Tensor, tree: StaticTensors, depth: int, tokens: Tensor, largest: Tensor) -> None:
    """Write the most likely tokens of each node at `depth` into its children, in rank order.

    `logits` [width of the level, vocabulary] belong to the nodes of the level. This writes `tokens` int64 [n] at the children and `largest`
    [nodes above the last level] at the nodes of the level. No host synchronisation.
    """
    if _vocabulary_kernels_take(logits, tree.branches[depth]):
        from treespec.kernels import vocabulary

        level = tree.tree.levels[depth]
        with on(logits.device):
            vocabulary.write_children(logits, tree.branches[depth], tree.child_ranges[depth], tokens, largest[level.start : level.stop])
    else:
        plain.write_children(logits, tree, depth, tokens, largest)


def finish_step(tokens: Tensor, choices: Tensor, tree: TreeTensors, largest: Tensor, drafted: Tensor, length: Tensor) -> Outcome:
    """Accept the path along the target's `choices` int64 [n] and return the outcome; on CUDA in one launch. See `plain.settle`."""
    if tokens.is_cuda:
        from treespec.kernels import settling

        if tree.size <= settling.LARGEST:
            with on(tokens.device):
                return settling.settle_matching(tokens, choices, tree, largest, drafted, length)
    return plain.finish_step(tokens, choices, tree, largest, drafted, length)


def _vocabulary_kernels_take(logits: Tensor, count: int) -> bool:
    if not logits.is_cuda or logits.dtype == torch.float64:
        return False
    from treespec.kernels import vocabulary

    return count <= vocabulary.LARGEST_COUNT and logits.shape[-1] <= vocabulary.LARGEST_VOCABULARY
