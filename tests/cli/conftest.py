"""A tiny random pair on disk, and the command line in this process."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

WORDS = [f"w{i}" for i in range(60)]


@dataclass(frozen=True)
class Outcome:
    """What a command left: exit code, stdout and stderr apart."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """Stdout, which must be one JSON object and nothing else."""
        data = json.loads(self.out)
        assert isinstance(data, dict)
        return data


Run = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def _same_environment() -> Iterator[None]:
    """The command line quiets libraries through the environment; other tests shall not see that."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `treeopt ARGS` in an empty folder."""
    from treeopt.cli.main import main

    monkeypatch.chdir(tmp_path)

    def command(*arguments: object) -> Outcome:
        result = CliRunner().invoke(main, [str(a) for a in arguments], prog_name="treeopt")
        assert "Traceback" not in result.output
        return Outcome(result.exit_code, result.stdout, result.stderr)

    return command


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of a random Llama target and of a draft with the same vocabulary of words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["<unk>", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    folders = []
    for name, layers, seed in (("target", 2, 1), ("draft", 1, 2)):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(vocabulary),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=256,
            initializer_range=0.3,
            bos_token_id=None,
            eos_token_id=None,
        )
        folder = tmp_path_factory.mktemp("models") / name
        LlamaForCausalLM(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        folders.append(folder)
    return folders[0], folders[1]


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A .jsonl file of eight rows of 40 words, the third of 3 words only."""
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    texts = [" ".join(WORDS[(7 * row + i * i) % len(WORDS)] for i in range(3 if row == 2 else 40)) for row in range(8)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


@pytest.fixture
def profiles(tmp_path: Path) -> tuple[Path, Path]:
    """Hand-written profiles: acceptance.json of four ranks, latency.json of sizes up to 8 at two contexts."""
    acceptance = {
        "schema": "treeopt.acceptance",
        "version": 1,
        "drafting": "topk",
        "temperature": 0.0,
        "top_p": 1.0,
        "rank_probability": [0.6, 0.2, 0.1, 0.0],
        "none_accepted": 0.1,
        "standard_error": [0.02, 0.01, 0.01, 0.0],
        "positions": 1000,
        "prompts": 10,
    }
    latency = {
        "schema": "treeopt.latency",
        "version": 1,
        "target": [{"size": n, "context": c, "seconds": [0.010, 0.010 + 0.0001 * n, 0.011]} for c in (64, 256) for n in (1, 2, 4, 8)],
        "draft": [{"width": w, "context": c, "seconds": [0.0005]} for c in (64, 256) for w in (1, 4, 8)],
        "overhead_seconds": [0.0001, 0.0003, 0.0002],
    }
    paths = tmp_path / "a.json", tmp_path / "l.json"
    for path, data in zip(paths, (acceptance, latency), strict=True):
        path.write_text(json.dumps(data), encoding="utf-8")
    return paths
