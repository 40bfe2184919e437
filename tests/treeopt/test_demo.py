"""The demo's loop at toy sizes, and what it says about its speed-up."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from treeopt import demo
from treeopt.demo import FILES, DemoSettings, explain_speedup, run_demo
from treeopt.optimizer.search import OptimizationResult, optimize
from treeopt.profiles.acceptance import AcceptanceProfile
from treespec.embedded import TARGET_FOLDER
from treespec.errors import OutputError
from treespec.evaluation.report import EvaluationReport
from treespec.evaluation.results import PromptResult

TOY = DemoSettings(profile_prompts=3, evaluate_prompts=2, prompt_len=16, gen_len=8, max_branch=4, repetitions=1)


def result(predicted_speedup: float | None) -> OptimizationResult:
    profile = AcceptanceProfile("topk", 0.0, 1.0, (0.6, 0.2), 0.2, (), 10, 1)
    found = optimize(profile, size=3, depth=2)
    return replace(found, predicted_seconds_per_step=0.01 if predicted_speedup else None, predicted_speedup=predicted_speedup)


def report(seconds: float, baseline_seconds: float) -> EvaluationReport:
    return EvaluationReport("tree", (PromptResult(0, "row", 21, 10, seconds, 21, baseline_seconds),), 0.0)


def test_a_real_speed_up_is_told_plainly() -> None:
    assert explain_speedup(report(1.0, 1.5), result(1.6)) == "speed-up 1.50 x over autoregressive decoding"


def test_a_small_speed_up_comes_with_reasons() -> None:
    said = explain_speedup(report(1.0, 1.1), result(1.6))
    assert said.startswith("speed-up 1.10 x over autoregressive decoding, less than 1.2 x: predicted 1.60 x; ")
    assert "tokens per step 2.00 measured, 1.96 predicted" in said
    assert "ms per step 100.00 measured, 10.00 predicted" in said
    assert "autoregressive ms per token 55.00 measured" in said
    assert "tokens per step" in explain_speedup(report(1.0, 1.1), result(None))


def test_no_speculation_is_an_answer_too() -> None:
    profile = AcceptanceProfile("topk", 0.0, 1.0, (0.6, 0.2), 0.2, (), 10, 1)
    assert "the growmap is the root alone" in explain_speedup(report(1.0, 1.0), optimize(profile, size=1, depth=1))


def test_an_unwritable_folder_fails_before_any_model_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "load_pair", lambda *names, **options: pytest.fail("models were loaded"))
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        run_demo(tmp_path / "file", settings=TOY)


@pytest.mark.skipif(not (TARGET_FOLDER / "config.json").is_file(), reason="the embedded pair is not trained yet")
def test_the_loop_leaves_all_its_files(tmp_path: Path) -> None:
    stages: list[str] = []

    def progress(what: str, done: int, total: int) -> None:
        assert 0 <= done <= total
        stages.append(what)

    found = run_demo(tmp_path / "out", "cpu", progress, TOY)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(FILES)
    assert {"profiling acceptance", "profiling latency", "evaluating"} <= set(stages)
    written: dict[str, Any] = json.loads((tmp_path / "out" / "report.json").read_text())
    assert written["lossless"] == found.report.lossless == "match"
    assert written["predicted"]["tokens_per_step"] == found.optimization.expected_tokens_per_step
    assert found.acceptance.provenance is not None
    assert written["prompt_set"]["start"] >= 3
    assert found.verdict
    assert set(found.seconds) == {"load", "profile acceptance", "profile latency", "generate", "evaluate"}
