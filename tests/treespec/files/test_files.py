"""Files are whole or not there, whatever goes wrong; journals give back what was put into them."""

import errno
import hashlib
import json
import os
import socket
import stat

import pytest
from hypothesis import given

from tests.reference.folders import VALUES, names
from treespec.errors import OutputError, ProfileError
from treespec.files import writing as files
from treespec.files.journal import Journal
from treespec.files.reading import PipeablePath, read_bytes, read_json
from treespec.files.writing import check_writable, json_text, make_folder, write_bytes, write_json, write_together

# -- writing ------------------------------------------------------------------------------------------------------------


@given(VALUES)
def test_json_text_is_json(value):
    assert json.loads(json_text(value)) == value


def test_json_text_puts_plain_lists_on_one_line():
    assert json_text({"a": [1, 2.5, "x"], "b": [[1], [2]]}) == '{\n  "a": [1, 2.5, "x"],\n  "b": [\n    [1],\n    [2]\n  ]\n}'


def test_write_replaces_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    for value in (1, 2):
        write_json(path, {"a": value})
        assert json.loads(path.read_text()) == {"a": value}
    assert names(tmp_path) == ["a.json"]


def test_what_a_killed_run_left_is_removed_by_the_next_one_on_that_output(tmp_path):
    kept = [".treeopt-b.json.0123456789abcdef.tmp", ".treeopt-0123456789abcdef.tmp", ".treeopt-a.json.tmp"]
    for name in (".treeopt-a.json.0123456789abcdef.tmp", *kept):
        (tmp_path / name).write_bytes(b"half")
    check_writable(tmp_path / "a.json")
    assert names(tmp_path) == sorted(kept)
    (tmp_path / ".treeopt-a.json.0123456789abcdef.tmp").write_bytes(b"half")
    write_json(tmp_path / "a.json", {})
    assert names(tmp_path) == sorted([*kept, "a.json"])


@pytest.mark.parametrize("name", ["a", "[*]?{}", "x" * 200, "é" * 100])
def test_a_temporary_file_in_use_is_left_alone(tmp_path, name):
    target = str(tmp_path / name)
    with files.temporary(target) as first:
        with files.temporary(target) as second:
            assert os.path.exists(first.name)
            assert first.name != second.name
        write_bytes(target, b"other")
        assert os.path.exists(first.name)
    assert names(tmp_path) == [name]


def test_new_files_get_the_usual_permissions(tmp_path):
    (tmp_path / "plain").touch()
    write_bytes(tmp_path / "ours", b"")
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_a_link_keeps_pointing_where_it_did(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_bytes(b"old")
    (tmp_path / "link").symlink_to("folder/file")
    write_bytes(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "folder" / "file").read_bytes() == b"new"


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=["full", "ctrl-c"])
def test_a_failure_at_any_point_leaves_the_old_file(tmp_path, monkeypatch, call, failure):
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def fail(*arguments):
        raise failure

    monkeypatch.setattr(files.os, call, fail)
    with pytest.raises(OutputError if isinstance(failure, OSError) else KeyboardInterrupt) as caught:
        write_bytes(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a"]
    if isinstance(failure, OSError):
        assert "the disk is full; free some space" in str(caught.value)
        assert str(path) in str(caught.value)


def test_a_write_in_pieces_is_completed(tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr(files.os, "write", lambda descriptor, data: write(descriptor, bytes(data[:3])))
    write_bytes(tmp_path / "a", b"0123456789")
    assert (tmp_path / "a").read_bytes() == b"0123456789"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_device_is_written_to_and_not_replaced():
    with pytest.raises(OutputError, match="/dev/full: the disk is full"):
        write_bytes("/dev/full", b"x")
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)
    check_writable("/dev/null")
    write_bytes("/dev/null", b"x")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


@pytest.mark.skipif(not os.path.exists("/dev/fd"), reason="needs /dev/fd")
def test_a_pipe_is_written_to_by_its_number():
    reading, writing = os.pipe()
    check_writable(f"/dev/fd/{writing}")
    write_bytes(f"/dev/fd/{writing}", b"x")
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        assert pipe.read() == b"x"


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_not_written(tmp_path, number):
    with pytest.raises(OutputError, match="no NaN and no infinity"):
        write_json(tmp_path / "a.json", {"a": [number]})
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("missing/a", "its folder does not exist; create it first"),
        ("file/a", "a part of its path is a file"),
        ("folder", "it is a folder|is no regular file"),
        ("x" * 300, "its name is too long"),
    ],
)
def test_places_that_cannot_be_written(tmp_path, place, message):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for attempt in (check_writable, lambda path: write_bytes(path, b"x"), lambda path: Journal(path, "f")):
        with pytest.raises(OutputError, match=message):
            attempt(tmp_path / place)
    assert names(tmp_path) == ["file", "folder"]


