"""Journal: finished pieces of a long piece of work, so that the same command can go on where it stopped."""

import contextlib
import fcntl
import json
import logging
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from treespec.errors import OutputError
from treespec.files import StrPath, refuse, write_all

_log = logging.getLogger(__name__)


class Journal:
    """Finished pieces of a long piece of work, kept in an append-only JSONL file until the result is saved.

    Whoever saves the result calls `discard` afterwards, so that a write that fails loses nothing.

    The first line holds a fingerprint of the work (its options); a journal of other work is renamed to `NAME.old` with
    a warning, and `restarted` is True. A last line torn by a crash is dropped. One run at a time writes a journal. With `path` None
    nothing is kept.
    """

    def __init__(self, path: StrPath | None, fingerprint: str) -> None:
        """Open or create the journal. Raises OutputError if it cannot be written."""
        self.path = None if path is None else Path(path)
        self.restarted = False
        self._entries: dict[str, Any] = {}
        self._descriptor: int | None = None
        self._end = 0
        self._header = {"schema": "treeopt.journal", "version": 1, "fingerprint": fingerprint}
        if self.path is None:
            return
        try:
            self._descriptor = self._claim(self.path)
            if self._recover(self.path, fingerprint):
                os.close(self._descriptor)
                self._descriptor = self._claim(self.path)
            os.ftruncate(self._descriptor, self._end)
        except OSError as e:
            refuse(self.path, e)

    def __len__(self) -> int:
        """Number of keys kept."""
        return len(self._entries)

    def get(self, key: str) -> Any | None:
        """What was put under a key, in this run or in an earlier one; None if nothing was."""
        return self._entries.get(key)

    def put(self, key: str, value: Any) -> None:
        """Keep a JSON value: it is on the disk when this returns. Raises OutputError (then the file is as it was)."""
        if self.path is None:
            return
        if self._end == 0:
            self._append(self._header)
        self._append({"key": key, "value": value})
        self._entries[key] = json.loads(json.dumps(value))  # a resumed run and this one see the same types

    def close(self) -> None:
        """Stop writing and leave the file for a later run, unless there is nothing in it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
            if self._end == 0 and self.path is not None:
                self.path.unlink(missing_ok=True)

    def __enter__(self) -> "Journal":
        """The journal itself; it is closed, not deleted, at the end of the block."""
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        """Close."""
        self.close()

    def _claim(self, path: Path) -> int:
        """Open the file for this run alone: it is free again when this process closes it or ends. Raises OutputError."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            os.close(descriptor)
            raise OutputError(f"another run is writing {path} now; wait for it, or name another output with -o") from e
        return descriptor

    def _recover(self, path: Path, fingerprint: str) -> bool:
        """Take over the entries of an earlier run of the same work; `_end` is where its last whole line ends.

        True where the file was of other work, and is moved.
        """
        content = path.read_bytes()
        lines = content.split(b"\n")[:-1]  # what follows the last line end is torn, or nothing
        records = [_record(line) for line in lines]
        if content and (not lines or (records[0] or {}).get("fingerprint") != fingerprint):
            aside = path.with_name(path.name + ".old")
            _log.warning("%s belongs to other work or other options; it is now %s, and the work starts anew", path, aside.name)
            os.replace(path, aside)
            self.restarted = True
            return True
        for line, record in zip(lines, records, strict=True):
            if record is None:
                _log.warning("%s is damaged after %d bytes; what follows is done again", path, self._end)
                return False
            if "key" in record:
                self._entries[str(record["key"])] = record.get("value")
            self._end += len(line) + 1
        return False

    def _append(self, record: dict[str, Any]) -> None:
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        assert self.path is not None
        if self._descriptor is None:
            raise ValueError(f"journal {self.path} is closed")
        try:
            os.lseek(self._descriptor, self._end, os.SEEK_SET)
            write_all(self._descriptor, line)
            os.fsync(self._descriptor)
        except BaseException as e:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self._end)
            if isinstance(e, OSError):
                refuse(self.path, e)
            raise
        self._end += len(line)


def discard(path: StrPath | None) -> None:
    """The result is saved: delete its journal, if there is one."""
    if path is not None:
        Path(path).unlink(missing_ok=True)


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
