"""The import contracts of pyproject.toml hold, and each of them can fail."""

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def lint_imports(folder):
    """Run import-linter on the packages in a folder; (exit code, everything printed, on one line)."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache", "--no-logo", "--config", str(ROOT / "pyproject.toml")]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=os.environ | {"COLUMNS": "400"})
    return done.returncode, " ".join((done.stdout + done.stderr).split())


@pytest.fixture(scope="module")
def planted(installed, tmp_path_factory):
    """One copy of the sources, in which a line may be added to a module for as long as import-linter looks at it."""
    folder = tmp_path_factory.mktemp("planted")
    for package in ("treeopt", "treespec"):
        shutil.copytree(installed / package, folder / package, ignore=shutil.ignore_patterns("target", "draft", "*.pt"))

    @contextlib.contextmanager
    def plant(module, line):
        before = (folder / module).read_text()
        (folder / module).write_text(f"{before}\n{line}\n")
        try:
            yield folder
        finally:
            (folder / module).write_text(before)

    return plant


def test_all_contracts_are_kept(installed):
    code, output = lint_imports(installed)
    assert code == 0, output
    assert "0 broken" in output
    assert (installed / "treeopt" / "cli" / "main.py").exists(), "the command line was not looked at"


@pytest.mark.parametrize(
    ("module", "line", "broken"),
    [
        ("treespec/trees/tree.py", "import treeopt.profiles", "treespec does not know treeopt"),
        ("treeopt/optimizer/search.py", "import treeopt.cli.main", "nothing but treeopt.__main__ imports the command line"),
        ("treespec/files/writing.py", "import treeopt.cli.output", "nothing but treeopt.__main__ imports the command line"),
        ("treeopt/profiles/acceptance.py", "import treeopt.optimizer.search", "inside treeopt"),
        ("treeopt/optimizer/search.py", "def f():\n    import treeopt.profiling.latency", "inside treeopt"),
        ("treeopt/profiling/potential.py", "import treeopt.training.texts", "inside treeopt"),
        ("treeopt/training/trainer.py", "import treeopt.growmap_making", "inside treeopt"),
        ("treespec/decoding/loop.py", "import treespec.models.families", "inside treespec"),
        ("treespec/models/fused.py", "import treespec.decoding.sampling", "inside treespec"),
        ("treespec/models/processed.py", "import treespec.decoding.step", "inside treespec"),
        ("treespec/models/processors.py", "import treespec.integrations.transformers", "inside treespec"),
        ("treespec/kernels/plain.py", "import treespec.decoding.protocol", "inside treespec"),
        ("treespec/trees/tree.py", "import treespec.kernels.plain", "inside treespec"),
        ("treespec/data/prompts.py", "def f():\n    import treespec.models.loading", "inside treespec"),
        ("treespec/files/pt.py", "import treespec.trees.tree", "inside treespec"),
        ("treespec/errors.py", "import treespec.files.reading", "inside treespec"),
        ("treeopt/optimizer/search.py", "import treeopt.profiling.texts", "inside treeopt"),
        ("treeopt/profiling/latency.py", "import rich.table", "click and rich are for the command line only"),
        ("treespec/evaluation/runner.py", "def f():\n    import click", "click and rich are for the command line only"),
        ("treeopt/optimizer/search.py", "import treeopt.pictures.trees", "inside treeopt"),
        ("treespec/text/generation.py", "import treespec.evaluation.report", "inside treespec"),
        ("treeopt/profiles/drawing.py", "def f():\n    import matplotlib", "matplotlib is for treeopt.pictures only"),
        ("treespec/decoding/loop.py", "import datasets", "datasets is for treespec.data.hub_datasets only"),
    ],
)
def test_a_planted_violation_breaks_its_contract(planted, module, line, broken):
    with planted(module, line) as folder:
        code, output = lint_imports(folder)
    assert code == 1, output
    assert broken in output.partition("Broken contracts")[2], output


def test_a_planted_line_is_taken_out_again(planted):
    with planted("treespec/errors.py", "") as folder:
        assert lint_imports(folder)[0] == 0
