"""Docstrings are sentences: those of functions begin with a verb in the imperative, and none is half a sentence."""

import ast
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("treespec", "treeopt", "cli")
FILES = sorted([*(ROOT / "treespec").glob("*.py"), *(file for room in ROOMS for file in (ROOT / room).rglob("*.py"))])
HALF = re.compile(r"(Of|What|Where|Those|Within|The same|That|Why|How|Likewise)\b")
NO_VERB = re.compile(r"(A|An|The|Its|Per|Each|All|One)\b|[\[(a-z`]|\w+s\b(?<!\bPass)")


def docstrings(tree: ast.Module) -> Iterator[tuple[int, bool, str]]:
    """Yield the line, whether it is of a function that is no property, and the text of every docstring."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            called = isinstance(node, ast.FunctionDef) and not any("property" in ast.unparse(mark) for mark in node.decorator_list)
            if text is not None:
                yield getattr(node, "lineno", 1), called, text
        if isinstance(node, ast.Module | ast.ClassDef):
            for before, after in pairwise(node.body):
                if isinstance(before, ast.Assign | ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                    yield after.lineno, False, str(after.value.value)


def faults(source: str) -> list[str]:
    """Return the first lines of the docstrings that are no sentences."""
    found = docstrings(ast.parse(source))
    return [f"{line}: {text.splitlines()[0]}" for line, called, text in found if HALF.match(text) or (called and NO_VERB.match(text))]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_docstrings_are_sentences(file: Path) -> None:
    assert faults(file.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        '"""What a file holds."""',
        'def f():\n    """The same, backwards."""',
        'def f():\n    """Returns a number."""',
        'class C:\n    """A class."""\n    a = 1\n    """Of the file."""',
        'class C:\n    def f(self):\n        """int64 [n]."""',
    ],
)
def test_half_sentences_are_found(source: str) -> None:
    assert len(faults(source)) == 1


def test_attributes_and_properties_are_named() -> None:
    assert faults('class C:\n    """A class."""\n    @property\n    def n(self):\n        """Number of nodes."""') == []
