"""TreeTensors: what a step needs of a SpeculationTree, as tensors on the device, computed once per tree."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from treespec.tree import SpeculationTree


@dataclass(frozen=True)
class TreeTensors:
    """Device tensors of a tree of n nodes and depth d. All int64 but the masks."""

    tree: SpeculationTree
    depths: Tensor
    """[n]"""
    parents: Tensor
    """[n]; the root's is 0 (itself), so that it can index."""
    ancestors: Tensor
    """bool [n, n]; column is an ancestor of row, or row itself."""
    paths: Tensor
    """[n, d + 1]; node ids from the root down to the node, the node itself repeated to the end."""
    source: tuple[tuple[Tensor, Tensor], ...]
    """Per level 1..d: (index of each node's parent within the level above, the node's rank), both [width]."""
    branches: tuple[int, ...]
    """Per level 0..d-1: most children of any node there."""

    @classmethod
    def on(cls, tree: SpeculationTree, device: torch.device | str) -> "TreeTensors":
        """Derive everything and move it to the device."""
        paths = np.zeros((tree.size, tree.depth + 1), dtype=np.int64)
        for node in range(1, tree.size):
            depth = tree.depths[node]
            paths[node] = paths[tree.parents[node]]
            paths[node, depth:] = node

        def tensor(values: object) -> Tensor:
            return torch.as_tensor(values, dtype=torch.int64, device=device)

        return cls(
            tree=tree,
            depths=tensor(tree.depths),
            parents=tensor([0, *tree.parents[1:]]),
            ancestors=torch.tensor(tree.ancestor_mask, device=device),
            paths=tensor(paths),
            source=tuple(
                (tensor([tree.parents[node] - above.start for node in level]), tensor([tree.ranks[node] for node in level]))
                for above, level in zip(tree.levels[:-1], tree.levels[1:], strict=True)
            ),
            branches=tuple(max(len(tree.children[node]) for node in level) for level in tree.levels[:-1]),
        )
