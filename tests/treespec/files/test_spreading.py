"""Work that several processes share: each piece is done once, all get everything, and any number of them goes on with what any number finished."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.reference.journals import line_of
from tests.reference.processes import together
from treespec.errors import ProcessesError
from treespec.files.journal import Journal, discard, journal_of_rank, journals_of_ranks, kept
from treespec.files.processes import ALONE, Processes
from treespec.files.spreading import spread

KEYS = [str(number) for number in range(10)]


def squares(
    journal: Path | None, done: list[str], fingerprint: str = "squares", stop: int | None = None
) -> Callable[[Processes], dict[str, tuple[int, float]]]:
    """Work on squares, which notes what it does in `done` and is interrupted before it does so for the piece of number `stop`."""

    def work(key: str, on_unit: Callable[[int], None]) -> tuple[int, float]:
        if len(done) == stop:
            raise KeyboardInterrupt
        done.append(key)
        on_unit(1)
        return int(key) ** 2, int(key) / 3

    def read(key: str, value: Any) -> tuple[int, float]:
        square, third = value
        return int(square), float(third)

    return lambda processes: spread(
        KEYS,
        work,
        journal=journal,
        fingerprint=fingerprint,
        read=read,
        keep=list,
        processes=processes,
        units=2,
        progress=lambda done, total: None,
    )


EXPECTED = {key: (int(key) ** 2, int(key) / 3) for key in KEYS}


@pytest.mark.parametrize("size", [1, 2, 3, 12])
def test_every_piece_is_done_once_and_all_get_everything_in_order(size: int, tmp_path: Path) -> None:
    done: list[str] = []
    for found in together(size, squares(tmp_path / "j", done)):
        assert list(found.items()) == list(EXPECTED.items())
    assert sorted(done) == KEYS
    discard(tmp_path / "j")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("before", [1, 2, 4])
@pytest.mark.parametrize("after", [1, 2, 3])
def test_another_number_of_processes_goes_on(before: int, after: int, tmp_path: Path) -> None:
    first: list[str] = []
    with pytest.raises((KeyboardInterrupt, ProcessesError)):
        together(before, squares(tmp_path / "j", first, stop=6))
    finished = {key for path in tmp_path.glob("j*") for key in kept(path, "squares", lambda key, value: value)}
    assert finished
    again: list[str] = []
    for found in together(after, squares(tmp_path / "j", again)):
        assert found == EXPECTED
    assert sorted(again) == sorted(set(KEYS) - finished), "what any of them kept is not done again"


def test_hosts_without_a_shared_folder_go_on_too(tmp_path: Path) -> None:
    """Rank 1 ran on another host, whose folder rank 0 does not see; now the same two hosts run with what is left there."""
    one, other = tmp_path / "one", tmp_path / "other"
    for folder, rank, keys in ((one, 0, KEYS[:3]), (other, 1, KEYS[3:7])):
        folder.mkdir()
        with Journal(journal_of_rank(folder / "j", rank), "squares") as journal:
            for key in keys:
                journal.put(key, list(EXPECTED[key]))
    done: list[str] = []
    found = together(2, lambda processes: squares((one, other)[processes.place.rank] / "j", done)(processes))
    assert found == [EXPECTED, EXPECTED]
    assert sorted(done) == KEYS[7:]


def test_what_a_journal_keeps_is_taken_as_it_stands(tmp_path: Path) -> None:
    """A planted value comes through to all, so it was read and not made again; one of another shape is made again."""
    path = journal_of_rank(tmp_path / "j", 3)
    with Journal(path, "squares") as journal:
        journal.put("4", [-1, 0.5])
        journal.put("5", [25, 5 / 3])
    header, first, second = path.read_text().splitlines()
    path.write_text("\n".join([header, first, line_of({**json.loads(second), "value": ["odd"]}), ""]))
    for found in together(2, squares(tmp_path / "j", [])):
        assert found == {**EXPECTED, "4": (-1, 0.5)}


def test_journals_of_other_work_are_moved_aside_and_not_deleted(tmp_path: Path) -> None:
    for rank in range(4):
        with Journal(journal_of_rank(tmp_path / "j", rank), "cubes") as journal:
            journal.put("1", [1, 1.0])
    assert together(2, squares(tmp_path / "j", []))[0] == EXPECTED
    discard(tmp_path / "j")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["j.old", *(f"j.rank{rank}.old" for rank in (1, 2, 3))]


def test_other_work_in_one_process_is_refused() -> None:
    with pytest.raises(ProcessesError, match="rank 1 of 2 would do other work than rank 0"):
        together(2, lambda processes: squares(None, [], f"squares {processes.place.rank}")(processes))


def test_progress_counts_what_all_have_done(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", "work") as journal:
        journal.put("0", 0)
    told: list[list[tuple[int, int]]] = [[], []]

    def work(processes: Processes) -> Any:
        own = told[processes.place.rank]

        def piece(key: str, on_unit: Callable[[int], None]) -> int:
            on_unit(2)
            return int(key)

        def progress(done: int, total: int) -> None:
            own.append((done, total))

        names = {"journal": tmp_path / "j", "fingerprint": "work", "read": lambda key, value: value, "keep": int}
        return spread(KEYS, piece, **names, processes=processes, units=4, progress=progress)  # type: ignore[arg-type]

    together(2, work)
    for own in told:
        assert own[0][0] >= 4, "what was finished before counts from the beginning"
        assert own[-1] == (40, 40)
        assert all(total == 40 for _, total in own)


def test_names_that_are_no_ranks_are_no_journals(tmp_path: Path) -> None:
    for name in ("j", "j.rank1", "j.rank1.old", "j.rankx", "other.rank2", "j.rank12"):
        (tmp_path / name).touch()
    assert list(journals_of_ranks(tmp_path / "j")) == [1, 12]


def test_alone_nothing_is_exchanged() -> None:
    assert ALONE.exchange("x") == ["x"]
    assert ALONE.place.size == 1
