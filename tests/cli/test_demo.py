"""`treeopt demo` prints what the loop found."""

import functools
from typing import Any

import pytest

from treeopt import demo
from treespec.embedded import TARGET_FOLDER

pytestmark = pytest.mark.skipif(not (TARGET_FOLDER / "config.json").is_file(), reason="the embedded pair is not trained yet")


@pytest.fixture(autouse=True)
def _toy_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    toy = demo.DemoSettings(profile_prompts=2, evaluate_prompts=1, prompt_len=16, gen_len=6, max_branch=4, repetitions=1)
    monkeypatch.setattr(demo, "run_demo", functools.partial(demo.run_demo, settings=toy))


def test_demo_prints_one_object(run: Any) -> None:
    outcome = run("demo", "--device", "cpu", "--format", "json")
    assert outcome.code == 0, outcome.err
    data = outcome.json
    assert data["files"] == ["acceptance.json", "latency.json", "tree.pt", "tree.json", "report.json"]
    assert data["evaluation"]["lossless"] == "match"
    assert data["growmap"]["size"] >= 1
    assert "evaluating: 1/1" in outcome.err


def test_demo_prints_tables(run: Any) -> None:
    outcome = run("demo", "--device", "cpu", "--out", "here")
    assert outcome.code == 0, outcome.err
    assert "autoregressive" in outcome.out
    assert "here: acceptance.json" in outcome.out
