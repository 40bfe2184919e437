"""`treeopt tune` on a tiny random pair: a whole run, the plan of one, settings given back, and what is refused."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from treespec.errors import SettingsError
from treespec.files.toml import toml_text

Pair = tuple[Path, Path]


@pytest.fixture
def words(pair: Pair, rows: Path) -> list[object]:
    """The options of a run of a few seconds."""
    models = ["--target", pair[0], "--draft", pair[1], "--device", "cpu"]
    texts = ["--dataset", rows, "--num-prompts", 4, "--prompt-len", 8, "--gen-len", 6, "--choose-prompts", 1, "--evaluate-prompts", 2]
    return [*models, *texts, "--sizes", "1,2,4", "--widths", "1,2", "--repetitions", 4, "--max-branch", 3]


def test_a_whole_run_and_its_settings_given_back(run: Any, words: list[object], tmp_path: Path) -> None:
    outcome = run("tune", *words, "-o", "out", "--format", "json")
    assert outcome.code == 0, outcome.err
    data = outcome.json
    assert data["files"] == [
        "acceptance.json",
        "latency.json",
        "trace.json",
        "tree.pt",
        "tree.json",
        "report.json",
        "page.html",
        "settings.toml",
        "manifest.json",
    ]
    shown = Path("out/page.html").read_text()
    assert "treeopt tune --target" in shown
    assert "Latency staircase" in shown
    assert data["evaluation"]["lossless"] == "match"
    assert data["evaluation"]["prompts"] == 2
    assert "profiling acceptance: " in outcome.err
    given = tomllib.loads(Path("out/settings.toml").read_text())
    assert (given["sizes"], given["repetitions"], given["temperature"]) == ([1, 2, 4], 4, [0.0])
    again = run("tune", "--settings", "out/settings.toml", "-o", "out", "--format", "json")
    assert again.code == 0, again.err
    assert all(again.json[key] == data[key] for key in ("files", "chosen", "notes")), "nothing was measured again"
    assert again.json["evaluation"]["seconds_per_token"] == data["evaluation"]["seconds_per_token"]
    shown = run("tune", "--settings", "out/settings.toml", "-o", "out", "--quiet")
    assert "expected tokens/s" in shown.out
    assert "profiling" not in shown.err
    for file in ("tree.pt", "acceptance.json", "latency.json", "report.json", "trace.json"):
        assert run("inspect", f"out/{file}").code == 0


def test_a_dry_run_writes_nothing_and_reads_no_weight(
    run: Any, words: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from treespec.models.info import ModelInfo

    monkeypatch.setattr(ModelInfo, "load", lambda *given, **how: pytest.fail("a weight was read"))
    outcome = run("tune", *words, "-o", "out", "--dry-run", "--temperature", "0,0.6", "--drafting", "topk,swor", "--format", "json")
    assert outcome.code == 0, outcome.err
    data = outcome.json
    assert data["candidates"] == ["topk, temperature 0", "topk, temperature 0.6", "swor by sequential, temperature 0.6"]
    assert data["prompts"] == {"profile": 4, "choose": 1, "evaluate": 2}
    stages = ["load", "profile acceptance", "profile latency", "grow", "choose", "evaluate", "page"]
    assert list(data["seconds"]) == stages, "those that a whole run takes"
    assert all(seconds > 0 for seconds in data["seconds"].values())
    assert data["minutes"] == pytest.approx(sum(data["seconds"].values()) / 60)
    assert data["memory_bytes"] > 0
    assert (data["sizes"], data["widths"], data["repetitions"]) == ([1, 2, 4], [1, 2], 4)
    assert list(tmp_path.iterdir()) == []
    shown = run("tune", *words, "--dry-run")
    assert "min in all, give or take half" in shown.out
    assert "page" in shown.out
    assert "choose  " not in shown.out, "a single candidate is compared with none"


def test_minutes_too_short_for_anything_say_what_is_needed(run: Any, words: list[object], tmp_path: Path) -> None:
    outcome = run("tune", *words, "--minutes", "0.001", "-o", "out")
    assert outcome.code == 1
    said = (
        "error: --minutes 0.001 is too short for anything: loading, profiling 4 prompts, the latencies and the evaluation of the first of 2 "
        "prompts need about "
    )
    assert outcome.err.startswith(said), "no more prompts than there are, though a pilot has 8 where it can"
    assert " or more" in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
    several = run("tune", *words, "--minutes", "0.001", "--temperature", "0,0.6", "--drafting", "topk,swor", "-o", "out")
    assert "profiling 4 prompts for each of 3 candidates, the latencies" in several.err


def test_other_settings_are_refused_before_models_are_loaded(
    run: Any, words: list[object], pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("tune", *words, "-o", "out").code == 0
    from treespec.models.info import ModelInfo

    monkeypatch.setattr(ModelInfo, "load", lambda *given, **how: pytest.fail("a weight was read"))
    outcome = run("tune", *words, "--seed", 1, "-o", "out")
    assert outcome.code == 1
    assert "error: out was made with --seed 0, but this run has 1; pass another --output, or remove that folder" in outcome.err
    manifest = json.loads(Path("out/manifest.json").read_text())
    manifest["made_with"]["versions"]["torch"] = "2.0"
    Path("out/manifest.json").write_text(json.dumps(manifest))
    assert "error: out was made with torch 2.0, but this run has" in run("tune", *words, "-o", "out").err
    Path("out/manifest.json").write_text(json.dumps(manifest | {"version": 7}))
    older = run("tune", *words, "-o", "out")
    assert older.code == 1
    assert older.err.endswith("version 7, but this treeopt reads version 1; pass another --output, or remove that folder\n")


def test_settings_given_back_say_nothing_of_defaults_and_name_the_rows_of_a_budget(
    run: Any, words: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []

    def stop(*given: Any, record: dict[str, Any], **more: Any) -> None:
        seen.append(record)
        raise SettingsError("enough")

    monkeypatch.setattr("treeopt.tuning.run.tune", stop)
    at = words.index("--num-prompts")
    line = [*words[:at], *words[at + 2 :], "--minutes", 60]
    assert run("tune", *line).err.endswith("error: enough\n")
    Path("s.toml").write_text(toml_text(seen[0]))
    again = run("tune", "--settings", "s.toml")
    assert again.err.endswith("error: enough\n")
    assert "changes nothing" not in again.err
    assert seen[0]["num_prompts"] == 256, "as many as the budget may take, and not the default"
    assert seen[1] == seen[0]
    assert "--draws changes nothing" in run("tune", *line, "--draws", 9).err


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (["--drafting", "swor", "--temperature", "0.6", "--verifier", "matching"], 2, "--verifier matching accepts other shares of swor"),
        (["--num-prompts", "2", "--start", "7"], 1, "there is 1 usable row, but profiling, choosing and evaluating need rows of their own"),
        (["--minutes", "0"], 2, "0"),
        (["--settings", "s.toml"], 2, "s.toml: tempratur is no option of treeopt tune; did you mean temperature"),
        (["-o", "s.toml"], 2, "is a file"),
        (["--prompt-len", "300"], 1, "no row of rows.jsonl is long enough"),
        (["--max-size", "999"], 1, "--max-size is 999, but the largest tree that is timed here has "),
        (["--device", "cuda:99"], 1, "device cuda:99 was asked for, but"),
        (["--threads", "99999999999"], 2, "99999999999 is not in the range 1<=x<=4096"),
    ],
)
def test_what_is_refused_is_one_line(run: Any, words: list[object], tmp_path: Path, more: list[str], code: int, said: str) -> None:
    Path("s.toml").write_text("tempratur = 0.6\n")
    outcome = run("tune", *words, *more)
    assert (outcome.code, said in outcome.err) == (code, True), outcome.err
    assert [line for line in outcome.err.splitlines() if line.startswith("error: ")] == [outcome.err.splitlines()[-1]]
    assert not (tmp_path / "tuned").exists()
