"""The certainty of predictions: from errors of the profiles to 95 % intervals of a tree's tokens and seconds per step and its speed-up."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from treeopt.optimizer.frontier import Rows
from treeopt.profiles.acceptance import AcceptanceProfile
from treeopt.profiles.intervals import Uncertain, of_mean, quotient
from treeopt.profiles.latency_model import LatencyModel
from treeopt.profiles.ratio import error_of
from treespec.trees.tree import SpeculationTree


@dataclass(frozen=True)
class Lead:
    """The lead of one candidate over another, as a factor: by the tokens of a step, and by the time of one."""

    tokens: Uncertain
    times: Uncertain

    @property
    def whole(self) -> Uncertain:
        """The quotient of their seconds per token."""
        return quotient([self.tokens, self.times], [])

    @property
    def told(self) -> bool:
        """Whether one is faster: the interval does not hold 1."""
        return not self.whole.low <= 1 <= self.whole.high

    def prompts_needed(self, prompts: int) -> int | None:
        """Return how many prompts would tell, where `prompts` gave the error of the tokens; None if the times alone are too uncertain.

        The error of the tokens falls as the root of the prompts grows, if the figures stay as they are, and that of the times stays.
        """
        distance, ahead = math.log(self.whole.value), self.whole.value > 1
        tokens, times = (figure.down if ahead else figure.up for figure in (self.tokens, self.times))
        room = distance**2 - times**2
        return math.ceil(prompts * tokens**2 / room) if room > 0 else None


@dataclass(frozen=True)
class Certainty:
    """The predictions of a tree with their intervals, each None where the profiles do not tell its error.

    Of the root alone nothing is uncertain: it is autoregressive decoding, of which speed-ups are counted.
    """

    tokens_per_step: Uncertain | None = None
    seconds_per_step: Uncertain | None = None
    autoregressive_seconds: Uncertain | None = None

    @property
    def lead(self) -> Lead | None:
        """The lead over autoregressive decoding, whose whole is the speed-up."""
        tokens, step, alone = self.tokens_per_step, self.seconds_per_step, self.autoregressive_seconds
        return None if tokens is None or step is None or alone is None else Lead(tokens, quotient([alone], [step]))

    def ahead_of(self, other: "Certainty") -> Lead | None:
        """Return the lead over another tree."""
        figures = self.tokens_per_step, other.tokens_per_step, other.seconds_per_step, self.seconds_per_step
        own, theirs, slow, fast = figures
        return (
            None
            if own is None or theirs is None or slow is None or fast is None
            else Lead(quotient([own], [theirs]), quotient([slow], [fast]))
        )

    @property
    def intervals(self) -> dict[str, list[float]]:
        """The ends of the intervals that are known, by the names that results have for the figures."""
        figures = {
            "expected_tokens_per_step": self.tokens_per_step,
            "predicted_seconds_per_step": self.seconds_per_step,
            "predicted_speedup": None if self.lead is None else self.lead.whole,
        }
        return {name: [figure.low, figure.high] for name, figure in figures.items() if figure is not None}


def certainty(
    tree: SpeculationTree,
    acceptance: AcceptanceProfile,
    rows: Rows,
    model: LatencyModel | None = None,
    ends: tuple[LatencyModel, LatencyModel] | None = None,
) -> Certainty:
    """Return how certain the predictions of a tree are.

    `rows` are the chances that the profile's were turned into, [depths, ranks]; `model` has the times, and `ends` their lower and upper ends.
    """
    return with_times(None if tree.size == 1 else _tokens_per_step(tree, acceptance, rows), tree, model, ends)


def with_times(
    tokens: Uncertain | None, tree: SpeculationTree, model: LatencyModel | None, ends: tuple[LatencyModel, LatencyModel] | None
) -> Certainty:
    """Return how certain the predictions of a tree are, of whose tokens per step this is known. See `certainty`."""
    if tree.size == 1:
        return Certainty()
    return certainty_of(tokens, lambda times: times.step_seconds(tree), model, ends)


def certainty_of(
    tokens: Uncertain | None,
    step_seconds: Callable[[LatencyModel], float],
    model: LatencyModel | None = None,
    ends: tuple[LatencyModel, LatencyModel] | None = None,
) -> Certainty:
    """Return how certain `tokens` per step are together with the `step_seconds` of a plan by the times of `model`, whose ends are `ends`."""
    if model is None or ends is None:
        return Certainty(tokens)
    step = _between(*map(step_seconds, (model, *ends)))
    alone = _between(*(times.autoregressive_seconds() for times in (model, *ends)))
    return Certainty(tokens, step, alone)


def _between(value: float, low: float, high: float) -> Uncertain:
    """Return a time with its ends, which what is fitted to steps may have brought out of order."""
    return Uncertain(value, min(low, value), max(high, value))


def _tokens_per_step(tree: SpeculationTree, acceptance: AcceptanceProfile, rows: Rows) -> Uncertain | None:
    """Return the expected tokens per step, whose error is that of the chances to first order; prompts are the independent units.

    Where there are sums of each prompt, chances err together, as they do in a prompt that is easy to draft for; else each by itself. Chances of
    deeper levels err by the sums of their own level, or as those of the first level do if their sums are not known.
    """
    rows = rows[: tree.depth]  # no parent lies deeper
    value, gain = math.fsum(tree.path_probabilities(rows.tolist())), gains(tree, rows)
    units, levels = len(acceptance.prompt_sums), acceptance.levels
    if units > 1 and levels:
        weights = gain if acceptance.deeper else gain.sum(0, keepdims=True)
        # a row behind the last level holds chances of 0, which are exact: nothing is proposed there
        parts = [level.effects(own) for level, own in zip(levels, weights, strict=False) if own.any()]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            return None
        error = error_of(np.sum(known, axis=0))
    elif acceptance.standard_error:
        error, units = math.hypot(*(gain.sum(0) * np.array(acceptance.standard_error))), acceptance.prompts
    else:
        return None
    low, high = of_mean(value, error, units)
    return Uncertain(value, max(1.0, low), high)


def gains(tree: SpeculationTree, rows: Rows) -> NDArray[np.float64]:
    """Return the derivatives of the expected tokens per step by the chance of each rank in each of the `rows`, [depths, ranks].

    A node's chance counts in all paths through it: the chance to get to its parent times the tokens from there on.

    >>> gains(SpeculationTree.chain(2), np.array([[0.5, 0.1]])).tolist()
    [[2.0, 0.0]]
    >>> gains(SpeculationTree.chain(2), np.array([[0.5, 0.1], [0.4, 0.2]])).tolist()
    [[1.4, 0.0], [0.5, 0.0]]
    """
    chances = tree.path_probabilities(rows.tolist())
    worth, gain = [1.0] * tree.size, np.zeros(rows.shape)
    for node in range(tree.size - 1, 0, -1):  # children come behind their parents
        parent, rank = tree.parents[node], tree.ranks[node]
        row = min(tree.depths[parent], len(rows) - 1)
        gain[row, rank] += chances[parent] * worth[node]
        worth[parent] += rows[row, rank] * worth[node]
    return gain
