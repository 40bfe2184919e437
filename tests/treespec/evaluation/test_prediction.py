"""What of a growmap's promise holds for a run: its time per step belongs to the rule that was timed."""

from typing import Any

import pytest

from treespec.decoding.drafting import Drafting
from treespec.decoding.rules import Sampling
from treespec.decoding.step_rule import StepRule
from treespec.evaluation.prediction import prediction_of
from treespec.trees.growmap import GrowMap
from treespec.trees.tree import SpeculationTree

WARM = Sampling(0.6)


def growmap(rule: Any = None, **metadata: Any) -> GrowMap:
    timed = {} if rule is None else {"timed_rule": rule.to_json() if isinstance(rule, StepRule) else rule}
    promise = {"expected_tokens_per_step": 2.0, "predicted_seconds_per_step": 0.01}
    return GrowMap(SpeculationTree.chain(2), promise | metadata | timed)


def seconds_of(made: GrowMap, sampling: Sampling, drafting: Drafting) -> tuple[float | None, tuple[str, ...]]:
    predicted, said = prediction_of(made, {}, None, sampling, drafting)
    assert predicted is not None
    assert predicted.tokens_per_step == 2.0
    return predicted.seconds_per_step, said


@pytest.mark.parametrize(
    ("sampling", "drafting"),
    [
        (Sampling(), Drafting()),
        (WARM, Drafting()),
        (WARM, Drafting("swor")),
        (Sampling(0.9, 0.5), Drafting("swr")),
        (WARM, Drafting("swor", 0.2)),
    ],
)
def test_the_time_of_the_very_rule_is_shown(sampling: Sampling, drafting: Drafting) -> None:
    assert seconds_of(growmap(StepRule.of(sampling, drafting)), sampling, drafting) == (0.01, ())


def test_the_time_of_another_rule_is_left_out_by_name() -> None:
    swor = Drafting("swor")
    timed = growmap(StepRule.of(WARM, swor), drafting="swor", temperature=0.6, draft_temperature=0.6)
    found, said = seconds_of(timed, WARM, Drafting("swor", verifier="traversal"))
    assert found is None
    assert said == (
        "the growmap's prediction is for sequential verification, and traversal accepts other shares",
        "the growmap was timed with other steps: swor, sequential, temperature above 0 (this run has: swor, traversal, temperature above 0): "
        "its predicted time per step does not hold here and is not shown",
    )
    assert seconds_of(timed, WARM, swor) == (0.01, ())


def test_a_growmap_that_names_no_rule_was_timed_greedily() -> None:
    old = growmap(temperature=0.6, drafting="swor", draft_temperature=0.6)
    found, (said,) = seconds_of(old, WARM, Drafting("swor"))
    assert found is None
    assert "timed with other steps: topk, temperature 0 (this run has: swor, sequential, temperature above 0)" in said
    assert seconds_of(growmap(), Sampling(), Drafting()) == (0.01, ())


@pytest.mark.parametrize("odd", [{"mode": "magic"}, {}, "topk"])
def test_a_rule_of_another_version_is_unknown(odd: Any) -> None:
    found, (said,) = seconds_of(growmap(odd), Sampling(), Drafting())
    assert found is None
    assert "timed with other steps: a rule that is unknown here (this run has: topk, temperature 0)" in said
