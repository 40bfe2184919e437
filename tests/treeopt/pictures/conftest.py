"""Profiles, a growmap and a report in memory, with hostile texts wherever a text may come from outside."""

from dataclasses import replace
from typing import Any

import pytest

from treeopt.growmap_making import generate
from treeopt.profiles.acceptance import AcceptanceProfile
from treeopt.profiles.latency import LatencyProfile
from treeopt.profiles.samples import LatencySample
from treespec.evaluation.predicted import Prediction
from treespec.evaluation.report import EvaluationReport
from treespec.evaluation.results import PromptResult

HOSTILE = "<script>alert('$x_1$ & \"y\"')</script>\u202e\x1b[2J]]>"


@pytest.fixture
def found() -> dict[str, Any]:
    """Everything that a page may show but for a trace."""
    models = {"models": {"target": HOSTILE, "draft": "</title><script>"}, "dataset": HOSTILE, "git_commit": HOSTILE}
    acceptance = AcceptanceProfile(
        "topk", 0.0, 1.0, (0.6, 0.2, 0.1), 0.1, (0.02, 0.01, 0.01), 900, 30, by_depth=((0.6, 0.2, 0.1), (0.7, 0.1, 0.1))
    )
    target = tuple(LatencySample(size, 64, tuple(0.010 + 0.0004 * size + 1e-5 * i for i in range(24))) for size in (1, 2, 4, 8, 16))
    draft = tuple(LatencySample(width, 64, (0.001,) * 24) for width in (1, 2, 4, 8, 16))
    latency = LatencyProfile(target, draft, (0.0005,) * 24, {"gpu": HOSTILE})
    growmap = generate(acceptance, latency=latency).growmap
    ranks = ((0, 0), (), (1,))
    one = PromptResult(0, HOSTILE, 7, 3, 0.03, 7, 0.06, ranks, pieces=("a", HOSTILE, " c", "\n", "d", "<b>", "f"))
    results = (one, replace(one, row=1, name="plain", pieces=()), replace(one, row=2, name="\u4e2d\u6587", seconds=0.04, pieces=()))
    tree = growmap.tree.describe()
    promise = Prediction(2.1, 0.012, growmap.promise.rank_probability, 1.8, (2.0, 2.2), (0.011, 0.013), (1.7, 1.9))
    settings = {"gen_len": 7, "drafting": "topk", "verifier": "sequential", "engine": HOSTILE}
    report = EvaluationReport("tree", results, 0.0, promise, tree, {"dataset": HOSTILE}, settings, models)
    return {"acceptance": replace(acceptance, provenance=models), "latency": latency, "growmap": growmap, "report": report}
