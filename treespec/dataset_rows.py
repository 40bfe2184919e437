"""Rows of a data set before they become prompts: what a row may look like, and the readers of plain files."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from treespec.errors import DatasetError
from treespec.stdlib_source import PIECE_CHARACTERS, pieces

TEXT_KEYS = ("text", "prompt", "turns", "article")
"""Where a row's text is looked for, in this order; `input_ids` comes before all of them."""

SUFFIXES = (".jsonl", ".json", ".parquet", ".txt")


@dataclass(frozen=True)
class Row:
    """One row: either a text or token ids that are taken as they are, or a picture and what is asked about it.

    `name` says where it comes from.
    """

    name: str
    text: str | None = None
    ids: tuple[int, ...] | None = None
    image: Path | None = None


def row_of(record: object, *, name: str) -> Row:
    """The row that a JSON object or a data set record stands for.

    Keys: `input_ids` (list of ints), or else `text`, `prompt`, `turns` or `article`: a string, or a list of strings,
    which are joined by line ends. Raises DatasetError that begins with `name`.
    """
    if not isinstance(record, Mapping):
        raise DatasetError(f'{name}: the row is {_kind(record)}, but it must be an object such as {{"text": ...}}')
    if "image" in record:
        return _picture_row(record, name)
    if "input_ids" in record:
        ids = record["input_ids"]
        if not isinstance(ids, list | tuple) or not all(type(i) is int for i in ids):
            raise DatasetError(f'{name}: "input_ids" must be a list of whole numbers; {_first_wrong(ids)}')
        return Row(name, ids=tuple(ids))
    for key in TEXT_KEYS:
        if key not in record:
            continue
        value = record[key]
        if isinstance(value, str):
            return Row(name, text=value)
        if isinstance(value, list | tuple) and value and all(isinstance(turn, str) for turn in value):
            return Row(name, text="\n".join(value))
        raise DatasetError(f'{name}: "{key}" is {_kind(value)}, but it must be a string or a list of strings')
    keys = ", ".join(repr(k) for k in list(record)[:6]) or "none"
    raise DatasetError(f'{name}: the row has none of the keys "input_ids", "text", "prompt" and "turns" (its keys: {keys})')


def _picture_row(record: Mapping[Any, Any], name: str) -> Row:
    image, prompt = record["image"], record.get("prompt", record.get("text"))
    if not isinstance(image, str) or not image:
        raise DatasetError(f'{name}: "image" is {_kind(image)}, but it must be the path of a picture')
    if prompt is not None and not isinstance(prompt, str):
        raise DatasetError(f'{name}: "prompt" is {_kind(prompt)}, but it must be a string')
    return Row(name, text=prompt, image=Path(image))


def rows_of_file(path: Path) -> Iterator[Row]:
    """Rows of a .jsonl, .json, .parquet or .txt file in file order, read as they are asked for.

    A .json file holds one array of rows, or a row per line as .jsonl does. A .txt file is one running text: its rows are
    runs of whole lines of about 6,000 characters. Raises DatasetError naming the file, the line and what is wrong there.
    """
    readers = {".jsonl": _json_lines, ".json": _json, ".parquet": _parquet, ".txt": _text}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DatasetError(
            f"{path} ends in {path.suffix or 'nothing'!r}; --dataset reads {', '.join(SUFFIXES)} files and folders saved by `datasets`"
        )
    try:
        for row in reader(path):
            yield row if row.image is None else replace(row, image=path.parent / row.image.expanduser())
    except UnicodeDecodeError as e:
        raise DatasetError(f"{path} is not UTF-8 text (byte {e.start} is 0x{e.object[e.start]:02x}); save it as UTF-8") from e
    except OSError as e:
        raise DatasetError(f"cannot read {path}: {e.strerror or e}") from e


def _text(path: Path) -> Iterator[Row]:
    for index, piece in enumerate(pieces(path.read_text(encoding="utf-8-sig"), PIECE_CHARACTERS)):
        yield Row(f"{path.name}#{index}", text=piece)


def _json_lines(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                name = f"{path.name}, line {number}"
                yield row_of(_parse(line, name), name=name)


def _json(path: Path) -> Iterator[Row]:
    text = path.read_text(encoding="utf-8-sig")
    if not text.lstrip().startswith("["):
        yield from _json_lines(path)
        return
    for number, record in enumerate(_parse(text, path.name), start=1):
        yield row_of(record, name=f"{path.name}, element {number}")


def _parse(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as e:
        line = f", line {e.lineno}" if "\n" in text.strip() else ""
        raise DatasetError(f"{name}{line}: no valid JSON: {e.msg} at column {e.colno}") from e
    except RecursionError as e:
        raise DatasetError(f"{name}: its JSON is nested too deeply") from e


def _parquet(path: Path) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as e:
        raise DatasetError(f"reading {path} needs the library pyarrow: pip install pyarrow, or convert the file to .jsonl") from e
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            wanted = [key for key in ("input_ids", *TEXT_KEYS) if key in names][:1]
            if not wanted:
                raise DatasetError(
                    f"{path} has none of the columns input_ids, text, prompt and turns (its columns: {', '.join(names[:8])})"
                )
            number = 0
            for batch in file.iter_batches(batch_size=64, columns=wanted):
                for record in batch.to_pylist():
                    yield row_of(record, name=f"{path.name}, row {number}")
                    number += 1
    except pyarrow.ArrowInvalid as e:
        raise DatasetError(f"{path} is not a parquet file: {str(e).splitlines()[0]}") from e


def _kind(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, list | tuple):
        return "an empty list" if not value else "a list with something else than strings in it"
    names = {dict: "an object", str: "a string", bool: "a truth value", int: "a number", float: "a number"}
    return names.get(type(value), f"a {type(value).__name__}")


def _first_wrong(ids: object) -> str:
    if not isinstance(ids, list | tuple):
        return f"it is {_kind(ids)}"
    wrong = next(i for i, value in enumerate(ids) if type(value) is not int)
    return f"number {wrong} of them is {ids[wrong]!r:.40}"
