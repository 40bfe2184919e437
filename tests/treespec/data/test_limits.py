"""Small files that unfold to much, and files without end, are refused before they take memory."""

import json
import os
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from treespec.data import lines
from treespec.data.pictures import find_picture
from treespec.data.rows import BadRow
from treespec.data.sources import open_rows
from treespec.errors import DatasetError
from treespec.files.kinds import LFS_POINTER


@contextmanager
def bounded(seconds: float = 2.0, megabytes: int = 300) -> Iterator[None]:
    """Holds what runs in this block to processor time and to memory of Python's own."""
    tracemalloc.start()
    started = time.process_time()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1] >> 20
    finally:
        tracemalloc.stop()
    assert (time.process_time() - started < seconds, peak < megabytes) == (True, True)


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(10 << 30)


KINDS: list[tuple[str, Callable[[Path], object], str]] = [
    ("rows.jsonl", sparse, "rows.jsonl, line 1 is longer than the limit of 8 MB for a row; cut it into rows, one a line"),
    ("rows.txt", sparse, "rows.txt, line 1 is longer than the limit of 4 MB for a row; break it into shorter lines"),
    ("rows.json", sparse, "rows.json, line 1 is longer than the limit of 8 MB for a row"),
    ("rows.json", lambda path: path.write_text('[{"text": "' + "x" * (9 << 20)), "rows.json, element 1 is longer than the limit of 8 MB"),
    ("rows.json", lambda path: path.write_text("[" * 100_000), "rows.json, element 1: its JSON is nested too deeply"),
    ("rows.jsonl", lambda path: path.symlink_to("/dev/zero"), "is no regular file; a data set is read more than once"),
    ("rows.parquet", lambda path: path.symlink_to("/dev/zero"), "is no regular file; name a parquet file"),
    ("rows.txt", os.mkfifo, "is no regular file"),
    ("rows.txt", lambda path: path.write_bytes(LFS_POINTER), "rows.txt is a pointer of git-lfs in the place of the file"),
    ("rows.parquet", lambda path: path.write_bytes(LFS_POINTER), "rows.parquet is a pointer of git-lfs in the place of the file"),
    ("rows.parquet", lambda path: path.write_text('{"text": "a"}'), "is JSON, but rows in the parquet format are needed"),
    ("rows.jsonl", lambda path: path.write_bytes(b"\x1f\x8b\x08"), "is packed with gzip; unpack it first"),
]


@pytest.mark.parametrize(("name", "write", "reason"), KINDS)
def test_a_file_without_end_is_refused(tmp_path: Path, name: str, write: Callable[[Path], object], reason: str) -> None:
    write(tmp_path / name)
    with bounded(), pytest.raises(DatasetError) as caught:
        next(iter(open_rows(str(tmp_path / name))[1]))
    assert reason in str(caught.value)


def test_a_table_that_unfolds_to_more_than_it_can_hold_is_refused(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    column = pyarrow.ListArray.from_arrays(pyarrow.array([0, 70_000_000], pyarrow.int32()), pyarrow.array(np.zeros(70_000_000, np.int8)))
    parquet.write_table(pyarrow.table({"input_ids": column}), tmp_path / "rows.parquet")
    assert (tmp_path / "rows.parquet").stat().st_size < 10_000
    with bounded(), pytest.raises(DatasetError, match="rows.parquet unfolds to 267 MB in one row group of .* bytes, more than 200 times"):
        next(iter(open_rows(str(tmp_path / "rows.parquet"))[1]))


def test_a_row_of_a_table_has_a_limit_too(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    ids = [np.zeros(size, dtype=np.int8) for size in (9 << 20, 1, 1)]
    parquet.write_table(pyarrow.table({"input_ids": ids}), tmp_path / "rows.parquet")
    first, second, _ = open_rows(str(tmp_path / "rows.parquet"))[1]
    assert isinstance(first, BadRow) and "row 0 is longer than the limit of 8 MB" in first.reason
    assert not isinstance(second, BadRow)
    parquet.write_table(pyarrow.table({"input_ids": [np.zeros(20 << 20, dtype=np.int8)]}), tmp_path / "rows.parquet")
    with bounded(), pytest.raises(DatasetError, match="holds rows that are longer than the limit of 8 MB"):
        next(iter(open_rows(str(tmp_path / "rows.parquet"))[1]))


def test_a_table_of_rows_that_repeat_is_unfolded_row_by_row(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    texts = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 64, pyarrow.int32()), pyarrow.array(["x" * 20_000_000]))
    parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "rows.parquet", compression="zstd")
    before = pyarrow.default_memory_pool().max_memory()
    with bounded():
        row = next(iter(open_rows(str(tmp_path / "rows.parquet"))[1]))
    assert isinstance(row, BadRow)
    assert 'row 0: "text" has 20,000,000 characters, above the limit of 4,000,000' in row.reason
    assert pyarrow.default_memory_pool().max_memory() - before < 400 << 20, "64 of them would be 1.3 GB"


