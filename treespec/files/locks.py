"""Locks, so that one run at a time writes a file. They end with the process that holds them, however it ends."""

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from treespec.errors import OutputError
from treespec.files.reading import StrPath
from treespec.files.writing import refuse

_log = logging.getLogger(__name__)


def lock_of(path: Path) -> Path:
    """Return the file that the runs which write `path` lock: it is hidden, and in the same folder."""
    return path.with_name(f".treeopt-{path.name}.lock")


@contextmanager
def alone(lock: Path, what: StrPath) -> Iterator[None]:
    """Let one run at a time into this block; `lock` is the file that they lock.

    The file is removed at the end of the block; a killed run leaves it behind, unlocked. On a file system without locks a warning is
    logged, and the block runs. Raises OutputError that names `what` if another run is inside or if `lock` cannot be made, and one that
    names `lock` if something else has that name.
    """
    if os.path.lexists(lock) and (lock.is_symlink() or not lock.is_file()):
        raise OutputError(f"{lock} is no regular file, and runs that write {os.fspath(what)} lock a file of that name; remove it")
    held = FileLock(lock, timeout=0, mode=0o666)  # the next run may be another user's
    try:
        os.stat(os.path.join(lock.parent, "."))  # filelock would create the folder
        held.acquire()
    except Timeout as e:
        raise OutputError(f"another run is writing {os.fspath(what)} now; wait for it, or name another output with -o") from e
    except OSError as e:
        if e.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            refuse(lock if os.path.lexists(lock) else what, e)
        _log.warning("the file system of %s has no locks: see to it that no other run writes it", what)
    try:
        yield
    finally:
        with suppress(OSError):  # another run may have it open, which Windows minds
            lock.unlink()
        held.release()
