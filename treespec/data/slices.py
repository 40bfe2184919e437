"""A slice of a data set's rows, as plain data."""

from dataclasses import dataclass

from treespec.errors import SettingsError


@dataclass(frozen=True)
class DatasetSlice:
    """Rows `start` up to `end` (left out) of a data set. Their text is under `field` if that is no usual key."""

    dataset: str
    field: str | None = None
    start: int = 0
    end: int | None = None
    skip_bad_rows: bool = False

    def __post_init__(self) -> None:
        if self.start < 0:
            raise SettingsError(f"`start` is {self.start}, but rows are counted from 0; pass 0 or more")
        if self.end is not None and self.end <= self.start:
            raise SettingsError(f"`end` {self.end} leaves no rows from `start` {self.start}; pass `end` {self.start + 1} or more")
