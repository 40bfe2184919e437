"""Locks, so that one run at a time writes a file. They end with the process that holds them, however it ends."""

import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from treespec.errors import OutputError
from treespec.files.reading import StrPath
from treespec.files.writing import refuse

_log = logging.getLogger(__name__)


def claim(descriptor: int, what: StrPath) -> None:
    """Lock an open file for this process until it is closed. If another run holds it, close it and raise OutputError that names `what`.

    On a file system without locks, log a warning and go on.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
        os.close(descriptor)
        raise OutputError(f"another run is writing {os.fspath(what)} now; wait for it, or name another output with -o") from e
    except OSError as e:
        if e.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            os.close(descriptor)
            raise
        _log.warning("the file system of %s has no locks: see to it that no other run writes it", what)


@contextmanager
def alone(lock: Path, what: StrPath) -> Iterator[None]:
    """Let one run at a time into this block; `lock` is the file that they lock.

    The file is removed at the end of the block; a killed run leaves it behind, unlocked. Raises OutputError that names `what` if another
    run is inside, or names the lock if it cannot be opened.
    """
    try:
        descriptor = _open(lock, what)
    except OSError as e:
        refuse(lock, e)
    try:
        yield
    finally:
        with suppress(OSError):  # another run may find it, and lock it
            lock.unlink()
        os.close(descriptor)


def _open(lock: Path, what: StrPath) -> int:
    """Return the descriptor of the locked file. It is opened again if the run that held the lock removed the file meanwhile."""
    while True:
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        except PermissionError:  # left by another user's run that was killed
            descriptor = os.open(lock, os.O_RDONLY)
        claim(descriptor, what)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(lock)):
                return descriptor
        os.close(descriptor)