@pytest.mark.parametrize("size", [7, 64, 1 << 20])
def test_an_array_is_read_piece_by_piece(tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "_CHUNK", size)
    records = [{"text": "é" * n, "list": [n, {"x": None}], "number": -1.5e3} for n in range(9)] + [1234567, True, '\\u00e9 "]', []]
    path = tmp_path / "rows.json"
    for indent in (None, 2):
        path.write_text("\ufeff" + json.dumps(records, indent=indent, ensure_ascii=indent is None), encoding="utf-8")
        assert list(lines.elements_of(path)) == records
    path.write_text(" [ ] ")
    assert list(lines.elements_of(path)) == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('[{"a": 1},\n {"a": ]', "rows.json, line 2: no valid JSON: Expecting value at column 8; correct it there"),
        ('[{"a": 1}\n {"a": 1}]', "line 2: no valid JSON: Expecting ',' at column 2"),
        ('[{"a": 1},\n\n {"a": 1}', "line 3: no valid JSON: Expecting ',' at column 10"),
        ('[{"a": "1}', "line 1: no valid JSON: Unterminated string starting at column 8"),
        ("[1] 2", "line 1: no valid JSON: Extra data at column 5"),
        ("[" + "9" * 5000 + "]", "element 1: no valid JSON: Exceeds the limit"),
        ('[{"a": ,' + " " * 300 + "]", "line 1: no valid JSON: Expecting value at column 8"),
    ],
)
@pytest.mark.parametrize("size", [5, 1 << 20])
def test_an_array_that_is_broken_is_told_with_its_place(
    tmp_path: Path, text: str, reason: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "_CHUNK", size)
    (tmp_path / "rows.json").write_text(text)
    with pytest.raises(DatasetError) as caught:
        list(lines.elements_of(tmp_path / "rows.json"))
    assert reason in str(caught.value)


def test_a_text_keeps_its_lines_whatever_ends_them(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffone\r\ntwo\rthree\n".encode())
    (row,) = open_rows(str(tmp_path / "a.txt"))[1]
    assert not isinstance(row, BadRow)
    assert row.text == "one\ntwo\nthree\n"


def png(width: int, height: int, *chunks: tuple[bytes, bytes], interlaced: bool = False) -> bytes:
    """A PNG file of these dimensions whose content is one run of zeros, with chunks before it."""
    header = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, interlaced))
    content = (b"IDAT", zlib.compress(bytes(1000)))
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in (header, *chunks, content)
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))


def progressive(times: int) -> bytes:
    """A progressive JPEG of 16 x 16 pixels whose last scan comes several times."""
    file = BytesIO()
    Image.new("L", (16, 16)).save(file, "JPEG", progressive=True)
    whole = file.getvalue()
    return whole[:-2] + whole[whole.rindex(b"\xff\xda") : -2] * times + whole[-2:]


def tiff(tile: int) -> bytes:
    """A TIFF file of 8 x 8 pixels in tiles of another size."""
    tags = [(256, 8), (257, 8), (258, 8), (259, 8), (262, 1), (277, 1), (322, tile), (323, tile), (324, 200), (325, 4)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return (b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + entries + bytes(4)).ljust(220, b"\0")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (png(12_000, 12_000), "p: the picture is 12000 x 12000 pixels, above the limit of 64 million; make it smaller, or remove it"),
        (png(30_000, 30_000), "pixels"),
        (png(60_000, 4), "p: the picture is 60000 x 4 pixels, thinner than 1 to 50"),
        (
            png(8, 8, (b"zTXt", b"a\0\0" + zlib.compress(bytes(200 << 20), 9))),
            "p: the picture cannot be decoded (Decompressed data too large",
        ),
        (png(8, 8, (b"iCCP", b"a\0\0" + zlib.compress(bytes(100 << 20), 9))), "(Decompressed data too large"),
        (png(200, 200), "p: the picture cannot be decoded"),
        (png(8192, 8192, interlaced=True), "p: the picture cannot be decoded"),
        (tiff(40_000), "p: its tiles are 40000 x 40000 pixels, above the limit of 64 million"),
        (progressive(3000), " scans, above the limit of 100; save it anew, or remove it"),
    ],
    ids=["large", "larger", "thin", "text", "profile", "cut off", "interlaced", "tiles", "scans"],
)
def test_a_picture_that_unfolds_to_much_is_refused_by_its_header(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "p.png"
    path.write_bytes(content)
    with bounded(), pytest.raises(DatasetError) as caught:
        find_picture(path, "p")
    assert reason in str(caught.value)
