"""docs/transformers.md runs as it stands there, one block after the other."""

import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[3] / "docs" / "transformers.md"


def test_the_page_runs_and_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) == 3
    names: dict[str, Any] = {"__name__": "page"}
    said = []
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
        said.append(capsys.readouterr().out)
    assert said[0] == "True\n"
    assert said[1].strip() in names["tokenizer"].decode(names["plain"][0])
    assert len(said[1]) > 40
    assert said[2] == ""
