"""Printing: results on stdout as tables or as one JSON object, notes on stderr.

This is the only door to the terminal. Whatever goes through it, from files, names or libraries, leaves as plain text (`printable`).
"""

import errno
import io
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from treeopt.cli.flags import with_own_flags
from treespec.errors import DatasetError, OutputError
from treespec.files.processes import Place
from treespec.printable import printable
from treespec.tables import Parts

if TYPE_CHECKING:
    from rich.console import Console

REPLIES = "replies"
"""The part of a command's work that writes the target's replies in conversations."""


def say(text: str, *, err: bool = False) -> None:
    """Print a line on stdout, or with `err` on stderr. Raises OutputError if stdout takes no more, but for a closed pipe."""
    if err:
        click.echo(printable(text), err=True)
        return
    with _to_stdout():
        click.echo(printable(text))


def emit(output_format: str, data: Mapping[str, Any], drawing: Parts) -> None:
    """Print a result: `data` as one JSON object, or its drawing. Raises OutputError if stdout takes no more.

    CSV has the tables of the drawing alone; its sentences go to stderr.
    """
    if output_format == "json":
        say(json.dumps(_finite(data), allow_nan=False).replace("\x7f", "\\u007f"))
        return
    if output_format in ("csv", "markdown"):
        from treeopt.cli import forms

        text = forms.as_csv(drawing) if output_format == "csv" else forms.as_markdown(drawing)
        if text:
            say(text)
        if output_format == "csv":
            for sentence in forms.sentences(drawing):  # they are a part of the result: --quiet leaves them
                say(with_own_flags(sentence), err=True)
        return
    from treeopt.cli.drawing import draw

    with _to_stdout():
        draw(screen(), drawing)


class Telling:
    """A text on stdout that is shown piece by piece, as it is made. On a terminal, some pieces have another style."""

    def __init__(self) -> None:
        self._screen = screen()
        self._begun = False

    @property
    def style(self) -> str | None:
        """The other style, in a word; None where there are no styles."""
        return "green" if self._screen.is_terminal and self._screen.color_system is not None else None

    def piece(self, text: str, *, styled: bool) -> None:
        """Show a piece at once, in the other style if it is `styled`. Raises OutputError if stdout takes no more."""
        from rich.segment import Segment, Segments
        from rich.style import Style

        style = Style.parse(self.style) if styled and self.style is not None else None
        with _to_stdout():
            if self._screen.is_terminal:
                self._screen.print(Segments([Segment(printable(text), style)]), end="", crop=False)
            else:
                click.echo(printable(text), nl=False)
        self._begun = not text.endswith("\n") if text else self._begun

    def end_line(self) -> None:
        """End the line, if one was begun."""
        if self._begun:
            self.piece("\n", styled=False)


def ask(marker: str) -> str | None:
    """Return the next line of standard input without its end, or None behind the last one. On a terminal, `marker` stands before it.

    Raises DatasetError for a line that is no text.
    """
    terminal = sys.stdin.isatty() and sys.stderr.isatty()
    if terminal:
        click.echo(marker, err=True, nl=False)
    try:
        line = sys.stdin.readline()
    except UnicodeDecodeError as e:
        raise DatasetError(f"standard input is no text: {e.reason} at byte {e.start}") from e
    if not line and terminal:
        click.echo("", err=True)
    return line.removesuffix("\n") if line else None


def note(message: str) -> None:
    """Print a line for people on stderr, with flags in place of the names of parameters. With --quiet, there are none."""
    if not is_quiet():
        say(" ".join(with_own_flags(message).splitlines()), err=True)


