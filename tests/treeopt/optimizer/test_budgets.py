"""The choice of a dynamic budget, against all of them priced one by one."""

from dataclasses import replace

import numpy as np
import pytest

import treeopt
from treeopt.optimizer.budgets import choose_budget, telling
from treeopt.profiles.acceptance import AcceptanceProfile
from treeopt.profiles.budget_grid import BudgetGrid
from treeopt.profiles.dynamic import DynamicAcceptance
from treeopt.profiles.latency import LatencyProfile
from treeopt.profiles.rule_latency import RuleLatency, StepSample
from treeopt.profiles.samples import LatencySample
from treespec.decoding.plans import DynamicBudget
from treespec.decoding.step_rule import GREEDY, StepRule
from treespec.errors import OptimizerError, ProfileError

GRID = BudgetGrid((1, 2, 4), 3, 10)
TOKENS = (40, 60, 20)


def acceptance(seed: int) -> AcceptanceProfile:
    """Steps that were drawn between the fewest and the most that there can be."""
    draw = np.random.default_rng(seed)
    tokens, depth = np.array(TOKENS), np.arange(1, 4)[:, None, None]
    steps = np.ceil(draw.uniform(tokens / (depth + 1), tokens, (*GRID.shape, 3))).astype(np.uint32)
    grown = DynamicAcceptance(GRID, TOKENS, steps * GRID.met[..., None])
    return AcceptanceProfile("topk", 0.0, 1.0, (0.5,), 0.5, (), 120, 3, dynamic=grown)


def latency(seed: int) -> LatencyProfile:
    draw = np.random.default_rng(seed)

    def seconds(least: float) -> tuple[float, ...]:
        return tuple(least * (1 + 0.01 * draw.random(24)))

    levels = tuple(LatencySample(width, 64, seconds(0.001 * width**0.5)) for width in (1, 2, 4))
    plans = [DynamicBudget(2, 1, 1), DynamicBudget(8, 3, 4), DynamicBudget(4, 2, 2), DynamicBudget(6, 2, 4), DynamicBudget(4, 3, 1)]
    steps = tuple(StepSample(plan, 64, seconds(0.01 + plan.depth * 0.001 * plan.width**0.5)) for plan in plans)
    dynamic = RuleLatency(StepRule("dynamic"), levels, levels, steps=steps)
    sizes = tuple(LatencySample(size, 64, seconds(0.009 + 0.0002 * size)) for size in (1, 2, 4, 8))
    return LatencyProfile(sizes, levels, seconds(0.0005), rules=(RuleLatency(GREEDY), dynamic))


@pytest.mark.parametrize("seed", range(5))
def test_the_choice_is_the_best_of_all_that_both_profiles_reach(seed: int) -> None:
    profile, times = acceptance(seed), latency(seed)
    choice, model = choose_budget(profile, times), times.at_context(None, StepRule("dynamic"))
    assert profile.dynamic is not None
    priced = {
        budget: model.dynamic_seconds(**budget.describe()) * profile.dynamic.steps_of(budget).sum() / sum(TOKENS)
        for budget in profile.dynamic.budgets()
        if budget.size <= 8
    }
    assert choice.compared == len(priced)
    assert choice.best.budget == min(priced, key=priced.__getitem__)
    assert choice.best.seconds_per_token == pytest.approx(min(priced.values()))
    for one in choice.by_width:
        assert one.seconds_per_token == pytest.approx(min(value for budget, value in priced.items() if budget.width == one.budget.width))
    low, high = choice.certainty.intervals["expected_tokens_per_step"]
    assert low <= choice.best.expected_tokens_per_step <= high
    made = treeopt.choose_budget(profile, times)
    assert made.plan == choice.best.budget
    assert made.promise.speedup == choice.best.predicted_speedup


def test_limits_bound_the_choice_and_what_they_leave_empty_is_refused() -> None:
    profile, times = acceptance(0), latency(0)
    budget = choose_budget(profile, times, max_size=4, max_depth=2, max_width=2).best.budget
    assert (budget.size <= 4, budget.depth <= 2, budget.width <= 2) == (True, True, True)
    with pytest.raises(OptimizerError, match="no dynamic budget is left to compare: measured are widths 1, 2, 4"):
        choose_budget(profile, times, max_size=1)
    with pytest.raises(OptimizerError, match="`max_width` is 0, but it must be 1 or more"):
        choose_budget(profile, times, max_width=0)
    with pytest.raises(ProfileError, match="holds no steps of dynamic trees"):
        choose_budget(replace(profile, dynamic=None), times)


def test_a_draft_that_never_helps_is_said_not_to_pay() -> None:
    profile, times = acceptance(0), latency(0)
    assert profile.dynamic is not None
    never = np.broadcast_to(np.array(TOKENS, dtype=np.uint32), profile.dynamic.steps.shape) * GRID.met[..., None]
    said = telling(choose_budget(replace(profile, dynamic=replace(profile.dynamic, steps=never.astype(np.uint32))), times), 3)
    assert said is not None
    assert said.startswith("speculation with this draft does not pay on this hardware: none of ")
