"""Windows and macOS: the package does without what they lack. What else differs there, this cannot show."""

import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import treeopt.cli
from tests.reference.folders import names

ROOT = Path(__file__).parents[2]
ELSEWHERE = """
import importlib, os, sys
sys.modules["fcntl"] = None  # an import of it raises ImportError
for name in ("sched_getaffinity", "sched_setaffinity", "pread", "pwrite", "mkfifo"):
    delattr(os, name)
"""


def elsewhere(code: str, *arguments: object, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run Python code with these arguments where those modules and functions are missing."""
    command = [sys.executable, "-c", ELSEWHERE + code, *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_every_module_loads() -> None:
    packages = {name: str(ROOT / name) for name in ("treespec", "treeopt")} | {"treeopt.cli": str(Path(treeopt.cli.__file__).parent)}
    modules = [found.name for name, folder in packages.items() for found in pkgutil.walk_packages([folder], f"{name}.")]
    assert len(modules) > 100
    done = elsewhere("for module in sys.argv[1:]: importlib.import_module(module)", *modules)
    assert done.returncode == 0, done.stderr


def test_an_evaluation_runs_locks_its_output_and_writes_it(pair: tuple[Path, Path], rows: Path, tmp_path: Path) -> None:
    where = [
        "--device",
        "cpu",
        "--target",
        pair[0],
        "--draft",
        pair[1],
        "--dataset",
        rows,
        "--num-prompts",
        2,
        "--prompt-len",
        8,
        "--gen-len",
        4,
    ]
    arguments = ["evaluate", *where, "--dynamic", "--size", 4, "--depth", 2, "--format", "json", "-o", "report.json"]
    done = elsewhere("from treeopt.cli.main import main\nmain(prog_name='treeopt')", *arguments, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["lossless"] == "match"
    assert names(tmp_path) == ["report.json"]


@pytest.mark.parametrize("code", ["import fcntl", "os.sched_getaffinity(0)"])
def test_what_is_hidden_cannot_be_used(code: str) -> None:
    assert elsewhere(code).returncode == 1
