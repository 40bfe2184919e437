"""Printing: results on stdout as tables or as one JSON object, notes and progress on stderr."""

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import click

from treeopt.cli.flags import with_flags

if TYPE_CHECKING:
    from rich.console import Console

REPLIES = "replies"
"""The part of a command's work that writes the target's replies in conversations."""

_LOG_SECONDS = 10.0
"""Shortest time between two lines of a stage's progress if stderr is no terminal."""


def emit(output_format: str, data: Mapping[str, Any], render: Callable[["Console", Mapping[str, Any]], None]) -> None:
    """Print a result: `data` as one JSON object, or as `render` draws it."""
    if output_format == "json":
        click.echo(json.dumps(_finite(data), allow_nan=False))
        return
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console.width = 110
    render(console, data)


def note(message: str) -> None:
    """Print a line for people on stderr, with flags in place of the names of parameters."""
    ctx = click.get_current_context(silent=True)
    click.echo(" ".join(with_flags(message, None if ctx is None else ctx.command).splitlines()), err=True)


def note_doubt(agreed: float, positions: int, vocabulary: int, draft: str = "the draft") -> None:
    """Say on stderr if a draft agreed with the target's choice so rarely that it may be the wrong one."""
    from treespec.evaluation.doubt import is_doubtful

    if is_doubtful(agreed, positions, vocabulary):
        note(f"{draft} agrees with the target on {round(agreed)} of {positions} first tokens: is it the right draft?")


def journal_of(output: Path | None, part: str = "") -> Path | None:
    """Return the path of the journal of unfinished work on a file, from which the same command goes on; None beside devices and pipes."""
    if output is None or (output.exists() and not output.is_file()):
        return None
    return output.with_name(f"{output.name}{part and '.' + part}.journal")


@contextmanager
def claimed(output: Path | None) -> Iterator[None]:
    """Keep other runs from writing this file, through whatever link, or its journals during this block. Raises OutputError if one does already."""
    if output is None or journal_of(output) is None:
        yield
        return
    from treespec.files.locks import alone, lock_of

    with alone(lock_of(output.resolve()), output):
        yield


def discard_journals(output: Path | None) -> None:
    """Delete the journals of a file that is written."""
    from treespec.files.journal import discard

    for part in ("", REPLIES):
        discard(journal_of(output, part))


class Progress:
    """A progress callback `(what, done, total)`. It draws bars on a terminal, else it prints a line at a stage's end and every ten seconds."""

    def __init__(self) -> None:
        self._bars: Any = None
        self._tasks: dict[str, Any] = {}
        self._logged: dict[str, float] = {}
        self._last = ""

    def __enter__(self) -> "Progress":
        """Start the bars where stderr is a terminal."""
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bars

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._bars = Bars(*columns, console=Console(stderr=True), transient=True)
            self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        """Stop the bars."""
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Report that `done` of `total` units of `what` are done."""
        if self._bars is not None:
            if what not in self._tasks:
                self._tasks[what] = self._bars.add_task(what, total=total)
            self._bars.update(self._tasks[what], completed=done, total=total)
            return
        line, now = f"{what}: {done}/{total}", time.monotonic()
        if line != self._last and (done >= total or now - self._logged.setdefault(what, now) >= _LOG_SECONDS):
            self._last, self._logged[what] = line, now
            note(line)


def _finite(value: Any) -> Any:
    """Return data with null in place of NaN and infinities, which JSON does not have, and with numpy's numbers as Python's."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if hasattr(value, "item") and not isinstance(value, str):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
