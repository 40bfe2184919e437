"""Journal: finished pieces of a long piece of work, from which the same command goes on after an interruption."""

import contextlib
import glob
import json
import logging
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from itertools import chain, count
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, TypeVar

from treespec.errors import OutputError, counted
from treespec.files.locks import alone, lock_of
from treespec.files.reading import StrPath
from treespec.files.writing import refuse, write_all

_log = logging.getLogger(__name__)

T = TypeVar("T")


class Journal:
    """Finished pieces of a long piece of work, kept in an append-only JSONL file until the result is saved.

    After saving the result the caller calls `discard`, so that a write that fails loses nothing. The first line of the file is a
    fingerprint of the work (its options). When a journal is opened:
    - Other work: a journal with another fingerprint is renamed to `NAME.old`, or to `NAME.old-2` and so on, with a warning, and
      `restarted` is True.
    - Torn last line: it is dropped.
    - Damaged line: it is passed over, with a warning, and its piece is done again. Each line has a checksum (but not in journals of the
      first version, which are read too). A line counts as damaged too if `read`, which gets a key and its value and returns what `get`
      does, raises LookupError, TypeError or ValueError.
    - Something else of that name, such as a link, a pipe or a folder: OutputError.
    - One writer: a second run that opens the journal gets an OutputError.

    With `path` None nothing is kept. Memory holds the places of the pieces, not the pieces.
    """

    def __init__(self, path: StrPath | None, fingerprint: str, read: Callable[[str, Any], Any] = lambda key, value: value) -> None:
        """Open or create the journal. Raises OutputError if it cannot be written."""
        self.path = None if path is None else Path(path)
        self.restarted = False
        self._read = read
        self._places: dict[str, tuple[int, int]] = {}  # first byte and length of the line that holds a key
        self._file: BinaryIO | None = None
        self._held = contextlib.ExitStack()
        self._end = 0
        self._header = {"schema": "treeopt.journal", "version": 2, "fingerprint": fingerprint}
        if self.path is None:
            return
        if os.path.lexists(self.path) and (self.path.is_symlink() or not self.path.is_file()):
            raise OutputError(f"{self.path} is no regular file, and a file of that name keeps unfinished work; remove it")
        with contextlib.ExitStack() as held:
            held.enter_context(alone(lock_of(self.path), self.path))
            try:
                self._recover(self.path, fingerprint)
                self.path.touch()
                self._file = held.enter_context(self.path.open("r+b", buffering=0))
                self._file.truncate(self._end)
            except OSError as e:
                refuse(self.path, e)
            self._held = held.pop_all()

    def __len__(self) -> int:
        """Return the number of keys kept."""
        return len(self._places)

    def __iter__(self) -> Iterator[str]:
        """Return the keys kept, in the order of the file."""
        return iter(self._places)

    def __contains__(self, key: str) -> bool:
        """Return whether something was put under a key."""
        return key in self._places

    def get(self, key: str) -> Any | None:
        """Return the value that was put under a key, in this run or in an earlier one, or None."""
        if key not in self._places:
            return None
        start, length = self._places[key]
        file = self._open()
        file.seek(start)
        return self._read(key, json.loads(file.read(length))["value"])

    def put(self, key: str, value: Any) -> None:
        """Keep a JSON value, which is on the disk when this returns. Raises OutputError, and then the file is as it was."""
        self.put_all({key: value})

    def put_all(self, values: Mapping[str, Any]) -> None:
        """Keep several values, which are on the disk together when this returns. Raises OutputError, and then the file is as it was."""
        if self.path is None:
            return
        lines = [] if self._end else [_line(self._header)]
        places: dict[str, tuple[int, int]] = {}
        end = self._end + sum(map(len, lines))
        for key, value in values.items():
            lines.append(_line({"key": key, "value": value}))
            places[key] = (end, len(lines[-1]))
            end += len(lines[-1])
        self._append(b"".join(lines))
        self._places |= places

    def piece(self, key: str, work: Callable[[], T], value: Callable[[T], Any] = lambda done: done) -> T:
        """Return a piece of work: the one that an earlier run kept, else the result of `work`, which is kept as the JSON `value` of it.

        Raises OutputError, and whatever `work` raises.
        """
        known: T | None = self.get(key)
        if known is not None:
            return known
        done = work()
        self.put(key, value(done))
        return done

    def close(self) -> None:
        """Stop writing and leave the file for a later run, unless there is nothing in it."""
        if self._file is not None and self.path is not None:
            self._file.close()
            self._file = None
            if self._end == 0:
                self.path.unlink(missing_ok=True)
            self._held.close()

    def __enter__(self) -> "Journal":
        """Return the journal itself. It is closed, not deleted, at the end of the block."""
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        """Close the journal."""
        self.close()

    def _recover(self, path: Path, fingerprint: str) -> None:
        """Take over the entries of an earlier run of the same work. A file of other work is moved aside."""
        if not path.exists():
            return
        readable, damaged = self._scan(path, fingerprint)
        if damaged:
            _log.warning(f"{path} has {counted(damaged, 'damaged line')}, whose work is done again")
        if self.restarted:
            aside = _free(path.with_name(path.name + ".old"))
            why = "belongs to other work or other options" if readable else "is damaged in its first line"
            _log.warning("%s %s; it is now %s, and the work starts anew", path, why, aside.name)
            os.replace(path, aside)

    def _scan(self, path: Path, fingerprint: str) -> tuple[bool, int]:
        """Find the entries of a file, and set `_end` to where its last whole line ends; those of other work are none, and `restarted` says so.

        Return whether its first line can be read, and the number of damaged lines.
        """
        damaged = 0
        with path.open("rb") as file:
            header = next(file, b"")
            record = first = _record(header, checked=False)
            self.restarted = bool(header) and (record or {}).get("fingerprint") != fingerprint
            checked = (record or {}).get("version") != 1
            self._end = len(header) if header.endswith(b"\n") and not self.restarted else 0
            for line in file if self._end else ():
                record = _record(line, checked=checked)
                if not line.endswith(b"\n"):  # it is torn
                    break
                if record is None or not self._is_entry(record):
                    damaged += 1
                else:
                    self._places[record["key"]] = (self._end, len(line))
                self._end += len(line)
        return first is not None, damaged

    def _is_entry(self, record: Mapping[str, Any]) -> bool:
        try:
            self._read(record["key"], record["value"])
        except (LookupError, TypeError, ValueError):
            return False
        return isinstance(record["key"], str)

    def _append(self, data: bytes) -> None:
        file = self._open()
        assert self.path is not None
        try:
            file.seek(self._end)
            write_all(file.fileno(), data)
            os.fsync(file.fileno())
        except BaseException as e:
            with contextlib.suppress(OSError):
                file.truncate(self._end)
            if isinstance(e, OSError):
                refuse(self.path, e)
            raise
        self._end += len(data)

    def _open(self) -> BinaryIO:
        if self._file is None:
            raise ValueError(f"journal {self.path} is closed")
        return self._file