class Door(io.TextIOBase):
    """A standard stream for everybody else's writes: warnings, logging, tracebacks and libraries' own progress pass it as plain text.

    A carriage return at the beginning of a write stays on a terminal: bars begin with it. On a stderr that is none, bars are dropped, with
    the line end that follows them. So is what cannot be written there, for there is no place to say so, and the result does not depend on it.
    """

    def __init__(self, stream: Any, *, drops: bool) -> None:
        self.stream = stream
        self._drops = drops
        self._after_bar = False

    def write(self, text: str) -> int:
        """Write text as `printable` leaves it."""
        bar, shown = text.startswith("\r"), self.isatty()
        dropped = self._drops and not shown and (bar or (self._after_bar and text == "\n"))
        self._after_bar = bar
        if not dropped:
            self._do(lambda: self.stream.write("\r" + printable(text[1:]) if bar and shown else printable(text)))
        return len(text)

    def flush(self) -> None:
        """Write what is kept back."""
        self._do(self.stream.flush)

    def isatty(self) -> bool:
        """Return whether this is a terminal."""
        return bool(self.stream.isatty())

    def fileno(self) -> int:
        """Return the number of the file."""
        return int(self.stream.fileno())

    def writable(self) -> bool:
        """Return True."""
        return True

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Return the name of the encoding."""
        return str(self.stream.encoding)

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        """Return what happens to characters that the encoding lacks."""
        return getattr(self.stream, "errors", None)

    def _do(self, act: Callable[[], Any]) -> None:
        try:
            act()
        except OSError:
            if not self._drops:
                raise


@contextmanager
def silent() -> Iterator[None]:
    """Drop whatever this process prints during this block. Where several processes work together, the first one alone prints."""
    before = sys.stdout, sys.stderr
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        sys.stdout, sys.stderr = Door(nowhere, drops=True), Door(nowhere, drops=True)
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before


def open_doors() -> None:
    """Put a `Door` before stdout and stderr, where there is none yet. Characters that a terminal's encoding lacks are written out."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, Door):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
            setattr(sys, name, Door(stream, drops=name == "stderr"))


@contextmanager
def doors() -> Iterator[None]:
    """Keep a `Door` before stdout and stderr during this block."""
    before = sys.stdout, sys.stderr
    open_doors()
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def screen(*, stderr: bool = False) -> "Console":
    """Return rich's console on stdout or stderr. Its own colours and bars pass; whatever it is given to show is plain text without markup."""
    from rich.console import Console
    from rich.segment import Segment

    class Screen(Console):
        def render_str(self, text: str, **options: Any) -> Any:
            return super().render_str(printable(text), **options)

        def render(self, renderable: Any, options: Any = None) -> Iterator[Segment]:
            for segment in super().render(renderable, options):
                yield segment if segment.control else Segment(printable(segment.text), segment.style)

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    stream = sys.stderr if stderr else sys.stdout
    console = Screen(file=stream.stream if isinstance(stream, Door) else stream, markup=False, emoji=False)
    if not stderr and not console.is_terminal:
        console.width = 110
    return console


@contextmanager
def _to_stdout() -> Iterator[None]:
    """Turn errors of stdout in this block into OutputError; a closed pipe stays what it is."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as e:
        full = e.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "the disk is full; free some space or redirect it elsewhere" if full else f"{e.strerror or e}; redirect it elsewhere"
        raise OutputError(f"cannot write to standard output: {reason}") from e


def is_quiet() -> bool:
    """Return whether the running command shows its result and errors alone."""
    ctx = click.get_current_context(silent=True)
    return ctx is not None and bool(ctx.find_root().params.get("quiet"))


def is_there(output: Path | None) -> bool:
    """Return whether an output stands in the place of an earlier file with content."""
    from treespec.files.writing import has_content

    return output is not None and has_content(output)


def note_written(output: Path, replaced: bool) -> None:
    """Say on stderr that an output is written, and whether it `replaced` an earlier one."""
    note(f"wrote {output}" + (", in place of an earlier one" if replaced else ""))


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
    """Keep other runs from writing this file, through whatever link, or its journals during this block. Raises OutputError if one does already.

    Of several processes that share a command, the first one does so for all.
    """
    if output is None or journal_of(output) is None or not Place.of().first:
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


def _finite(value: Any) -> Any:
    """Return data with null in place of NaN and infinities, which JSON does not have, and with numpy's numbers as Python's."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if hasattr(value, "item") and not isinstance(value, str):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
