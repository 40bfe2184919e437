"""Every command of docs/from-the-study.md, run as it stands there: only the names of models, on small ones of the same families.

Data sets keep their names; `datasets` reads small folders of the hub's layout in place of the hub.
"""

import json
import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli.conftest import WORDS, Run, _same_environment, run  # noqa: F401
from tests.reference import vision as v
from treespec import hub
from treespec.trees.growmap import GrowMap
from treespec.trees.tree import SpeculationTree

datasets = pytest.importorskip("datasets")
pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

PAGE = Path(__file__).parents[1] / "docs" / "from-the-study.md"
ROWS = 2


@dataclass(frozen=True)
class Command:
    """One line of the page, and the heading that it stands under."""

    heading: str
    words: tuple[str, ...]

    @property
    def options(self) -> dict[str, str]:
        return {word: value for word, value in zip(self.words, (*self.words[1:], ""), strict=True) if word.startswith("--")}

    def __str__(self) -> str:
        return f"{self.heading}: {' '.join(self.words[:2])} {'dynamic' if '--dynamic' in self.words else self.options.get('--mode', '')}".rstrip()


def commands() -> list[Command]:
    found, heading, inside, line = [], "", False, ""
    for text in PAGE.read_text().splitlines():
        if text.startswith("## "):
            heading = text[3:]
        elif text.startswith("```"):
            inside = not inside
        elif inside:
            line += text.removesuffix("\\") + " "
            if not text.endswith("\\"):
                found.append(Command(heading, tuple(shlex.split(line))))
                line = ""
    return found


COMMANDS = commands()
TEXT_MODELS = (
    "JackFram/llama-68m",
    "JackFram/llama-160m",
    "meta-llama/Llama-2-7b-hf",
    "meta-llama/Llama-2-13b-hf",
    "outputs/checkpoint-1000",
)
PICTURE_MODELS = {"llava-hf/llava-1.5-7b-hf": 2, "anthonycmu/llava-1.5-160m": 1, "anthonycmu/llava-1.5-68m": 1}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for every model of the page, under its own name; text models are noisy copies of one, so that they agree now and then."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    home = tmp_path_factory.mktemp("study")
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["<unk>", *WORDS])}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1 + len(WORDS),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=None,
    )
    module = LlamaForCausalLM(config)
    for name in TEXT_MODELS:
        with torch.no_grad():
            for parameter in module.parameters():
                parameter += 0.03 * torch.randn(parameter.shape)
        module.save_pretrained(home / name)
        PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(home / name)
    for seed, (name, layers) in enumerate(PICTURE_MODELS.items()):
        v.save(v.llava(seed, layers=layers), home / name)
    return home


@pytest.fixture
def desk(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder that the page assumes: tree.pt, pictures, a trained checkpoint; and a hub of small folders."""
    monkeypatch.chdir(tmp_path)
    GrowMap(SpeculationTree.from_branches([[3], [2, 1, 0], [1, 0, 1]])).write(tmp_path / "tree.pt")
    v.write_scenes(tmp_path / "pictures", range(ROWS))
    shutil.copytree(small / "outputs", tmp_path / "outputs")
    texts = [" ".join(WORDS[(7 * row + i * i + i // 9) % len(WORDS)] for i in range(420)) for row in range(ROWS)]

    def load_local(path: str, *, revision: str | None = None, **options: Any) -> Any:
        column = {"abisee/cnn_dailymail": "article", "Skylion007/openwebtext": "text"}[path]
        split = str(options["split"])
        folder = tmp_path / "hub" / path
        file = folder / f"{split}-00000-of-00001.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pyarrow.table({column: texts}), file)
        return datasets.load_dataset("parquet", data_files={split: str(file)}, split=split, streaming=options["streaming"])

    class Library:
        """`datasets`, with a hub in a folder."""

        load_dataset = staticmethod(load_local)
        are_progress_bars_disabled = staticmethod(datasets.are_progress_bars_disabled)
        disable_progress_bars = staticmethod(datasets.disable_progress_bars)
        enable_progress_bars = staticmethod(datasets.enable_progress_bars)

    monkeypatch.setattr("treespec.data.hub_datasets._library", lambda name: Library)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(hub, "is_reachable", lambda *patience: True)
    return tmp_path


def test_the_page_has_a_command_for_every_experiment_of_the_study() -> None:
    assert [(c.heading, c.words[1], c.options.get("--mode", "tree"), "--dynamic" in c.words) for c in COMMANDS] == [
        ("A dynamic tree on CNN", "evaluate", "tree", True),
        ("A static tree on OpenWebText", "evaluate", "tree", False),
        ("A trained draft on OpenWebText", "potential", "tree", False),
        ("A trained draft on OpenWebText", "evaluate", "baseline", False),
        ("llama-160m on CNN", "potential", "tree", False),
        ("llama-160m on CNN", "evaluate", "baseline", False),
        ("LLaVA with a tree", "evaluate", "tree", False),
        ("LLaVA with a tree", "evaluate", "tree", True),
        ("LLaVA alone", "evaluate", "baseline", False),
    ]


def test_every_flag_of_the_study_has_its_option(run: Run) -> None:  # noqa: F811
    table = PAGE.read_text().partition("## Flags")[2].partition("\n\n`tree.pt`")[0]
    flags = re.findall(r"^\| (`.*?`) \| (.*?) \|", table, re.MULTILINE)
    known = run("evaluate", "--help").out + run("potential", "--help").out
    studied = " ".join(theirs for theirs, _ in flags)
    for flag in ("--model", "--target", "--T", "--P", "--M", "--start", "--end", "--Mode", "--growmap", "--dataset"):
        assert f"`{flag}" in studied
    for option in {option for _, ours in flags for option in re.findall(r"--[a-z-]+", ours)}:
        assert option in known


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_the_command_runs_as_it_stands_there(command: Command, small: Path, desk: Path, run: Run) -> None:  # noqa: F811
    names = (*TEXT_MODELS, *PICTURE_MODELS)
    words = [str(small / word) if word in names and not (desk / word).exists() else word for word in command.words]
    assert words.pop(0) == "treeopt"
    done = run(*words, "--device", "cpu", "--format", "json", "-o", desk / "report.json")
    assert done.code == 0, done.err
    found, asked = done.json, command.options
    assert json.loads((desk / "report.json").read_text())["schema"] == f"treeopt.{'potential' if words[0] == 'potential' else 'evaluation'}"
    assert found["prompts"] == ROWS
    if words[0] == "potential":
        (draft,) = found["drafts"]
        assert found["positions"] == ROWS * (int(asked["--gen-len"]) - 1)
        assert draft["kl"]["mean"] > 0
        assert 0 < draft["total_variation"]["mean"] < 1
        return
    assert found["tokens"] == ROWS * 128 or (asked["--dataset"] == "pictures" and found["tokens"] < ROWS * 128), "captions may end"
    assert found["temperature"] == float(asked["--temperature"])
    assert found["mode"] == ("baseline" if "--mode" in asked else "dynamic" if "--dynamic" in words else "tree")
    if asked["--temperature"] == "0" and "--mode" not in asked:
        assert found["lossless"] == "match"
    if "--mode" not in asked:
        assert found["tokens_per_step"] > 1
        assert found["tree"]["size"] == (64 if asked["--growmap"] == "68m_7b-64" else 9)
