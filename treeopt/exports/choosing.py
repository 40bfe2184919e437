"""The numbers for one batch size: the best chain, dynamic budget or fixed tree, by the prediction of its seconds per token."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from treeopt.exports import budgets
from treeopt.optimizer.search import acceptance_rows, optimize, rule_for
from treeopt.optimizer.uncertainty import Certainty, certainty
from treeopt.profiles.acceptance import AcceptanceProfile
from treeopt.profiles.intervals import Uncertain
from treeopt.profiles.latency import OWN_ENGINE, LatencyProfile
from treespec.decoding.step_rule import StepRule
from treespec.trees.formats.sequoia import MAX_GROWMAP_SIZE
from treespec.trees.tree import SpeculationTree


@dataclass(frozen=True)
class Setting:
    """The setting for a batch size: `size` nodes, the root included, `depth` edges and `width` expanded nodes per level. Size 1 is no speculation.

    `expected` is what it should give, with its intervals; `tree` is the fixed tree that the expectation is of.
    """

    batch: int
    size: int
    depth: int
    width: int
    tree: SpeculationTree
    tokens_per_step: float
    seconds_per_step: float
    speedup: float
    certainty: Certainty

    @property
    def speculates(self) -> bool:
        """Whether anything is drafted."""
        return self.size > 1

    def to_json(self) -> dict[str, Any]:
        """Return the numbers and what they should give, as plain data."""
        return {
            "batch": self.batch,
            "size": self.size,
            "depth": self.depth,
            "width": self.width,
            "expected_tokens_per_step": self.tokens_per_step,
            "predicted_seconds_per_step": self.seconds_per_step,
            "predicted_speedup": self.speedup,
            "intervals_95": self.certainty.intervals,
        }


def _rule(acceptance: AcceptanceProfile, latency: LatencyProfile) -> StepRule:
    """Return the rule whose times are taken: another engine's profile has those of one only."""
    return rule_for(acceptance, latency) if latency.engine == OWN_ENGINE else latency.held[0]


def fixed(acceptance: AcceptanceProfile, latency: LatencyProfile, context: int | None, max_branch: int | None = None) -> Setting:
    """Return the fixed tree that decodes fastest. Raises OptimizerError, ProfileError."""
    most = min(MAX_GROWMAP_SIZE, latency.at_context(context).largest_size)
    found = optimize(acceptance, latency=latency, context=context, max_size=most, max_branch=max_branch, rule=_rule(acceptance, latency))
    assert found.predicted_seconds_per_step is not None
    assert found.predicted_speedup is not None
    tree = found.tree
    expected = found.expected_tokens_per_step, found.predicted_seconds_per_step, found.predicted_speedup
    return Setting(latency.batch, tree.size, tree.depth, max(tree.level_widths[1:], default=0), tree, *expected, found.certainty)


def chain(acceptance: AcceptanceProfile, latency: LatencyProfile, context: int | None) -> Setting:
    """Return the chain that decodes fastest, which may be none at all. Raises OptimizerError, ProfileError."""
    return fixed(acceptance, latency, context, max_branch=1)


def dynamic(acceptance: AcceptanceProfile, latency: LatencyProfile, context: int | None) -> Setting:
    """Return the budget of dynamic trees that decodes fastest, which may be none at all. Raises OptimizerError, ProfileError."""
    rule, rows = _rule(acceptance, latency), acceptance_rows(acceptance)
    model, ends = latency.at_context(context, rule), latency.ends(context, rule)
    alone = model.autoregressive_seconds()
    found = budgets.best_budget(rows, model)
    if found is None or found.seconds_per_step / found.tokens_per_step >= alone:
        return Setting(latency.batch, 1, 0, 0, SpeculationTree((-1,)), 1.0, alone, 1.0, Certainty())
    tokens = certainty(found.tree, acceptance, rows).tokens_per_step
    sure = Certainty(tokens)
    if ends is not None:
        took = [budgets.seconds(times, found.size, found.depth, found.width) for times in ends]
        slow = [times.autoregressive_seconds() for times in ends]
        sure = Certainty(tokens, _between(found.seconds_per_step, *took), _between(alone, *slow))
    speedup = alone * found.tokens_per_step / found.seconds_per_step
    expected = found.tokens_per_step, found.seconds_per_step, speedup
    return Setting(latency.batch, found.size, found.depth, found.width, found.tree, *expected, sure)


def _between(value: float, low: float, high: float) -> Uncertain:
    return Uncertain(value, min(low, value), max(high, value))


KINDS: Mapping[str, Callable[[AcceptanceProfile, LatencyProfile, int | None], Setting]] = {
    "chain": chain,
    "dynamic tree": dynamic,
    "fixed tree": fixed,
}
"""The kinds of settings that engines take: functions that choose one, by name."""
