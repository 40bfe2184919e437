"""What people see of an evaluation: ranks by depth, the verdict, and runs of which there is little to show."""

from dataclasses import replace
from typing import Any

import pytest

from treespec.evaluation.drawing import accepted_ranks
from treespec.evaluation.predicted import Prediction
from treespec.evaluation.report import EvaluationReport
from treespec.evaluation.results import PromptResult
from treespec.tables import Figure, Table

ONE = PromptResult(
    0, "a", tokens=11, steps=5, seconds=1.0, baseline_tokens=11, baseline_seconds=2.0, accepted_ranks=((0,), (1,), (), (), (0,))
)
REPORT = EvaluationReport("tree", (ONE, replace(ONE, row=1)), 0.0, Prediction(2.5, 0.25), tree={"depth": 1, "parents": [-1, 0, 0]})
NONE = replace(ONE, tokens=1, steps=0, seconds=0.0, baseline_tokens=1, baseline_seconds=0.0, accepted_ranks=())


def test_ranks_beside_a_profile_by_depth() -> None:
    observed = [
        {"depth": 0, "visits": 10, "accepted": [4, 0, 0, 0, 0, 0, 1, 2], "offered": [10] * 8},
        {"depth": 1, "visits": 7, "accepted": [1], "offered": [4, 2]},
    ]
    (table,) = accepted_ranks(observed, [[0.5] + [0.0] * 6 + [0.1], [0.25]])
    assert isinstance(table, Table)
    assert list(map(list, [table.columns, *table.rows])) == [
        ["depth", "visits", *(f"rank {k}" for k in range(6)), "later", "none"],
        ["0", "10", "0.4000", *["0.0000"] * 5, "0.3000", "0.3000"],
        ["profiled", "", "0.5000", *["0.0000"] * 5, "0.1000", "0.4000"],
        ["1", "7", "0.2500", "0.0000", *["-"] * 4, "0.0000", "0.7500"],
        ["profiled", "", "0.2500", "0.0000", *["-"] * 4, "0.0000", "0.7500"],
        ["all", "17", "0.3571", *["0.0000"] * 5, "0.2143", "0.4286"],
        ["profiled", "", "0.4286", *["0.0000"] * 5, "0.0714", "0.5000"],
    ]
    assert table.totals == 2
    assert isinstance(cell := table.rows[4][2], Figure)
    assert cell.value == 5 / 14  # other forms than tables for people do not round
    assert accepted_ranks([], None) == []
    assert accepted_ranks([{"depth": 0, "visits": 3, "accepted": [], "offered": None}], None) == ["no drafted token was accepted"]


def test_the_report_prints_its_figures_and_its_verdict() -> None:
    text = str(REPORT)
    for words in ("decoding 2 prompts", "tokens/step", "2.000 [2.000, 2.000]", "prediction", "accepted rank by depth", "0.4000"):
        assert words in text
    assert text.splitlines()[-1] == "lossless: all 2 outputs equal those of autoregressive decoding, token for token"
    assert repr(REPORT) == "EvaluationReport(mode='tree', prompts=2, tokens_per_step=2, speedup=2, lossless='match')"


@pytest.mark.parametrize(
    ("changed", "shown", "in_short"),
    [
        ({"results": (NONE,)}, ["no step to measure: every text ended with its first token"], "mode='tree', prompts=1, lossless='match'"),
        ({"results": (NONE,), "settings": {"gen_len": 1}}, ["with one token to generate"], "mode='tree', prompts=1, lossless='match'"),
        ({"results": ()}, ["no step to measure"], "mode='tree', prompts=0, lossless='match'"),
        ({"mode": "baseline"}, ["autoregressive"], "mode='baseline', prompts=2"),
    ],
)
def test_reports_with_little_to_show_say_so(changed: dict[str, Any], shown: list[str], in_short: str) -> None:
    report = replace(REPORT, **changed)
    assert all(words in str(report) and words in report._repr_html_() for words in shown)
    assert "prediction" not in str(report)
    assert repr(report) == f"EvaluationReport({in_short})"
