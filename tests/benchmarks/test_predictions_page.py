"""What the page says of predicted and measured steps."""

from typing import Any

from benchmarks.reporting.predictions import PREDICTIONS, TITLE, check_of
from benchmarks.reporting.run import Run
from benchmarks.reporting.verdicts import MARK
from tests.benchmarks.test_rules import ORIGIN
from treespec.decoding.drafting import Drafting
from treespec.decoding.rules import Sampling
from treespec.decoding.step_rule import GREEDY, StepRule


def row(rule: StepRule, size: int, depth: int, predicted: float, measured: float) -> dict[str, Any]:
    return {
        "rule": rule.to_json(),
        "name": rule.name,
        "plan": None,
        "size": size,
        "depth": depth,
        "predicted_seconds": predicted / 1e3,
        "measured_seconds": measured / 1e3,
        "samples": [measured / 1e3],
        "error": predicted / measured - 1,
    }


SAMPLED, GROWN = StepRule.of(Sampling(0.6), Drafting("swor")), StepRule.of(Sampling(0.6), mode="dynamic")
DATA = {
    "rows": [
        row(GREEDY, 1, 0, 3.554, 3.562),
        row(GREEDY, 8, 3, 3.781, 3.927),
        row(SAMPLED, 8, 3, 3.783, 3.808),
        row(SAMPLED, 32, 8, 4.179, 4.4),
        row(GROWN, 16, 4, 3.862, 3.7),
    ],
    "rests": {},
    "worst": 0.0502,
    "seconds": {"profile": 87.4, "all": 136.0},
    "provenance": {**ORIGIN, "models": {"target": "inflated-llama-2-7b", "draft": "inflated-llama-68m"}},
}


def test_errors_stand_beside_what_was_measured_and_the_largest_one_is_judged() -> None:
    text = PREDICTIONS.body(Run("predictions-7b-h200.json", "python -m benchmarks.predictions --inflate", DATA))
    lines = [line for line in text.splitlines() if line.startswith("|") and "---" not in line]
    assert lines == [
        "| rule | (1, 0) | (8, 3) | (32, 8) | largest error, % | goal |",
        "| topk, temperature 0 | 3.562 (-0.2 %) | 3.927 (-3.7 %) | | 3.7 | met: at most 5 % |",
        f"| swor, sequential, temperature above 0 | | 3.808 (-0.7 %) | 4.400 (-5.0 %) | {MARK}5.02 | missed: 5.02 against at most 5 % |",
        "| rule | (16, 4) | largest error, % | goal |",
        "| dynamic trees, temperature above 0 | 3.700 (+4.4 %) | 4.4 | met: at most 5 % |",
    ]
    assert text.count(f"[{TITLE}](#predicted-and-measured-steps)") == 2
    assert "The profile of 3 rules took 87 s." in text


def test_the_summary_has_a_check_per_rule_and_the_worst_plan() -> None:
    assert [check.met for check in PREDICTIONS.checks(DATA)] == [True, False, True]
    assert check_of("a", DATA["rows"][:1]).what == "largest error of predicted steps, a"
    assert PREDICTIONS.title(DATA) == "Predicted steps of inflated-llama-2-7b on one NVIDIA H200"
    assert PREDICTIONS.headlines(DATA) == [
        "5 plans of 3 rules: predicted seconds per step are off by 3.7 % in the median, and at most by 5.0 % (swor, sequential, temperature above 0, (32, 8))"
    ]
