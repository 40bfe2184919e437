"""Who computes: a kernel where it applies, else its plain twin. Nothing else decides this, so decoding knows no devices.

Kernels are imported when they are first used: a machine without Triton never needs it.
"""

import torch
from torch import Tensor

from treespec.kernels import plain
from treespec.kernels.plain import Settled
from treespec.trees.tensors import StaticTensors, TreeTensors


def top_tokens(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` largest logits of every row, largest first, and their tokens: [rows, vocabulary] -> [rows, count] twice.

    NaN counts as the largest. No host synchronisation. On CUDA, ties go to the smaller token; on the CPU, for `count` 1.
    """
    if _vocabulary_kernels_take(logits, count):
        from treespec.kernels import vocabulary

        return vocabulary.top_tokens(logits, count)
    return plain.top_tokens(logits, count)


def write_children(logits: Tensor, tree: StaticTensors, depth: int, tokens: Tensor, largest: Tensor) -> None:
    """Write the most likely tokens of each node at `depth` into its children, in rank order.

    `logits` [width of the level, vocabulary] belong to the nodes of the level; `tokens` int64 [n] and `largest` [nodes above the last
    level] are written in the places of the children and of the level. No host synchronisation.
    """
    if _vocabulary_kernels_take(logits, tree.branches[depth]):
        from treespec.kernels import vocabulary

        level = tree.tree.levels[depth]
        vocabulary.plant(logits, tree.branches[depth], tree.broods[depth], tokens, largest[level.start : level.stop])
    else:
        plain.write_children(logits, tree, depth, tokens, largest)


def finish_step(tokens: Tensor, choices: Tensor, tree: TreeTensors, largest: Tensor, drafted: Tensor, length: Tensor) -> Settled:
    """Accept the path along the target's `choices` int64 [n] and write the step down; on CUDA in one launch. See `plain.settle`."""
    if tokens.is_cuda:
        from treespec.kernels import settling

        if tree.size <= settling.LARGEST:
            return Settled(*settling.settle_matching(tokens, choices, tree, largest, drafted, length))
    return plain.finish_step(tokens, choices, tree, largest, drafted, length)


def move_rows(storage: Tensor, length: Tensor, rows: Tensor, first: int) -> None:
    """Copy the rows `length + rows` int64 [m] of a storage to `length + first ..`; all are read before any is written.

    `storage` [layers, 1, heads, capacity, dim]; `length` int64 [1], on the device and unknown to the host.
    """
    from treespec.kernels import pointwise

    pointwise.move_rows(storage, length, rows, first)


def _vocabulary_kernels_take(logits: Tensor, count: int) -> bool:
    if not logits.is_cuda or logits.dtype == torch.float64:
        return False
    from treespec.kernels import vocabulary

    return count <= vocabulary.LARGEST_COUNT and logits.shape[-1] <= vocabulary.LARGEST_VOCABULARY