@pytest.mark.parametrize(
    ("number", "message"), [(errno.EROFS, "read-only"), (errno.EACCES, "permission is denied"), (errno.EIO, "Input/output")]
)
def test_a_folder_that_takes_no_files(tmp_path, monkeypatch, number, message):
    def refuse(path, mode, **options):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files, "open", refuse, raising=False)
    for attempt in (check_writable, lambda path: write_bytes(path, b"x")):
        with pytest.raises(OutputError, match=message):
            attempt(tmp_path / "a")


def test_a_read_only_file_is_not_replaced(tmp_path, monkeypatch):
    (tmp_path / "a").touch()
    monkeypatch.setattr(files.os, "access", lambda path, mode: False)
    for attempt in (check_writable, lambda path: write_bytes(path, b"x")):
        with pytest.raises(OutputError, match="permission is denied"):
            attempt(tmp_path / "a")


def test_check_writable_leaves_no_trace(tmp_path):
    check_writable(tmp_path / "new")
    (tmp_path / "old").write_bytes(b"old")
    check_writable(tmp_path / "old")
    assert names(tmp_path) == ["old"]
    assert (tmp_path / "old").read_bytes() == b"old"


@pytest.mark.parametrize(
    "content", ['{"text": "a row"}\n{"text": "another"}\n', '{"schema": "treeopt.other"}', "[1]", "[" * 200_000, "\x00"]
)
def test_a_file_of_another_kind_is_not_replaced(tmp_path, content):
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    (tmp_path / "link").symlink_to(path)
    for name in ("rows.jsonl", "link"):
        with pytest.raises(OutputError, match=f"{name} would be overwritten but is no treeopt.thing file; name another output, or delete"):
            check_writable(tmp_path / name, "treeopt.thing")
    assert path.read_text() == content


def test_an_earlier_output_an_empty_file_and_devices_make_way(tmp_path):
    (tmp_path / "earlier").write_text('{"schema": "treeopt.thing", "version": 99}')
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "pipe")
    for place in ("earlier", "empty", "pipe", "new", os.devnull):
        check_writable(tmp_path / place, "treeopt.thing")


def test_a_socket_is_refused(tmp_path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "x"))
        with pytest.raises(OutputError, match="x: it is a socket, or a device that is not there; choose another path"):
            check_writable(tmp_path / "x")


def test_links_that_lead_in_a_circle_are_refused(tmp_path):
    (tmp_path / "a").symlink_to("a")
    for attempt in (check_writable, lambda path: write_bytes(path, b"x")):
        with pytest.raises(OutputError, match="links lead in a circle; remove them, or choose another path"):
            attempt(tmp_path / "a")
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("failing", range(2))
def test_files_written_together_never_contradict_each_other(tmp_path, monkeypatch, failing):
    """However far it comes, the second file, which describes the first, is the first one's or absent."""
    thing, description = tmp_path / "thing", tmp_path / "description"
    write_together([(thing, b"1"), (description, b"about 1")])
    replace, done = os.replace, []

    def fail_at(source, target):
        if len(done) == failing:
            raise KeyboardInterrupt
        done.append(target)
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", fail_at)
    with pytest.raises(KeyboardInterrupt):
        write_together([(thing, b"2"), (description, b"about 2")])
    assert thing.read_bytes() == (b"1", b"2")[failing]
    assert names(tmp_path) == ["thing"]


