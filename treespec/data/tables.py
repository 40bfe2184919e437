"""Rows of parquet files, batch by batch; what a file claims to unfold to is checked before it is read."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from treespec.data.lines import MAX_ROW_BYTES, refuse_other_kind
from treespec.data.rows import COMPANIONS, KEYS, BadRow, Row, none_of, not_utf8, read_row
from treespec.errors import DatasetError
from treespec.files.kinds import PARQUET

_BATCH_ROWS, _BATCH_BYTES = 64, 64 << 20
_MAX_BYTES = 256 << 20
"""Size from which a row group must not unfold to more than _MAX_RATIO times its bytes in the file."""
_MAX_RATIO = 200
_UNFOLDED = 4
"""Largest number of bytes of a value while a file is read, where its row has one."""


def rows_of_table(path: Path, keys: Sequence[str]) -> Iterator[Row | BadRow]:
    """Yield the rows of a parquet file. Raises DatasetError for a file that is none, lacks the columns, or unfolds to far more than its size."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as e:
        raise DatasetError(f"reading {path} needs the library pyarrow: pip install pyarrow, or convert the file to .jsonl") from e
    if path.exists() and not path.is_file():
        raise DatasetError(f"{path} is no regular file; name a parquet file")
    refuse_other_kind(path, "rows in the parquet format", PARQUET)
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns = _columns(path, file.schema_arrow.names, keys)
            number = 0
            for group in range(file.num_row_groups):
                rows = _batch_rows(path, file.metadata.row_group(group), columns)
                for batch in file.iter_batches(batch_size=rows, row_groups=[group], columns=columns, use_threads=False):
                    for index in range(len(batch)):
                        yield _row(batch.slice(index, 1), f"{path.name}, row {number}", keys)
                        number += 1
    except pyarrow.ArrowException as e:
        raise DatasetError(f"{path} is no whole parquet file: {(str(e).splitlines() or ['it is damaged'])[0]}") from e


def _row(record: Any, name: str, keys: Sequence[str]) -> Row | BadRow:
    size = sum(column.nbytes for column in record.columns if not hasattr(column, "dictionary"))  # a dictionary belongs to all rows
    if size > MAX_ROW_BYTES:
        return BadRow(name, f"{name} is longer than the limit of {MAX_ROW_BYTES >> 20} MB for a row; cut it into rows")
    try:
        return read_row(record.to_pylist()[0], name=name, keys=keys)
    except UnicodeDecodeError as e:
        return BadRow(name, not_utf8(name, e))


def _columns(path: Path, names: Sequence[str], keys: Sequence[str]) -> list[str]:
    """Return the columns to read: the first of `keys` that is there, and what belongs to it. Raises DatasetError if there is none."""
    sought = keys if keys == KEYS else keys[-1:]
    if not any(key in names for key in sought):
        raise DatasetError(
            f"{path} has {none_of(sought, 'column')} (its columns: {', '.join(names[:8])}); name the one that holds the text with `field`"
        )
    first = next(key for key in keys if key in names)
    if first == "image":  # whatever stands beside a picture may be what is asked about it
        return list(names)
    return [first, *(name for name in names if name in COMPANIONS and name != first)]


def _batch_rows(path: Path, group: Any, columns: Sequence[str]) -> int:
    """Return how many rows to unfold at once, so that a batch stays small even if each row holds as much as the group has distinct values for.

    Raises DatasetError for a group that claims to unfold to far more than it takes in the file.
    """
    unfolded = packed = 0
    for index in range(group.num_columns):
        column = group.column(index)
        if column.path_in_schema.partition(".")[0] in columns:
            values = 0 if column.physical_type == "BYTE_ARRAY" else 4 * column.num_values
            unfolded += max(column.total_uncompressed_size, values)
            packed += column.total_compressed_size
    if unfolded > _MAX_BYTES and unfolded > _MAX_RATIO * packed:
        raise DatasetError(
            f"{path} unfolds to {unfolded >> 20:,} MB in one row group of {packed:,} bytes, more than {_MAX_RATIO} times as much; it is damaged, or "
            "made to fill the memory: write it again from its source"
        )
    if unfolded > _UNFOLDED * MAX_ROW_BYTES * group.num_rows:
        raise DatasetError(f"{path} holds rows that are longer than the limit of {MAX_ROW_BYTES >> 20} MB for a row; cut them into rows")
    return max(1, min(_BATCH_ROWS, _BATCH_BYTES // max(1, unfolded)))
