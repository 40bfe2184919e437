"""The rules of a latency profile: their file, their times, and what is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from treeopt.profiles.latency import LatencyProfile, LatencySample, read_latency
from treeopt.profiles.rule_latency import RuleLatency, StepSample
from treespec.decoding.drafting import Drafting
from treespec.decoding.plans import DynamicBudget
from treespec.decoding.rules import Sampling
from treespec.decoding.step_rule import GREEDY, StepRule
from treespec.errors import MissingRuleError, ProfileError
from treespec.files.writing import write_json
from treespec.trees.tree import SpeculationTree

WARM = Sampling(0.6)
SWOR, TOPK = StepRule.of(WARM, Drafting("swor")), StepRule.of(WARM)
DYNAMIC = StepRule.of(Sampling(), mode="dynamic")
TREES = (SpeculationTree.chain(1), SpeculationTree.chain(3), SpeculationTree.k_ary(3, 1), SpeculationTree.k_ary(2, 2))


def samples(seconds: dict[int, float], context: int = 64) -> tuple[LatencySample, ...]:
    return tuple(LatencySample(nodes, context, (s, s)) for nodes, s in seconds.items())


def profile() -> LatencyProfile:
    """Target passes of 10 s, greedy levels of 1 s, `swor` levels of 2 s with a rest of 1 s and 0.25 s per child, dynamic levels of 3 s."""
    swor = tuple(StepSample(tree, 64, (11 + 2.0 * tree.depth + 0.25 * tree.max_branch,)) for tree in TREES)
    budgets = (DynamicBudget(3, 2, 2), DynamicBudget(8, 2, 4), DynamicBudget(8, 4, 4))
    dynamic = tuple(StepSample(budget, 64, (11 + 3.0 * (budget.depth - 1) + 1.5,)) for budget in budgets)
    return LatencyProfile(
        target=samples({1: 10.0, 8: 10.0}),
        draft=samples({1: 1.0, 4: 1.0}),
        overhead_seconds=(0.5,),
        autoregressive_overhead_seconds=(0.25,),
        rules=(
            RuleLatency(GREEDY),
            RuleLatency(TOPK, autoregressive_overhead_seconds=(0.75,), steps=tuple(StepSample(t, 64, (12.0 + t.depth,)) for t in TREES)),
            RuleLatency(SWOR, samples({1: 2.0, 4: 2.0}), autoregressive_overhead_seconds=(0.75,), steps=swor),
            RuleLatency(DYNAMIC, samples({2: 3.0, 4: 3.0}), samples({2: 1.5, 4: 1.5}), steps=dynamic),
        ),
    )


def test_a_profile_of_several_rules_is_read_as_it_was_written(tmp_path: Path) -> None:
    profile().write(tmp_path / "l.json")
    assert read_latency(tmp_path / "l.json") == profile()
    assert [rule["name"] for rule in profile().summary()["rules"]] == [rule.name for rule in (GREEDY, TOPK, SWOR, DYNAMIC)]
    assert "swor, sequential" in str(profile())


def of_a_head() -> LatencyProfile:
    """Target passes of 10 s, a draft pass of 4 s over the root, and of 0.25 s over one node below it, 0.5 s over four; the rest takes 1 s."""
    trees = (*TREES, SpeculationTree.from_branches([[2], [1, 0], [1]]))
    passes = (4 + sum(0.25 if width == 1 else 0.5 for width in tree.level_widths[1:-1]) for tree in trees)
    steps = tuple(StepSample(tree, 64, (11 + drafting,)) for tree, drafting in zip(trees, passes, strict=True))
    greedy = RuleLatency(GREEDY, steps=steps, below=samples({1: 0.25}))
    return LatencyProfile(samples({1: 10.0, 8: 10.0}), samples({1: 4.0, 4: 0.5}), (1.0,), rules=(greedy,))


def test_the_root_of_a_head_is_paid_once_whatever_the_depth(tmp_path: Path) -> None:
    """By hand: 10 s for the target, 4 s for the pass over the root, from which all levels come, what little each further level takes, and 1 s."""
    profile = of_a_head()
    profile.write(tmp_path / "l.json")
    assert read_latency(tmp_path / "l.json") == profile
    model = profile.at_context()
    assert [model.step_seconds(SpeculationTree.chain(depth)) for depth in (1, 2, 5)] == pytest.approx([15.0, 15.25, 16.0])
    narrow = SpeculationTree.from_branches([[3], [1, 0, 0], [1], [1]])
    assert model.step_seconds(narrow) == pytest.approx(10 + 4 + 0.5 + 0.25 + 0.25 + 1)
    assert (model.draft_seconds(1), model.level_seconds(1), model.level_seconds(2), model.shortest_level) == (4.0, 0.25, 0.5, 0.25)
    free = replace(model, below=1e-12)
    assert free.step_seconds(SpeculationTree.chain(5)) == pytest.approx(10 + 4 + 1), "levels that cost nothing leave one pass per step"
    assert "width 1 is the root; over one node below it, a draft pass takes 250.000 ms" in str(profile)
    older = replace(profile, rules=(replace(profile.rules[0], below=()),))
    assert older.at_context().level_seconds(1) == 4.0


def test_each_rule_has_its_own_times() -> None:
    tree = SpeculationTree.from_branches([[2], [2, 0]])
    measured = profile()
    assert measured.at_context().step_seconds(tree) == 10 + 2 * 1.0 + 0.5
    assert measured.at_context(64, TOPK).step_seconds(tree) == pytest.approx(12 + 2)
    assert measured.at_context(64, SWOR).step_seconds(tree) == pytest.approx(11 + 2 * 2.0 + 0.25 * 2)
    assert [measured.at_context(1, rule).autoregressive_seconds() for rule in (GREEDY, TOPK, SWOR)] == [10.25, 10.75, 10.75]
    assert measured.at_context(1, SWOR).step_seconds(SpeculationTree((-1,))) == 10.75


def test_dynamic_steps_take_the_next_larger_measured_width() -> None:
    model = profile().at_context(None, DYNAMIC)
    assert model.dynamic_seconds(8, 3, 3) == pytest.approx(11 + 3.0 * 2 + 1.5)
    with pytest.raises(ProfileError, match="level width 5 is beyond 4, the largest measured one"):
        model.dynamic_seconds(8, 2, 5)
    with pytest.raises(ProfileError, match="tree size 9 is beyond 8"):
        model.dynamic_seconds(9, 4, 4)
    with pytest.raises(ProfileError, match="times of topk, temperature 0, not of dynamic trees; profile the latency of dynamic trees too"):
        profile().at_context().dynamic_seconds(8, 3, 4)


def test_a_fit_says_how_well_it_meets_its_own_steps() -> None:
    fitted = profile().at_context(64, SWOR).fitted
    assert fitted is not None
    assert (fitted.steps, fitted.numbers, fitted.short) == (4, 4, False)
    assert fitted.error == pytest.approx(0, abs=1e-9)
    swor = profile().rules[2]
    few = replace(profile(), rules=(replace(swor, steps=swor.steps[:2]),)).at_context(64, SWOR).fitted
    assert few is not None
    assert (few.steps, few.short) == (2, True)
    fast = tuple(replace(step, seconds=(8.0,)) for step in swor.steps)  # passes alone take 12 and more
    model = replace(profile(), rules=(replace(swor, steps=fast),)).at_context(64, SWOR)
    assert model.fitted is not None
    assert model.fitted.error > 0.4
    tree = SpeculationTree.chain(3)
    assert model.step_seconds(tree) >= 0.9 * (10 + 3 * 2.0), "no step is much faster than its own passes"
    assert profile().at_context().fitted is None


def test_a_rule_that_is_not_held_is_refused_by_name() -> None:
    missing = StepRule.of(WARM, Drafting("swr"))
    with pytest.raises(
        MissingRuleError, match=r"no times of \(swr, sequential, temperature above 0\), only of \(topk, temperature 0\), \(topk, "
    ):
        profile().at_context(64, missing)
    old = replace(profile(), rules=())
    assert old.held == (GREEDY,)
    with pytest.raises(MissingRuleError, match=r"only of \(topk, temperature 0\)"):
        old.at_context(64, TOPK)


def entry(**changes: Any) -> dict[str, Any]:
    return profile().rules[2].to_json() | changes


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([entry(), entry()], "rules has swor, sequential, temperature above 0 twice; keep one entry of it"),
        ([entry(rule={"mode": "tree"})], "'rules' that cannot be: `drafting` of a rule is None"),
        ([entry(steps=[{"parents": [0], "context": 4, "seconds": [1.0]}])], "node 0 is the root"),
        ([entry(steps=[{"parents": [-1, 0], "context": 4, "seconds": []}])], "a step of 2 nodes has no samples"),
        ([entry(steps=[{"parents": [-1, 0], "context": 4, "seconds": [-1.0]}])], "a step of 2 nodes has a sample of -1.0 seconds"),
        ([entry(steps=[{"size": 2, "depth": 4, "width": 1, "context": 4, "seconds": [1.0]}])], "`size` 2 is too small for depth 4"),
        ([entry(steps=[{"size": 3, "depth": 2, "width": 1, "context": 4, "seconds": [1.0]}])], "it has a step of a dynamic plan"),
        ([entry(steps=[{"context": 4, "seconds": [1.0]}])], "is no whole number"),
        ([entry(draft=[{"width": 0, "context": 4, "seconds": [1.0]}])], "rule swor, sequential, temperature above 0: draft has width 0"),
        ([profile().rules[3].to_json() | {"root": []}], "needs draft and root of its own"),
        ([entry(steps=[])], "rule swor, sequential, temperature above 0: it has no steps"),
        ([entry(rule=SWOR.to_json() | {"drafting": "topk"})], "no settings give a rule of `drafting` topk, `verifier` sequential"),
        ([entry(rule=SWOR.to_json() | {"draft": "greedy"})], "no settings give a rule of `drafting` swor"),
        ([entry(rule=SWOR.to_json() | {"drafting": "swr", "verifier": "matching"})], "no settings give a rule of `drafting` swr"),
        ([entry(rule=SWOR.to_json() | {"mode": "dynamic"})], "no settings give a rule of `drafting` swor"),
        ([entry(steps=[{"parents": [-1, 0], "size": 3, "context": 64, "seconds": [1.0]}])], "size 3, but the tree of its parents has 2"),
        ([entry(steps=[{"parents": [-1, 0], "depth": 2, "context": 64, "seconds": [1.0]}])], "depth 2, but the tree of its parents has 1"),
        ([entry(steps=[{"parents": [-1, 0], "context": 4, "seconds": [1.0]}])], "a step at context 4, but target was measured at 64 only"),
        ([entry(below=[{"width": 2, "context": 4, "seconds": [1.0]}])], "below is of other levels than those of one node of trees"),
        ([entry(draft=[])], "it has no draft levels, and sampled children take other times; profile it again"),
        ([entry(autoregressive_overhead_seconds=[])], "it has no autoregressive_overhead_seconds"),
        (["swor"], "is no object"),
        ({}, "is no list"),
    ],
)
def test_rules_that_cannot_be_are_refused_with_the_file(tmp_path: Path, rules: Any, message: str) -> None:
    write_json(tmp_path / "l.json", profile().to_json() | {"rules": rules})
    with pytest.raises(ProfileError, match=message) as found:
        read_latency(tmp_path / "l.json")
    assert "l.json" in str(found.value)