def test_make_folder(tmp_path):
    assert make_folder(tmp_path / "a" / "b").is_dir()
    assert make_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="there is a file of that name"):
        make_folder(tmp_path / "file")
    with pytest.raises(OutputError, match="a part of its path is a file"):
        make_folder(tmp_path / "file" / "b")


# -- reading ------------------------------------------------------------------------------------------------------------


def read(path, **changes):
    return read_json(path, **({"schema": "treeopt.thing", "version": 1, "error": ProfileError} | changes))


def test_what_was_written_is_read(tmp_path):
    data = {"schema": "treeopt.thing", "version": 1, "x": [1.5, None, "é"]}
    write_json(tmp_path / "a", data)
    assert read(tmp_path / "a") == data


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; copy or make it again"),
        (b"\xff\xfe\x00", "no valid JSON"),
        (b'{"schema": "treeopt.thing", "version": 1', "no valid JSON"),
        (b"[1, 2]", "holds a JSON list, not an object"),
        (b"{}", "has schema None, but 'treeopt.thing' is needed; pass a file with that schema"),
        (b'{"schema": "treeopt.other", "version": 1}', "has schema 'treeopt.other'"),
        (b'{"schema": "treeopt.thing", "version": 2}', "version 2, but this treeopt reads version 1"),
        (b'{"schema": "treeopt.thing", "version": "1"}', "version '1'"),
        (b'{"schema": "treeopt.thing", "version": true}', "version True"),
        (b'{"schema": "treeopt.thing", "version": 1, "x": NaN}', "NaN is not a JSON number"),
        (b'{"schema": "treeopt.thing", "version": 1, "x": -Infinity}', "-Infinity is not a JSON number"),
        (b'{"schema": "treeopt.thing", "version": 1, "x": 1e999}', "1e999 is beyond the range"),
        (b'{"schema": "treeopt.thing", "version": 1, "x": ' + b"9" * 5000 + b"}", "no valid JSON"),
        (b"[" * 200_000, "no valid JSON|nested too deeply"),
        (b'{"schema": "' + b"x" * 1000 + b'"}', r"has schema 'xxx.*\.\.\., but"),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path, content, message):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ProfileError, match=message) as caught:
        read(tmp_path / "a")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


def test_files_that_are_not_there_or_too_big(tmp_path):
    with pytest.raises(ProfileError, match="there is no file"):
        read(tmp_path / "a")
    with pytest.raises(ProfileError, match="is a folder"):
        read(tmp_path)
    (tmp_path / "a").write_bytes(b" " * 101)
    with pytest.raises(ProfileError, match="larger than the limit of 100 bytes"):
        read(tmp_path / "a", limit=100)
    with pytest.raises(ProfileError, match="there is no file|cannot read"):
        read(tmp_path / "a" / "b")
    assert read_bytes(tmp_path / "a", limit=101, error=ProfileError) == b" " * 101


def test_a_pipe_is_read_once(tmp_path):
    reading, writing = os.pipe()
    os.write(writing, b'{"schema": "treeopt.thing", "version": 1}')
    os.close(writing)
    pipe = PipeablePath(f"/dev/fd/{reading}")
    assert read(pipe)["version"] == 1
    assert read(pipe)["version"] == 1
    assert pipe.sha256 == hashlib.sha256(b'{"schema": "treeopt.thing", "version": 1}').hexdigest()
    os.close(reading)


# -- resuming -----------------------------------------------------------------------------------------------------------


def test_a_file_written_piece_by_piece_is_whole_or_not_there(tmp_path):
    write_bytes(tmp_path / "f", (bytes([i]) for i in range(5)))
    assert (tmp_path / "f").read_bytes() == bytes(range(5))

    def broken():
        yield b"x"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_bytes(tmp_path / "f", broken())
    assert (tmp_path / "f").read_bytes() == bytes(range(5))
    assert names(tmp_path) == ["f"]
