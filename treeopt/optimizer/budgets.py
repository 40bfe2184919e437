"""The choice of a dynamic budget: of those that were measured, the one with the most expected tokens per second. No torch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from treeopt.optimizer.uncertainty import Certainty, certainty_of
from treeopt.profiles.acceptance import AcceptanceProfile
from treeopt.profiles.dynamic import DynamicAcceptance
from treeopt.profiles.intervals import Uncertain
from treeopt.profiles.latency import LatencyProfile
from treeopt.profiles.latency_model import LatencyModel
from treespec.decoding.drafting import Drafting
from treespec.decoding.plans import DynamicBudget
from treespec.decoding.rules import TOPK, Sampling
from treespec.decoding.step_rule import StepRule
from treespec.errors import MissingRuleError, OptimizerError, ProfileError, counted


@dataclass(frozen=True)
class PricedBudget:
    """A budget with its measured tokens per step and its predicted time."""

    budget: DynamicBudget
    expected_tokens_per_step: float
    predicted_seconds_per_step: float
    predicted_speedup: float
    """Over autoregressive decoding by the same engine."""

    @property
    def seconds_per_token(self) -> float:
        """Predicted seconds per token."""
        return self.predicted_seconds_per_step / self.expected_tokens_per_step

    def to_json(self) -> dict[str, Any]:
        """Return the budget and its figures as plain data."""
        figures = ("expected_tokens_per_step", "predicted_seconds_per_step", "predicted_speedup")
        return self.budget.describe() | {name: getattr(self, name) for name in figures}


@dataclass(frozen=True)
class BudgetChoice:
    """The fastest budget of those that were compared, and the fastest one of each width, the fastest first."""

    best: PricedBudget
    by_width: tuple[PricedBudget, ...]
    compared: int
    certainty: Certainty
    rule: StepRule
    context: int


StepSeconds = Callable[[LatencyModel, DynamicBudget], float]
"""The seconds of a step with a budget, by the times of a model."""


def dynamic_seconds(model: LatencyModel, budget: DynamicBudget) -> float:
    """Return the seconds of a step of treeopt. Raises ProfileError beyond what was measured, and for times of another rule."""
    return model.dynamic_seconds(budget.size, budget.depth, budget.width)


def choose_budget(
    acceptance: AcceptanceProfile,
    latency: LatencyProfile,
    *,
    context: int | None = None,
    max_size: int | None = None,
    max_depth: int | None = None,
    max_width: int | None = None,
    rule: StepRule | None = None,
    step_seconds: StepSeconds = dynamic_seconds,
) -> BudgetChoice:
    """Return the dynamic budget that decodes fastest, by steps that were counted and times that were measured. None is no limit.

    Compared are all budgets of the acceptance profile's `dynamic` whose size and width the latency profile reaches; of equally fast ones, the first
    by width, depth and size is taken. `context` picks the latencies (see `LatencyProfile.at_context`), and `step_seconds` makes seconds of those
    of `rule` (None: that of dynamic trees at the acceptance profile's sampling).

    Raises ProfileError for an acceptance profile without `dynamic`, MissingRuleError for a latency profile without the times of dynamic trees,
    OptimizerError for limits that no budget meets.
    """
    grown = require_dynamic(acceptance)
    rule = dynamic_rule(acceptance, latency) if rule is None else rule
    model = latency.at_context(context, rule)
    named = {"max_size": max_size, "max_depth": max_depth, "max_width": max_width}
    for name, value in named.items():
        if value is not None and value < 1:
            raise OptimizerError(f"`{name}` is {value}, but it must be 1 or more")
    bounds = max_size or model.largest_size, max_depth or grown.grid.max_depth, max_width or max(grown.grid.widths)
    found = [
        _priced(budget, grown, model, step_seconds)
        for budget in grown.budgets()
        if budget.size <= min(bounds[0], model.largest_size)
        and budget.depth <= bounds[1]
        and budget.width <= min(bounds[2], _widest(model))
    ]
    if not found:
        raise OptimizerError(
            f"no dynamic budget is left to compare: measured are widths {', '.join(map(str, grown.grid.widths))}, depths up to "
            f"{grown.grid.max_depth} and sizes from 2 to {grown.grid.max_size}, and timed sizes up to {model.largest_size} and widths up to "
            f"{_widest(model)}; allow larger ones, or profile others"
        )
    ordered = sorted(found, key=lambda one: one.seconds_per_token)  # stable
    widths = {one.budget.width: one for one in reversed(ordered)}
    best = ordered[0]
    figures = certainty_of(
        _tokens(best.budget, grown),
        lambda times: step_seconds(times, best.budget),
        model,
        latency.ends(context, rule),
    )
    return BudgetChoice(
        best, tuple(sorted(widths.values(), key=lambda one: one.seconds_per_token)), len(found), figures, rule, model.context
    )


def require_dynamic(acceptance: AcceptanceProfile) -> DynamicAcceptance:
    """Return the steps of dynamic trees of a profile. Raises ProfileError if they were not counted, or there is no step."""
    if acceptance.dynamic is None:
        raise ProfileError("the acceptance profile holds no steps of dynamic trees; profile it again with `dynamic`")
    if not sum(acceptance.dynamic.tokens):
        raise ProfileError(
            "the acceptance profile holds no step of dynamic trees: every text ended with its first token; use other prompts"
        )
    return acceptance.dynamic


def rule_of_dynamic_trees(acceptance: AcceptanceProfile) -> StepRule:
    """Return the rule of dynamic trees at a profile's sampling."""
    return StepRule.of(_sampling(acceptance), Drafting(), DynamicBudget.drafter)


def _sampling(acceptance: AcceptanceProfile) -> Sampling:
    return Sampling(acceptance.temperature or 0.0, 1.0 if acceptance.top_p is None else acceptance.top_p)


def dynamic_rule(acceptance: AcceptanceProfile, latency: LatencyProfile) -> StepRule:
    """Return the rule of dynamic trees at a profile's sampling. Raises MissingRuleError if the latency profile has no times of it."""
    sampling, rule = _sampling(acceptance), rule_of_dynamic_trees(acceptance)
    if rule not in latency.held:
        wanted: Mapping[str, str] = {
            "temperature": repr(sampling.temperature) if sampling.temperature else "0",
            **({"top_p": repr(sampling.top_p)} if sampling.top_p < 1 else {}),
            "drafting": TOPK.name,
            "dynamic": "trees",
        }
        raise MissingRuleError(f"the latency profile has no times of ({rule.name})", wanted)
    return rule


def _widest(model: LatencyModel) -> int:
    """Return the largest level width with known times."""
    return min(model.largest_width, model.root[-1][0]) if model.root else model.largest_width


def _priced(budget: DynamicBudget, grown: DynamicAcceptance, model: LatencyModel, step_seconds: StepSeconds) -> PricedBudget:
    tokens = sum(grown.tokens) / int(grown.steps_of(budget).sum())
    seconds = step_seconds(model, budget)
    return PricedBudget(budget, tokens, seconds, model.autoregressive_seconds() * tokens / seconds)


def _tokens(budget: DynamicBudget, grown: DynamicAcceptance) -> Uncertain | None:
    """Return the tokens of a step with their interval over prompts; None with fewer than two."""
    found = grown.tokens_per_step(budget)
    if found is None or found.interval_95 is None:
        return None
    low, high = found.interval_95
    return Uncertain(found.mean, max(1.0, low), high)


def telling(choice: BudgetChoice, prompts: int) -> str | None:
    """Return the sentence on a budget that is not faster than plain decoding, or cannot be told to be; None for a faster one."""
    lead, best = choice.certainty.lead, choice.best
    if best.predicted_speedup <= 1:
        return (
            f"speculation with this draft does not pay on this hardware: none of {counted(choice.compared, 'dynamic budget')} is faster than "
            f"autoregressive decoding, and the best is predicted at {best.predicted_speedup:.2f} x ({choice.rule.name})"
        )
    if lead is None or lead.told:
        return None
    needed = lead.prompts_needed(prompts)
    remedy = (
        "profile the latency again on an idle machine" if needed is None else f"an acceptance profile of some {needed:,} prompts would tell"
    )
    return f"cannot tell whether this budget is faster than plain decoding: the interval of its speed-up holds 1; {remedy}"
