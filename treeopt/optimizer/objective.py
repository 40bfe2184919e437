"""The score of every size and depth bound on measured hardware, by an objective, and how far the best can be off.

A step on a tree of n nodes with levels of w_0 .. w_d nodes takes t_target(n) + sum over levels 0 .. d - 1 of t_draft(w) +
rest seconds and yields F tokens. A level of one node below the root may take another time than the root: heads that propose all levels at
once have computed them there. Size 1 drafts nothing: it is autoregressive decoding, and always scored. The rest is the same for all trees,
or grows with a tree's nodes, levels and longest chain (`profiles.rest`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treeopt.optimizer.frontier import Frontier
from treeopt.profiles.latency_model import LatencyModel
from treeopt.profiles.rest import NO_CHAIN, PATH, Rest, least_chains
from treespec.errors import OptimizerError

Objective = Callable[[NDArray[np.float64], NDArray[np.float64]], Any]
"""The cost of trees, of which the least is wanted: (tokens per step, seconds per step) -> cost, three arrays of the same shape.

Rule: the cost is above 0, never rises with the tokens and never falls with the seconds. Else neither the tree is the best nor the certificate true.
"""


def seconds_per_token(tokens: NDArray[np.float64], seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the seconds that a token takes: the objective that decodes fastest."""
    return seconds / tokens


@dataclass(frozen=True)
class Choice:
    """The size and depth bound whose best tree has the least cost, among all that were scored.

    `lower_bound` is the cost that no tree within the same limits can undercut, whatever its shape.
    """

    size: int
    depth: int
    expected_tokens_per_step: float
    seconds_per_step: float
    cost: float
    lower_bound: float

    @property
    def seconds_per_token(self) -> float:
        """Predicted seconds per token."""
        return self.seconds_per_step / self.expected_tokens_per_step

    @property
    def certified_gap(self) -> float:
        """1 - lower_bound / cost: no tree within the limits saves more than this share of the cost."""
        return max(0.0, 1 - self.lower_bound / self.cost)


def choose(
    frontier: Frontier, model: LatencyModel, size: int | None = None, objective: Objective = seconds_per_token, smallest: int = 1
) -> Choice:
    """Score every size from the `smallest` on (or `size` alone) at every depth bound, and return the choice with the least cost.

    Among equal ones the smaller tree is taken. A tree whose size or level widths are beyond the measured ones has no known time and is no
    candidate. The lower bound prices every draft pass at the cheapest width, but the root's of a head, which no tree does without, at its own
    time; and the rest of a step at the shortest chain that a tree of that size and depth can have. So no shape of tree is cheaper.

    Raises OptimizerError if no candidate is left.
    """
    wanted = np.zeros(frontier.max_size + 1, dtype=bool)
    wanted[slice(smallest, None) if size is None else size] = True
    rest = model.rest or Rest(model.overhead_seconds)
    target = np.where(wanted, model.target_table(frontier.max_size), np.inf)
    alone = model.autoregressive_seconds()
    root, table, cheapest = model.draft_seconds(1), model.level_table(frontier.max_size), model.shortest_level
    least_root = cheapest if model.below is None else root
    seconds = np.full(frontier.values.shape, np.inf)
    tokens = np.where(frontier.values > 0, frontier.values, 1.0)
    least = np.full(frontier.values.shape, np.inf)
    sizes, fewest = np.arange(frontier.max_size + 1, dtype=np.float64), least_chains(rest.chain, frontier.max_size, frontier.max_depth)
    for depth, values in enumerate(frontier.values):
        reached = np.isfinite(target) & (values > 0)
        widths = frontier.level_widths(depth)
        levels = (widths > 0).sum(axis=1) - 1.0
        shortest = target + rest.at(sizes, fewest[depth], np.full_like(sizes, depth))
        shortest += (least_root + (depth - 1) * cheapest) if depth else 0.0
        known = target + rest.at(sizes, _links(widths, rest.chain), levels) + _draft_seconds(widths, root, table)
        shortest[1] = known[1] = alone if wanted[1] else np.inf
        least[depth], seconds[depth] = np.where(reached, shortest, np.inf), np.where(reached, known, np.inf)
    scores = _costs(objective, tokens, seconds)
    if not np.isfinite(scores).any():
        raise OptimizerError(
            f"size is {size}, but every best tree of that size within these limits has a level that is wider than {model.largest_width}, "
            "the largest measured draft width; profile wider levels, or ask for a smaller or deeper tree"
        )
    if rest.per_link:
        place, took, cost = _cheapest(frontier, model, scores, objective)
    else:
        best_size, best_depth = divmod(int(scores.T.argmin()), len(scores))  # the first: smallest size, then depth
        place = best_depth, best_size
        took, cost = float(seconds[place]), float(scores[place])
    bound = min(cost, float(_costs(objective, tokens, least).min()))
    return Choice(place[1], place[0], float(frontier.values[place]), took, cost, bound)


