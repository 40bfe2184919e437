"""One run at a time: locks that end with the process that holds them, however it ends."""

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
    """Lock an open file for this process until it is closed, which it is at once where another run holds it: OutputError names `what`.

    On a file system without locks it warns and goes on.
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
    """Within, no other run is within: `lock` is the file that says so, and goes at the end; a killed run leaves it, unlocked.

    Raises OutputError that names `what`, or the lock where it cannot be had.
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
    """The locked file of that name: not one that its holder has removed since it was opened here."""
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
