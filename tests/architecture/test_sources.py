"""Rules that the linters do not know: how `.pt` files are loaded, and what must not stand in the sources."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for folder in ("treespec", "treeopt", "cli", "benchmarks") for path in (ROOT / folder).rglob("*.py"))
TEXTS = (
    SOURCES
    + sorted((ROOT / "docs").glob("*.md"))
    + sorted(path for path in (ROOT / "growmaps").rglob("*") if path.suffix in (".md", ".json"))
    + [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "Makefile", "pyproject.toml")]
)
PRIVATE = re.compile(r"/home/(?!someone)\w|/work/|/root/|\.\./shared|--index-url|--extra-index-url|pypi\.org|download\.pytorch\.org")


def calls(path):
    """(dotted name, keywords) of every call in a source file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}


def test_the_sources_are_there():
    assert len(SOURCES) > 20


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_pt_files_are_loaded_safely(path):
    for name, keywords in calls(path):
        if name == "torch.load":
            assert keywords.get("weights_only") == "True", "a .pt file may run code"
            assert "map_location" in keywords, "a .pt file saved from CUDA must load without a GPU"
        assert name not in {"pickle.load", "pickle.loads", "eval", "exec"}


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_private_path_and_no_package_index(path):
    found = PRIVATE.search(path.read_text())
    assert found is None, found
