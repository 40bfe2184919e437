"""SpeculationTree: the shape of one speculation step, as an immutable array of parents."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from treespec.errors import ModelError, TreeError, counted
from treespec.trees.limits import MAX_SIZE


@dataclass(frozen=True)
class SpeculationTree:
    """An ordered tree of tokens to verify in one target pass.

    `parents[i]` is the id of node i's parent, -1 for the root, which is node 0: the last committed token. Ids are
    breadth-first with siblings contiguous in rank order, so parents never decrease. Everything else is derived.

    Raises TreeError for arrays that break this order (use `from_parents` to renumber any valid array).
    """

    drafter: ClassVar[str] = "tree"
    """Name of the drafter that drafts this tree at every step, when the tree is a plan for decoding (`decoding.plans.Plan`)."""
    sampled: ClassVar[bool] = True

    parents: tuple[int, ...]

    def __post_init__(self) -> None:
        given: Any = self.parents
        if not isinstance(given, tuple):  # a list cannot be hashed, as plans are
            object.__setattr__(self, "parents", tuple(map(int, given)))
        parents = self.parents
        if not parents:
            raise TreeError("a tree has at least its root, but parents is empty; pass (-1,) for no speculation")
        if len(parents) > MAX_SIZE:
            raise TreeError(f"tree size {len(parents)} is above the limit of {MAX_SIZE} nodes; use a smaller tree")
        if parents[0] != -1:
            raise TreeError(f"node 0 is the root and has parent -1, but parents[0] is {parents[0]}")
        for node in range(1, len(parents)):
            if not 0 <= parents[node] < node:
                raise TreeError(
                    f"parents[{node}] is {parents[node]}, but it must lie in [0, {node - 1}]: parents come before their children"
                )
            if parents[node] < parents[node - 1]:
                raise TreeError(
                    f"parents[{node}] = {parents[node]} is below parents[{node - 1}] = {parents[node - 1]}: "
                    "ids must be breadth-first with siblings contiguous; SpeculationTree.from_parents renumbers"
                )

    # -- builders ---------------------------------------------------------------------------------------------------

    @classmethod
    def from_parents(cls, parents: Sequence[int]) -> "SpeculationTree":
        """Return the tree of any parents array, renumbered breadth-first. Parents come before children, and siblings are ranked in id order."""
        for node, parent in enumerate(parents):
            if (node == 0 and parent != -1) or (node > 0 and not 0 <= parent < node):
                raise TreeError(f"parents[{node}] is {parent}, but parents come before their children and only node 0 has parent -1")
        children: list[list[int]] = [[] for _ in parents]
        for node in range(1, len(parents)):
            children[parents[node]].append(node)
        order, renumbered = [0] if parents else [], [-1] if parents else []
        for new, old in enumerate(order):  # grows while it is walked
            order += children[old]
            renumbered += [new] * len(children[old])
        return cls(tuple(renumbered))

    @classmethod
    def chain(cls, depth: int) -> "SpeculationTree":
        """Return one path of `depth` drafted tokens: classical speculative decoding.

        >>> SpeculationTree.chain(2).parents
        (-1, 0, 1)
        """
        return cls.k_chains(1, depth)

    @classmethod
    def k_ary(cls, branches: int, depth: int) -> "SpeculationTree":
        """Return the complete tree in which every node above the last level has `branches` children."""
        _require_counts(branches=branches, depth=depth)
        return cls.from_branches([branches] * branches**level for level in range(depth))

    @classmethod
    def k_chains(cls, chains: int, depth: int) -> "SpeculationTree":
        """Return `chains` independent paths of `depth` tokens that share the root only (Sequoia's KxL baseline trees)."""
        _require_counts(branches=chains, depth=depth)
        if depth == 0:
            return cls((-1,))
        return cls.from_branches([chains] if level == 0 else [1] * chains for level in range(depth))

    @classmethod
    def from_branches(cls, branches: Iterable[Sequence[int]]) -> "SpeculationTree":
        """Return the tree with these child counts of every node, level by level; levels without children may be left out at the end.

        >>> SpeculationTree.from_branches([[2], [1, 0]]).parents
        (-1, 0, 0, 1)
        """
        parents = [-1]
        level = [0]
        for depth, counts in enumerate(branches):
            if len(counts) > MAX_SIZE:
                raise TreeError(
                    f"level {depth} of the tree has {len(counts)} nodes, above the limit of {MAX_SIZE} nodes; use a smaller tree"
                )
            if len(counts) != len(level) or any(c < 0 for c in counts):
                raise TreeError(
                    f"branches[{depth}] is {list(counts)[:8]}, but level {depth} has {counted(len(level), 'node')}; give one count >= 0 for each"
                )
            first = len(parents)
            if first + sum(counts) > MAX_SIZE:
                raise TreeError(f"tree size {first + sum(counts)} is above the limit of {MAX_SIZE} nodes; use a smaller tree")
            for node, count in zip(level, counts, strict=True):
                parents += [node] * count
            level = list(range(first, len(parents)))
        return cls(tuple(parents))

    @classmethod
    def from_paths(cls, paths: Iterable[Sequence[int]]) -> "SpeculationTree":
        """Return the tree of Medusa-style paths of ranks, without the root. Prefixes are implied, and ranks must have no gaps.

        >>> SpeculationTree.from_paths([(0, 0), (1,)]).parents
        (-1, 0, 0, 1)
        """
        nodes = {tuple(p[: i + 1]) for p in paths for i in range(len(p))}
        for path in nodes:
            if path[-1] < 0 or (path[-1] > 0 and (*path[:-1], path[-1] - 1) not in nodes):
                raise TreeError(
                    f"path {list(path)} has rank {path[-1]} without rank {path[-1] - 1} beside it; ranks start at 0 without gaps"
                )
        order = [(), *sorted(nodes, key=lambda p: (len(p), p))]
        index = {path: i for i, path in enumerate(order)}
        return cls((-1, *(index[path[:-1]] for path in order[1:])))

    # -- derived ----------------------------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Number of nodes, the root included."""
        return len(self.parents)

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """Edges from the root to each node."""
        depths = [0]
        for parent in self.parents[1:]:
            depths.append(depths[parent] + 1)
        return tuple(depths)

    @property
    def depth(self) -> int:
        """Edges from the root to the deepest node: the number of draft passes in a step."""
        return self.depths[-1]

    @cached_property
    def ranks(self) -> tuple[int, ...]:
        """0-based order of each node among its siblings; the root's is 0."""
        seen: dict[int, int] = {}
        ranks = []
        for parent in self.parents:
            ranks.append(seen.get(parent, 0))
            seen[parent] = ranks[-1] + 1
        return tuple(ranks)

    @cached_property
    def children(self) -> tuple[tuple[int, ...], ...]:
        """Ids of each node's children in rank order (Sequoia's `Successors`)."""
        children: list[list[int]] = [[] for _ in self.parents]
        for node in range(1, self.size):
            children[self.parents[node]].append(node)
        return tuple(tuple(c) for c in children)

    @property
    def max_branch(self) -> int:
        """Largest number of children of any node."""
        return max(len(c) for c in self.children)

    @cached_property
    def levels(self) -> tuple[range, ...]:
        """Ids of the nodes of each depth; level 0 is the root alone."""
        bounds = np.searchsorted(self.depths, np.arange(self.depth + 2))
        return tuple(range(int(a), int(b)) for a, b in pairwise(bounds))

    @property
    def level_widths(self) -> tuple[int, ...]:
        """Numbers of nodes at each depth."""
        return tuple(len(level) for level in self.levels)

    @cached_property
    def ancestor_mask(self) -> NDArray[np.bool_]:
        """bool [size, size]; True where the column is an ancestor of the row, or the row itself. Read-only."""
        mask = np.eye(self.size, dtype=bool)
        for node in range(1, self.size):
            mask[node] |= mask[self.parents[node]]
        mask.flags.writeable = False
        return mask

    @cached_property
    def paths(self) -> tuple[tuple[int, ...], ...]:
        """Ranks on the way from the root to each node but the root, sorted by (length, ranks)."""
        paths: list[tuple[int, ...]] = [()]
        for node in range(1, self.size):
            paths.append((*paths[self.parents[node]], self.ranks[node]))
        return tuple(paths[1:])

    # -- as a plan for decoding ------------------------------------------------------------------------------------

    @property
    def candidates(self) -> int:
        """Nodes that are drafted in a step: all of them."""
        return self.size

    def require_tokens(self, vocabulary: int) -> None:
        """Raise ModelError if a vocabulary has too few tokens for the children of a node to be distinct."""
        if self.max_branch > vocabulary:
            raise ModelError(
                f"the tree has a node with {counted(self.max_branch, 'child', 'children')}, but the vocabulary has "
                f"{counted(vocabulary, 'token')}; use a narrower tree"
            )

    @property
    def nested(self) -> bool:
        """Whether the subtree of every node contains those of its younger siblings.

        >>> SpeculationTree.from_paths([(0, 0), (1,)]).nested, SpeculationTree.from_paths([(0,), (1, 0)]).nested
        (True, False)
        """
        known = set(self.paths)
        return all((*path[:at], rank - 1, *path[at + 1 :]) in known for path in known for at, rank in enumerate(path) if rank)

    def path_probabilities(self, probability: Sequence[Sequence[float]]) -> list[float]:
        """Return for each node the chance that the accepted path goes through it: the product of p[depth][rank] on the way from the root.

        `probability` has one row per depth, and the last one serves all deeper nodes; ranks beyond a row have chance 0.
        """
        chances = [1.0]
        for node in range(1, self.size):
            row = probability[min(self.depths[node], len(probability)) - 1]
            rank = self.ranks[node]
            chances.append(chances[self.parents[node]] * (row[rank] if rank < len(row) else 0.0))
        return chances

    def describe(self) -> dict[str, Any]:
        """Return the tree as plain JSON, for records."""
        return {"size": self.size, "depth": self.depth, "parents": list(self.parents)}

    # -- parts -----------------------------------------------------------------------------------------------------

    def truncated(self, size: int) -> "SpeculationTree":
        """Return the first `size` nodes in breadth-first order, which form a tree of their own."""
        _require_counts(size=size)
        return self if size >= self.size else SpeculationTree(self.parents[: max(1, size)])


def _require_counts(**counts: int) -> None:
    for name, value in counts.items():
        if value < 0:
            raise TreeError(f"{name} is {value}, but it must be 0 or more")
