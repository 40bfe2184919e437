"""Rules that the linters do not know: how `.pt` files are loaded, and what must not stand in the sources."""

import ast
import re
from pathlib import Path

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


def where(path):
    return path.relative_to(ROOT).as_posix()


def test_pt_files_are_loaded_safely():
    for path in SOURCES:
        for name, keywords in calls(path):
            if name == "torch.load":
                assert keywords.get("weights_only") == "True", f"{where(path)}: a .pt file may run code"
                assert "map_location" in keywords, f"{where(path)}: a .pt file saved from CUDA must load without a GPU"
            assert name not in {"pickle.load", "pickle.loads", "eval", "exec"}, where(path)


def test_no_private_path_and_no_package_index():
    results = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
    found = {where(path): match.group() for path in [*TEXTS, *results] if (match := PRIVATE.search(path.read_text()))}
    assert not found


def test_files_are_as_short_as_contributing_says():
    rule = (ROOT / "CONTRIBUTING.md").read_text().partition("**One noun per file.**")[2].partition("\n- **")[0]
    (limit,) = re.findall(r"under (\d+) lines", rule)
    exceptions = {name for name in re.findall(r"`([\w/.]+)`", rule) if name.endswith(".py")}
    long = {where(path) for path in SOURCES if len(path.read_text().splitlines()) >= int(limit)}
    assert long == exceptions, f"split these, or name them in CONTRIBUTING.md: {sorted(long ^ exceptions)}"
