"""The score of every size and depth bound on measured hardware, by an objective, and how far the best can be off.

A step on a tree of n nodes with levels of w_0 .. w_d nodes takes t_target(n) + sum over levels 0 .. d - 1 of t_draft(w) +
overhead seconds and yields F tokens. Size 1 drafts nothing: it is autoregressive decoding, and always scored.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treeopt.optimizer.frontier import Frontier
from treeopt.profiles.latency_model import LatencyModel
from treespec.errors import OptimizerError
from treespec.trees.tree import SpeculationTree

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


def step_seconds(tree: SpeculationTree, model: LatencyModel) -> float:
    """Return the predicted seconds of one step; the root alone is an autoregressive step.

    Raises ProfileError for a size or level width beyond the measured ones.
    """
    if tree.size == 1:
        return model.autoregressive_seconds()
    draft = sum(model.draft_seconds(width) for width in tree.level_widths[:-1])
    return model.target_seconds(tree.size) + draft + model.overhead_seconds


def choose(frontier: Frontier, model: LatencyModel, size: int | None = None, objective: Objective = seconds_per_token) -> Choice:
    """Score every size (or `size` alone) at every depth bound, and return the choice with the least cost.

    Among equal ones the smaller tree is taken. A tree whose size or level widths are beyond the measured ones has no known time and is no
    candidate. The lower bound prices every draft pass at the cheapest width, so that no shape of tree is cheaper (CONTRACT:
    `certified_gap`). Raises OptimizerError if no candidate is left.
    """
    wanted = np.zeros(frontier.max_size + 1, dtype=bool)
    wanted[slice(1, None) if size is None else size] = True
    steps = model.target_table(frontier.max_size) + model.overhead_seconds
    steps[1] = model.autoregressive_seconds()
    target = np.where(wanted, steps, np.inf)
    table = model.draft_table(frontier.max_size)
    cheapest = min(seconds for _, seconds in model.draft)
    seconds = np.full(frontier.values.shape, np.inf)
    tokens = np.where(frontier.values > 0, frontier.values, 1.0)
    least = np.full(frontier.values.shape, np.inf)
    for depth, values in enumerate(frontier.values):
        reached = np.isfinite(target) & (values > 0)
        least[depth] = np.where(reached, target + depth * cheapest, np.inf)
        seconds[depth] = np.where(reached, target + _draft_seconds(frontier.level_widths(depth), table), np.inf)
    scores = _costs(objective, tokens, seconds)
    best_size, best_depth = divmod(int(scores.T.argmin()), len(scores))  # the first: smallest size, then depth
    if not np.isfinite(scores[best_depth, best_size]):
        raise OptimizerError(
            f"size is {size}, but every best tree of that size within these limits has a level that is wider than {model.largest_width}, "
            "the largest measured draft width; profile wider levels, or ask for a smaller or deeper tree"
        )
    place = best_depth, best_size
    cost = float(scores[place])
    bound = min(cost, float(_costs(objective, tokens, least).min()))
    return Choice(best_size, best_depth, float(frontier.values[place]), float(seconds[place]), cost, bound)


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


def _draft_seconds(widths: NDArray[np.int32], table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the seconds of a step's draft passes, [sizes]: one pass over each level that has a level below it. `widths`: [sizes, levels]."""
    expanded = widths[:, 1:] > 0
    seconds: NDArray[np.float64] = np.where(expanded, table[np.where(expanded, widths[:, :-1], 0)], 0.0).sum(axis=1)
    return seconds
