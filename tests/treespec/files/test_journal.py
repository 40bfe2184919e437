"""The journal: what was put is there after any interruption, and nothing else is."""

import errno
import json
import logging
import os
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.reference.folders import VALUES, names
from treespec.errors import OutputError
from treespec.files import writing as files
from treespec.files.journal import Journal, discard


@given(entries=st.dictionaries(st.text(), VALUES), split=st.integers(0, 10))
def test_a_resumed_journal_knows_what_was_put(tmp_path_factory, entries, split):
    path = tmp_path_factory.mktemp("journal") / "j"
    items = list(entries.items())
    for part in (items[:split], items[split:]):
        with Journal(path, "work") as journal:
            for key, value in part:
                journal.put(key, value)
    with Journal(path, "work") as journal:
        assert {key: journal.get(key) for key in entries} == entries
        assert len(journal) == len(entries)
        assert not journal.restarted
    discard(path)
    assert not path.exists()


def test_values_look_the_same_before_and_after_resuming(tmp_path):
    with Journal(tmp_path / "j", "work") as journal:
        journal.put("a", (1, 2))
        journal.put("a", {"x": (3,)})
        assert journal.get("a") == {"x": [3]}
        assert journal.get("b") is None
    with Journal(tmp_path / "j", "work") as journal:
        assert journal.get("a") == {"x": [3]}


@pytest.mark.parametrize("cut", range(1, 30))
def test_a_torn_last_line_is_dropped(tmp_path, cut):
    path = tmp_path / "j"
    with Journal(path, "work") as journal:
        journal.put("first", 1)
        journal.put("second", "22222222222222")
    path.write_bytes(path.read_bytes()[:-cut])
    with Journal(path, "work") as journal:
        assert (journal.get("first"), journal.get("second")) == (1, None)
        journal.put("third", 3)
    with Journal(path, "work") as journal:
        assert [journal.get(key) for key in ("first", "second", "third")] == [1, None, 3]


DAMAGED = [b"\x00\x00", b"[" * 100_000, b"5", b"{}", b'{"key": "b"}', b'{"value": 1}', b'{"key": ["b"], "value": 1}']


@pytest.mark.parametrize("damaged", DAMAGED, ids=lambda line: line[:20].decode())
def test_a_damaged_line_is_passed_over(tmp_path, caplog, damaged):
    path = tmp_path / "j"
    with Journal(path, "work") as journal:
        for key in "abc":
            journal.put(key, 1)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], damaged + b"\n", *lines[3:]]))
    with caplog.at_level(logging.WARNING), Journal(path, "work") as journal:
        assert [journal.get(key) for key in "abc"] == [1, None, 1]
    assert "has 1 damaged line, whose work is done again" in caplog.text


def test_a_value_that_cannot_be_read_is_a_damaged_line(tmp_path, caplog):
    values = {"0": 2, "1": "x", "2": 2}
    with Journal(tmp_path / "j", "work") as journal:
        journal.put_all(values)
    with caplog.at_level(logging.WARNING), Journal(tmp_path / "j", "work", lambda key, value: [5, 6, 7][int(key)] * int(value)) as journal:
        assert [journal.get(key) for key in values] == [10, None, 14]
        journal.put("1", 3)
        assert journal.get("1") == 18
    assert "has 1 damaged line, " in caplog.text


def test_a_flipped_byte_is_never_another_value(tmp_path, caplog):
    """Wherever it is: in the line that it is in, everything is lost, and elsewhere nothing."""
    path = tmp_path / "j"
    values = {"a": 11, "b": [22.5], "c": {"d": "e"}}
    with Journal(path, "work") as journal:
        journal.put_all(values)
    whole = path.read_bytes()
    header = whole.index(b"\n") + 1
    for place in range(len(whole)):
        for bit in (1, 2, 16):
            caplog.clear()
            path.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
            with caplog.at_level(logging.WARNING), Journal(path, "work") as journal:
                found = {key: journal.get(key) for key in values}
                said = journal.restarted or "damaged line" in caplog.text
            assert all(found[key] in (None, value) for key, value in values.items())
            if place >= header and place < len(whole) - 1:
                assert said, (place, bit)
                assert sum(value is None for value in found.values()) <= (2 if whole[place : place + 1] == b"\n" else 1)


