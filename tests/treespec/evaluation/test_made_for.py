"""The settings that a growmap was made for: all of them taken, none against what is given, and never a mixture that means nothing."""

import itertools

import pytest

from treespec.decoding.drafting import Drafting
from treespec.decoding.rules import Sampling
from treespec.decoding.step_rule import StepRule
from treespec.evaluation.made_for import settings_of, taken_line
from treespec.evaluation.prediction import prediction_of
from treespec.trees.growmap import GrowMap
from treespec.trees.tree import SpeculationTree

HOT = {"temperature": 0.6, "top_p": 0.9, "drafting": "swor", "draft_temperature": 0.8}
TRAVERSAL = HOT | {"timed_rule": StepRule("tree", "swor", "traversal", "top-p", "sampled").to_json()}


def test_everything_is_taken_that_is_not_given() -> None:
    assert settings_of(TRAVERSAL) == HOT | {"verifier": "traversal"}
    assert settings_of(HOT) == HOT
    assert settings_of(TRAVERSAL, {"temperature": 0.2, "verifier": "sequential"}) == {
        "top_p": 0.9,
        "drafting": "swor",
        "draft_temperature": 0.8,
    }
    assert settings_of(TRAVERSAL, sampling_alone=True) == {"temperature": 0.6, "top_p": 0.9}


def test_beside_another_drafting_nothing_of_the_growmaps_is_taken() -> None:
    assert settings_of(TRAVERSAL, {"drafting": "topk"}) == {"temperature": 0.6, "top_p": 0.9}
    assert settings_of(TRAVERSAL, {"drafting": "swor"}) == {
        "temperature": 0.6,
        "top_p": 0.9,
        "draft_temperature": 0.8,
        "verifier": "traversal",
    }


def test_what_means_nothing_is_not_taken() -> None:
    assert "top_p" not in settings_of(HOT, {"temperature": 0})
    assert settings_of({"temperature": 0.0, "top_p": 0.9, "drafting": "unknown", "draft_temperature": None}) == {}
    assert settings_of({"timed_rule": {"odd": "rule"}, "drafting": "swor"}) == {"drafting": "swor"}
    assert settings_of({}) == {}


@pytest.mark.parametrize("rule", ["topk", "swor", "swr"])
def test_what_is_taken_is_what_the_promise_holds_for(rule: str) -> None:
    """Of every growmap that can be made, the prediction holds for a run with its settings."""
    for heat, mass, own, verifier in itertools.product((0.0, 0.7), (1.0, 0.9), (None, 0.5), ("sequential", "traversal")):
        if rule == "topk" and (own is not None or verifier != "sequential"):
            continue
        sampling, drafting = Sampling(heat, mass), Drafting(rule, own, verifier)
        known = {
            "temperature": heat,
            "top_p": mass,
            "drafting": rule,
            "draft_temperature": drafting.sampling(sampling).temperature if drafting.kind.sampled else None,
            "timed_rule": StepRule.of(sampling, drafting).to_json(),
            "expected_tokens_per_step": 2.0,
            "predicted_seconds_per_step": 0.01,
        }
        taken = settings_of(known)
        sampled = Sampling(taken.get("temperature", 0.0), taken.get("top_p", 1.0))
        drafted = Drafting(taken.get("drafting", "topk"), taken.get("draft_temperature"), taken.get("verifier", "sequential"))
        predicted, said = prediction_of(GrowMap(SpeculationTree.chain(2), known), {}, None, sampled, drafted)
        assert predicted is not None
        assert predicted.seconds_per_step == 0.01, said


def test_one_line_says_what_was_taken() -> None:
    assert taken_line({"temperature": 0.6, "drafting": "swor"}) == "taken from the growmap: `temperature` 0.6 and `drafting` swor"
    assert taken_line({}) is None
