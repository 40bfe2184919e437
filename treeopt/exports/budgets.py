"""Budgets of dynamic trees, as EAGLE-2 grows them (arXiv 2406.16858): the best nodes of each level are expanded, then the best of all are verified.

An acceptance profile says how often the child of each rank is accepted, and not how sure the draft is of a single one. So the tree of a budget is
taken as if the draft were equally sure everywhere: then it is a fixed tree, whose expectation is exact.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from treeopt.optimizer.frontier import Rows
from treeopt.profiles.latency_model import LatencyModel
from treespec.trees.tree import SpeculationTree

MOST_DEPTH = 16
"""Largest depth of a budget that is looked at."""
MOST_WIDTH = 16
"""Largest number of nodes of a level that are expanded."""


@dataclass(frozen=True)
class Pool:
    """All nodes that are drafted by one budget, in the order in which they are, the root left out.

    `chances` are the chances of the paths to them; `order` has the likeliest ones for the draft first, parents and elder siblings before others.
    """

    parents: NDArray[np.int64]
    chances: NDArray[np.float64]
    order: NDArray[np.int64]

    @property
    def tokens(self) -> NDArray[np.float64]:
        """Expected tokens per step by the number of nodes, [nodes + 2]; the root counts as a node, and 0 nodes have none."""
        return np.concatenate([[0.0, 1.0], 1.0 + np.cumsum(self.chances[self.order])])

    def tree(self, size: int) -> SpeculationTree:
        """Return the tree of the first `size` nodes, the root included."""
        chosen = np.sort(self.order[: size - 1])
        place = {-1: 0} | {int(node): index for index, node in enumerate(chosen, 1)}
        return SpeculationTree.from_parents([-1, *(place[int(self.parents[node])] for node in chosen)])


def grown(rows: Rows, depth: int, width: int) -> Pool:
    """Return what is drafted in `depth` levels, of which each has up to `width` children of each of the `width` likeliest nodes of the level above.

    The draft ranks children by its own probability, so a child never counts as likelier than its elder sibling, whatever the profile says.
    """
    scores = np.minimum.accumulate(rows, axis=1)
    ranks = min(width, rows.shape[1])
    front, front_scores, front_chances = np.array([-1]), np.ones(1), np.ones(1)
    parents, chances, scored = [], [], []
    known = 0
    for level in range(depth):
        row = min(level, len(rows) - 1)
        parents.append(np.repeat(front, ranks))
        scored.append((front_scores[:, None] * scores[row, :ranks]).ravel())
        chances.append((front_chances[:, None] * rows[row, :ranks]).ravel())
        best = np.sort(np.argsort(-scored[-1], kind="stable")[:width])
        front, front_scores, front_chances = known + best, scored[-1][best], chances[-1][best]
        known += len(scored[-1])
    order = np.argsort(-np.concatenate(scored), kind="stable")
    return Pool(np.concatenate(parents), np.concatenate(chances), order)


def budgets(depth: int, width: int, largest: int) -> range:
    """Return the sizes that a budget of this depth and width may have: engines ask for a node per level, and for no more than `width` of each."""
    return range(depth + 1, min(1 + depth * width, largest) + 1)


def seconds(model: LatencyModel, size: int, depth: int, width: int) -> float:
    """Return the seconds of a step: a pass of the draft over the root, then one over `width` nodes for each further level, and the target's.

    Raises ProfileError beyond what was measured.
    """
    drafting = model.draft_seconds(1) + (depth - 1) * model.level_seconds(width)
    rest = model.overhead_seconds if model.rest is None else float(model.rest.at(size, 0, depth))
    return model.target_seconds(size) + drafting + rest


@dataclass(frozen=True)
class Budget:
    """A budget, its expected tokens and its seconds per step, and the fixed tree that it stands for."""

    size: int
    depth: int
    width: int
    tokens_per_step: float
    seconds_per_step: float
    tree: SpeculationTree


def best_budget(rows: Rows, model: LatencyModel) -> Budget | None:
    """Return the budget with the least seconds per token, within what was measured, the smallest of equals; None if no tree was measured."""
    best, chosen = np.inf, None
    for depth, width in _levels(rows, model):
        sizes = budgets(depth, width, model.largest_size)
        pool = grown(rows, depth, width)
        took = np.array([seconds(model, size, depth, width) for size in sizes])
        cost = took / pool.tokens[sizes.start : sizes.stop]
        least = int(cost.argmin())
        if cost[least] < best:
            best, chosen = cost[least], (depth, width, sizes[least], float(took[least]), pool)
    if chosen is None:
        return None
    depth, width, size, spent, pool = chosen
    return Budget(size, depth, width, float(pool.tokens[size]), spent, pool.tree(size))


def _levels(rows: Rows, model: LatencyModel) -> Iterator[tuple[int, int]]:
    """Yield the depths and widths for which some size was measured."""
    for depth in range(1, min(MOST_DEPTH, model.largest_size - 1) + 1):
        for width in range(1, min(MOST_WIDTH, rows.shape[1], model.largest_width) + 1):
            yield depth, width
