"""Whatever is printed goes through one door, which leaves no control character from outside."""

import io
import json
import logging
import re
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from treeopt.cli import output
from treeopt.cli.output import Door, doors
from treeopt.cli.progress import Progress
from treespec.printable import printable

CLI = Path(__file__).parents[2] / "cli"
BAD = "\x1b[2J\x1b]0;t\x07\x9b31m\x7f\u202e\u2066\u200b\u2028\ufeff"
SEEN = r"\x1b[2J\x1b]0;t\x07\x9b31m\x7f\u202e\u2066\u200b\u2028\ufeff"
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")


def test_nothing_is_left_that_a_terminal_obeys_or_hides() -> None:
    visible = {
        *range(0x600, 0x606),
        0x6DD,
        0x70F,
        0x890,
        0x891,
        0x8E2,
        0x110BD,
        0x110CD,
        *range(0x13430, 0x13440),
        *range(0x1BCA0, 0x1BCA4),
    }
    for code in set(range(sys.maxunicode + 1)) - visible:
        hidden = unicodedata.category(chr(code)) in ("Cc", "Cf", "Cs", "Zl", "Zp") and chr(code) not in "\t\n"
        assert not hidden or printable(chr(code)).isascii(), hex(code)
    assert printable("é → 漢字\t\n😀") == "é → 漢字\t\n😀"
    assert printable(BAD) == SEEN


def test_there_is_no_other_door() -> None:
    """Tables print on the console that they are given, and only the door makes one."""
    other = re.compile(r"click\.(echo|secho|style)|(?<![\w.])print\(|std(out|err)\.write|(?<!\w)Console\(|from_markup|escape\(")
    found = {f"{path.name}: {line.strip()}" for path in CLI.glob("*.py") for line in path.read_text().splitlines() if other.search(line)}
    assert {line for line in found if not line.startswith("output.py")} == set()


def grown(path: Path, metadata: dict[str, Any]) -> Path:
    from treespec.trees.growmap import GrowMap
    from treespec.trees.tree import SpeculationTree

    GrowMap(SpeculationTree.chain(2), metadata).write(path)
    return path


def test_metadata_names_and_markup_are_shown_as_they_are(run: Any, tmp_path: Path) -> None:
    metadata = {"source": BAD, "my [bold]key[/bold] \x1b[31m": "[red]x[/red] :smile: \\[y]"}
    outcome = run("inspect", grown(tmp_path / "t.pt", metadata))
    assert (outcome.code, CONTROL.findall(outcome.out)) == (0, [])
    for words in (r"my [bold]key[/bold] \x1b[31m", "[red]x[/red] :smile: \\[y]", r"\x1b]0;t\x07\x9b31m"):
        assert words in outcome.out
    found = run("inspect", tmp_path / "t.pt", "--format", "json")
    assert found.json["metadata"] == metadata
    assert CONTROL.findall(found.out) == []


@pytest.mark.parametrize("name", [f"a{BAD}.json", f"a{BAD}.pt", f"no{BAD}", "[bold]x.json"])
def test_names_of_files_are_shown_in_errors(run: Any, tmp_path: Path, name: str) -> None:
    if not name.startswith("no"):
        (tmp_path / name).write_text("{")
    outcome = run("inspect", name)
    assert outcome.code != 0
    assert (CONTROL.findall(outcome.err), outcome.err.count("\n")) == ([], 1)


@pytest.mark.parametrize("write", ["logging", "stderr"])
def test_what_libraries_write_goes_through_the_door(write: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with doors():
        if write == "logging":
            handler = logging.StreamHandler(sys.stderr)
            handler.emit(logging.LogRecord("x", logging.WARNING, "", 0, f"a {BAD}", (), None))
        else:
            sys.stderr.write(f"a {BAD}")
    assert SEEN in stream.getvalue()
    assert CONTROL.findall(stream.getvalue()) == []
    assert sys.stderr is stream


class Full(io.StringIO):
    """A stream of a disk that is full."""

    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


def test_a_full_disk_matters_to_results_alone() -> None:
    assert Door(Full(), drops=True).write("a note") == 6
    with pytest.raises(OSError, match="No space"):
        Door(Full(), drops=False).write("a result")


def test_bars_keep_their_carriage_return_on_a_terminal() -> None:
    stream = io.StringIO()
    stream.isatty = lambda: True  # type: ignore[method-assign]
    Door(stream, drops=True).write("\r50 %\r\x1b[A")
    assert stream.getvalue() == "\r50 %\\r\\x1b[A"


def test_bars_of_libraries_are_dropped_where_nobody_watches() -> None:
    stream = io.StringIO()
    door = Door(stream, drops=True)
    for text in ("a\n", "\r50 %", "\r100 %", "\n", "b", "\n"):
        assert door.write(text) == len(text)
    assert stream.getvalue() == "a\nb\n"


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_shows_names_as_they_are(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    stream.isatty = lambda: terminal  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", stream)
    with doors(), Progress() as progress:
        progress("[red]a\x1b]0;t\x07", 1, 1)
        output.note("b\x9b31m")
        print("c\u202e", file=sys.stderr)
    shown = stream.getvalue()
    for words in (r"[red]a\x1b]0;t\x07", r"b\x9b31m", r"c\u202e"):
        assert words in shown
    assert not {"\x07", "\x9b", "\u202e"} & set(shown)
    assert "\x1b]" not in shown


def test_tables_show_the_first_rows_and_say_how_many_there_are(run: Any, tmp_path: Path, profiles: tuple[Path, Path]) -> None:
    acceptance, latency = (json.loads(path.read_text()) for path in profiles)
    acceptance |= {"rank_probability": [1e-5] * 3000, "standard_error": []}
    latency["target"] = [{"size": n + 1, "context": c, "seconds": [0.01]} for n in range(300) for c in range(20)]
    for path, data in zip(profiles, (acceptance, latency), strict=True):
        path.write_text(json.dumps(data))
    assert "2744 more ranks are not shown; --format json has all" in run("inspect", profiles[0]).out
    shown = run("inspect", profiles[1]).out
    assert "44 more sizes are not shown" in shown
    assert "8 more contexts are not shown" in shown
    assert len(run("inspect", profiles[0], "--format", "json").json["rank_probability"]) == 3000
