"""training.json, the record of a training run. The module needs no torch."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from treespec.errors import ProfileError
from treespec.files.fields import Fields, count, listed, mapping, number
from treespec.files.reading import read_json

SCHEMA, VERSION = "treeopt.training", 1
NAME = "training.json"

Measured = tuple[float, float | None]
"""First-choice acceptance and its standard error over texts, which is None with a single text."""


@dataclass(frozen=True)
class Outcome:
    """The figures of a finished run. `before` and `after` are None if acceptance was not measured."""

    steps: int
    texts: int
    loss_first: float
    loss_last: float
    before: Measured | None
    after: Measured | None
    seconds: float
    """Seconds of the call that finished the run, without the earlier time of a resumed run."""


def outcome(record: Mapping[str, Any], path: str | os.PathLike[str] = NAME) -> Outcome | None:
    """Return the figures of a record, or None if its run is not finished. Raises ProfileError that names the file and what it lacks."""
    data = Fields(path, record)
    if not data.get("finished", bool):
        return None
    ranks = data.get("history", lambda value: [_measured(entry) for entry in listed(value) if "rank1_acceptance" in mapping(entry)])
    loss = data.get("loss", mapping)
    return Outcome(
        data.get("steps", count),
        data.get("texts", lambda value: count(mapping(value)["rows"])),
        Fields(path, loss).get("first", number),
        Fields(path, loss).get("last", number),
        ranks[0] if ranks else None,
        ranks[-1] if ranks else None,
        data.get("seconds", number),
    )


def read_record(path: str | os.PathLike[str]) -> tuple[dict[str, Any], Outcome | None]:
    """Return a record and its figures. Raises ProfileError."""
    record = read_json(path, schema=SCHEMA, version=VERSION, error=ProfileError)
    for group in ("sources", "settings"):
        Fields(path, record).get(group, mapping)
    return record, outcome(record, path)


def _measured(entry: dict[str, Any]) -> Measured:
    error = entry.get("rank1_standard_error")
    return number(entry["rank1_acceptance"]), None if error is None else number(error)
