"""docs/python.md: its code runs as it stands there, from top to bottom."""

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest

import treeopt

PAGE = Path(__file__).parents[1].joinpath("docs/python.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.M | re.S)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    names: dict[str, Any] = {}
    printed = io.StringIO()
    with contextlib.chdir(tmp_path_factory.mktemp("page")), contextlib.redirect_stdout(printed):
        for block in BLOCKS:
            exec(compile(block, "docs/python.md", "exec"), names)
    return names | {"printed": printed.getvalue()}


def test_the_page_runs(page: dict[str, Any]) -> None:
    assert page["report"].lossless == page["same"].lossless == "match"
    assert page["report"].predicted.tokens_per_step == page["growmap"].promise.tokens_per_step
    assert [one.replay.tree for one in page["replayed"].trees] == [page["growmap"].tree, treeopt.SpeculationTree.chain(4)]
    assert page["trace"].positions == page["acceptance"].positions
    assert page["again"].tree == page["growmap"].tree
    assert page["small"].tree.paths == ((0,), (1,), (0, 0))
    assert page["numbers"].text in page["printed"]
    assert page["written"].text and "\n\n" not in page["written"].text
    assert page["printed"].endswith("True\n"), "generate and tree_generate give the same tokens"


def test_every_public_name_stands_on_the_page() -> None:
    assert [name for name in treeopt.__all__ if name not in PAGE] == []
