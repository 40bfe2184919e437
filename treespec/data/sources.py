"""Sources of rows: from the name or the path of a data set to its rows, with the readers of plain files."""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from treespec.data import stdlib as stdlib_source
from treespec.data.hub_datasets import HUB_DATASETS, hub_dataset, hub_rows, saved_rows
from treespec.data.lines import elements_of, holds_array, lines_of
from treespec.data.pictures import SUFFIXES as PICTURE_SUFFIXES
from treespec.data.rows import BadRow, Row, keys_of, not_utf8, read_row
from treespec.data.slices import SUFFIXES
from treespec.data.stdlib import pieces
from treespec.data.tables import rows_of_table
from treespec.errors import DatasetError
from treespec.files.reading import user_path

DATASET_NAMES = ("stdlib", *HUB_DATASETS, "stdlib-train")
"""Names of data sets, which need no path."""

_SEEN = 100
"""Number of the files of a folder inside another one that are looked at for one to name."""
_MAX_TEXT_LINE = 4 << 20
"""Longest line of running text, since a row is a run of whole lines."""


def open_rows(
    dataset: str, field: str | None = None, *, pictures: bool = False, end: int | None = None
) -> tuple[str, Iterator[Row | BadRow]]:
    """Return the name of a data set for provenance, and its rows up to `end`, which are read as they are asked for.

    `field` is the key that holds the rows' text, or with `pictures` the question about one, if it is none of the usual keys. Raises
    DatasetError if there is no such data set.
    """
    name, rows = _open(dataset, field, pictures)
    return name, islice(rows, None if end is None else min(end, sys.maxsize))


def _open(dataset: str, field: str | None, pictures: bool) -> tuple[str, Iterable[Row | BadRow]]:
    if dataset in ("stdlib", "stdlib-train"):
        if field is not None:
            raise DatasetError(f"data set {dataset} is running text without fields; drop `field` {field}")
        split: stdlib_source.Split = "held-out" if dataset == "stdlib" else "train"
        return dataset, (Row.of_text(name, text) for name, text in stdlib_source.split_rows(split))
    if hub_dataset(dataset) is not None:
        return dataset, hub_rows(dataset, field)
    path = user_path(dataset, DatasetError)
    if not dataset or not (path.exists() or path.suffix.lower() in SUFFIXES):
        known = ", ".join(DATASET_NAMES)
        raise DatasetError(
            f"unknown data set {dataset!r}: it is neither one of {known} nor a path that exists, nor OWNER/NAME on the hub; check `dataset`"
        )
    if path.is_dir():
        return _open_folder(path, field, pictures)
    return path.name, rows_of_file(path, field, pictures=pictures)


def same_dataset(one: str, other: str) -> bool:
    """Return whether two names or paths of data sets lead to the same rows, however they are spelled."""
    if one == other or one in DATASET_NAMES or other in DATASET_NAMES:
        return one == other
    return user_path(one, DatasetError).resolve() == user_path(other, DatasetError).resolve()


def _open_folder(folder: Path, field: str | None, pictures: bool) -> tuple[str, Iterable[Row | BadRow]]:
    if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
        return saved_rows(folder, field, pictures=pictures)
    try:
        files = sorted(folder.iterdir())
    except OSError as e:
        raise DatasetError(f"cannot read {folder}: {e.strerror or e}") from e
    images = [f for f in files if f.suffix.lower() in PICTURE_SUFFIXES]
    if images:
        if field is not None:
            raise DatasetError(f"{folder} holds pictures, which have no fields; drop `field` {field}")
        return folder.name, (Row(f"{folder.name}/{image.name}", image=image) for image in images)
    inside = (f for part in files if part.is_dir() for f in islice(part.iterdir(), _SEEN))
    readable = next((f for f in chain(files, inside) if f.suffix.lower() in SUFFIXES), None)
    hint = f"; name a file in it, such as {readable}" if readable else ""
    raise DatasetError(f"{folder} is no folder saved by `datasets` (it has no state.json and no dataset_dict.json){hint}")


