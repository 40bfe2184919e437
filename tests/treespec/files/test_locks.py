"""Locks: one run at a time, free again however a run ends."""

import errno
import fcntl
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.reference.folders import names
from treespec.errors import OutputError
from treespec.files import locks
from treespec.files.locks import alone

REFUSAL = "another run is writing report.json now; wait for it, or name another output with -o"


def test_one_run_at_a_time_is_within(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    for _ in range(2):
        with alone(lock, "report.json"):
            with pytest.raises(OutputError) as caught, alone(lock, "report.json"):
                pytest.fail("two runs are within")
            assert str(caught.value) == REFUSAL
            assert names(tmp_path) == ["lock"]
        assert names(tmp_path) == []
    with pytest.raises(ZeroDivisionError), alone(lock, "report.json"):
        raise ZeroDivisionError
    assert names(tmp_path) == []


def test_a_process_that_is_killed_leaves_no_lock(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    program = f"""
import time
from pathlib import Path
from treespec.files.locks import alone
with alone(Path({str(lock)!r}), "it"):
    print("within", flush=True)
    time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "within\n"
        with pytest.raises(OutputError), alone(lock, "it"):
            pytest.fail("two runs are within")
        other.send_signal(signal.SIGKILL)
        other.wait()
    assert names(tmp_path) == ["lock"]
    with alone(lock, "it"):
        assert names(tmp_path) == ["lock"]
    assert names(tmp_path) == []


def test_a_file_that_its_holder_has_just_removed_locks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was opened while another run held it, and locked after that had ended."""
    lock, claim, claims = tmp_path / "lock", locks.claim, []

    def late(descriptor: int, what: Any) -> None:
        claims.append(descriptor)
        if len(claims) == 1:
            lock.unlink()
        elif len(claims) == 2:
            lock.unlink()
            lock.touch()  # by a third run
        claim(descriptor, what)

    monkeypatch.setattr(locks, "claim", late)
    with alone(lock, "it"):
        assert len(claims) == 3
        with pytest.raises(OutputError), alone(lock, "it"):
            pytest.fail("two runs are within")


def test_where_there_are_no_locks_work_goes_on_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(number: int) -> Any:
        def flock(descriptor: int, operation: int) -> None:
            raise OSError(number, "no")

        return flock

    monkeypatch.setattr(fcntl, "flock", refuse(errno.ENOLCK))
    with caplog.at_level(logging.WARNING), alone(tmp_path / "lock", "report.json"):
        assert "the file system of report.json has no locks" in caplog.text
    monkeypatch.setattr(fcntl, "flock", refuse(errno.EIO))
    with pytest.raises(OutputError, match="cannot write .*lock"), alone(tmp_path / "lock", "report.json"):
        pytest.fail("the lock cannot be had")


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match=r"cannot write .*a/b: its folder does not exist"),
        alone(tmp_path / "a" / "b", "report.json"),
    ):
        pytest.fail("there is no such folder")


def test_the_lock_that_another_users_killed_run_left_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be read, and its folder written to."""
    (tmp_path / "lock").touch()
    real = os.open

    def for_reading(path: Any, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_RDWR:
            raise PermissionError(errno.EACCES, "no")
        return real(path, flags, mode)

    monkeypatch.setattr(os, "open", for_reading)
    with alone(tmp_path / "lock", "report.json"), pytest.raises(OutputError), alone(tmp_path / "lock", "report.json"):
        pytest.fail("two runs are within")
    monkeypatch.undo()
    assert names(tmp_path) == []