def kept(path: Path, fingerprint: str, read: Callable[[str, Any], Any]) -> dict[str, Any]:
    """Return what the journal of another process keeps of this work, by key, and leave the file as it is: nothing if it is of other work.

    See `Journal` for `read`. Raises OutputError for a file that cannot be read.
    """
    journal = Journal(None, fingerprint, read)
    try:
        journal._scan(path, fingerprint)
        with path.open("rb", buffering=0) as journal._file:
            return {key: journal.get(key) for key in journal}
    except FileNotFoundError:  # the other process moved it aside just now, or closed it with nothing in it
        return {}
    except OSError as e:
        raise OutputError(f"cannot read {path}: {e.strerror or e}; it keeps unfinished work: make it readable, or remove it") from e


def journal_of_rank(path: Path, rank: int) -> Path:
    """Return the journal of one of several processes: the first one has that of a process alone."""
    return path if rank == 0 else path.with_name(f"{path.name}.rank{rank}")


def journals_of_ranks(path: Path) -> dict[int, Path]:
    """Return the journals of other processes than the first that lie beside its journal, by rank, of a run with however many."""
    found = {one.name[len(path.name) + len(".rank") :]: one for one in path.parent.glob(f"{glob.escape(path.name)}.rank*")}
    return {int(rank): one for rank, one in sorted(found.items()) if rank.isdecimal() and one.is_file()}


def discard(path: StrPath | None) -> None:
    """Delete the journals of a result that is saved, if there are any: that of a process alone, and those of others beside it."""
    if path is not None:
        for one in (Path(path), *journals_of_ranks(Path(path)).values()):
            one.unlink(missing_ok=True)


def _free(path: Path) -> Path:
    """Return the first of the names PATH, PATH-2, PATH-3, ... that is free."""
    others = (path.with_name(f"{path.name}-{number}") for number in count(2))
    return next(place for place in chain([path], others) if not os.path.lexists(place))


def _line(record: dict[str, Any]) -> bytes:
    """Return a line of JSON whose first value is the checksum of the rest."""
    rest = json.dumps(record, allow_nan=False).encode()[1:] + b"\n"
    return _sum(rest) + rest


def _sum(rest: bytes) -> bytes:
    return b'{"crc32": "%08x", ' % zlib.crc32(rest)


def _record(line: bytes, *, checked: bool) -> dict[str, Any] | None:
    """Return the object of a line, or None if there is none. With `checked`, it must have a checksum; one that it has must be right."""
    rest = line[len(_sum(b"")) :]
    if (checked or line.startswith(b'{"crc32"')) and line != _sum(rest) + rest:
        return None
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None
