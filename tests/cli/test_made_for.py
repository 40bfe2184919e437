"""evaluate takes the settings that a growmap was made for, unless they are on the line, and says which."""

from pathlib import Path
from typing import Any

import pytest

from treespec.decoding.step_rule import StepRule
from treespec.trees.growmap import GrowMap
from treespec.trees.tree import SpeculationTree

MADE_FOR = {
    "temperature": 0.6,
    "top_p": 0.9,
    "drafting": "swor",
    "draft_temperature": 0.6,
    "expected_tokens_per_step": 1.5,
    "predicted_seconds_per_step": 0.01,
    "timed_rule": StepRule("tree", "swor", "traversal", "top-p", "sampled").to_json(),
}
CASES: list[tuple[list[object], dict[str, Any], str | None]] = [
    (
        [],
        {"temperature": 0.6, "top_p": 0.9, "drafting": "swor", "draft_temperature": 0.6, "verifier": "traversal"},
        "--temperature 0.6, --top-p 0.9, --drafting swor and --verifier traversal",
    ),
    (
        ["--temperature", 0.8, "--verifier", "sequential"],
        {"temperature": 0.8, "top_p": 0.9, "drafting": "swor", "draft_temperature": 0.8, "verifier": "sequential"},
        "--top-p 0.9 and --drafting swor",
    ),
    (["--temperature", 0, "--drafting", "topk"], {"temperature": 0, "top_p": 1, "drafting": "topk", "verifier": "sequential"}, None),
    (["--dynamic"], {"temperature": 0.6, "top_p": 0.9, "drafting": "topk"}, "--temperature 0.6 and --top-p 0.9"),
]


@pytest.mark.parametrize(("given", "settings", "said"), CASES, ids=["all", "some", "none", "dynamic"])
def test_settings_come_from_the_growmap(
    given: list[object], settings: dict[str, Any], said: str | None, run: Any, pair: tuple[Path, Path], rows: Path, tmp_path: Path
) -> None:
    GrowMap(SpeculationTree.from_paths([(0, 0), (1,)]), MADE_FOR).write(tmp_path / "t.pt")
    models = ["--target", pair[0], "--draft", pair[1], "--dataset", rows, "--num-prompts", 2, "--prompt-len", 8, "--gen-len", 6]
    outcome = run("evaluate", *models, "--growmap", "t.pt", *given, "--format", "json")
    assert outcome.code == 0, outcome.err
    assert settings.items() <= outcome.json["settings"].items()
    lines = [line for line in outcome.err.splitlines() if line.startswith("taken from the growmap")]
    assert lines == ([] if said is None else [f"taken from the growmap: {said}"])
    predicted = outcome.json["predicted"]["tokens_per_step"]
    assert (predicted == 1.5) == (settings["drafting"] == "swor" and settings["temperature"] == 0.6)


def test_what_does_not_go_with_the_growmaps_settings_is_wrong_usage(run: Any, pair: tuple[Path, Path], tmp_path: Path) -> None:
    GrowMap(SpeculationTree.chain(2), MADE_FOR | {"drafting": "swr"}).write(tmp_path / "t.pt")
    outcome = run("evaluate", "--target", pair[0], "--draft", pair[1], "--growmap", "t.pt", "--verifier", "matching", "--dataset", "stdlib")
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1)
    assert "--verifier matching needs distinct children" in outcome.err


@pytest.mark.parametrize(
    "command", [["evaluate", "--mode", "baseline"], ["profile", "acceptance", "--draft", "d"], ["potential", "--draft", "d"]]
)
def test_there_is_no_silent_data_set_for_other_models(command: list[str], run: Any, pair: tuple[Path, Path]) -> None:
    outcome = run(*command, "--target", pair[0])
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1)
    assert "--dataset is missing" in outcome.err
    assert "stdlib, cnn, openwebtext" in outcome.err
    assert "--dataset is missing" not in run(*command, "--target", "embedded-target", "--gen-len", 0).err


def test_an_earlier_output_that_is_replaced_is_said(run: Any, pair: tuple[Path, Path], rows: Path) -> None:
    words = [
        "evaluate",
        "--target",
        pair[0],
        "--mode",
        "baseline",
        "--dataset",
        rows,
        "--num-prompts",
        1,
        "--prompt-len",
        8,
        "--gen-len",
        2,
    ]
    first, second = (run(*words, "-o", "r.json").err.splitlines() for _ in range(2))
    assert "wrote r.json" in first
    assert "wrote r.json, in place of an earlier one" in second
