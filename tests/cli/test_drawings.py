"""A result shows the same figures in Python, as text and as HTML, and on the command line."""

import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest

import treeopt
from treeopt.profiles.latency import LatencySample
from treeopt.profiles.potential import MEASURES, DraftPotential, PotentialReport
from treespec.evaluation.predicted import Prediction
from treespec.evaluation.results import PromptResult

RESULT = PromptResult(
    0, "a", tokens=11, steps=5, seconds=1.0, baseline_tokens=11, baseline_seconds=2.0, accepted_ranks=((0,), (1,), (), (), (0,))
)
BAD, SEEN = "[b]<b>\x1b[2J", r"[b]<b>\x1b[2J"
RANKS = (0.5, 0.2, 0.1)
DRAFTS = tuple(DraftPotential(name, dict.fromkeys(MEASURES, (1.0,))) for name in (BAD, "b"))
RESULTS = {
    "acceptance": treeopt.AcceptanceProfile("topk", 0.0, 1.0, RANKS, 0.2, (0.01,) * 3, 1234, 7),
    "latency": treeopt.LatencyProfile(
        tuple(LatencySample(n, 8, (0.01 * n,) * 24) for n in (1, 2)), (LatencySample(1, 8, (0.001,) * 24),), (0.0002,) * 24
    ),
    "evaluation": treeopt.EvaluationReport(
        "tree", (RESULT, RESULT), 0.0, Prediction(2.5, 0.25, (RANKS,)), tree={"depth": 1, "parents": [-1, 0, 0]}
    ),
    "potential": PotentialReport(DRAFTS, (10,), "on-policy", 0.0, 1.0, 8, 0),
    "growmap": treeopt.GrowMap(
        treeopt.SpeculationTree.k_ary(2, 2), {"rank_probability": [list(RANKS)], "predicted_speedup": 1.5, "source": BAD}
    ),
}


def words(shown: str) -> list[str]:
    """What is shown, without the lines, boxes and spaces around it."""
    return [word for word in re.sub("[─-╿]", " ", shown).split() if word.strip("-")]


@pytest.mark.parametrize("kind", RESULTS)
def test_text_html_and_the_command_line_agree(kind: str, run: Any, tmp_path: Path) -> None:
    result = RESULTS[kind]
    path = tmp_path / ("r.pt" if kind == "growmap" else "r.json")
    result.write(path)
    outcome = run("inspect", path)
    assert outcome.code == 0, outcome.err
    html = unescape(re.sub(r"</?(?:table|caption|thead|tbody|tr|th|td|p|pre)\b[^>]*>", " ", result._repr_html_()))
    assert words(str(result)) == words(outcome.out) == words(html)
    assert len(words(html)) > 30
    assert (SEEN in html) == (kind in ("potential", "growmap"))


@pytest.mark.parametrize("kind", RESULTS)
def test_reprs_are_one_short_line(kind: str) -> None:
    assert re.fullmatch(r"[A-Z]\w+\(\w+=.*\)", repr(RESULTS[kind]))
    assert len(repr(RESULTS[kind])) < 120


def test_python_speaks_of_parameters_and_the_command_line_of_flags(run: Any, tmp_path: Path) -> None:
    growmap = treeopt.GrowMap(treeopt.SpeculationTree.k_ary(2, 5))
    growmap.write(tmp_path / "t.pt")
    assert "15 more nodes are not drawn; `max_nodes` 63 draws all" in str(growmap)
    assert "15 more nodes are not drawn; --max-nodes 63 draws all" in run("inspect", "t.pt").out
    assert "not drawn" not in str(growmap.drawing(max_nodes=63))
    profile = treeopt.AcceptanceProfile("topk", 0.0, 1.0, (1e-5,) * 300, 0.2, (), 9, 1)
    profile.write(tmp_path / "a.json")
    assert re.search("44 more ranks are not shown$", str(profile), re.MULTILINE)
    assert "44 more ranks are not shown; --format json has all" in run("inspect", "a.json").out
