"""The scripts in examples/ run as they stand, and the notebook is one of them."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
SAID = {
    "own_drafter.py": "lossless: all 4 outputs equal those of autoregressive decoding",
    "tree_inside_transformers.py": "'repetition_penalty': 1.2} - the same tokens: True",
    "tune_a_pair.py": "lossless: all 8 outputs equal those of autoregressive decoding",
}


def test_every_script_is_tested() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == {*SAID, "notebook.py"}


@pytest.mark.parametrize("name", SAID)
def test_the_script_runs(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / name], capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert SAID[name] in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_notebook_is_the_script() -> None:
    made = runpy.run_path(str(EXAMPLES / "notebook.py"))["notebook_of"]((EXAMPLES / "tune_a_pair.py").read_text())
    assert json.loads((EXAMPLES / "tune_a_pair.ipynb").read_text()) == made, "run python examples/notebook.py"
    code = "\n".join("".join(cell["source"]) for cell in made["cells"] if cell["cell_type"] == "code")
    compile(code, "tune_a_pair.ipynb", "exec")
    assert code.count("treeopt.") >= 7
