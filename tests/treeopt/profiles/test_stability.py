"""Unstable times are named, the worst first; stable ones are not spoken of."""

import json
from dataclasses import replace

import numpy as np
import pytest

from treeopt.profiles.latency import LatencyProfile, LatencySample, read_latency
from treeopt.profiles.rule_latency import RuleLatency, StepSample
from treeopt.profiles.stability import Point, is_busy, unstable
from treeopt.profiling.settings import LatencySettings
from treespec.decoding.rules import Sampling
from treespec.decoding.step_rule import StepRule
from treespec.trees.tree import SpeculationTree


def samples(median: float, spread: float, seed: int = 0) -> tuple[float, ...]:
    """Twenty-four samples whose bursts differ by a share of their median."""
    bursts = np.random.default_rng(seed).permutation(np.linspace(1 - spread, 1 + spread, 6))
    return tuple((median * bursts.repeat(4)).tolist())


def profile(**spreads: float) -> LatencyProfile:
    """A profile whose points have these spreads, else none."""
    return LatencyProfile(
        target=tuple(LatencySample(n, 64, samples(0.01 * n, spreads.get(f"size{n}", 0.0))) for n in (1, 2, 4, 8)),
        draft=tuple(LatencySample(w, 64, samples(0.001 * w, spreads.get(f"width{w}", 0.0))) for w in (1, 2)),
        overhead_seconds=samples(0.001, 0.9),
    )


def test_a_machine_at_peace_is_not_spoken_of() -> None:
    calm = profile(size1=0.05, width2=0.19)
    assert calm.warning is calm.summary()["warning"] is None
    assert not is_busy(calm.points)
    assert "unstable" not in str(calm)
    assert "10.000 [9.500, 10.500]" in str(calm)


def test_the_worst_point_is_named_with_its_interval_and_what_to_do() -> None:
    shaky = profile(size1=0.5, width2=0.25, size8=0.22, size4=0.3)
    assert shaky.warning == (
        "the times are unstable: the median of 4 of 6 points is uncertain by more than 20 %, most of all of target size 1: 10 [5, 15] ms; "
        "close other programs, give torch fewer `threads`, or take more `repetitions`"
    )
    alone = replace(shaky, provenance={"threads": 1})
    assert alone.warning is not None
    assert alone.warning.endswith("; close other programs or take more `repetitions`"), "one thread cannot be fewer"
    assert [point.name for point in unstable(shaky.points)] == ["target size 1", "target size 4", "draft width 2", "target size 8"]
    assert is_busy(shaky.points)
    assert not is_busy(profile(size1=0.5).points)
    assert str(shaky).endswith(shaky.warning)


def test_too_few_samples_to_tell_noise_are_said_with_those_that_tell_it() -> None:
    few = profile(size1=0.5)
    few = replace(few, target=tuple(replace(sample, seconds=sample.seconds[:23]) for sample in few.target))
    assert few.ends() is None
    assert few.warning == "noise cannot be told from 23 samples of a point: take `repetitions` 24 or more"
    assert str(few).count(few.warning) == 1
    one = replace(few, draft=tuple(replace(sample, seconds=sample.seconds[:1]) for sample in few.draft))
    assert one.warning == "noise cannot be told from 1 sample of a point: take `repetitions` 24 or more"
    assert LatencySettings(repetitions=24).repetitions == LatencySettings().repetitions, "those of the default are enough"


def test_more_samples_make_a_point_stable() -> None:
    shaky = Point("a", samples(1.0, 0.4))
    assert shaky.reach == pytest.approx(0.4)
    assert Point("a", tuple(s for seed in range(40) for s in samples(1.0, 0.4, seed))).reach < 0.2
    assert Point("a", samples(1.0, 0.4)[:20]).reach == 0.0


def test_points_of_rules_and_of_several_contexts_have_names_of_their_own() -> None:
    rule = StepRule.of(Sampling(0.6))
    step = StepSample(SpeculationTree.chain(2), 64, samples(0.03, 0.5))
    own = RuleLatency(rule, autoregressive_overhead_seconds=samples(0.001, 0.0), steps=(step,))
    two = profile()
    more = tuple(replace(sample, context=128) for sample in two.target)
    found = replace(two, target=two.target + more, rules=(RuleLatency(StepRule()), own))
    names = [point.name for point in found.points]
    assert names[0] == "target size 1 at context 64"
    assert names[-1] == "step of size 3 at context 64 (topk, temperature above 0)"
    assert found.warning is not None
    assert names[-1] in found.warning


def test_summaries_say_how_far_samples_spread(tmp_path) -> None:
    profile(size1=0.5).write(tmp_path / "l.json")
    row = read_latency(tmp_path / "l.json").summary()["target"][0]
    assert json.loads(json.dumps(row)) == {
        "size": 1,
        "context": 64,
        "median_seconds": pytest.approx(0.01),
        "interval_95": [pytest.approx(0.005), pytest.approx(0.015)],
        "fastest_seconds": pytest.approx(0.005),
        "slowest_seconds": pytest.approx(0.015),
        "samples": 24,
    }
