"""A dynamic tree while it grows: the nodes drafted so far, of which each level keeps the best, and in the end the tree keeps the best.

Ids go level by level: the root is 0, and level d has the `width` ids 1 + (d - 1) width .. d width. So the places of the nodes are known
before any of them is drafted; which parent each has is not.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from treespec.trees.placement import Layout
from treespec.trees.tensors import TreeTensors


@dataclass(frozen=True)
class GrowthShape:
    """The places of the root and of `depth` levels of `width` nodes, on the device. They are computed once per depth and width."""

    depth: int
    width: int
    ids: Tensor
    """int64 [total]; 0, 1, ..; also the offsets of the nodes in the draft's cache."""
    depths: Tensor
    """int64 [total]; edges from the root."""
    root: Layout
    """The layout of the root and the token before it."""

    @classmethod
    def of(cls, depth: int, width: int, device: torch.device | str) -> "GrowthShape":
        """Compute the places and move them to the device."""
        ids = torch.arange(1 + depth * width, device=device)
        return cls(depth, width, ids, (ids + width - 1) // width, Layout.root(device))

    @property
    def total(self) -> int:
        """The number of nodes, the root included."""
        return 1 + self.depth * self.width

    @property
    def read(self) -> int:
        """The number of nodes that the draft reads: those above the last level."""
        return self.total - self.width if self.depth else 0

    def level(self, depth: int) -> slice:
        """Return the ids of the nodes at a depth."""
        return slice(1 + (depth - 1) * self.width, 1 + depth * self.width) if depth else slice(0, 1)


@dataclass(frozen=True)
class Growth:
    """The nodes drafted so far. `grow_level` writes one level after another; what is not written yet means nothing."""

    shape: GrowthShape
    root: Tensor
    """int64 [1]; the token of the root."""
    tokens: Tensor
    """int64 [total]"""
    values: Tensor
    """float32 [total]; the draft's log-probability of the path to each node, at most 0; -inf where its logits were not finite."""
    ranks: Tensor
    """int64 [total]; 0-based order among the children of the parent."""
    ancestors: Tensor
    """bool [total, total]; True if the column is an ancestor of the row, or the row itself."""
    bits: Tensor | None
    """int64 [total, total / 64, rounded up]; `ancestors` packed as by `placement.pack_bits`. None if no kernel is to read them."""
    largest: Tensor
    """float32 [read]; the draft's largest logit at each node that it read."""

    @classmethod
    def begin(cls, root: Tensor, shape: GrowthShape, *, packed: bool) -> "Growth":
        """Return a growth without any level, with memory for all of them. `root` int64 [1]; `packed`: whether it has `bits`."""
        total, device = shape.total, root.device
        return cls(
            shape=shape,
            root=root,
            tokens=torch.empty(total, dtype=torch.int64, device=device),
            values=torch.empty(total, dtype=torch.float32, device=device),
            ranks=torch.empty(total, dtype=torch.int64, device=device),
            ancestors=torch.empty(total, total, dtype=torch.bool, device=device),
            bits=torch.empty(total, -(-total // 64), dtype=torch.int64, device=device) if packed else None,
            largest=torch.empty(shape.read, dtype=torch.float32, device=device),
        )

    def above(self, depth: int) -> Tensor:
        """Return which node of the level above is the parent of each node at a `depth` from 1 on, int64 [width]."""
        return self.ancestors[self.shape.level(depth), self.shape.level(depth - 1)].to(torch.uint8).argmax(-1)

    def layout(self, depth: int) -> Layout:
        """Return the layout of the level at a depth, which the draft reads next; at depth 0, the token before the root is read again."""
        if depth == 0:
            return self.shape.root
        level = self.shape.level(depth)
        bits = None if self.bits is None else self.bits[level]
        return Layout(self.shape.depths[level], self.shape.ids[level], self.ancestors[level, : level.stop], bits)


@dataclass(frozen=True)
class Grown:
    """The tree that was chosen of a growth."""

    tree: TreeTensors
    tokens: Tensor
    """int64 [n]; the tokens of its nodes."""
    ids: Tensor
    """int64 [n], ascending; the ids that its nodes had in the growth."""
