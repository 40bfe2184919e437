"""The forms of results beside boxes and JSON: CSV that programs read, and Markdown that pages show."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from treeopt.cli.forms import as_csv, as_markdown, sentences
from treespec.tables import Table, figures, milliseconds, number
from treespec.trees.growmap import GrowMap
from treespec.trees.tree import SpeculationTree

NASTY = ('a|b, "c"', "back\\slash", "two\nlines", "*bold* _it_ `code` <b> [x](y)", "=1+1", "")


def read(text: str) -> list[list[str]]:
    """The rows of CSV text, without the empty ones between blocks."""
    return [row for row in csv.reader(io.StringIO(text)) if row]


def cells(line: str) -> list[str]:
    """The cells of a line of a Markdown table: what stands between pipes without a backslash, with the backslashes taken away."""
    found, at = [""], 0
    while at < len(line):
        if line[at] == "\\":
            at += 1
            found[-1] += line[at]
        elif line[at] == "|":
            found.append("")
        else:
            found[-1] += line[at]
        at += 1
    return [cell.strip() for cell in found[1:-1]]


def test_csv_quotes_what_has_commas_quotes_and_line_ends() -> None:
    rows = read(as_csv([Table("a title, with a comma", ("", "n"), [(name, "1") for name in NASTY])]))
    assert rows[0] == ["table", "name", "n"]
    assert [row[1] for row in rows[1:]] == list(NASTY)
    assert {row[0] for row in rows[1:]} == {"a title, with a comma"}


def test_csv_has_whole_numbers_and_the_ends_of_intervals_apart() -> None:
    third, span = 1 / 3, (0.1 / 3, 2 / 3)
    table = Table(
        "", ("", "x", "ms", "n"), [("one", number(third, 2, span), milliseconds(third), "1,234"), ("none", number(None, 2), "-", "7")]
    )
    heads, one, none = read(as_csv([table]))
    assert heads == ["table", "name", "x", "x low", "x high", "ms", "n"]
    assert [float(cell) for cell in one[2:]] == [third, *span, 1e3 * third, 1234]
    assert none == ["", "none", "", "", "", "", "7"]


def test_csv_parts_tables_by_an_empty_line_and_leaves_sentences_out() -> None:
    drawing = [
        figures("one", [("a", "1")]),
        "a sentence",
        "a\npicture",
        Table("two", ("x",), [("2",)], left_out=["3 more rows are not shown"]),
    ]
    assert as_csv(drawing) == "table,name,value\none,a,1\n\ntable,x\ntwo,2"
    assert list(sentences(drawing)) == ["a sentence", "3 more rows are not shown; --format json has all"]


def test_markdown_keeps_pipes_and_marks_in_their_cells() -> None:
    title, lines = as_markdown([Table("a|b", ("", "n"), [(name, "1") for name in NASTY])]).split("\n\n")
    assert title == r"**a\|b**"
    head, rule, *rows = lines.splitlines()
    assert (cells(head), rule) == (["", "n"], "|:---|---:|")
    assert [cells(row)[0] for row in rows] == [name.replace("\n", r"\n") for name in NASTY]
    assert all(len(cells(row)) == 2 for row in rows)
    assert r"\*bold\* \_it\_ \`code\` \<b> [x]\(y)" in lines


def test_markdown_fences_pictures_by_more_than_they_hold() -> None:
    assert as_markdown(["a\n```` b", "one * line"]) == "`````text\na\n```` b\n`````\n\none \\* line"


@pytest.mark.parametrize("form", ["csv", "markdown"])
def test_every_kind_of_result_has_these_forms(form: str, run: Any, profiles: tuple[Path, Path]) -> None:
    outcomes = [run("inspect", path, "--format", form) for path in profiles]
    outcomes += [run("grow", "--acceptance", profiles[0], "--latency", profiles[1], "--frontier", "-o", "tree.pt", "--format", form)]
    outcomes += [run("inspect", "tree.pt", "--format", form), run("inspect", "--list", "--format", form), run("env", "--format", form)]
    for outcome in outcomes:
        assert outcome.code == 0
        blocks = outcome.out.strip().split("\n\n")
        if form == "csv":
            tables = [read(block) for block in blocks]
            assert all(rows[0][0] == "table" and {len(row) for row in rows} == {len(rows[0])} for rows in tables)
        else:
            tables = [[cells(line) for line in block.splitlines()] for block in blocks if block.startswith("|")]
            assert all({len(row) for row in rows} == {len(rows[0])} for rows in tables)
        assert tables


@pytest.mark.parametrize("parents", [[-1], [-1, 0, 0, 1]])
def test_csv_of_a_growmap_has_nothing_of_its_picture(parents: list[int], run: Any) -> None:
    GrowMap(SpeculationTree(tuple(parents))).write("t.pt")
    outcome = run("inspect", "t.pt", "--max-nodes", 1, "--format", "csv")
    assert (outcome.code, outcome.err) == (0, ""), "neither the picture nor what explains it"
    heads, *rows = read(outcome.out)
    assert heads == ["table", "name", "value"]
    assert {len(row) for row in rows} == {3}
    assert ["growmap", "size (root included)", str(len(parents))] in rows
    assert "each line: rank among its siblings" in run("inspect", "t.pt", "--format", "markdown").out


def test_csv_of_a_profile_has_its_numbers_whole(run: Any, profiles: tuple[Path, Path]) -> None:
    data = json.loads(profiles[0].read_text()) | {
        "rank_probability": [2 / 3, 1 / 7],
        "none_accepted": 0.1,
        "standard_error": [1e-3 / 3, 1e-7],
    }
    profiles[0].write_text(json.dumps(data))
    outcome = run("inspect", profiles[0], "--format", "csv")
    heads, *rows = read(outcome.out)
    assert heads[1:4] == ["rank", "P(accepted)", "standard error"]
    assert [float(row[2]) for row in rows] == data["rank_probability"]
    assert [float(row[3]) for row in rows] == data["standard_error"]
    assert "no rank accepted: 0.1000" in outcome.err


def test_a_text_has_no_table(run: Any) -> None:
    outcome = run("run", "--target", "embedded-target", "--prompt", "x", "--format", "csv")
    assert (outcome.code, outcome.out) == (2, "")
    assert "'csv' is not one of 'rich', 'json'" in outcome.err
