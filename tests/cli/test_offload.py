"""`--offload` from the command line: the same figures and tokens from streamed weights, and who says so."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from treespec.models import loading
from treespec.trees.growmap import GrowMap
from treespec.trees.tree import SpeculationTree

Pair = tuple[Path, Path]


@pytest.fixture
def models(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Options that ask for a GPU, and get the CPU."""
    monkeypatch.setattr(loading, "_device", lambda device, offload=False: torch.device("cpu"))
    return ["--target", pair[0], "--draft", pair[1], "--device", "cuda", "--dtype", "float32"]


def test_evaluate_gives_the_same_tokens_and_says_where_the_weights_were(run: Any, models: list[object], rows: Path, tmp_path: Path) -> None:
    GrowMap(SpeculationTree.k_ary(2, 2), {}).write(tmp_path / "tree.pt")
    texts = ["--growmap", "tree.pt", "--dataset", rows, "--num-prompts", 3, "--prompt-len", 8, "--gen-len", 12]
    found = {}
    for name, extra in (("plain", []), ("streamed", ["--offload"])):
        outcome = run("evaluate", *models, *texts, "--save-tokens", "--breakdown", *extra, "-o", f"{name}.json", "--format", "json")
        assert outcome.code == 0, outcome.err
        found[name] = outcome.json
        report = json.loads((tmp_path / f"{name}.json").read_text())
        assert report["provenance"]["offloaded"] is (name == "streamed")
    assert found["streamed"]["outputs"] == found["plain"]["outputs"]
    assert found["streamed"]["lossless"] == "match"
    assert found["streamed"]["steps"] == found["plain"]["steps"]
    parts = found["streamed"]["breakdown"]
    assert set(parts) == set(found["plain"]["breakdown"])


def test_profiles_take_it_too(run: Any, models: list[object], rows: Path) -> None:
    texts = ["--dataset", rows, "--num-prompts", 3, "--prompt-len", 8, "--gen-len", 6, "--max-branch", 4]
    plain, streamed = (run("profile", "acceptance", *models, *texts, *extra, "--format", "json") for extra in ([], ["--offload"]))
    assert streamed.code == 0, streamed.err
    assert streamed.json["rank_probability"] == plain.json["rank_probability"]
    latency = run(
        "profile",
        "latency",
        *models,
        "--offload",
        "--sizes",
        "1,4",
        "--widths",
        "1",
        "--context",
        16,
        "--repetitions",
        4,
        "--format",
        "json",
    )
    assert latency.code == 0, latency.err
    assert [cell["size"] for cell in latency.json["target"]] == [1, 4]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_is_a_failure_that_says_why(run: Any, pair: Pair, rows: Path) -> None:
    outcome = run("evaluate", "--target", pair[0], "--mode", "baseline", "--dataset", rows, "--prompt-len", 8, "--offload")
    assert outcome.code == 1
    assert outcome.err.splitlines()[-1].endswith("the device is cpu; drop --offload or pass --device cuda")
    assert outcome.out == ""
