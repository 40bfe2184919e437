"""The place of a process among others, by what a launcher says in the environment."""

import os
import subprocess
import sys
import time

import pytest

from treespec.errors import SettingsError
from treespec.files import joined
from treespec.files.processes import Place

MEETING = {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


def test_a_process_without_a_launcher_is_alone() -> None:
    assert Place.of({}) == Place.of({"WORLD_SIZE": "4"}) == Place.of({"RANK": "1"}) == Place(0, 1, 0, 1)
    assert Place.of({"RANK": "0", "WORLD_SIZE": "1"}) == Place()


def test_a_launcher_says_the_place() -> None:
    place = Place.of({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", **MEETING})
    assert place == Place(3, 4, 1, 2)
    assert not place.first
    assert not place.on_one_host
    assert Place.of({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", **MEETING}).on_one_host


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"RANK": "x"}, "RANK is 'x', but it must be a whole number of 0 or more"),
        ({"RANK": "-1"}, "RANK is '-1'"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0', but it must be a whole number of 1 or more"),
        ({"RANK": "2"}, "RANK is 2, but WORLD_SIZE is 2: ranks go from 0 to 1"),
        ({"LOCAL_RANK": "1"}, "LOCAL_RANK is 1, but LOCAL_WORLD_SIZE is 1"),
        ({"MASTER_ADDR": ""}, "WORLD_SIZE is 2, but MASTER_ADDR is not set"),
    ],
)
def test_numbers_that_fit_no_group_are_refused(wrong: dict[str, str], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Place.of({"RANK": "0", "WORLD_SIZE": "2", **MEETING, **wrong})


@pytest.mark.skipif(os.name == "nt", reason="processes of Unix")
def test_a_process_that_has_ended_is_not_there_even_if_nobody_looked_after_it() -> None:
    assert joined._is_there(os.getpid())
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        until = time.monotonic() + 60
        while joined._is_there(ended.pid) and time.monotonic() < until:
            time.sleep(0.01)
        assert not joined._is_there(ended.pid)
        ended.wait()
        assert not joined._is_there(ended.pid)


class Store:
    """A store in which nothing changes any more."""

    def set(self, key: str, value: bytes) -> None:
        pass

    def multi_get(self, keys: list[str]) -> list[bytes]:
        return [b"7" for _ in keys]


def test_silence_counts_between_hosts_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is busy for long is silent too; on one host it is seen to be there."""
    monkeypatch.setattr(joined, "SILENT_SECONDS", 0.0)
    one = joined.Joined(Place(0, 3, 0, 2), Store(), lambda: None)
    one._processes, one._names = [("here", 1), ("here", 2), ("there", 3)], ["rank 0", "rank 1", "rank 2 on there"]
    heard: dict[int, tuple[int, float]] = {}
    states = [joined.HERE] * 3
    assert one._silent(heard, states) is None
    time.sleep(0.01)
    found = one._silent(heard, states)
    assert found is not None
    assert found.startswith("rank 2 on there was not heard of for 0 s")
    assert one._silent(heard, [*states[:2], joined.LEFT]) is None


def test_a_process_that_said_its_end_after_the_states_were_read_was_not_ended_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    one = joined.Joined(Place(0, 2, 0, 2), Store(), lambda: None)
    one._processes, one._names = [("a", 1), ("a", 2)], ["rank 0 of 2", "rank 1 of 2"]
    monkeypatch.setattr(joined, "_is_there", lambda process: False)
    before = [joined.HERE] * 2
    monkeypatch.setattr(one, "_states", lambda: [joined.HERE, joined.LEFT])
    assert one._gone(before) is None
    monkeypatch.setattr(one, "_states", lambda: before)
    assert "rank 1 of 2 was ended from outside (process 2 is gone)" in str(one._gone(before))
