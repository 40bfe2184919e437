"""Growmaps by name: listed, shown and run like files."""

import json
from pathlib import Path
from typing import Any

import pytest

from treeopt.growmap_library import CATALOGUE, find
from treespec.trees.growmap import GrowMap, read_growmap
from treespec.trees.tree import SpeculationTree


def test_the_list_has_every_growmap_with_its_figures(run: Any) -> None:
    outcome = run("inspect", "--list", "--format", "json")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.json["folder"] == str(find("68m_7b-64").parent)
    rows = {row["name"]: row for row in outcome.json["growmaps"]}
    assert list(rows) == list(CATALOGUE)
    for name in ("68m_7b-64", "68m_7b-T0.6-512", "embedded-h200"):
        growmap = read_growmap(find(name))
        assert (rows[name]["size"], rows[name]["depth"]) == (growmap.tree.size, growmap.tree.depth)
        for key in ("expected_tokens_per_step", "predicted_seconds_per_step", "temperature", "drafting", "source", "latency_source"):
            assert rows[name][key] == growmap.metadata[key]


def test_the_list_for_people_names_every_growmap_and_source(run: Any) -> None:
    outcome = run("inspect", "--list")
    assert outcome.code == 0
    shown = [line.split("│")[1].strip() for line in outcome.out.splitlines() if line.startswith("│")]
    assert shown == list(CATALOGUE)
    for name in CATALOGUE:
        assert f"measured by {read_sidecar_source(name)}" in outcome.out


def read_sidecar_source(name: str) -> str:
    source = json.loads(find(name).with_suffix(".json").read_text())["metadata"]["source"]
    assert isinstance(source, str)
    return source


def test_inspect_shows_a_name_as_it_shows_its_file(run: Any) -> None:
    by_name = run("inspect", "68m_7b-T0.6-64", "--format", "json")
    assert by_name.code == 0, by_name.err
    assert by_name.json == run("inspect", find("68m_7b-T0.6-64"), "--format", "json").json
    assert by_name.json["size"] == 64
    assert by_name.json["expected_tokens_per_step"] == pytest.approx(by_name.json["metadata"]["expected_tokens_per_step"], rel=1e-12)
    assert "rank among its siblings" in run("inspect", "68m_7b-T0.6-64").out


def test_a_file_of_that_name_wins(run: Any, tmp_path: Path) -> None:
    GrowMap(SpeculationTree.chain(2)).write("x.pt")
    (tmp_path / "x.pt").rename(tmp_path / "68m_7b-64")
    assert run("inspect", "68m_7b-64", "--format", "json").json["size"] == 3


def test_a_folder_of_that_name_hides_nothing(run: Any, tmp_path: Path) -> None:
    (tmp_path / "68m_7b-64").mkdir()
    assert run("inspect", "68m_7b-64", "--format", "json").json["size"] == 64


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["inspect", "68m_7b-65"], "did you mean 68m_7b-64 or "),
        (["inspect", "tree.pt"], "there is no file tree.pt, and no growmap of that name comes with treeopt"),
        (["inspect", "./68m_7b-64"], "'./68m_7b-64' does not exist"),
        (["inspect", "."], "is a directory"),
        (["inspect"], "Pass one of FILE, NAME and --list"),
        (["inspect", "--list", "68m_7b-64"], "Pass one of FILE, NAME and --list"),
        (["evaluate", "--target", "t", "--draft", "d", "--growmap", "68m-7b-64"], "`treeopt inspect --list` lists them"),
    ],
)
def test_what_is_neither_a_file_nor_a_name_is_wrong_usage(run: Any, arguments: list[str], words: str) -> None:
    outcome = run(*arguments)
    assert outcome.code == 2
    assert words in outcome.err
    assert outcome.err.count("\n") == 1


def test_evaluate_runs_a_growmap_by_its_name(run: Any, pair: tuple[Path, Path], rows: Path, tmp_path: Path) -> None:
    models = ["--target", pair[0], "--draft", pair[1], "--device", "cpu"]
    texts = ["--dataset", rows, "--num-prompts", 2, "--prompt-len", 8, "--gen-len", 6]
    outcome = run("evaluate", *models, *texts, "--growmap", "68m_7b-16", "--format", "json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["lossless"] == "match"
    promised = read_growmap(find("68m_7b-16")).metadata
    assert outcome.json["predicted"]["tokens_per_step"] == promised["expected_tokens_per_step"]
    assert outcome.json["predicted"]["seconds_per_step"] == promised["predicted_seconds_per_step"]
    for role, made_for, used in (("target", "meta-llama/Llama-2-7b-hf", "target"), ("draft", "JackFram/llama-68m", "draft")):
        assert f"made for the {role} {made_for}, this run has {used}: its prediction does not hold here" in outcome.err
    assert "made for temperature" not in outcome.err


def test_a_growmap_of_the_same_pair_goes_without_a_note(run: Any, pair: tuple[Path, Path], rows: Path) -> None:
    from treespec.files.provenance import Provenance

    GrowMap(SpeculationTree.chain(2), {}, Provenance(models={"target": "somewhere/target@abc", "draft": "draft"})).write("tree.pt")
    models = ["--target", pair[0], "--draft", pair[1], "--device", "cpu"]
    outcome = run("evaluate", *models, "--dataset", rows, "--num-prompts", 1, "--prompt-len", 8, "--gen-len", 4, "--growmap", "tree.pt")
    assert outcome.code == 0, outcome.err
    assert "made for" not in outcome.err
