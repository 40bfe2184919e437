"""Locks: one run at a time, free again however a run ends."""

import errno
import fcntl
import logging
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.reference.folders import names
from treespec.errors import OutputError
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
    lock, flock, claims = tmp_path / "lock", fcntl.flock, []

    def late(descriptor: int, operation: int) -> None:
        claims.append(descriptor)
        if len(claims) == 1:
            lock.unlink()
            lock.touch()  # by a third run
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with suppress(OutputError), alone(lock, "it"):  # filelock 3 gives up here, and filelock 4 tries again
        assert len(claims) > 1
    with alone(lock, "it"), pytest.raises(OutputError), alone(lock, "it"):
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
    assert names(tmp_path) == []
    monkeypatch.setattr(fcntl, "flock", refuse(errno.EIO))
    with pytest.raises(OutputError, match="cannot write .*lock"), alone(tmp_path / "lock", "report.json"):
        pytest.fail("the lock cannot be had")


def test_a_folder_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match=r"cannot write report.json: its folder does not exist"),
        alone(tmp_path / "a" / "b", "report.json"),
    ):
        pytest.fail("there is no such folder")
    assert names(tmp_path) == []


def test_a_lock_that_a_killed_run_left_may_be_taken_by_any_user(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        with alone(tmp_path / "lock", "report.json"):
            assert stat.S_IMODE((tmp_path / "lock").stat().st_mode) == 0o666
    finally:
        os.umask(before)


@pytest.mark.parametrize("make", [lambda lock: lock.symlink_to("elsewhere"), os.mkfifo, os.mkdir])
def test_what_is_no_file_is_not_locked(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "lock")
    with pytest.raises(OutputError, match=r"lock is no regular file, .*report\.json.*; remove it"), alone(tmp_path / "lock", "report.json"):
        pytest.fail("it was locked")
    assert names(tmp_path) == ["lock"]
