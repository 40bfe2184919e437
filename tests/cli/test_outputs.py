"""No command overwrites what it, or anybody else, needs; what it says of its sources is true."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

Pair = tuple[Path, Path]


@pytest.mark.parametrize(
    ("command", "output"),
    [
        ("evaluate --mode baseline", "rows.jsonl"),
        ("evaluate --mode baseline", "a.json"),
        ("evaluate --growmap tree.pt", "tree.pt"),
        ("evaluate --growmap tree.pt", "tree.json"),
        ("profile acceptance", "rows.jsonl"),
        ("profile acceptance", "l.json"),
        ("profile latency", "a.json"),
        ("potential", "rows.jsonl"),
        ("generate --acceptance vec.pt --size 3 --depth 2", "vec.pt"),
        ("generate --acceptance a.json --size 3 --depth 2", "a.pt"),
    ],
)
def test_inputs_are_not_overwritten(
    run: Any, pair: Pair, rows: Path, profiles: tuple[Path, Path], tmp_path: Path, command: str, output: str
) -> None:
    import torch

    (tmp_path / "rows.jsonl").write_bytes(rows.read_bytes())
    torch.save(torch.tensor([0.0, 0.6, 0.4]), tmp_path / "vec.pt")
    assert run("generate", "--acceptance", profiles[0], "--size", 3, "--depth", 2).code == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    words = command.split()
    if words[0] != "generate":
        words += ["--target", str(pair[0]), "--draft", str(pair[1]), "--device", "cpu"]
        words += [] if "latency" in words else ["--dataset", "rows.jsonl", "--num-prompts", "2", "--prompt-len", "8", "--gen-len", "4"]
    outcome = run(*words, "-o", output)
    assert outcome.code == 1
    assert "would be overwritten but is no " in outcome.err
    assert "name another output, or delete that file" in outcome.err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_earlier_output_is_replaced(run: Any, pair: Pair, rows: Path, profiles: tuple[Path, Path], tmp_path: Path) -> None:
    models = ["--target", pair[0], "--draft", pair[1], "--device", "cpu"]
    where = ["--dataset", rows, "--num-prompts", 2, "--prompt-len", 8, "--gen-len", 4]
    for _ in range(2):
        for words in (
            ["generate", "--acceptance", profiles[0], "--size", 3, "--depth", 2],
            ["evaluate", "--growmap", "tree.pt", *models, *where],
            ["profile", "acceptance", *models, *where],
            ["profile", "latency", *models, "--sizes", "1,2", "--widths", 1, "--context", 4, "--repetitions", 1],
            ["potential", *models, *where, "-o", "potential.json"],
        ):
            outcome = run(*words)
            assert outcome.code == 0, outcome.err


def test_a_link_to_itself_is_no_output(run: Any, pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "loop.json").symlink_to("loop.json")
    outcome = run("evaluate", "--mode", "baseline", "--target", pair[0], "--device", "cpu", "--dataset", "stdlib", "-o", "loop.json")
    assert (outcome.code, outcome.err.count("\n")) == (1, 1)
    assert "cannot write loop.json: its symbolic links lead in a circle" in outcome.err


def test_a_profile_from_a_pipe_is_recorded_by_what_was_read(run: Any, profiles: tuple[Path, Path], tmp_path: Path) -> None:
    pipes = []
    for profile in profiles:
        reading, writing = os.pipe()
        os.write(writing, profile.read_bytes())
        os.close(writing)
        pipes.append(reading)
    outcome = run("generate", "--acceptance", f"/dev/fd/{pipes[0]}", "--latency", f"/dev/fd/{pipes[1]}")
    for reading in pipes:
        os.close(reading)
    assert outcome.code == 0, outcome.err
    metadata = json.loads((tmp_path / "tree.json").read_text())["metadata"]
    digests = [metadata[f"{name}_sha256"] for name in ("acceptance", "latency")]
    assert digests == [hashlib.sha256(profile.read_bytes()).hexdigest() for profile in profiles]


@pytest.mark.parametrize(
    ("words", "output"),
    [
        (("convert", "68m_7b-16"), "a/o.pt"),
        (("convert", "--to", "vllm", "68m_7b-16"), "a/o.txt"),
        (("inspect", "68m_7b-16", "--svg"), "a/o.svg"),
        (("grow", "--acceptance", "a.json", "--size", 3, "--depth", 2, "-o"), "a/o.pt"),
        (("export", "--to", "vllm", "--acceptance", "a.json", "--latency", "l.json", "-o"), "a/o.txt"),
        (("evaluate", "--mode", "baseline", "--target", "embedded-target", "--dataset", "stdlib", "-o"), "a/o.json"),
        (("evaluate", "--mode", "baseline", "--target", "embedded-target", "--dataset", "stdlib", "--html"), "a/o.html"),
    ],
    ids=lambda given: given if isinstance(given, str) else given[0],
)
def test_the_folder_of_an_output_file_must_be_there(
    run: Any, profiles: tuple[Path, Path], tmp_path: Path, words: tuple[object, ...], output: str
) -> None:
    outcome = run(*words, output)
    assert (outcome.code, outcome.err) == (1, f"error: cannot write {output}: its folder does not exist; create it first\n")
    assert not (tmp_path / "a").exists()
