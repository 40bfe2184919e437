"""Adapters and heads at the command line: their options, and one line on stderr."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from treespec.models import adapters

Run = Callable[..., Any]


def _lora(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "team/base", "r": 2}))
    (folder / "adapter_model.safetensors").write_bytes(b"\x02" + bytes(7) + b"{}")
    return folder


def test_an_adapter_alone_is_told_with_the_options_that_help(run: Run, pair: tuple[Path, Path], tmp_path: Path) -> None:
    done = run("profile", "latency", "--target", _lora(tmp_path / "lora"), "--draft", pair[1])
    assert done.code == 1
    assert "is an adapter for 'team/base' and no model by itself" in done.err
    assert "(--adapter of the target, --draft-adapter of the draft)" in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("option", ["--adapter", "--draft-adapter"])
def test_adapters_are_checked_before_anything_runs(
    option: str, run: Run, pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters, "is_installed", lambda *names: False)
    models = ("--target", pair[0], "--draft", pair[1], option)
    done = run("evaluate", *models, tmp_path / "nowhere", "--dataset", "stdlib", "--dynamic", "--size", 3, "--depth", 2)
    assert (done.code, done.err.count("\n")) == (1, 1)
    assert "nowhere, which --adapter or --draft-adapter names" in done.err
    done = run("profile", "acceptance", *models, _lora(tmp_path / "lora"), "--dataset", "stdlib")
    assert "has the rank 2, but its weights have at most 0 rows" in done.err


def test_what_lies_beside_the_weights_is_noted(run: Run, pair: tuple[Path, Path], rows: Path, tmp_path: Path) -> None:
    shutil.copytree(pair[0], tmp_path / "both")
    _lora(tmp_path / "both")
    few = ("--dataset", rows, "--prompt-len", 8, "--gen-len", 4, "--num-prompts", 1, "--mode", "baseline")
    done = run("evaluate", "--target", tmp_path / "both", *few, "--format", "json")
    assert done.code == 0
    assert "holds whole weights and an adapter (adapter_config.json): the weights run as they are; --adapter merges one" in done.err


def test_a_head_as_draft_is_named(run: Run, pair: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "head").mkdir()
    (tmp_path / "head" / "config.json").write_text(json.dumps({"medusa_num_heads": 2}))
    for command in (
        ("profile", "latency"),
        ("profile", "acceptance", "--dataset", "stdlib"),
        ("potential", "--dataset", "stdlib"),
        ("evaluate", "--dataset", "stdlib", "--dynamic", "--size", 3, "--depth", 2),
    ):
        done = run(*command, "--target", pair[0], "--draft", tmp_path / "head")
        assert (done.code, done.err.count("\n")) == (1, 1)
        assert f"{tmp_path / 'head'} holds no weights" in done.err