def test_journals_of_the_first_version_are_read(tmp_path):
    """They have no checksums; what is put into them now has."""
    path = tmp_path / "j"
    lines = [{"schema": "treeopt.journal", "version": 1, "fingerprint": "work"}, {"key": "a", "value": 1}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with Journal(path, "work") as journal:
        assert journal.get("a") == 1
        journal.put("b", 2)
    path.write_bytes(path.read_bytes().replace(b'"value": 2', b'"value": 3'))
    with Journal(path, "work") as journal:
        assert [journal.get(key) for key in "ab"] == [1, None]


def test_a_damaged_first_line_is_no_other_work(tmp_path, caplog):
    path = tmp_path / "j"
    path.write_bytes(b"\x00\n")
    with caplog.at_level(logging.WARNING), Journal(path, "work") as journal:
        assert journal.restarted
    assert "is damaged in its first line; it is now j.old" in caplog.text


@pytest.mark.parametrize("kind", ["link", "broken link", "pipe", "folder"])
def test_what_is_no_file_is_no_journal(tmp_path, kind):
    path, other = tmp_path / "j", tmp_path / "other"
    if kind == "link":
        other.write_text("precious")
    {"pipe": os.mkfifo, "folder": os.mkdir}.get(kind, lambda path: os.symlink(other, path))(path)
    with pytest.raises(OutputError, match="j is no regular file, and a file of that name keeps unfinished work; remove it"):
        Journal(path, "work")
    assert os.path.lexists(path)
    assert not other.exists() or other.read_text() == "precious"


@pytest.mark.parametrize("content", [b"", b'{"fingerprint": "other"}\n{"key": "a", "value": 1}\n', b"no line end", b"\x00\n", b"[1]\n"])
def test_other_work_is_set_aside(tmp_path, caplog, content):
    path = tmp_path / "j"
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING), Journal(path, "work") as journal:
        assert journal.get("a") is None
        assert journal.restarted == bool(content)
    assert ("the work starts anew" in caplog.text) == bool(content)
    if content:
        assert (tmp_path / "j.old").read_bytes() == content


def test_what_was_set_aside_before_stays(tmp_path, caplog):
    path = tmp_path / "j"
    for number, work in enumerate("abcd"):
        with Journal(path, work) as journal:
            journal.put("of", work)
            assert journal.restarted == bool(number)
    assert names(tmp_path) == ["j", "j.old", "j.old-2", "j.old-3"]
    assert [b'"value": "%s"' % work in (tmp_path / name).read_bytes() for work, name in ((b"a", "j.old"), (b"c", "j.old-3"))] == [True] * 2
    assert "it is now j.old-3" in caplog.text


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()], ids=["full", "ctrl-c"])
def test_a_failed_put_leaves_the_journal_as_it_was(tmp_path, monkeypatch, failure):
    path = tmp_path / "j"
    write = os.write

    def fail_half_way(descriptor, data):
        write(descriptor, bytes(data[:5]))
        raise failure

    with Journal(path, "work") as journal:
        journal.put("a", 1)
        before = path.read_bytes()
        monkeypatch.setattr(files.os, "write", fail_half_way)
        with pytest.raises(OutputError if isinstance(failure, OSError) else KeyboardInterrupt):
            journal.put("b", 2)
        monkeypatch.undo()
        assert path.read_bytes() == before
        assert journal.get("b") is None
        journal.put("c", 3)
    with Journal(path, "work") as journal:
        assert [journal.get(key) for key in "abc"] == [1, None, 3]


def test_without_a_path_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Journal(None, "work") as journal:
        journal.put("a", 1)
        assert journal.get("a") is None
        journal.close()
    assert names(tmp_path) == []


def test_a_closed_journal_takes_nothing(tmp_path):
    journal = Journal(tmp_path / "j", "work")
    journal.close()
    with pytest.raises(ValueError, match="is closed"):
        journal.put("a", 1)


def test_a_journal_with_nothing_in_it_leaves_no_file(tmp_path):
    with pytest.raises(ZeroDivisionError), Journal(tmp_path / "j", "work"):
        raise ZeroDivisionError
    assert names(tmp_path) == []
    discard(tmp_path / "j")
    discard(None)


def test_one_run_at_a_time_writes_a_journal(tmp_path):
    path = tmp_path / "work.journal"
    with Journal(path, "work") as first:
        first.put("a", 1)
        for fingerprint in ("work", "other work"):
            with pytest.raises(
                OutputError, match=r"another run is writing .*work\.journal now; wait for it, or name another output with -o"
            ):
                Journal(path, fingerprint)
        first.put("b", 2)
    with Journal(path, "work") as second:
        assert (second.get("a"), second.get("b")) == (1, 2)


def test_values_put_together_are_there_together_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "j"
    write = os.write

    def fail_late(descriptor, data):
        write(descriptor, bytes(data[:-5]))
        raise OSError(errno.ENOSPC, "full")

    with Journal(path, "work") as journal:
        journal.put_all({"a": 1, "b": [2, {"c": "ü"}]})
        monkeypatch.setattr(files.os, "write", fail_late)
        with pytest.raises(OutputError):
            journal.put_all({"b": 3, "d": 4})
        monkeypatch.undo()
        assert [journal.get(key) for key in "abd"] == [1, [2, {"c": "ü"}], None]
        journal.put_all({})
    with Journal(path, "work") as journal:
        assert [journal.get(key) for key in "abd"] == [1, [2, {"c": "ü"}], None]
        assert len(journal) == 2


def test_a_journal_takes_no_memory_for_what_it_holds(tmp_path):
    """1 MB of numbers in ten pieces: recovered and read one by one, some hundred kB at a time."""
    value = list(range(10_000, 26_000))
    with Journal(tmp_path / "j", "work") as journal:
        for key in range(10):
            journal.put(str(key), value)
    assert (tmp_path / "j").stat().st_size > 1 << 20
    tracemalloc.start()
    with Journal(tmp_path / "j", "work") as journal:
        held, _ = tracemalloc.get_traced_memory()
        assert journal.get("7") == value
    tracemalloc.stop()
    assert held < 20_000
