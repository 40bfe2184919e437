"""No module imports itself by way of others: not at the top of a file, and not inside a function either."""

import ast
import functools
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {"treespec": "treespec", "treeopt": "treeopt", "cli": "treeopt.cli", "growmaps": "treeopt.growmaps"}


def modules():
    """Name and source of every module of the installed packages."""
    found = {}
    for folder, package in PACKAGES.items():
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join([package, *(part for part in parts if part != "__init__")])] = path.read_text()
    return found


def statements(node):
    """Every statement below a node, but for those that only a type checker reads."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            for other in child.orelse:
                yield from (other, *statements(other))
        else:
            yield from (child, *statements(child))


@functools.cache
def imported(name, source):
    """Names that the import statements of a module ask for: `from a import b` may mean the module a.b or something inside a."""
    found = []
    for node in statements(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(alias.name,) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name}: a relative import"
            found += [(f"{node.module}.{alias.name}", node.module) for alias in node.names]
    return found


def graph(sources):
    """Module -> modules of ours that it imports."""
    found = {name: [[each for each in names if each in sources] for names in imported(name, source)] for name, source in sources.items()}
    return {name: {ours[0] for ours in names if ours} for name, names in found.items()}


def circle(sources):
    """The modules of one circle, the first one last again; none where there is no circle."""
    try:
        graphlib.TopologicalSorter(graph(sources)).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def test_no_module_imports_itself_by_way_of_others():
    found = circle(modules())
    assert not found, " <- ".join(found)


def test_the_graph_is_that_of_the_packages():
    found = graph(modules())
    assert len(found) > 100
    assert "treespec.decoding.step" in found["treespec.decoding.loop"]
    assert "treeopt.cli.output" in found["treeopt.cli.evaluate"]
    assert "treeopt.demo" in found["treeopt.cli.demo"], "imported inside a function"


@pytest.mark.parametrize(
    ("line", "closes"),
    [
        ("import treespec.decoding.loop", True),
        ("def f():\n    from treespec.decoding import loop", True),
        ("try:\n    from treespec.decoding.loop import decode_speculative\nexcept ImportError:\n    pass", True),
        ("if TYPE_CHECKING:\n    from treespec.decoding.loop import Request", False),
        ("if TYPE_CHECKING:\n    pass\nelse:\n    import treespec.decoding.loop", True),
        ("import treespec.files.locks", False),
    ],
)
def test_a_planted_circle_is_found(line, closes):
    sources = modules()
    sources["treespec.trees.tree"] += f"\n{line}\n"  # which loop imports, by way of others
    assert ("treespec.trees.tree" in circle(sources)) == closes
