"""Torch's threads beside other programs: what is counted, and when it is said."""

import os
from pathlib import Path

import pytest
import torch

from treespec.files import load
from treespec.files.load import crowded, load_average, note_crowding, others_running, threads


@pytest.fixture
def looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Give the load average of the last minute, and how many threads run at each look now."""

    def give(average: float, running: list[int] | None) -> None:
        monkeypatch.setattr(os, "getloadavg", lambda: (average, 0.0, 0.0))
        seen = iter(running or [])
        file = tmp_path / "loadavg"
        if running is not None:
            monkeypatch.setattr(Path, "read_text", lambda self, **options: f"{average} 0.00 0.00 {next(seen)}/345 6789\n")
        monkeypatch.setattr(load, "_LOADAVG", file)
        monkeypatch.setattr(load, "others_running", lambda: others_running(lambda seconds: None))

    return give


def test_threads_are_torchs() -> None:
    assert threads() == torch.get_num_threads()


def test_the_command_that_has_just_ended_does_not_count(looks) -> None:
    looks(1.9, [1, 1, 1, 2, 1])
    assert others_running(lambda seconds: None) == pytest.approx(0.2)
    looks(1.9, [4, 4, 5, 4, 3])
    assert others_running(lambda seconds: None) == 1.9, "a burst of short work is no load"


def test_where_no_system_tells_nothing_is_known(looks, monkeypatch: pytest.MonkeyPatch) -> None:
    looks(3.456, None)
    assert load_average() == others_running(lambda seconds: None) == 3.46, "without /proc the average alone"
    monkeypatch.delattr(os, "getloadavg")
    assert load_average() is others_running() is crowded(8, None, 2) is None


@pytest.mark.parametrize(
    ("own", "others", "cores", "words"),
    [
        (2, 0.4, 2, None),
        (1, 1.0, 2, None),
        (
            2,
            1.0,
            2,
            "other programs keep 1.0 of 2 cores busy, and torch has 2 threads: times will be longer and uneven; close them, or give torch ",
        ),
        (16, 10.3, 16, "other programs keep 10.3 of 16 cores busy, and torch has 16 threads"),
        (1, 4.0, 2, "other programs keep all 2 cores busy, and torch has 1 thread: times will be longer and uneven; close them"),
    ],
)
def test_threads_without_room_are_said(own: int, others: float, cores: int, words: str | None) -> None:
    said = crowded(own, others, cores)
    assert (said is None) == (words is None)
    assert said is None or words is None or said.startswith(words)
    assert "`threads` 5" in (crowded(16, 10.3, 16) or "")
    assert (crowded(1, 4.0, 2) or "").endswith("close them")


def test_on_a_gpu_the_processors_threads_do_not_count(looks) -> None:
    said: list[str] = []
    looks(1e6, None)
    note_crowding("cuda", said.append)
    note_crowding("cpu", None)
    assert said == []
    note_crowding("cpu", said.append)
    assert len(said) == 1
