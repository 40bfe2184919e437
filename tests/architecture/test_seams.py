"""What is looked up in a table is asked, not named; and what the library says in errors, it says in its own words.

Rules and verifiers are entered in `rules.RULES` and `verifiers.VERIFIERS`, plans say themselves what they need, and parameters are
called by the names that they have in Python: only the command line knows flags.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from treespec.decoding.rules import RULES
from treespec.decoding.verifiers import VERIFIERS

ROOT = Path(__file__).parents[2]
LIBRARY = sorted(path for folder in ("treespec", "treeopt") for path in (ROOT / folder).rglob("*.py"))
SOURCES = [*LIBRARY, *sorted((ROOT / "cli").glob("*.py"))]
TABLES = {ROOT / "treespec/decoding/rules.py", ROOT / "treespec/decoding/verifiers/__init__.py"}
_PROGRAMS = ("growmap_library.py", "training/embedded_pair.py", "exports/measured.py")  # they have options of their own
PROGRAMS = {ROOT / "treeopt" / name for name in _PROGRAMS}
PLANS = {"SpeculationTree", "DynamicBudget"}
NAMED = ast.Name | ast.Attribute


def texts(source: str) -> Iterator[str]:
    """All string literals, the parts of formatted ones and docstrings included."""
    return (node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant) and isinstance(node.value, str))


def names_of_rules(source: str) -> list[str]:
    """String literals that are the name of a rule or a verifier."""
    return [text for text in texts(source) if text in {*RULES, *VERIFIERS}]


def checks_of_plans(source: str) -> list[str]:
    """Calls of isinstance that ask for a kind of plan."""
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance")
    return [
        ast.unparse(call)
        for call in calls
        if PLANS & {node.id if isinstance(node, ast.Name) else node.attr for node in ast.walk(call.args[1]) if isinstance(node, NAMED)}
    ]


def flags(source: str) -> list[str]:
    """Options of treeopt that string literals speak of."""
    from treeopt.cli.main import main

    known = sorted(
        {
            flag
            for command in commands(main)
            for option in command.params
            for flag in (*option.opts, *option.secondary_opts)
            if flag.startswith("--")
        }
    )
    speaks = re.compile(rf"(?<![\w-])(?:{'|'.join(known)})(?![\w=-])")
    return [found for text in texts(source) for found in speaks.findall(text)]


def commands(command: click.Command) -> list[click.Command]:
    below = command.commands.values() if isinstance(command, click.Group) else ()
    return [command, *(found for sub in below for found in commands(sub))]


def test_rules_and_verifiers_are_named_in_their_tables_only() -> None:
    found = {path.relative_to(ROOT).as_posix(): names_of_rules(path.read_text()) for path in SOURCES if path not in TABLES}
    assert {path: names for path, names in found.items() if names} == {}


def test_plans_are_asked_and_not_told_apart() -> None:
    found = {path.relative_to(ROOT).as_posix(): checks_of_plans(path.read_text()) for path in SOURCES}
    assert {path: calls for path, calls in found.items() if calls} == {}


def test_the_library_speaks_of_parameters_and_not_of_flags() -> None:
    found = {path.relative_to(ROOT).as_posix(): flags(path.read_text()) for path in LIBRARY if path not in PROGRAMS}
    assert {path: said for path, said in found.items() if said} == {}


@pytest.mark.parametrize(
    ("find", "planted", "found"),
    [
        (names_of_rules, 'def f(drafting):\n    return drafting.rule == "swor"', ["swor"]),
        (names_of_rules, 'KNOWN = ("sequential", "traversal")', ["sequential", "traversal"]),
        (checks_of_plans, "def f(plan):\n    return isinstance(plan, tree.SpeculationTree)", ["isinstance(plan, tree.SpeculationTree)"]),
        (checks_of_plans, "isinstance(x, int | DynamicBudget)", ["isinstance(x, int | DynamicBudget)"]),
        (flags, 'raise ValueError(f"lower --gen-len, which is {n}")', ["--gen-len"]),
        (flags, 'def f():\n    """See `--draft`."""', ["--draft"]),
        (flags, 'run(["nvidia-smi", "--format=csv", "--porcelain"])', []),
    ],
)
def test_a_planted_violation_is_found(find: object, planted: str, found: list[str]) -> None:
    assert callable(find)
    assert find(planted) == found


def test_the_tables_and_the_programs_are_there() -> None:
    assert all(path.exists() for path in TABLES | PROGRAMS)
    assert len(LIBRARY) > 90
