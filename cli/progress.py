"""The progress of a command on stderr: bars on a terminal, lines elsewhere."""

import sys
import time
from types import TracebackType
from typing import Any

from treeopt.cli.output import is_quiet, note, screen
from treeopt.cli.rates import Pace
from treespec.printable import printable

_LOG_SECONDS = 10.0
"""Shortest time between two lines of a stage's progress if stderr is no terminal."""


class Progress:
    """A progress callback `(what, done, total)`. It draws bars on a terminal, else it prints a line at a stage's end and every ten seconds.

    Both say the rate and the time that is left. With --quiet there is neither.
    """

    def __init__(self) -> None:
        self._bars: Any = None
        self._paces: dict[str, Pace] = {}
        self._quiet = is_quiet()
        self._tasks: dict[str, Any] = {}
        self._logged: dict[str, float] = {}
        self._last: dict[str, tuple[int, int]] = {}

    def __enter__(self) -> "Progress":
        """Start the bars where stderr is a terminal."""
        if sys.stderr.isatty() and not self._quiet:
            from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bars

            told = TextColumn("{task.fields[told]}", markup=False)
            columns = (TextColumn("{task.description}", markup=False), BarColumn(), told, TimeElapsedColumn())
            self._bars = Bars(*columns, console=screen(stderr=True), transient=True)
            self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        """Stop the bars."""
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Report that `done` of `total` units of `what` are done."""
        if self._quiet:
            return
        told = self._paces.setdefault(what, Pace.of(what)).told(done, total)
        if self._bars is not None:
            if what not in self._tasks:
                self._tasks[what] = self._bars.add_task(printable(what), total=total, told="")
            self._bars.update(self._tasks[what], completed=done, total=total, told=told)
            return
        line, now = f"{what}: {told}", time.monotonic()
        if (done, total) != self._last.get(what) and (done >= total or now - self._logged.setdefault(what, now) >= _LOG_SECONDS):
            self._last[what], self._logged[what] = (done, total), now
            note(line)