def rows_of_file(path: Path, field: str | None = None, *, pictures: bool = False) -> Iterator[Row | BadRow]:
    """Yield the rows of a .jsonl, .json, .parquet or .txt file in file order, read as they are asked for.

    A .json file holds one array of rows, or a row per line as .jsonl does. A .txt file is one running text: its rows are
    runs of whole lines of about 6,000 characters. `field` is the key that holds the rows' text, or with `pictures` the question about
    one, if it is none of TEXT_KEYS. Raises DatasetError if the whole file cannot be read.
    """
    readers = {".jsonl": _json_lines, ".json": _json, ".parquet": rows_of_table, ".txt": _text}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        ending = f"ends in {path.suffix!r}" if path.suffix else "has no ending"
        raise DatasetError(f"{path} {ending}; `dataset` reads {', '.join(SUFFIXES)} files and folders saved by `datasets`")
    if field is not None and reader is _text:
        raise DatasetError(f"{path} is one running text without fields; drop `field` {field}")
    try:
        for row in reader(path, keys_of(field, pictures)):
            yield row if isinstance(row, BadRow) or row.image is None else _beside(path, row, row.image)
    except UnicodeDecodeError as e:
        raise DatasetError(not_utf8(str(path), e)) from e
    except FileNotFoundError as e:
        raise DatasetError(f"there is no file {path}; check the path") from e
    except OSError as e:
        raise DatasetError(f"cannot read {path}: {e.strerror or e}") from e


def _beside(path: Path, row: Row, image: Path) -> Row | BadRow:
    """Return the row with its picture's path taken from the folder of the data set's file."""
    try:
        return replace(row, image=path.parent / user_path(image, DatasetError))
    except DatasetError as e:
        return BadRow(row.name, f"{row.name}: {e}")


def _text(path: Path, keys: Sequence[str]) -> Iterator[Row]:
    lines = lines_of(path, "break it into shorter lines (fold -s does)", limit=_MAX_TEXT_LINE)
    texts = (_decoded(line, first=number == 0).replace("\r\n", "\n").replace("\r", "\n") for number, line in enumerate(lines))
    for index, piece in enumerate(pieces(part for text in texts for part in text.splitlines(keepends=True))):
        yield Row.of_text(f"{path.name}#{index}", piece)


def _decoded(line: bytes, *, first: bool) -> str:
    return line.decode("utf-8-sig" if first else "utf-8")


def _json_lines(path: Path, keys: Sequence[str]) -> Iterator[Row | BadRow]:
    for number, line in enumerate(lines_of(path, "cut it into rows, one a line"), start=1):
        name = f"{path.name}, line {number}"
        try:
            text = _decoded(line, first=number == 1)
            if text.strip():
                yield read_row(_parse(text, name), name=name, keys=keys)
        except UnicodeDecodeError as e:
            yield BadRow(name, not_utf8(name, e))
        except DatasetError as e:
            yield BadRow(name, str(e))


def _json(path: Path, keys: Sequence[str]) -> Iterator[Row | BadRow]:
    if not holds_array(path):
        yield from _json_lines(path, keys)
        return
    for number, record in enumerate(elements_of(path), start=1):
        yield read_row(record, name=f"{path.name}, element {number}", keys=keys)


_ONE_A_LINE = "each line must hold one whole object: correct it, or put all objects into one array in a .json file"


def _parse(text: str, name: str) -> Any:
    try:
        return json.loads(text.rstrip())
    except json.JSONDecodeError as e:
        raise DatasetError(f"{name}: no valid JSON: {e.msg.removesuffix(' at')} at column {e.colno}; {_ONE_A_LINE}") from e
    except RecursionError as e:
        raise DatasetError(f"{name}: its JSON is nested too deeply") from e
    except ValueError as e:  # a number of too many digits
        raise DatasetError(f"{name}: no valid JSON: {e}") from e
