"""GGUF files as target and draft, from the command line: they run, and stderr and reports say what was dequantised."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.reference.gguf_files import write_gguf


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A target of two layers and a draft of one, both of Q8_0."""
    folder = tmp_path_factory.mktemp("gguf")
    made = []
    for name, layers in (("target", 2), ("draft", 1)):
        torch.manual_seed(layers)
        shape = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "max_position_embeddings": 128}
        module = LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers, initializer_range=0.3, **shape)).eval()
        made.append(write_gguf(folder / f"{name}.gguf", module, "Q8_0"))
    return made[0], made[1]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"messages": [{"role": "user", "content": "abcab" * 8}]}) + "\n" for _ in range(3)))
    return path


def test_a_pair_is_evaluated_with_its_own_template(run: Any, files: tuple[Path, Path], rows: Path, tmp_path: Path) -> None:
    options = ["--chat", "--num-prompts", 2, "--prompt-len", 64, "--gen-len", 12, "--device", "cpu", "--format", "json"]
    tree = ["--dynamic", "--size", 6, "--depth", 2]
    done = run("evaluate", "--target", files[0], "--draft", files[1], *tree, "--dataset", rows, *options, "-o", "report.json")
    assert done.code == 0, done.err
    assert done.json["lossless"] in ("match", "ties")
    assert done.json["provenance"]["quantization"] == {"target": "Q8_0, dequantised", "draft": "Q8_0, dequantised"}
    for role, path in zip(("target", "draft"), files, strict=True):
        assert done.err.count(f"{role} {path} is a GGUF file of Q8_0 weights: they are dequantised\n") == 1
    assert "Converting" not in done.err
    assert run("inspect", "report.json", "--format", "json").code == 0


def test_drafts_are_ranked(run: Any, files: tuple[Path, Path], rows: Path) -> None:
    options = ["--method", "on-policy", "--chat", "--num-prompts", 2, "--prompt-len", 64, "--gen-len", 8, "--device", "cpu"]
    done = run("potential", "--target", files[0], "--draft", files[1], "--dataset", rows, *options, "--format", "json")
    assert done.code == 0, done.err
    assert done.err.count("they are dequantised") == 2


def test_a_draft_is_trained_for_one(run: Any, files: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("abcab " * 400)
    common = ["--target", files[0], "--dataset", tmp_path / "text.txt", "--steps", 2, "--eval-prompts", 0, "--device", "cpu"]
    done = run("train-draft", "--draft", files[1], *common, "--seq-len", 16, "--batch-size", 2, "-o", "made")
    assert done.code == 0, done.err
    assert (tmp_path / "made" / "model.safetensors").is_file()
    tree = ["--dynamic", "--size", 4, "--depth", 2, "--num-prompts", 1, "--prompt-len", 8, "--gen-len", 4, "--device", "cpu"]
    used = run("evaluate", "--target", files[0], "--draft", "made", *tree, "--dataset", tmp_path / "text.txt", "--format", "json")
    assert used.code == 0, used.err
