"""What of a growmap's promise holds for a run: its time per step belongs to the rule that was timed."""

from dataclasses import replace
from typing import Any

import pytest

from treespec.decoding.drafting import Drafting
from treespec.decoding.rules import Sampling
from treespec.decoding.step_rule import StepRule
from treespec.evaluation.predicted import Prediction
from treespec.evaluation.prediction import prediction_of
from treespec.files.provenance import Provenance
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
        "the growmap was timed with other steps: swor, sequential, temperature above 0 (this run has: swor, traversal, temperature above 0): "
        "its predicted time per step does not hold here and is not shown",
    )
    assert seconds_of(timed, WARM, swor) == (0.01, ())


def test_matching_of_random_children_has_no_prediction() -> None:
    sampled, matched = Drafting("swor"), Drafting("swor", verifier="matching")
    made = growmap(StepRule.of(WARM, sampled), drafting="swor", temperature=0.6, draft_temperature=0.6)
    predicted, (said,) = prediction_of(made, {}, None, WARM, matched)
    assert predicted is None
    assert said.startswith("the growmap's prediction is for sequential verification, and matching accepts other shares of sampled children")
    cold = growmap(temperature=0.0, drafting="swor", draft_temperature=0.0)
    assert seconds_of(cold, Sampling(), matched) == (0.01, ()), "children that are not random are always matched"


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        (SpeculationTree.k_ary(2, 2), "below which traversal does not fall on this tree"),
        (SpeculationTree.from_paths([(0,), (1, 0)]), "and traversal accepts more on most trees, but not on all"),
    ],
)
def test_traversal_keeps_the_tokens_of_sequential(tree: SpeculationTree, words: str) -> None:
    drafting = Drafting("swor", verifier="traversal")
    made = growmap(StepRule.of(WARM, drafting), drafting="swor", temperature=0.6, draft_temperature=0.6)
    found, said = seconds_of(GrowMap(tree, made.metadata), WARM, drafting)
    assert (found, said) == (0.01, (f"the predicted tokens per step are those of sequential acceptance, {words}",))


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


def test_intervals_come_along_and_leave_with_what_does_not_hold() -> None:
    promised = {
        "predicted_speedup": 1.5,
        "intervals_95": {
            "expected_tokens_per_step": [1.9, 2.1],
            "predicted_seconds_per_step": [0.009, 0.011],
            "predicted_speedup": [1.4, 1.6],
        },
    }
    predicted, said = prediction_of(growmap(**promised), {}, None, Sampling(), Drafting())
    assert said == ()
    assert predicted == Prediction(2.0, 0.01, None, 1.5, (1.9, 2.1), (0.009, 0.011), (1.4, 1.6))
    assert predicted.autoregressive_seconds == pytest.approx(0.0075)
    predicted, _ = prediction_of(growmap(StepRule.of(WARM), **promised), {}, None, Sampling(), Drafting())
    assert predicted == Prediction(2.0, tokens_per_step_interval=(1.9, 2.1))


@pytest.mark.parametrize(
    ("made", "runs", "holds"),
    [
        (Provenance(cpu="A", threads=2), 2, True),
        (Provenance(cpu="A", threads=2), 1, False),
        (Provenance(cpu="A"), 1, True),
        (Provenance(cpu="A", threads=2), None, True),
        (Provenance(gpu="G", cpu="A", threads=2), 1, True),
    ],
)
def test_times_with_other_threads_do_not_hold_on_a_processor(made: Provenance, runs: int | None, holds: bool) -> None:
    known = replace(growmap(), provenance=made)
    predicted, said = prediction_of(known, {}, made.gpu or made.cpu, Sampling(), Drafting(), runs)
    assert predicted is not None
    assert (predicted.seconds_per_step is not None) == holds == (said == ())
    if not holds:
        assert said == (
            "the growmap was timed on 2 threads (this run has 1): its predicted time per step does not hold here and is not shown",
        )


@pytest.mark.parametrize(
    ("made", "runs", "holds"),
    [
        (Provenance(gpu="G", tensor_parallel=2), 2, True),
        (Provenance(gpu="G", tensor_parallel=2), None, False),
        (Provenance(gpu="G", tensor_parallel=2), 4, False),
        (Provenance(gpu="G"), 1, True),
        (Provenance(gpu="G"), 2, False),
        (Provenance(), 2, True),
    ],
)
def test_times_of_a_target_in_other_parts_do_not_hold(made: Provenance, runs: int | None, holds: bool) -> None:
    timed = replace(growmap(), provenance=made)
    predicted, said = prediction_of(timed, {}, "G", Sampling(), Drafting(), None, runs)
    assert predicted is not None
    assert predicted.seconds_per_step == (0.01 if holds else None)
    assert [sentence.startswith("the growmap was timed on a target held by ") for sentence in said] == ([] if holds else [True])
