"""What a stranger gets: the wheel in an empty environment, with the declared dependencies and nothing else."""

import csv
import io
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from importlib.metadata import Distribution, distribution, distributions
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import sentencepiece
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from transformers import LlamaConfig, LlamaForCausalLM

FIVE_LINES = """
import treeopt
pair = treeopt.load_pair("embedded-target", "embedded-draft", device="cpu")
tuning, held_out = treeopt.load_prompts("stdlib", pair, num_prompts=6, prompt_len=32).split(4)
growmap = treeopt.grow(treeopt.profile_acceptance(pair, tuning, gen_len=16), treeopt.profile_latency(pair, sizes=[1, 2, 4], widths=[1, 2], contexts=[48]))
report = treeopt.evaluate(pair, growmap, held_out, gen_len=16); print(report)
for piece in treeopt.stream(pair, "Once upon a time", plan=growmap, max_new_tokens=16): print(piece, end="")
"""
DEMO = """
from pathlib import Path
from treeopt.demo import DemoSettings, run_demo
toy = DemoSettings(profile_prompts=4, evaluate_prompts=1, prompt_len=32, gen_len=16, max_branch=4, repetitions=1)
found = run_demo(Path("treeopt-demo"), settings=toy); print(found.report.lossless, found.verdict)
"""
Run = Callable[..., str]


def needed(package: Distribution) -> list[Distribution]:
    """The distributions of this environment that a package asks for, and that those ask for in turn."""
    found: dict[tuple[str, frozenset[str]], Distribution] = {}

    def follow(asking: Distribution, extras: frozenset[str]) -> None:
        for need in map(Requirement, asking.requires or ()):
            key = canonicalize_name(need.name), frozenset(need.extras)
            wanted = need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in ("", *extras))
            if wanted and key not in found:
                found[key] = distribution(need.name)
                follow(found[key], key[1])

    follow(package, frozenset())
    return list({name: part for (name, _), part in found.items()}.values())


def files_of(part: Distribution) -> list[PurePosixPath]:
    """The files that a distribution of this environment has in its site-packages."""
    rows = csv.reader((part.read_text("RECORD") or "").splitlines())
    return [path for path in (PurePosixPath(row[0]) for row in rows) if ".." not in path.parts]


def link(parts: list[Distribution], site: Path) -> None:
    """Link what distributions of this environment have: a folder as a whole where no other distribution has files in it, else file by file."""
    owners = Counter(top for part in distributions() for top in {file.parts[0] for file in files_of(part)})
    for part in parts:
        files = files_of(part)
        assert files, f"{part.name} does not say which files it has; install it from a wheel"
        for place in dict.fromkeys(file if owners[file.parts[0]] > 1 else PurePosixPath(file.parts[0]) for file in files):
            (site / place).parent.mkdir(parents=True, exist_ok=True)
            (site / place).symlink_to(os.path.abspath(str(part.locate_file(place))))


@pytest.fixture(scope="module")
def empty(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment into which pip has put the wheel, and beside it, as links, what it and its dependencies declare, and nothing else."""
    folder = tmp_path_factory.mktemp("empty") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    pip(folder, "install", "--quiet", "--no-deps", "--no-index", str(wheel))
    (package,) = Distribution.discover(name="treeopt", path=[str(site)])
    link(needed(package), site)
    return folder


def pip(folder: Path, *arguments: str) -> str:
    """What this environment's pip says, working on another environment."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", folder / "bin" / "python", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def run(empty: Path) -> Run:
    """Run a program of the environment that holds the wheel, and return what it prints."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}

    def program(name: str, *arguments: str) -> str:
        ran = subprocess.run([empty / "bin" / name, *arguments], capture_output=True, text=True, cwd=empty.parent, env=environment)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    return program


def test_nothing_of_development_is_installed(empty: Path) -> None:
    rows: list[dict[str, Any]] = json.loads(pip(empty, "list", "--format", "json"))
    listed = {row["name"].lower() for row in rows}
    assert {"treeopt", "torch", "transformers", "sentencepiece", "gguf"} <= listed
    assert not listed & {"pytest", "mypy", "ruff", "hypothesis", "import-linter"}


def test_every_requirement_is_met(empty: Path) -> None:
    assert "No broken requirements" in pip(empty, "check")


def test_the_version_is_said(run: Run) -> None:
    assert run("treeopt", "--version").strip() == f"treeopt {run('python', '-c', 'import treeopt; print(treeopt.__version__)').strip()}"


def test_the_five_lines_run(run: Run) -> None:
    assert "lossless: all 2 outputs equal" in run("python", "-c", FIVE_LINES)


def test_text_is_written(run: Run) -> None:
    pair = ["--target", "embedded-target", "--draft", "embedded-draft", "--growmap", "embedded-h200-16"]
    written = json.loads(run("treeopt", "run", *pair, "--prompt", "def push(", "--max-new-tokens", "16", "--format", "json"))
    assert written["tokens"] == 16
    assert written["text"]


def test_the_demo_runs(run: Run) -> None:
    """At the sizes of a toy: tests of the demo itself run the command, and people the whole of it."""
    assert "--out" in run("treeopt", "demo", "--help")
    lossless, _, verdict = run("python", "-c", DEMO).partition(" ")
    assert lossless == "match"
    assert "speed-up" in verdict


def tokenizer_model() -> bytes:
    """A tokenizer of sentencepiece, trained on a few words."""
    found = io.BytesIO()
    options = {"vocab_size": 300, "model_type": "bpe", "byte_fallback": True, "minloglevel": 2, "hard_vocab_limit": False}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the cat sat on the mat", "hello world"]), model_writer=found, **options
    )
    return found.getvalue()


def test_a_pair_with_tokenizer_model_is_evaluated(run: Run, tmp_path: Path) -> None:
    """As JackFram/llama-68m lies on the hub: no tokenizer.json, which only declared packages can make up for."""
    for name, layers in (("target", 2), ("draft", 1)):
        torch.manual_seed(0)
        LlamaForCausalLM(
            LlamaConfig(vocab_size=300, hidden_size=32, intermediate_size=32, num_hidden_layers=layers, num_attention_heads=2)
        ).save_pretrained(tmp_path / name)
        (tmp_path / name / "tokenizer.model").write_bytes(tokenizer_model())
        (tmp_path / name / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    (tmp_path / "rows.jsonl").write_text('{"text": "the cat sat on the world"}\n')
    models = ["--target", str(tmp_path / "target"), "--draft", str(tmp_path / "draft"), "--dataset", str(tmp_path / "rows.jsonl")]
    options = ["--dynamic", "--size", "4", "--depth", "2", "--gen-len", "8", "--format", "json", "-o", str(tmp_path / "report.json")]
    assert json.loads(run("treeopt", "evaluate", *models, *options))["lossless"] == "match"
