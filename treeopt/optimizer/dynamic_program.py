"""Dynamic programme over (size, depth bound, children), which is exact for any p[k] and any p[depth][rank].

With V the best value of a subtree, T[b, n] the best of a node with exactly b children and n nodes below and with it:

    T[b, n] = max over m of  T[b - 1, n - m] + p_b * V[m],        V = max over b of T[b, n]

where V on the right belongs to one depth less (after Sequoia, arXiv 2402.12374, sec. 4.1). Each T[b] is one (max,+)
convolution of whole vectors. Three cuts, none of which can lose an optimum:

- *Exchange.* V does not decrease with m (a tree that is not complete has room for one more node, worth 0 or more). If
  an earlier rank i has p_i >= p_b, its subtree may be taken to be at least as large as that of rank b: swapping the two
  never loses. With c such ranks the subtree of rank b has at most (n - 1) / (c + 1) nodes. A near-monotone vector of W
  ranks then costs N^2/2 * (1 + 1/2 + ... + 1/W) per depth instead of N^2/2 * W.
- *Depth.* If V first differs from the V of one depth bound less at size f, T first differs at size f + 1.
- *Convergence.* If V does not differ at all, all larger depth bounds are the same.

At most O(D W N^2) time for p[k], O(D^2 W N^2) for p[depth][rank]; O(D W N) numbers of memory, or O(D^2 W N).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from treeopt.optimizer.frontier import Frontier, Rows, check_rows
from treespec.errors import OptimizerError, counted
from treespec.trees.tree import SpeculationTree

_BLOCK = 1 << 15
"""Number of sums held at once: 256 KiB, which stay in a core's cache between addition and maximum."""

_MAX_ENTRIES = 1 << 30
"""Largest number of split sizes kept for rebuilding trees: 2 GiB."""


def solve(rows: Rows, max_size: int, max_depth: int, max_branch: int) -> "DynamicProgramFrontier":
    """Return the frontier of all sizes up to `max_size` and depth bounds up to `max_depth`.

    `rows`: [depths, ranks] probabilities in any order. Raises OptimizerError for limits below 1, or for tables that exceed the memory.
    """
    rows = check_rows(rows, max_size, max_depth, max_branch)
    entries = sum(max_depth - top + 1 for top in range(len(rows))) * (rows.shape[1] + 1) * (max_size + 1)
    if entries > _MAX_ENTRIES:
        raise OptimizerError(
            f"the dynamic programme for {counted(max_size, 'size')}, {counted(max_depth, 'depth bound')}, "
            f"{counted(rows.shape[1], 'rank')} and {counted(len(rows), 'row')} of probabilities needs "
            f"{entries * 2 >> 20} MiB, above the limit of {_MAX_ENTRIES * 2 >> 20} MiB; ask for smaller trees, less depth or fewer branches"
        )
    return DynamicProgramFrontier(rows, max_size, max_depth)


@dataclass(frozen=True)
class _State:
    """The best subtrees of every size with a root at one depth, which go down at most a given number of edges.

    `values[n]` is the best value, `branches[n]` its number of children, `splits[b, n]` the size of the last of b children.
    """

    values: NDArray[np.float64]
    branches: NDArray[np.uint16]
    splits: NDArray[np.uint16]


