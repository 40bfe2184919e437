"""The command compare: one kind side by side, refusals in one line, and its forms."""

import csv
import io
import json
from pathlib import Path
from typing import Any


def test_profiles_are_held_against_one_another(run: Any, profiles: tuple[Path, Path], tmp_path: Path) -> None:
    other = json.loads(profiles[0].read_text()) | {"rank_probability": [0.7, 0.15, 0.05, 0.0]}
    (tmp_path / "b|c.json").write_text(json.dumps(other))
    outcome = run("compare", "a.json", "b|c.json", "--format", "json")
    first = outcome.json["figures"][0]
    assert (first["figure"], first["rank"], first["values"]) == ("rank_probability", 0, [0.6, 0.7])
    low, high = first["difference_intervals_95"][0]
    assert low < 0.7 - 0.6 < high
    rows = list(csv.reader(io.StringIO(run("compare", "a.json", "b|c.json", "--format", "csv").out)))
    assert rows[0] == ["table", "name", "a.json", "a.json low", "a.json high", "b|c.json", "b|c.json low", "b|c.json high", *(
        f"difference{end}" for end in ("", " low", " high")
    )]  # fmt: skip
    assert [float(cell) for cell in rows[1][-2:]] == [low, high]
    assert r"| a.json | b\|c.json | difference |" in run("compare", "a.json", "b|c.json", "--format", "markdown").out
    assert "+0.1000" in run("compare", "a.json", "b|c.json").out


def test_refusals_are_one_line(run: Any, profiles: tuple[Path, Path], tmp_path: Path) -> None:
    hot = json.loads(profiles[0].read_text()) | {"temperature": 0.6}
    (tmp_path / "hot.json").write_text(json.dumps(hot))
    cases = [
        (("a.json", "l.json"), 1, "a.json is an acceptance profile and l.json is a latency profile"),
        (("a.json", "hot.json"), 1, "a.json and hot.json differ in temperature: 0 and 0.6;"),
        (("a.json",), 2, "2 or more"),
        (("a.json", "none.json"), 2, "there is no file none.json"),
        (("a.json", "hot.json", "--across", "colour"), 2, "'colour' is not one of target, draft"),
    ]
    for arguments, code, said in cases:
        outcome = run("compare", *arguments)
        assert (outcome.code, outcome.out, outcome.err.count("\n")) == (code, "", 1), outcome.err
        assert said in outcome.err
    assert "Pass --across temperature to compare them" in run("compare", "a.json", "hot.json").err
    assert run("compare", "a.json", "hot.json", "--across", "temperature", "--format", "json").json["differ"] == {"temperature": [0.0, 0.6]}


def test_growmaps_that_come_along_go_by_their_names(run: Any) -> None:
    data = run("compare", "68m_7b-64", "68m_7b-128", "--format", "json").json
    assert data["names"] == ["68m_7b-64", "68m_7b-128"]
    assert data["figures"][0]["differences"] == [64]
