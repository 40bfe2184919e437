"""Data sets as files of every kind that holds records."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest


def write_records(path: Path, records: Sequence[dict[str, Any]]) -> Path:
    """Write them to a .jsonl, .json or .parquet file, or for any other ending to a folder as `datasets` saves it.

    Skips the test where that takes a library that is not there.
    """
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(records), encoding="utf-8")
    elif path.suffix == ".parquet":
        pytest.importorskip("pyarrow.parquet").write_table(pytest.importorskip("pyarrow").Table.from_pylist(records), path)
    else:
        pytest.importorskip("datasets").Dataset.from_list(list(records)).save_to_disk(path)
    return path
