"""The rule of a step: settings that take the same time have the same rule, and others have not."""

import subprocess
import sys

import pytest

from treespec.decoding.drafting import Drafting
from treespec.decoding.plans import DynamicBudget
from treespec.decoding.rules import Sampling
from treespec.decoding.step import StepSpec
from treespec.decoding.step_rule import GREEDY, StepRule, rule_of
from treespec.trees.tree import SpeculationTree

WARM, NUCLEUS = Sampling(0.6), Sampling(0.6, 0.9)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (StepRule.of(Sampling(0.6)), StepRule.of(Sampling(0.7))),
        (StepRule.of(Sampling(0.0), Drafting("swor")), GREEDY),  # nothing is random at temperature 0
        (StepRule.of(Sampling(0.0, 0.5)), GREEDY),  # and there is no nucleus
        (StepRule.of(WARM, Drafting("swor", 0.0, "traversal")), StepRule.of(WARM)),
        (StepRule.of(WARM, Drafting(verifier="matching")), StepRule.of(WARM)),
        (StepRule.of(WARM, Drafting("swor", 0.3)), StepRule.of(WARM, Drafting("swor"))),
    ],
)
def test_settings_on_the_same_code_path_have_the_same_rule(one: StepRule, other: StepRule) -> None:
    assert one == other


def test_settings_on_other_code_paths_have_other_rules() -> None:
    rules = [
        StepRule.of(sampling, drafting, mode)
        for sampling in (Sampling(), WARM, NUCLEUS)
        for mode, draftings in (
            ("tree", (Drafting(), Drafting("swor", 0.5), Drafting("swor", 0.5, "traversal"), Drafting("swor", 0.5, "matching"))),
            ("tree", (Drafting("swr", 0.5), Drafting("swr", 0.0))),
            ("dynamic", (Drafting(),)),
        )
        for drafting in draftings
    ]
    assert len(set(rules)) == len(rules)
    assert len({rule.name for rule in rules}) == len(rules), "names tell them apart too"
    assert [rule_of(rule.to_json()) for rule in rules] == rules


def test_names_are_for_people() -> None:
    assert GREEDY.name == "topk, temperature 0"
    assert StepRule.of(WARM, Drafting("swor", verifier="traversal")).name == "swor, traversal, temperature above 0"
    assert StepRule.of(NUCLEUS, Drafting("swr", 0.0)).name == ("swr, sequential, temperature above 0, top-p below 1, draft temperature 0")
    assert StepRule.of(WARM, mode="dynamic").name == "dynamic trees, temperature above 0"


def test_a_step_knows_its_rule() -> None:
    chain = SpeculationTree.chain(2)
    assert StepSpec(chain, WARM, Drafting("swr")).rule == StepRule.of(WARM, Drafting("swr"))
    assert StepSpec(DynamicBudget(4, 2, 2), WARM).rule == StepRule.of(WARM, mode="dynamic")
    assert StepSpec(None, WARM, Drafting("swr")).rule == StepRule.of(WARM, Drafting("swr")).alone


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("topk", "is no rule"),
        ({}, "`mode` of a rule is None"),
        (GREEDY.to_json() | {"drafting": "magic"}, "`drafting` of a rule is 'magic', but it must be one of topk, swor, swr"),
        (GREEDY.to_json() | {"target": 0.6}, "`target` of a rule is 0.6"),
        (GREEDY.to_json() | {"verifier": []}, "`verifier` of a rule is"),
    ],
)
def test_what_is_no_rule_is_refused(value: object, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        rule_of(value)


def test_rules_need_no_torch() -> None:
    code = (
        "import sys; import treespec.decoding.step_rule, treeopt.profiles.latency, treeopt.growmap_making; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
