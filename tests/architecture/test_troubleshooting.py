"""docs/troubleshooting.md is held to the code: every error class has a section, and every message that is quoted is one that is said.

A message is a code span of four words or more that is no command; `...` in it stands for what is put in, and for the name of a parameter with its
value, which the command line shows as its option. Words that agree with a count stand in the plural. What is quoted in a section of an error class
must stand in a module that speaks of this class.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from treespec import errors

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
SOURCES = sorted(path for folder in ("treespec", "treeopt", "cli") for path in (ROOT / folder).rglob("*.py"))
COMMAND = re.compile(r"(\.venv/bin/)?(treeopt|make|python|pip|apt|accelerate|nvidia-smi) ")
PUT_IN = "\0"
"""Stands in a template for what a message puts in."""
PARAMETER = re.compile(rf"`[\w{PUT_IN}]+`(?: {PUT_IN})?")


def classes() -> set[str]:
    """Names of all errors that people are meant to read, but for their base."""
    kinds = (found for found in vars(errors).values() if isinstance(found, type) and issubclass(found, errors.TreeoptError))
    return {kind.__name__ for kind in kinds} - {"TreeoptError"}


def sections(page: str) -> dict[str, str]:
    """Title of every section, of both depths, to its text."""
    _, *parts = re.split(r"^##+ (.+)$", page, flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def quoted(text: str) -> list[str]:
    """The messages, reasons of a few words in the first column of a table included, that a text quotes."""
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]
    cells = [span for row in re.findall(r"^\| (`.*?) \|", text, flags=re.MULTILINE) for span in re.findall(r"`([^`]+)`", row)]
    return [span for span in spans if not COMMAND.match(span) and (len(span.split()) >= 4 or (span in cells and " " in span))]


def put_in(part: ast.expr) -> str:
    """`PUT_IN` for what is put into a string, with the words in the plural where it is `counted`."""
    call = part.value if isinstance(part, ast.FormattedValue) else None
    if not (isinstance(call, ast.Call) and ast.unparse(call.func) == "counted"):
        return PUT_IN
    words = [argument.value if isinstance(argument, ast.Constant) else None for argument in call.args[1:]]
    if None in words:
        return PUT_IN
    return f"{PUT_IN} {words[1] if len(words) > 1 else f'{words[0]}s'}"


def templates(source: str) -> Iterator[str]:
    """All string literals of a module; what is put in and the parameters that are named are `PUT_IN`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            yield PARAMETER.sub(
                PUT_IN, "".join(str(part.value) if isinstance(part, ast.Constant) else put_in(part) for part in node.values)
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield PARAMETER.sub(PUT_IN, node.value)


@cache
def said(path: Path) -> tuple[str, tuple[str, ...]]:
    """The text of a module, and its templates."""
    source = path.read_text()
    return source, tuple(templates(source))


def stands_in(message: str, found: tuple[str, ...]) -> bool:
    """Whether one of the templates has the message as a fragment."""
    fragment = re.compile(rf"(?:{PUT_IN}|\.\.\.)".join(map(re.escape, message.split("..."))))
    return any(fragment.search(template) for template in found)


def stale(page: str) -> list[str]:
    """Messages of the page that no module says; those in a section of an error class, that no module which has the class says."""
    found = []
    makefile = ((ROOT / "Makefile").read_text(),)
    for title, text in sections(page).items():
        modules = [literals for source, literals in map(said, SOURCES) if title not in classes() or title in source]
        found += [f"{title}: {message}" for message in quoted(text) if not any(stands_in(message, each) for each in [*modules, makefile])]
    return found


def test_every_error_class_has_a_section_and_no_other() -> None:
    named = {title for title in sections(PAGE) if re.fullmatch(r"\w+Error", title)}
    assert named == classes()


def test_no_error_class_stands_elsewhere() -> None:
    bases = classes() | {"TreeoptError"}
    for path in SOURCES:
        defined = [node for node in ast.walk(ast.parse(said(path)[0])) if isinstance(node, ast.ClassDef)]
        made = [node.name for node in defined if {ast.unparse(base).rpartition(".")[2] for base in node.bases} & bases]
        assert not made or path == ROOT / "treespec" / "errors.py", f"{path} makes {made}"


def test_every_section_of_a_class_quotes_two_messages_or_more() -> None:
    few = {title: quoted(text) for title, text in sections(PAGE).items() if title in classes() and len(quoted(text)) < 2}
    assert few == {}


def test_every_quoted_message_is_said() -> None:
    assert stale(PAGE) == []


def test_every_wrong_usage_of_the_command_line_is_explained() -> None:
    explained = quoted(sections(PAGE)["Wrong usage: exit code 2"])
    calls = [node for path in (ROOT / "cli").glob("*.py") for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    said = [tuple(templates(ast.unparse(call.args[0]))) for call in calls if ast.unparse(call.func) in ("click.UsageError", "WrongUsage")]
    whole = [found[:1] for found in said if found and " " in found[0].replace(PUT_IN, "").strip()]  # the others pass on what was said
    assert len(whole) > 10
    assert [found for found in whole if not any(stands_in(message, found) for message in explained)] == []


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("OutputError", "another run is writing ... today; wait for it"),  # a word was changed
        ("OutputError", "another run is writing now; wait for it"),  # what is put in was left out
        ("TreeError", "another run is writing ... now; wait for it"),  # said, but by another class
        ("Memory is full", "the GPU's memory is full; buy more"),
    ],
)
def test_a_planted_stale_message_is_found(section: str, message: str) -> None:
    planted = f"# Troubleshooting\n\n## {section}\n\n| message | what to do |\n|---|---|\n| `{message}` | Wait. |\n"
    assert stale(planted) == [f"{section}: {message}"]


def test_words_that_agree_with_a_count_are_read_in_the_plural() -> None:
    source = "f\"no {counted(len(x), 'node')} of {y}, {counted(2, 'child is', 'children are')} here\""
    assert next(templates(source)) == f"no {PUT_IN} nodes of {PUT_IN}, {PUT_IN} children are here"


def test_commands_and_options_are_no_messages() -> None:
    assert quoted("`treeopt profile latency --context 1,2`, `--dtype float16` and `make PYTHON=python3.12 demo now please`") == []
    assert quoted("A message `of four words\nor more` too") == ["of four words or more"]
    assert quoted("| reason | do |\n|---|---|\n| `triton is missing`, `a b` | `--size 3` |") == ["triton is missing", "a b"]
