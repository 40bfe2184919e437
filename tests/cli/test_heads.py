"""Heads that propose all levels at once as `--draft` in every command that takes a draft, on a tiny target from disk."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import treeopt
from treeopt.training.heads import write_head
from treespec.models.heads.bound import BoundHead
from treespec.models.heads.making import NewDFlash, NewMedusa
from treespec.models.heads.target import HeadTarget

Pair = tuple[Path, Path]


WRONG = {
    "medusa": ({"medusa_num_heads": 5}, "the files hold no more heads"),
    "dflash": ({"num_target_layers": 9}, "num_target_layers in config.json is 9, but a DFlash draft for target"),
}
"""What is wrong in config.json of each kind, and what is said of it."""


@pytest.fixture(params=WRONG)
def head(pair: Pair, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Three Medusa heads, or a DFlash draft of three levels, with random weights, for the target."""
    target = AutoModelForCausalLM.from_pretrained(pair[0], dtype=torch.float32)
    new = {"medusa": NewMedusa, "dflash": NewDFlash}[request.param].of("target", target.config, 3)
    folder = tmp_path / request.param
    folder.mkdir()
    write_head(folder, new, new.made(HeadTarget.of(target, "target"), None, 1))
    return folder


@pytest.fixture
def where(pair: Pair, head: Path, rows: Path) -> list[object]:
    """The models, and the rows to measure on."""
    return ["--target", pair[0], "--draft", head, "--device", "cpu", "--dataset", rows, "--num-prompts", 4, "--prompt-len", 12]


def done(outcome: Any) -> Any:
    assert outcome.code == 0, outcome.err
    return outcome


def one_line(outcome: Any, words: str) -> None:
    assert (outcome.code, outcome.out) == (1, "")
    (line,) = (line for line in outcome.err.splitlines() if line.startswith("error: "))
    assert words in line


def test_the_whole_loop_with_heads(run: Any, where: list[object], head: Path, tmp_path: Path) -> None:
    short = ["--gen-len", 12]
    done(run("profile", "acceptance", *where, *short, "-o", "a.json"))
    profile = json.loads((tmp_path / "a.json").read_text())
    assert len(profile["by_depth"]) == 4
    assert profile["by_depth"][0] == profile["rank_probability"]
    assert not any(profile["by_depth"][3]), "there is nothing behind the third level"
    times = ("--sizes", "1,2,4,8", "--widths", "1,2", "--context", 16)
    done(run("profile", "latency", *where[:6], *times, "--dynamic", "-o", "l.json"))
    done(run("grow", "--acceptance", "a.json", "--latency", "l.json", "--size", 4, "--depth", 2, "-o", "tree.pt"))
    done(run("potential", *where[:2], "--draft", where[3], *where[4:], *short, "-o", "p.json"))
    written = [*where[4:6], "--prompt", "w1 w2 w3", "--max-new-tokens", 8, "--format", "json"]
    with_head = done(run("run", *where[:4], *written, "--growmap", "tree.pt")).json["text"]
    assert with_head == done(run("run", *where[:2], *written)).json["text"]
    draft = treeopt.load_pair(str(where[1]), str(head)).draft
    assert isinstance(draft, BoundHead)
    assert (draft.head.kind, draft.parallel_levels) == (head.name, 3)
    for plan in (
        ["--growmap", "tree.pt"],
        ["--dynamic", "--size", 6, "--depth", 2],
        ["--growmap", "tree.pt", "--temperature", 0.7, "--drafting", "swor"],
    ):
        report = done(run("evaluate", *where, *short, *plan, "-o", "report.json", "--format", "json")).json
        assert report["lossless"] in ("match", "not-applicable")
        assert report["provenance"]["models"]["draft"] == head.name


def test_tune_with_heads(run: Any, where: list[object], tmp_path: Path) -> None:
    done(
        run(
            "tune",
            *where[:6],
            *where[6:8],
            "--num-prompts",
            6,
            "--prompt-len",
            12,
            "--gen-len",
            6,
            "--repetitions",
            4,
            "--evaluate-prompts",
            2,
            "-o",
            "out",
        )
    )
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"acceptance.json", "tree.pt", "report.json", "page.html"}
    done(run("replay", "out/tree.pt", "--trace", "out/trace.json"))


def test_a_dry_run_knows_the_size_of_a_head(run: Any, where: list[object], head: Path) -> None:
    said = done(run("tune", *where[:8], "--num-prompts", 12, "--prompt-len", 12, "--gen-len", 6, "--dry-run", "--format", "json")).json
    assert said["memory_bytes"] > sum(path.stat().st_size for path in (head, *head.iterdir()) if path.is_file())


def test_what_does_not_go_with_heads_is_refused_in_one_line(run: Any, where: list[object], head: Path, pair: Pair, tmp_path: Path) -> None:
    short = ["--gen-len", 6]
    one_line(
        run("evaluate", *where, *short, "--dynamic", "--size", 9, "--depth", 5, "-o", "r.json"),
        "proposes 3 levels, but the tree has a depth of 5; take one of depth 3 or less",
    )
    one_line(
        run("evaluate", *where, *short, "--dynamic", "--size", 3, "--depth", 1, "--draft-adapter", pair[1], "-o", "r.json"),
        "no --draft-adapter can be merged",
    )
    beside = [*where[:2], "--draft", f"{head}+ngram", *where[4:]]
    one_line(run("profile", "acceptance", *beside, *short), "and n-grams stand beside whole models only; leave +ngram out")
    as_target = ["--target", head, *where[2:]]
    one_line(
        run("evaluate", *as_target, *short, "--dynamic", "--size", 3, "--depth", 1, "-o", "r.json"), "give it as the draft of its target"
    )
    config, (wrong, said) = json.loads((head / "config.json").read_text()), WRONG[head.name]
    (head / "config.json").write_text(json.dumps(config | wrong))
    one_line(run("evaluate", *where, *short, "--dynamic", "--size", 3, "--depth", 1, "-o", "r.json"), said)


def test_a_chain_is_no_deeper_than_the_heads_where_no_tree_is_named(run: Any, where: list[object]) -> None:
    written = done(run("run", *where[:6], "--prompt", "w1 w2 w3", "--max-new-tokens", 6))
    assert "no tree is named, so a chain of 3 tokens is drafted" in written.err
    alone = done(run("run", *where[:2], *where[4:6], "--prompt", "w1 w2 w3", "--max-new-tokens", 6))
    assert written.out == alone.out
