"""Growmaps by name: listed, shown and run like files."""

import json
from pathlib import Path
from typing import Any

import pytest

from treeopt.growmap_library import CATALOGUE, find
from treeopt.growmap_making import Limits, generate
from treespec.evaluation.predicted import Prediction
from treespec.files.provenance import Provenance, processor
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
    assert by_name.json["tokens_per_step_by_chances"] == pytest.approx(by_name.json["metadata"]["expected_tokens_per_step"], rel=1e-12)
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
        (["inspect", "."], ". is a folder, but a file is needed; name one in it."),
        (["convert", "68m_7b-64", "."], ". is a folder, but a file is needed; name one in it."),
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
    assert outcome.json["predicted"] == Prediction().to_json()
    assert outcome.json["profiled_acceptance"] is None
    (said,) = [line for line in outcome.err.splitlines() if "made for" in line]
    assert said == (
        "the growmap was made for the target meta-llama/Llama-2-7b-hf (this run has target) and "
        "the draft JackFram/llama-68m (this run has draft): its prediction does not hold here and is not shown"
    )
    shown = run("inspect", "report.json").out
    assert "speed-up" in shown
    assert "predict" not in shown
    assert "profiled" not in shown


def test_a_growmap_of_the_same_pair_goes_without_a_note(run: Any, pair: tuple[Path, Path], rows: Path) -> None:
    GrowMap(SpeculationTree.chain(2), {}, Provenance(models={"target": "somewhere/target@abc", "draft": "draft"})).write("tree.pt")
    models = ["--target", pair[0], "--draft", pair[1], "--device", "cpu"]
    outcome = run("evaluate", *models, "--dataset", rows, "--num-prompts", 1, "--prompt-len", 8, "--gen-len", 4, "--growmap", "tree.pt")
    assert outcome.code == 0, outcome.err
    assert "made for" not in outcome.err


def growmap_timed_on(**hardware: str) -> None:
    """Write tree.pt with a promise of a pair like that of the fixtures, timed on such hardware."""
    promise = {"expected_tokens_per_step": 1.5, "predicted_seconds_per_step": 0.25}
    GrowMap(SpeculationTree.chain(2), promise, Provenance(models={"target": "target", "draft": "draft"}, **hardware)).write("tree.pt")


def test_a_prediction_is_for_the_device_that_was_timed(run: Any, pair: tuple[Path, Path], rows: Path, tmp_path: Path) -> None:
    models = ["--target", pair[0], "--draft", pair[1], "--device", "cpu"]
    texts = ["--dataset", rows, "--num-prompts", 1, "--prompt-len", 8, "--gen-len", 4]
    here = processor()
    assert here is not None
    for hardware, other in (
        ({"cpu": here}, None),
        ({}, None),
        ({"cpu": "Some CPU"}, "Some CPU"),
        ({"gpu": "NVIDIA X", "cpu": here}, "NVIDIA X"),
    ):
        growmap_timed_on(**hardware)
        outcome = run("evaluate", *models, *texts, "--growmap", "tree.pt", "--format", "json")
        assert outcome.code == 0, outcome.err
        found = outcome.json["predicted"]["tokens_per_step"], outcome.json["predicted"]["seconds_per_step"]
        assert found == (1.5, 0.25 if other is None else None)
        said = f"the growmap was timed on {other} (this run has {here}): its predicted time per step does not hold here and is not shown\n"
        assert (said in outcome.err) == (other is not None)


def test_a_growmap_names_the_hardware_of_its_times(profiles: tuple[Path, Path]) -> None:
    timed = json.loads(profiles[1].read_text()) | {"provenance": {"gpu": "NVIDIA X", "cpu": "Some CPU"}}
    profiles[1].write_text(json.dumps(timed))
    made = generate(profiles[0], latency=profiles[1]).growmap.provenance
    assert made is not None
    assert (made.gpu, made.cpu, made.driver) == ("NVIDIA X", "Some CPU", None)
    untimed = generate(profiles[0], limits=Limits(size=3, depth=2)).growmap.provenance
    assert untimed is not None
    assert untimed.cpu == processor()