def _cheapest(
    frontier: Frontier, model: LatencyModel, scores: NDArray[np.float64], objective: Objective
) -> tuple[tuple[int, int], float, float]:
    """Return (depth bound and size, seconds per step, cost) of the tree of the frontier with the least cost.

    `scores` [depths, sizes] are costs that no tree of the frontier undercuts. Trees are built and priced in their order until the next is no
    better than the best price. Trees of equal size, level widths and tokens are taken for one another.
    """
    best: tuple[tuple[int, int], float, float] | None = None
    seen: set[tuple[int, float, bytes]] = set()
    for position in np.argsort(scores.T, axis=None, kind="stable"):  # of equal ones, the smallest size and depth first
        size, depth = divmod(int(position), len(scores))
        if best is not None and scores[depth, size] >= best[2]:
            break
        widths = frontier.level_widths(depth)[size]
        key = size, float(frontier.values[depth, size]), widths[widths > 0].tobytes()
        if key in seen:
            continue
        seen.add(key)
        took = model.step_seconds(frontier.tree(size, depth))
        cost = float(_costs(objective, np.array([key[1]]), np.array([took]))[0])
        if best is None or cost < best[2]:
            best = (depth, size), took, cost
    assert best is not None  # some score is finite
    return best


def _links(widths: NDArray[np.int32], chain: str) -> NDArray[np.float64]:
    """Return the fewest links of the longest chain of trees with these level widths [sizes, levels], whatever else their shape: [sizes].

    The root's children are the first level. At level l, some node has as many children as its level has on average, rounded up, and every
    node between the root and that one has a child or more.
    """
    if chain == NO_CHAIN or widths.shape[1] < 2:
        return np.zeros(len(widths))
    above, below = widths[:, :-1], widths[:, 1:]
    families = np.where(below > 0, -(-below // np.maximum(above, 1)), 0).astype(np.float64)
    if chain == PATH:
        levels = np.arange(1, families.shape[1])
        families[:, 1:] += np.where(families[:, 1:] > 0, widths[:, 1:2] + levels - 1, 0)
    links: NDArray[np.float64] = families.max(axis=1)
    return links


def _costs(objective: Objective, tokens: NDArray[np.float64], seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the cost of each tree, [depths, sizes]; infinite where its seconds are. Raises OptimizerError for what is no cost."""
    known = np.isfinite(seconds)
    found = np.full(seconds.shape, np.inf)
    found[known] = objective(tokens[known], seconds[known])
    if not (found > 0).all():  # NaN is not
        raise OptimizerError(
            "the objective gives a cost that is no number above 0; costs are divided by one another, so add a constant to it"
        )
    return found


def _draft_seconds(widths: NDArray[np.int32], root: float, table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the seconds of a step's draft passes, [sizes]: one pass over each level that has a level below it. `widths`: [sizes, levels].

    That over the root takes `root` seconds, others what the `table` has for their width.
    """
    expanded = widths[:, 1:] > 0
    passes = np.where(expanded, table[np.where(expanded, widths[:, :-1], 0)], 0.0)
    passes[:, :1] = np.where(expanded[:, :1], root, 0.0)
    seconds: NDArray[np.float64] = passes.sum(axis=1)
    return seconds