class DynamicProgramFrontier(Frontier):
    """The best subtree of every size, per row and remaining depth, with the sizes of its children."""

    solver = "dp"

    def __init__(self, rows: Rows, max_size: int, max_depth: int) -> None:
        self._rows = len(rows)
        self._states: list[list[_State]] = [[] for _ in rows]  # [depth of the root][remaining depth]
        self._widths: dict[tuple[int, int], NDArray[np.int32]] = {}
        for top in reversed(range(len(rows))):
            self._states[top] = _solve_row(rows[top], self._states[top + 1] if top + 1 < len(rows) else None, max_size, max_depth - top)
        self.values = np.stack([state.values for state in self._states[0]])

    def level_widths(self, depth: int) -> NDArray[np.int32]:
        """Return the nodes per level of `tree(n, depth)`, [max_size + 1, depth + 1]; rows of sizes that do not exist mean nothing."""
        return self._level_widths(0, depth)

    def _tree(self, size: int, depth: int) -> SpeculationTree:
        parents, subtrees = [-1], [(size, 0, depth)]
        for node, (nodes, top, remaining) in enumerate(subtrees):  # grows while it is walked
            row = min(top, self._rows - 1)
            remaining = self._converged(row, remaining)
            state = self._states[row][remaining]
            sizes = []
            for children in range(int(state.branches[nodes]), 0, -1):
                sizes.append(int(state.splits[children, nodes]))
                nodes -= sizes[-1]
            subtrees += [(child, top + 1, remaining - 1) for child in reversed(sizes)]
            parents += [node] * len(sizes)
        return SpeculationTree(tuple(parents))

    def _converged(self, row: int, remaining: int) -> int:
        """Return the smallest remaining depth with the very same state. Its splits refer to subtrees that are one edge less deep than that."""
        states = self._states[row]
        while remaining > 1 and states[remaining] is states[remaining - 1]:
            remaining -= 1
        return remaining

    def _level_widths(self, top: int, remaining: int) -> NDArray[np.int32]:
        if (top, remaining) not in self._widths:
            self._widths[top, remaining] = self._combine_widths(top, remaining)
        return self._widths[top, remaining]

    def _combine_widths(self, top: int, remaining: int) -> NDArray[np.int32]:
        """Return the widths of a node's children, one level further down, added up child by child."""
        state = self._states[top][remaining]
        sums = np.zeros((len(state.values), remaining + 1), dtype=np.int32)
        sums[:, 0] = 1
        if remaining == 0:
            return sums
        if remaining > 1 and state is self._states[top][remaining - 1]:
            sums[:, :-1] = self._level_widths(top, remaining - 1)
            sums[:, -1] = 0
            return sums
        below = self._level_widths(min(top + 1, self._rows - 1), remaining - 1)
        widths = sums.copy()
        sizes = np.arange(len(state.values))
        for children in range(1, int(state.branches.max()) + 1):
            last = state.splits[children]
            sums = sums[sizes - last]
            sums[:, 1:] += below[last]
            done = state.branches == children
            widths[done] = sums[done]
        return widths


def _solve_row(row: NDArray[np.float64], below: list[_State] | None, max_size: int, max_depth: int) -> list[_State]:
    """Return the states of remaining depth 0 .. max_depth for nodes whose children have the probabilities `row`.

    `below` holds the states of their children; it is None if the children have the same row as their parent.
    """
    ranks = len(row)
    earlier = [int(np.sum(row[:rank] >= row[rank])) for rank in range(ranks)]
    table = np.full((ranks + 1, 2 * max_size + 1), -np.inf)  # T[b, n] at column max_size + n: smaller sizes stay -inf
    table[0, max_size + 1] = 1.0
    leaf = np.full(max_size + 1, -np.inf)
    leaf[1] = 1.0
    splits = np.zeros((ranks + 1, max_size + 1), dtype=np.uint16)
    states = [_State(leaf, np.zeros(max_size + 1, dtype=np.uint16), splits)]
    previous = np.full(max_size + 1, -np.inf)
    sizes = np.arange(max_size + 1)
    for depth in range(1, max_depth + 1):
        values = (states if below is None else below)[depth - 1].values
        changed = np.flatnonzero(values != previous)
        if not len(changed):
            states.append(states[-1])
            continue
        splits = splits.copy()
        largest = int(np.flatnonzero(values > -np.inf)[-1])
        backward = values[largest:0:-1].copy()
        for rank, probability in enumerate(row.tolist()):
            _convolve(table, splits, rank, earlier[rank], probability * backward, sizes, int(changed[0]) + 1)
        best = table[:, max_size:].argmax(axis=0)
        states.append(_State(table[best, max_size + sizes], best.astype(np.uint16), splits))
        previous = values
    return states


def _convolve(
    table: NDArray[np.float64],
    splits: NDArray[np.uint16],
    rank: int,
    earlier: int,
    gains: NDArray[np.float64],
    sizes: NDArray[np.intp],
    first: int,
) -> None:
    """Fill T[rank + 1, n] and its split for all n >= first: the subtree of `rank` joins the children before it.

    `earlier`: number of earlier ranks that are at least as probable; `gains`: p V[m] for m from the largest subtree there
    is down to 1; `sizes`: 0 .. max_size.
    """
    start, end, largest, before = max(first, rank + 2), len(sizes), len(gains), table[rank]
    while start < end:
        # rows n = start .. stop - 1, columns m = most .. 1; `most` covers the largest n, fewer rows where it is large
        stop = min(end, start + max(8, _BLOCK // max(1, min(largest, (start - 1) // (earlier + 1)))))
        most = max(1, min(largest, (stop - 2) // (earlier + 1), stop - 2 - rank))
        window = np.ndarray((stop - start, most), np.float64, before, (end - 1 + start - most) * 8, (8, 8))
        sums = window + gains[largest - most :]
        column = sums.argmax(axis=1)
        table[rank + 1, end - 1 + start : end - 1 + stop] = sums[sizes[: stop - start], column]
        splits[rank + 1, start:stop] = most - column
        start = stop
