"""Whole-or-nothing writing: a file is there with all of its content, or as it was before."""

import contextlib
import errno
import glob
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import Any, NoReturn

from treespec.errors import OutputError
from treespec.files.reading import StrPath, is_json_of

_REMEDIES = {
    errno.ENOSPC: "the disk is full; free some space or choose another folder",
    errno.EDQUOT: "your disk quota is used up; free some space or choose another folder",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.EACCES: "permission is denied; choose a folder that you may write to",
    errno.EPERM: "permission is denied; choose a folder that you may write to",
    errno.ENOENT: "its folder does not exist; create it first",
    errno.ENOTDIR: "a part of its path is a file, not a folder; choose another path",
    errno.EEXIST: "there is a file of that name; choose another path",
    errno.EISDIR: "it is a folder; name a file in it",
    errno.ENXIO: "it is a socket, or a device that is not there; choose another path",
    errno.ENAMETOOLONG: "its name is too long for the file system; choose a shorter one",
    errno.ELOOP: "its symbolic links lead in a circle; remove them, or choose another path",
}

_LONGEST_NAME = 150
"""Largest number of bytes of a file's name that its temporary file's name has in it; the names of longer ones are hashed."""


def write_bytes(path: StrPath, data: bytes | Iterable[bytes]) -> None:
    """Write a file whole or not at all, in one piece or piece by piece: into a temporary file in the same folder, then fsync and rename.

    A symbolic link keeps pointing where it did; a device or pipe is written to directly. Whatever happens on the way,
    Ctrl-C included, the old content stays and no temporary file is left. Raises OutputError with the reason.
    """
    write_together([(path, data)])


def write_json(path: StrPath, data: Mapping[str, Any]) -> None:
    """Write JSON that people can read, whole or not at all. Raises OutputError, also for NaN and infinities."""
    write_json_together([(path, data)])


def write_json_together(files: Sequence[tuple[StrPath, Mapping[str, Any]]]) -> None:
    """Write JSON files that belong together as `write_together` does. Raises OutputError, also for NaN and infinities."""
    staged: list[tuple[StrPath, bytes]] = []
    for path, data in files:
        try:
            staged.append((path, json_text(data).encode() + b"\n"))
        except ValueError as e:
            raise OutputError(f"cannot write {path}: {e}; JSON has no NaN and no infinity") from e
    write_together(staged)


def write_together(files: Sequence[tuple[StrPath, bytes | Iterable[bytes]]]) -> None:
    """Write a file and those that describe it, so that a description never lies beside another file than its own.

    All are staged first; then old descriptions are removed, and everything is renamed into place in order. Raises
    OutputError.
    """
    staged: list[tuple[str, str]] = []
    path: StrPath = ""
    with contextlib.ExitStack() as temporaries:
        try:
            for path, content in files:
                pieces = [content] if isinstance(content, bytes) else content
                if is_special(path):  # asked before links are followed: where a pipe's lead, there is no file
                    with open(path, "wb", buffering=0) as device:
                        for piece in pieces:
                            write_all(device.fileno(), piece)
                    continue
                target = os.path.realpath(path)
                _refuse_unwritable(target)
                file = temporaries.enter_context(temporary(target))
                staged.append((file.name, target))
                for piece in pieces:
                    write_all(file.fileno(), piece)
                os.fsync(file.fileno())
                if os.name == "nt":  # it renames no open file
                    file.close()
            for _, target in staged[1:]:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(target)
            for staging, target in staged:
                path = target
                os.replace(staging, target)
                _sync_folder(os.path.dirname(target))
        except OSError as e:
            refuse(path, e)


def check_writable(path: StrPath, schema: str | None = None) -> None:
    """Raise OutputError now if `write_bytes(path, ...)` would fail for any reason but a full disk. Nothing is left behind.

    With a `schema`, also raise OutputError for a file that is neither empty nor JSON of that schema: it may be somebody's only copy.
    """
    try:
        _refuse_unwritable(path)
        if is_special(path):
            return
        with temporary(os.path.realpath(path)):
            pass
    except OSError as e:
        refuse(path, e)
    if schema is not None and has_content(path) and not is_json_of(path, schema):
        refuse_to_replace(path, f"{schema} file")


