"""The numbers for one batch size: the best chain, dynamic budget or fixed tree, by the prediction of its seconds per token."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from treeopt.exports import budgets
from treeopt.optimizer.budgets import choose_budget, dynamic_seconds, rule_of_dynamic_trees
from treeopt.optimizer.search import acceptance_rows, optimize, rule_for
from treeopt.optimizer.uncertainty import certainty, certainty_of
from treeopt.profiles.acceptance import AcceptanceProfile
from treeopt.profiles.latency import OWN_ENGINE, LatencyProfile
from treeopt.profiles.latency_model import LatencyModel
from treespec.decoding.chosen import ChosenBudget
from treespec.decoding.plans import DynamicBudget
from treespec.decoding.step_rule import StepRule
from treespec.errors import ProfileError
from treespec.trees.formats.sequoia import MAX_GROWMAP_SIZE
from treespec.trees.growmap import GrowMap
from treespec.trees.tree import SpeculationTree


@dataclass(frozen=True)
class Setting:
    """The setting for a batch size: `size` nodes, the root included, `depth` edges and `width` expanded nodes per level. Size 1 is no speculation.

    `tree` is the fixed tree that the expectation is of; None where the steps of dynamic trees were `counted`.
    """

    batch: int
    size: int
    depth: int
    width: int
    tree: SpeculationTree | None
    tokens_per_step: float
    seconds_per_step: float
    speedup: float
    intervals: Mapping[str, Sequence[float]]
    """The ends of the 95 % intervals that are known, by the names that results have for the figures."""
    counted: bool = False

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
            "intervals_95": dict(self.intervals),
            "counted": self.counted,
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
    return Setting(latency.batch, tree.size, tree.depth, max(tree.level_widths[1:], default=0), tree, *expected, found.certainty.intervals)


def chain(acceptance: AcceptanceProfile, latency: LatencyProfile, context: int | None) -> Setting:
    """Return the chain that decodes fastest, which may be none at all. Raises OptimizerError, ProfileError."""
    return fixed(acceptance, latency, context, max_branch=1)


def dynamic(acceptance: AcceptanceProfile, latency: LatencyProfile, context: int | None) -> Setting:
    """Return the budget of dynamic trees that decodes fastest, which may be none at all. Raises OptimizerError, ProfileError.

    Where the acceptance profile has counted the steps of dynamic trees, it is the best of the budgets that were counted. Else their tokens are
    guessed from the chances of ranks (`budgets`).
    """
    if acceptance.dynamic is not None:
        return _counted(acceptance, latency, context)
    rule, rows = _rule(acceptance, latency), acceptance_rows(acceptance)
    model = latency.at_context(context, rule)
    found = budgets.best_budget(rows, model)
    if found is None or found.seconds_per_step / found.tokens_per_step >= model.autoregressive_seconds():
        return _none(latency.batch, model.autoregressive_seconds())
    sure = certainty_of(
        certainty(found.tree, acceptance, rows).tokens_per_step,
        lambda times: budgets.seconds(times, found.size, found.depth, found.width),
        model,
        latency.ends(context, rule),
    )
    speedup = model.autoregressive_seconds() * found.tokens_per_step / found.seconds_per_step
    expected = found.tokens_per_step, found.seconds_per_step, speedup
    return Setting(latency.batch, found.size, found.depth, found.width, found.tree, *expected, sure.intervals)


def _counted(acceptance: AcceptanceProfile, latency: LatencyProfile, context: int | None) -> Setting:
    """Return the fastest of the budgets whose steps were counted: by the times of dynamic trees, or by those of passes where there are no others."""
    rule, step_seconds = rule_of_dynamic_trees(acceptance), dynamic_seconds
    if latency.engine != OWN_ENGINE or rule not in latency.held:
        rule, step_seconds = _rule(acceptance, latency), _pass_seconds
    choice = choose_budget(acceptance, latency, context=context, rule=rule, step_seconds=step_seconds)
    best = choice.best
    if best.predicted_speedup <= 1:
        return _none(latency.batch, latency.at_context(context, rule).autoregressive_seconds())
    expected = best.expected_tokens_per_step, best.predicted_seconds_per_step, best.predicted_speedup
    return Setting(latency.batch, *_limits(best.budget), None, *expected, choice.certainty.intervals, counted=True)


def promised(budget: ChosenBudget) -> Setting:
    """Return the setting of a budget that was chosen before, with what it promises. Raises ProfileError for one that promises nothing."""
    promise, given = budget.promise, budget.metadata.get("intervals_95") or {}
    tokens, seconds, speedup = promise.tokens_per_step, promise.seconds_per_step, promise.speedup
    if not tokens or not seconds or not speedup:
        raise ProfileError("the budget does not say its tokens and seconds per step and its speed-up; make one from two profiles")
    if speedup <= 1:
        return _none(1, speedup * seconds / tokens)
    return Setting(1, *_limits(budget.plan), None, tokens, seconds, speedup, given, counted=True)


def replayed(setting: Setting, grown: GrowMap) -> Setting:
    """Return the setting of a fixed tree with what a growmap of the same tree promises by replay, in place of what chances expect.

    Raises ProfileError for a growmap that lacks its tokens and seconds per step or its speed-up.
    """
    promise = grown.promise
    tokens, seconds, speedup = promise.tokens_per_step, promise.seconds_per_step, promise.speedup
    if not tokens or not seconds or not speedup:
        raise ProfileError("the growmap does not say its tokens and seconds per step and its speed-up; make it again from two profiles")
    intervals = grown.metadata.get("intervals_95") or {}
    return replace(setting, tokens_per_step=tokens, seconds_per_step=seconds, speedup=speedup, intervals=intervals)


def _limits(budget: DynamicBudget) -> tuple[int, int, int]:
    return budget.size, budget.depth, budget.width


def _pass_seconds(model: LatencyModel, budget: DynamicBudget) -> float:
    return budgets.seconds(model, *_limits(budget))


def _none(batch: int, alone: float) -> Setting:
    """Return the setting without speculation, where a step takes so many seconds."""
    return Setting(batch, 1, 0, 0, SpeculationTree((-1,)), 1.0, alone, 1.0, {})


KINDS: Mapping[str, Callable[[AcceptanceProfile, LatencyProfile, int | None], Setting]] = {
    "chain": chain,
    "dynamic tree": dynamic,
    "fixed tree": fixed,
}
"""The kinds of settings that engines take: functions that choose one, by name."""
