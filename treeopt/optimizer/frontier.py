"""Frontier: the best trees of every size and depth bound, whichever solver has found them."""

from abc import ABC, abstractmethod
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from treespec.errors import OptimizerError, counted
from treespec.trees.limits import MAX_SIZE
from treespec.trees.tree import SpeculationTree

Rows = NDArray[np.float64]
"""[depths, ranks]; row d holds the probabilities of the children of a node at depth d. The last row serves all deeper nodes too."""

MAX_CELLS = 1 << 26
"""Largest number of (size, depth bound) pairs in a frontier: 512 MiB."""


class Frontier(ABC):
    """G(n, d): the most expected tokens per step that a tree of exactly n nodes and depth at most d can have.

    `values[d, n]` is G(n, d) for d = 0 .. max_depth and n = 0 .. max_size, -inf where no such tree exists.
    """

    solver: str
    values: NDArray[np.float64]

    @property
    def max_size(self) -> int:
        """Largest tree size of the table."""
        return int(self.values.shape[1]) - 1

    @property
    def max_depth(self) -> int:
        """Largest depth bound of the table."""
        return int(self.values.shape[0]) - 1

    def value(self, size: int, depth: int) -> float:
        """Return G(size, depth), or -inf if no tree has this size within this depth. Raises OptimizerError beyond the table."""
        if not (1 <= size <= self.max_size and 0 <= depth <= self.max_depth):
            raise OptimizerError(
                f"size {size} with depth {depth} is outside this frontier: sizes 1..{self.max_size}, depths 0..{self.max_depth}; solve for more"
            )
        return float(self.values[depth, size])

    def tree(self, size: int, depth: int) -> SpeculationTree:
        """Return a tree that attains G(size, depth). Raises OptimizerError if there is none."""
        if self.value(size, depth) == -np.inf:
            feasible = int(np.flatnonzero(self.values[depth] > -np.inf)[-1])
            raise OptimizerError(
                f"no tree of {counted(size, 'node')} fits depth {depth} here; the largest has {feasible}: ask for that, or allow more depth"
            )
        return self._tree(size, depth)

    @abstractmethod
    def level_widths(self, depth: int) -> NDArray[np.int32]:
        """Return the nodes per level of `tree(n, depth)`, [max_size + 1, depth + 1]; rows of sizes that do not exist mean nothing."""

    @abstractmethod
    def _tree(self, size: int, depth: int) -> SpeculationTree: ...

    @cached_property
    def shallowest(self) -> NDArray[np.intp]:
        """Smallest depth bound that attains G(n, d) already, [max_depth + 1, max_size + 1]."""
        first = np.zeros(self.values.shape, dtype=np.intp)
        for depth in range(1, self.max_depth + 1):
            better = self.values[depth] > self.values[depth - 1]
            first[depth] = np.where(better, depth, first[depth - 1])
        return first


def check_rows(rows: Rows, max_size: int, max_depth: int, max_branch: int) -> Rows:
    """Return the rows that trees within the limits can meet, as [min(depths, max_depth), min(ranks, max_branch)] float64.

    Raises OptimizerError for limits below 1 (0 for the depth), trees beyond MAX_SIZE, tables beyond MAX_CELLS, and numbers that are no
    probabilities.
    """
    rows = np.asarray(rows, dtype=np.float64)
    if rows.ndim != 2 or 0 in rows.shape:
        raise OptimizerError(f"acceptance probabilities have shape {rows.shape}, but [depths, ranks] with at least one of each is needed")
    if not bool(np.all((rows >= 0) & (rows <= 1))):
        raise OptimizerError("acceptance probabilities must lie in [0, 1]; check the profile")
    for name, limit, least in (("max_size", max_size, 1), ("max_depth", max_depth, 0), ("max_branch", max_branch, 1)):
        if limit < least:
            raise OptimizerError(f"{name} is {limit}, but it must be {least} or more")
    if max_size > MAX_SIZE:
        raise OptimizerError(f"max_size is {max_size}, but trees have at most {MAX_SIZE} nodes; ask for less")
    if (max_size + 1) * (max_depth + 1) > MAX_CELLS:
        raise OptimizerError(
            f"a frontier of {counted(max_size, 'size')} and {counted(max_depth, 'depth bound')} is above the limit of {MAX_CELLS} pairs; "
            f"ask for a depth of at most {MAX_CELLS // (max_size + 1) - 1}"
        )
    rows = np.ascontiguousarray(rows[: max(1, max_depth), :max_branch])
    while len(rows) > 1 and np.array_equal(rows[-1], rows[-2]):
        rows = rows[:-1]  # below the last row, that row goes on
    return rows


def largest_size(max_depth: int, max_branch: int) -> int:
    """Return the size of the complete tree within the limits, or MAX_SIZE if that is smaller.

    >>> largest_size(2, 3)
    13
    """
    size = width = 1
    for _ in range(min(max_depth, MAX_SIZE)):
        width *= max_branch
        size += width
        if size >= MAX_SIZE:
            return MAX_SIZE
    return size


def non_increasing(rows: Rows) -> bool:
    """Return whether every row is non-increasing in rank; then the best-first solver is exact."""
    return bool(np.all(rows[:, 1:] <= rows[:, :-1]))


def expected_tokens(tree: SpeculationTree, rows: Rows) -> float:
    """Return F(tree), the sum over its nodes of the product of p on the way from the root (Sequoia, arXiv 2402.12374, 4.1).

    Raises OptimizerError for a tree with more branches than the rows have ranks.

    >>> expected_tokens(SpeculationTree.chain(2), np.array([[0.5, 0.25]]))
    1.75
    """
    depths, ranks = rows.shape
    if tree.max_branch > ranks:
        raise OptimizerError(
            f"the tree has nodes with {counted(tree.max_branch, 'child', 'children')}, but acceptance is known for {counted(ranks, 'rank')}; profile more ranks"
        )
    values = [1.0]
    for node in range(1, tree.size):
        row = min(tree.depths[node] - 1, depths - 1)
        values.append(values[tree.parents[node]] * float(rows[row, tree.ranks[node]]))
    return float(np.sum(values))
