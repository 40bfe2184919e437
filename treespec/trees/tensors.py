"""The tensors of a tree that a step needs, on the device: `TreeTensors` of any tree, `StaticTensors` of a tree that never changes."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from treespec.trees.placement import Layout
from treespec.trees.tree import SpeculationTree


@dataclass(frozen=True)
class TreeTensors:
    """A tree of n nodes, ids breadth-first, at most `depth` edges deep."""

    depth: int
    depths: Tensor
    """int64 [n]; edges from the root."""
    parents: Tensor
    """int64 [n]; the root's is 0 (itself), so that it can index."""
    ranks: Tensor
    """int64 [n]; 0-based order among siblings."""
    ancestors: Tensor
    """bool [n, n]; True if the column is an ancestor of the row, or the row itself."""
    bits: Tensor | None = field(default=None, kw_only=True)
    """int64 [n, n / 64, rounded up]; `ancestors` packed by `placement.pack_bits`, if that was done already."""
    ids: Tensor | None = field(default=None, kw_only=True)
    """int64 [n]; 0, 1, .., if they exist already."""

    @property
    def size(self) -> int:
        """Number of nodes."""
        return self.depths.shape[0]

    def layout(self) -> Layout:
        """Return the layout of all nodes, with the root right after the prefix."""
        ids = torch.arange(self.size, device=self.depths.device) if self.ids is None else self.ids
        return Layout(self.depths, ids, self.ancestors, self.bits)

    def path_to(self, node: Tensor) -> Tensor:
        """Return the ids from the root down to `node` (int64 []), int64 [depth + 1]; the last id is repeated to the end."""
        ids = torch.arange(self.size, device=self.depths.device)
        on_path = self.ancestors.index_select(0, node[None])[0]
        return ids.where(on_path, node).sort().values[: self.depth + 1]


@dataclass(frozen=True)
class Family:
    """Some parents with their children, for work that goes rank by rank; parents with more children come first."""

    parents: Tensor
    """int64 [m]; node ids."""
    children: Tensor
    """int64 [m, most children]; node ids in rank order. The rest is padding that nothing reads."""
    active: tuple[int, ...]
    """Per rank, the number of parents that have a child of it. They are the first ones."""
    below: slice
    """Ids of all the children, which follow one another."""
    place: Tensor
    """int64 [children]; the place of each child in `children`, read row by row."""

    @classmethod
    def of(cls, tree: SpeculationTree, nodes: range, device: torch.device | str) -> "Family":
        """Return the family of those `nodes` that have children."""
        parents = sorted((n for n in nodes if tree.children[n]), key=lambda n: -len(tree.children[n]))
        most = max((len(tree.children[n]) for n in parents), default=0)
        rows = [[*tree.children[n], *[0] * (most - len(tree.children[n]))] for n in parents]
        place = {child: row * most + tree.ranks[child] for row, n in enumerate(parents) for child in tree.children[n]}
        first = min(place, default=0)

        def tensor(values: object) -> Tensor:
            return torch.as_tensor(values, dtype=torch.int64, device=device)

        return cls(
            parents=tensor(parents),
            children=tensor(rows).view(len(parents), most),
            active=tuple(sum(len(tree.children[n]) > rank for n in parents) for rank in range(most)),
            below=slice(first, first + len(place)),
            place=tensor([place[first + i] for i in range(len(place))]),
        )


@dataclass(frozen=True)
class StaticTensors(TreeTensors):
    """The tensors of a tree that is the same at every step. They are computed once and moved once."""

    tree: SpeculationTree
    source: tuple[tuple[Tensor, Tensor], ...]
    """Per level 1..d: the index of each node's parent within the level above, and the node's rank, both int64 [width]."""
    branches: tuple[int, ...]
    """Per level 0..d-1: most children of any node there."""
    elder: Tensor
    """bool [n, n]; True if the column is a sibling of the row with a smaller rank."""
    bottom_up: Tensor
    """int64 [n]; the place of each node in an order with children before their parent, and elder siblings' subtrees before younger ones'."""
    whole: Family
    """The family of all parents."""
    levels: tuple[Family, ...]
    """Per level 0..d-1: the family of its parents."""
    families: tuple[Tensor, Tensor]
    """The id of the first child and the number of children of every node above the last level, both int64 [nodes]."""
    nodes: Layout
    """The layout of all nodes, which `layout` returns."""
    expanded: tuple[Layout, ...]
    """Per level 0..d-1: the layout of its nodes. The root's has the token before it as well."""

    def above(self, depth: int) -> Tensor:
        """Return which node of the level above is the parent of each node at a `depth` from 1 on, int64 [width]."""
        return self.source[depth - 1][0]

    def child_range(self, depth: int) -> tuple[Tensor, Tensor]:
        """Return the id of the first child and the number of children of each node at `depth`, both int64 [width]."""
        level = self.tree.levels[depth]
        first, count = self.families
        return first[level.start : level.stop], count[level.start : level.stop]

    def layout(self) -> Layout:
        """Return the layout of all nodes, which was computed once."""
        return self.nodes

    @classmethod
    def on(cls, tree: SpeculationTree, device: torch.device | str) -> "StaticTensors":
        """Compute the tensors of a tree and move them to the device."""

        def tensor(values: object) -> Tensor:
            return torch.as_tensor(values, dtype=torch.int64, device=device)

        parents, ranks, depths = tensor(tree.parents), tensor(tree.ranks), tensor(tree.depths)
        ancestors, ids = torch.tensor(tree.ancestor_mask, device=device), torch.arange(tree.size, device=device)
        inner = [slice(level.start, level.stop) for level in tree.levels[:-1]]
        nodes = Layout.fixed(depths, ids, ancestors)
        return cls(
            depth=tree.depth,
            depths=depths,
            parents=parents.clamp_min(0),
            ranks=ranks,
            ancestors=ancestors,
            bits=nodes.bits,
            ids=ids,
            tree=tree,
            source=tuple(
                (tensor([tree.parents[node] - above.start for node in level]), tensor([tree.ranks[node] for node in level]))
                for above, level in zip(tree.levels[:-1], tree.levels[1:], strict=True)
            ),
            branches=tuple(max(len(tree.children[node]) for node in level) for level in tree.levels[:-1]),
            elder=(parents[:, None] == parents) & (ranks[:, None] > ranks),
            bottom_up=tensor(_bottom_up(tree)),
            whole=Family.of(tree, range(tree.size), device),
            levels=tuple(Family.of(tree, level, device) for level in tree.levels[:-1]),
            families=(
                tensor([min(tree.children[n], default=0) for n in range(tree.levels[-1].start)]),
                tensor([len(tree.children[n]) for n in range(tree.levels[-1].start)]),
            ),
            nodes=nodes,
            expanded=tuple(
                Layout.root(device) if depth == 0 else Layout.fixed(depths[level], ids[level], ancestors[level, : level.stop])
                for depth, level in enumerate(inner)
            ),
        )


def _bottom_up(tree: SpeculationTree) -> list[int]:
    """Return each node's place in post-order."""
    sizes = [1] * tree.size
    for node in range(tree.size - 1, 0, -1):
        sizes[tree.parents[node]] += sizes[node]
    place = [0] * tree.size
    first = [0] * tree.size  # the place of the first node of each subtree
    for node in range(tree.size):
        place[node] = first[node] + sizes[node] - 1
        start = first[node]
        for child in tree.children[node]:
            first[child] = start
            start += sizes[child]
    return place
