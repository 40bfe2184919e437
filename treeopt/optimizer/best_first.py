"""Best-first: the n most probable nodes form the best tree of size n, if each row is non-increasing in rank.

Exact because a node is never more probable than its parent or its earlier sibling, so that the n largest path values
always belong to a tree, and no tree of n nodes can have a larger sum (Sequoia, arXiv 2402.12374, sec. 4.1, gives the
sum; the greedy argument needs the order). O(D N log N) for the whole frontier of N sizes and D depth bounds.
"""

import numpy as np
from numpy.typing import NDArray

from treeopt.optimizer.frontier import Frontier, Rows, check_rows, non_increasing
from treespec.errors import OptimizerError
from treespec.trees.tree import SpeculationTree


def solve(rows: Rows, max_size: int, max_depth: int, max_branch: int) -> "BestFirstFrontier":
    """Return the frontier of all sizes up to `max_size` and depth bounds up to `max_depth`.

    `rows`: [depths, ranks] probabilities, each row non-increasing. Raises OptimizerError if a row within the limits is not, since this
    solver would not be exact then.
    """
    rows = check_rows(rows, max_size, max_depth, max_branch)
    if not non_increasing(rows):
        depth = int(np.flatnonzero(np.any(rows[:, 1:] > rows[:, :-1], axis=1))[0])
        rank = int(np.flatnonzero(rows[depth, 1:] > rows[depth, :-1])[0]) + 1
        raise OptimizerError(
            f"best-first is exact only where probabilities do not increase with rank, but rank {rank} has {rows[depth, rank]:.6g} after "
            f"{rows[depth, rank - 1]:.6g}; use solver dp or auto, or smoothing isotonic"
        )
    return BestFirstFrontier(rows, max_size, max_depth)


class BestFirstFrontier(Frontier):
    """The nodes that belong to some best tree, and per depth bound their order: its first n are the tree of size n.

    Depth bound d draws on the nodes of bound d - 1 and on the children of those at depth d - 1. A node that is not among the
    `max_size` best of a bound is not among those of a larger one, and neither is any node below it.
    """

    solver = "best-first"

    def __init__(self, rows: Rows, max_size: int, max_depth: int) -> None:
        parents = [np.array([-1])]
        path_values = [np.ones(1)]
        depths = [np.zeros(1, dtype=np.intp)]
        order, values = np.zeros(1, dtype=np.intp), np.ones(1)  # ids and path values of the current bound, best first
        level, level_values = order, values  # those at its last depth, in id order
        known = 1
        self._orders = [order]
        for depth in range(1, max_depth + 1):
            children = np.outer(level_values, rows[min(depth, len(rows)) - 1])
            taken = np.flatnonzero(children.ravel() >= _threshold(children, values, max_size))
            if len(taken):
                ids = np.arange(known, known + len(taken))
                known += len(taken)
                child_values = children.ravel()[taken]
                parents.append(level[taken // rows.shape[1]])
                path_values.append(child_values)
                depths.append(np.full(len(taken), depth))
                merged = np.concatenate([values, child_values])
                best = np.argsort(-merged, kind="stable")[:max_size]  # ties go to the smaller id: parents, earlier siblings
                order, values = np.concatenate([order, ids])[best], merged[best]
                kept = np.sort(order[order >= ids[0]])
                level, level_values = kept, child_values[kept - ids[0]]
            else:
                level, level_values = level[:0], level_values[:0]
            self._orders.append(order)
        self._parents = np.concatenate(parents)
        self._depths = np.concatenate(depths)
        all_values = np.concatenate(path_values)
        self.values = np.full((max_depth + 1, max_size + 1), -np.inf)
        for depth, order in enumerate(self._orders):
            self.values[depth, 1 : len(order) + 1] = np.cumsum(all_values[order])

    def level_widths(self, depth: int) -> NDArray[np.int32]:
        """Return the nodes per level of `tree(n, depth)`, [max_size + 1, depth + 1]; zeros for sizes that do not exist."""
        order = self._orders[depth]
        widths = np.zeros((self.max_size + 1, depth + 1), dtype=np.int32)
        widths[np.arange(1, len(order) + 1), self._depths[order]] = 1
        np.cumsum(widths, axis=0, out=widths)
        widths[len(order) + 1 :] = 0
        return widths

    def _tree(self, size: int, depth: int) -> SpeculationTree:
        order = self._orders[depth][:size]
        place = dict(zip(order.tolist(), range(size), strict=True))
        return SpeculationTree.from_parents([-1, *(place[p] for p in self._parents[order[1:]].tolist())])


def _threshold(children: NDArray[np.float64], values: NDArray[np.float64], max_size: int) -> float:
    """Return the value that a child must reach to matter. Once all sizes are reached, later nodes lose ties and must exceed it."""
    if len(values) == max_size:
        return float(np.nextafter(values[-1], np.inf))
    if children.size <= max_size:
        return -np.inf
    return float(np.partition(children.ravel(), children.size - max_size)[children.size - max_size])
