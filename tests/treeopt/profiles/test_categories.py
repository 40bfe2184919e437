"""Acceptance by category, against profiles of the prompts of one category alone."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.reference.pairs import prompt_set, tiny_pair
from treeopt.profiles.acceptance import read_acceptance
from treeopt.profiling.acceptance import profile_acceptance
from treeopt.profiling.settings import AcceptanceSettings
from treespec.errors import ProfileError
from treespec.evaluation.report import read_report
from treespec.evaluation.runner import evaluate
from treespec.evaluation.settings import EvaluationSettings
from treespec.trees.tree import SpeculationTree

SETTINGS = AcceptanceSettings(gen_len=12, max_branch=5)
NAMES = ("coding", "math", "coding", "", "coding")


def test_each_category_has_the_figures_of_its_own_prompts(tmp_path: Path) -> None:
    pair, plain = tiny_pair(), prompt_set(5)
    prompts = replace(plain, prompts=tuple(replace(prompt, category=name) for prompt, name in zip(plain, NAMES, strict=True)))
    profile = profile_acceptance(pair, prompts, SETTINGS)
    rows = {row["category"]: row for row in profile.by_category}
    assert list(rows) == ["coding", "math", ""]
    for name, row in rows.items():
        own = profile_acceptance(pair, replace(plain, prompts=tuple(p for p in prompts if p.category == name)), SETTINGS)
        assert (row["prompts"], row["positions"]) == (own.prompts, own.positions)
        assert row["rank_probability"] == pytest.approx(own.rank_probability)
        assert (row["standard_error"] is None) == (own.prompts < 2)
        if row["standard_error"] is not None:
            assert row["standard_error"] == pytest.approx(own.standard_error)
    profile.write(tmp_path / "acceptance.json")
    back = read_acceptance(tmp_path / "acceptance.json")
    assert back.prompt_categories == NAMES
    assert back.summary()["by_category"] == profile.summary()["by_category"]
    assert "acceptance by category" in str(back)
    assert "acceptance by category" not in str(profile_acceptance(pair, plain, SETTINGS)), "no category, no table"
    with pytest.raises(ProfileError, match="prompt_categories has 2 entries for 5 prompts"):
        replace(profile, prompt_categories=("a", "b"))


def test_a_report_has_the_figures_of_each_category(tmp_path: Path) -> None:
    pair, plain, tree = tiny_pair(), prompt_set(5), SpeculationTree.k_ary(2, 3)
    prompts = replace(plain, prompts=tuple(replace(prompt, category=name) for prompt, name in zip(plain, NAMES, strict=True)))
    report = evaluate(pair, tree, prompts, EvaluationSettings(gen_len=12))
    report.write(tmp_path / "report.json")
    for data in (report.summary(), read_report(tmp_path / "report.json").summary()):
        rows = data["by_category"]
        assert [(row["category"], row["prompts"]) for row in rows] == [("coding", 3), ("math", 1), ("", 1)]
        assert sum(row["tokens"] for row in rows) == data["tokens"]
        assert sum(row["steps"] for row in rows) == data["steps"]
        own = [result for result in report.results if result.category == "coding"]
        assert rows[0]["tokens_per_step"] == pytest.approx(sum(r.tokens - 1 for r in own) / sum(r.steps for r in own))
        low, high = rows[0]["intervals_95"]["tokens_per_step"]
        assert low <= rows[0]["tokens_per_step"] <= high
        assert rows[1]["intervals_95"]["tokens_per_step"] is None
    assert "by category" in str(report)
    without = evaluate(pair, tree, plain, EvaluationSettings(gen_len=12))
    assert without.summary()["by_category"] == []
    assert "by category" not in str(without)
