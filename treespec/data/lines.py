"""Lines and JSON elements of files of any size, each below a limit, so that a file takes no more memory than its longest row."""

import codecs
import json
import re
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import IO, Any

from treespec.errors import DatasetError
from treespec.files.kinds import HEAD, JSON, kind_of

MAX_ROW_BYTES = 8 << 20
"""Longest line, or element of an array, that is read."""

_CHUNK = 1 << 20
_ESCAPE = 16
"""More characters than the longest thing in JSON, but for strings and numbers, that may be cut off at the end of a piece."""
_DECODER, _SPACE = json.JSONDecoder(), re.compile(r"[ \t\n\r]*")


def lines_of(path: Path, remedy: str, limit: int = MAX_ROW_BYTES) -> Iterator[bytes]:
    """Yield the lines of a file. Raises DatasetError, saying the `remedy`, for one of more than `limit` bytes."""
    with _opened(path) as file:
        for number, line in enumerate(iter(lambda: file.readline(limit + 1), b""), start=1):
            if len(line) > limit:
                raise _too_long(f"{path.name}, line {number}", limit, remedy)
            yield line


def _too_long(name: str, limit: int, remedy: str) -> DatasetError:
    return DatasetError(f"{name} is longer than the limit of {limit >> 20} MB for a row; {remedy}")


def holds_array(path: Path) -> bool:
    """Return whether the first character of a file that is no white space begins a JSON array."""
    with _opened(path) as file:
        beginning = file.read(_CHUNK).removeprefix(codecs.BOM_UTF8).lstrip()
    return beginning.startswith(b"[")


def elements_of(path: Path) -> Iterator[Any]:
    """Yield the elements of a file that holds one JSON array. Raises DatasetError for invalid JSON, and for an element that is too long."""
    with _opened(path) as file:
        yield from _Array(path.name, file).elements()


class _Array:
    """A JSON array that is read piece by piece: `text` is the piece at hand, parsed up to `at`."""

    def __init__(self, name: str, file: IO[bytes]) -> None:
        self._name, self._file = name, file
        self._decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self._text, self._at, self._ended = "", 0, False
        self._lines, self._columns = 1, 0
        """Place of the piece's first character: its line, and the characters before it there."""

    def elements(self) -> Iterator[Any]:
        """Yield the elements, as they are parsed."""
        self._pass("[")
        if self._next() != "]":
            yield self._element(1)
            for number in count(2):
                if self._next() == "]":
                    break
                self._pass(",")
                self._next()
                yield self._element(number)
        self._pass("]")
        if self._next():
            raise self._invalid("Extra data", self._at)

    def _element(self, number: int) -> Any:
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
                if end < len(self._text) or self._ended:  # else a number may go on in the next piece
                    self._at = end
                    return value
            except json.JSONDecodeError as e:
                cut_off = e.msg.startswith("Unterminated") or e.pos > len(self._text) - _ESCAPE
                if self._ended or not cut_off:
                    raise self._invalid(e.msg.removesuffix(" at"), e.pos) from e
            except RecursionError as e:
                raise DatasetError(f"{self._name}, element {number}: its JSON is nested too deeply") from e
            except ValueError as e:  # a number of too many digits
                raise DatasetError(f"{self._name}, element {number}: no valid JSON: {e}") from e
            if (held := len(self._text) - self._at) > MAX_ROW_BYTES:
                raise _too_long(f"{self._name}, element {number}", MAX_ROW_BYTES, "cut it into rows, or correct the JSON there")
            self._more(max(_CHUNK, held))

    def _next(self) -> str:
        """Pass white space and return the next character; it is empty at the end of the file."""
        while True:
            self._at = _SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]  # it matches nothing at all, too
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            self._more(_CHUNK)

    def _pass(self, mark: str) -> None:
        if self._next() != mark:
            raise self._invalid(f"Expecting {mark!r}", self._at)
        self._at += 1

    def _more(self, size: int) -> None:
        """Drop what is parsed, and read on."""
        self._lines, self._columns = self._place(self._at)
        piece = self._file.read(size)
        self._text, self._at, self._ended = self._text[self._at :] + self._decode(piece, not piece), 0, not piece

    def _place(self, at: int) -> tuple[int, int]:
        """Return the line of a character of the piece, and how many stand before it there."""
        breaks, last = self._text.count("\n", 0, at), self._text.rfind("\n", 0, at)
        return self._lines + breaks, at - last - 1 if breaks else self._columns + at

    def _invalid(self, reason: str, at: int) -> DatasetError:
        line, before = self._place(at)
        return DatasetError(f"{self._name}, line {line}: no valid JSON: {reason} at column {before + 1}; correct it there")


def _opened(path: Path) -> IO[bytes]:
    """Open a regular file. Raises DatasetError for a device, which may never end, and for a pipe, which can be read only once."""
    if path.exists() and not path.is_file():
        raise DatasetError(f"{path} is no regular file; a data set is read more than once: write it to a file")
    refuse_other_kind(path, "rows of text or JSON", JSON)
    return path.open("rb")


def refuse_other_kind(path: Path, needed: str, own: str) -> None:
    """Raise DatasetError for a file that begins like something else than what is `needed`, whose kind is called `own`."""
    with path.open("rb") as file:
        head = file.read(HEAD)
    kind = kind_of(head) if head.strip(b"\0 \t\r\n") else None
    if kind not in (None, own):
        raise DatasetError(f"{path} {kind}" if ";" in str(kind) else f"{path} {kind}, but {needed} are needed; name another file")