@contextlib.contextmanager
def temporary(target: str) -> Iterator[FileIO]:
    """Give a new file beside `target` that has its name in its own. It is removed at the end of the block, unless it was renamed.

    Those that killed runs left behind for this target are removed first. A lock, which ends with the process, tells them from one in use; the
    other names are left alone. Raises OSError.
    """
    folder, name = os.path.split(target)
    if len(os.fsencode(name)) > _LONGEST_NAME:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    for left in glob.glob(os.path.join(glob.escape(folder), f".treeopt-{glob.escape(name)}.{'?' * 16}.tmp")):
        _sweep(left)
    file = _new(os.path.join(folder, f".treeopt-{name}."))
    try:
        with file:
            yield file
    finally:
        with contextlib.suppress(OSError):
            os.unlink(file.name)


def _new(beginning: str) -> FileIO:
    """Return a new file whose name begins like this, locked where the file system has locks."""
    while True:
        file = open(f"{beginning}{secrets.token_hex(8)}.tmp", "xb", buffering=0)  # noqa: SIM115 - `temporary` closes it
        if not _lock(file, wait=True) or os.path.exists(file.name):  # else another run took it for one that was left, before it was locked
            return file
        file.close()


def _sweep(path: str) -> None:
    """Remove a temporary file that no run has open. What cannot be opened, locked or removed stays."""
    with contextlib.suppress(OSError), open(path, "rb+", buffering=0) as file:
        if _lock(file, wait=False):
            os.unlink(path)


def _lock(file: FileIO, *, wait: bool) -> bool:
    """Lock a file until it is closed. Return False where another run has it, or where there are no locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        return False
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def has_content(path: StrPath) -> bool:
    """Return whether something would be lost if the file were replaced."""
    return os.path.isfile(path) and os.path.getsize(path) > 0


def refuse_to_replace(path: StrPath, kind: str) -> NoReturn:
    """Raise OutputError for an existing file that is no `kind` and would have been overwritten."""
    raise OutputError(f"{os.fspath(path)} would be overwritten but is no {kind}; name another output, or delete that file")


def make_folder(path: StrPath) -> Path:
    """Create a folder with its parents, and return it. A folder that is there stays. Raises OutputError."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        refuse(path, e)
    return folder


def json_text(data: Any) -> str:
    """Return JSON with one key or container per line and plain lists on one line. Raises ValueError for NaN and infinities.

    >>> print(json_text({"a": [1, 2], "b": {"c": None}}))
    {
      "a": [1, 2],
      "b": {
        "c": null
      }
    }
    """
    return _json_text(data, "\n")


def _json_text(value: Any, line: str) -> str:
    if isinstance(value, Mapping) and value:
        inner = line + "  "
        items = (f"{json.dumps(str(key))}: {_json_text(item, inner)}" for key, item in value.items())
        return "{" + inner + ("," + inner).join(items) + line + "}"
    if isinstance(value, list | tuple) and any(isinstance(item, Mapping | list | tuple) for item in value):
        inner = line + "  "
        return "[" + inner + ("," + inner).join(_json_text(item, inner) for item in value) + line + "]"
    return json.dumps(value, allow_nan=False)


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of the data to an open file, however many calls that takes. Raises OSError."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def is_special(path: StrPath) -> bool:
    """Return whether the path is a device or a pipe, or anything else that is neither a regular file nor a folder."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def _refuse_unwritable(path: StrPath) -> None:
    with contextlib.suppress(FileNotFoundError):
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, "")
        if stat.S_ISSOCK(mode):
            raise OSError(errno.ENXIO, "")
        if not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, "")


def _sync_folder(folder: str) -> None:
    """Make a rename durable where the file system can; the rename itself has already happened."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def refuse(path: StrPath, e: OSError) -> NoReturn:
    """Raise OutputError that says what went wrong with this file and what to do about it."""
    raise OutputError(f"cannot write {os.fspath(path)}: {_REMEDIES.get(e.errno or 0, e.strerror or str(e))}") from e
