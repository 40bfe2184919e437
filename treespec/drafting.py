"""Grow the tokens of a static tree with the draft model, level by level."""

import torch
from torch import Tensor

from treespec.models.protocol import SlotModel
from treespec.timing import Timer
from treespec.tree_tensors import TreeTensors


def draft_topk(draft: SlotModel, tensors: TreeTensors, last: Tensor, length: int, vocabulary: int, timer: Timer) -> tuple[Tensor, Tensor]:
    """`topk` drafting: the k-th child of a node is the draft's k-th most likely token there. Deterministic.

    `last` int64 [2] are the committed tokens at positions `length - 1` and `length`; the second is the root. The draft
    reads both, because the first may have been accepted as a leaf of the last tree, which the draft never expanded: it
    would have no K/V row. Node i goes to cache slot `length + i`. One draft pass per level 0 .. depth - 1; the last
    level's nodes are not read. Marks `draft` after each level's pass and ranking. Returns the tree's tokens, int64 [n], and
    whether every node's largest logit was finite, bool [] (NaN ranks first, so that it cannot hide).
    """
    tree = tensors.tree
    tokens = torch.empty(tree.size, dtype=torch.int64, device=last.device)
    tokens[0] = last[1]
    sound = torch.ones((), dtype=torch.bool, device=last.device)
    for depth, (level, branches) in enumerate(zip(tree.levels[:-1], tensors.branches, strict=True)):
        if depth == 0:
            places = torch.arange(length - 1, length + 1, device=last.device)
            mask = torch.ones(2, length + 1, dtype=torch.bool, device=last.device)
            mask[0, length] = False
            logits = draft.forward(last, places, places, mask, keep=places.new_ones(1))
        else:
            mask = tree_mask(tensors, length, level.start, level.stop)
            positions = tensors.depths[level.start : level.stop] + length
            slots = torch.arange(length + level.start, length + level.stop, device=last.device)
            logits = draft.forward(tokens[level.start : level.stop], positions, slots, mask)
        best, ranked = logits[:, :vocabulary].topk(branches, dim=-1)
        sound &= best[:, 0].isfinite().all()
        below = tree.levels[depth + 1]
        tokens[below.start : below.stop] = ranked[tensors.source[depth]]
        timer.mark("draft")
    return tokens, sound


def tree_mask(tensors: TreeTensors, length: int, start: int, stop: int) -> Tensor:
    """bool [stop - start, length + stop]: nodes start .. stop - 1 see the `length` committed tokens and their ancestors."""
    mask = torch.ones(stop - start, length + stop, dtype=torch.bool, device=tensors.depths.device)
    mask[:, length:] = tensors.ancestors[start:stop, :stop]
    return mask
