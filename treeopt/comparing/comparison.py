"""Comparison: figures of several things of one kind beside one another, and their differences from the first. No torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from treespec.errors import counted
from treespec.tables import Drawing, Drawn, Table, in_short, number

_MOST_ROWS = 256
"""Most figures that a table shows: latency profiles may have thousands of points."""


@dataclass(frozen=True)
class Estimated:
    """A figure with the ends of its 95 % interval; None where it, or the interval, is not known."""

    value: float | None = None
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Form:
    """The form in which a figure is shown: its name for people, the digits behind the point, and the factor that it is multiplied by (1000 for ms)."""

    name: str
    digits: int = 3
    factor: float = 1.0

    def cell(self, of: Estimated, *, sign: bool = False) -> str:
        """Return the figure as a cell of a table, with a sign if it is a difference."""
        if of.value is None:
            return number(None, self.digits)
        ends = None if of.interval is None else [self.factor * end for end in of.interval]
        return number(self.factor * of.value, self.digits, ends, sign=sign)


@dataclass(frozen=True)
class Compared:
    """One figure of all things: its `values` in their order, and the `differences` of all but the first from the first."""

    key: str
    """Its name in JSON."""
    form: Form
    values: tuple[Estimated, ...]
    differences: tuple[Estimated, ...]
    at: Mapping[str, int] = field(default_factory=dict)
    """The place where it was measured, such as a size and a context."""

    def to_json(self) -> dict[str, Any]:
        """Return plain data, in the units of the key."""
        first = self.values[0].value
        return {
            "figure": self.key,
            **self.at,
            "values": [one.value for one in self.values],
            "intervals_95": [one.interval for one in self.values],
            "differences": [one.value for one in self.differences],
            "difference_intervals_95": [one.interval for one in self.differences],
            "ratios": [one.value / first if one.value is not None and first else None for one in self.values[1:]],
        }


@dataclass(frozen=True)
class Comparison(Drawn):
    """Things of one `kind` beside one another, by their `names`."""

    kind: str
    """"growmap", "budget", "acceptance", "latency" or "evaluation"."""
    names: tuple[str, ...]
    figures: tuple[Compared, ...]
    differ: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Settings that are not the same, each with its values in the order of the things."""
    paired: tuple[bool, ...] = ()
    """Whether each of the others has the prompts of the first, so that differences are taken prompt by prompt; empty where there are no prompts."""
    notes: tuple[str, ...] = ()

    def summary(self) -> dict[str, Any]:
        """Return the comparison as plain data."""
        return {
            "kind": self.kind,
            "names": list(self.names),
            "paired": list(self.paired),
            "figures": [figure.to_json() for figure in self.figures],
            "differ": {name: list(values) for name, values in self.differ.items()},
            "notes": list(self.notes),
        }

    def drawing(self) -> Drawing:
        """Return a table for each of the others beside the first, one of the settings that differ, and the notes."""
        tables = [self._beside(place, name) for place, name in enumerate(self.names[1:])]
        if self.differ:
            rows = [(name.replace("_", " "), *map(_shown, values)) for name, values in self.differ.items()]
            tables.append(Table("what differs", ("", *self.names), rows, left=("", *self.names)))
        return Drawing([*tables, *self.notes])

    def _beside(self, place: int, name: str) -> Table:
        first = self.names[0]
        rows = [
            (
                one.form.name,
                one.form.cell(one.values[0]),
                one.form.cell(one.values[place + 1]),
                one.form.cell(one.differences[place], sign=True),
            )
            for one in self.figures[:_MOST_ROWS]
        ]
        more = len(self.figures) - _MOST_ROWS
        left_out = [f"{counted(more, 'more figure is', 'more figures are')} not shown"] if more > 0 else []
        how = ", paired by prompt" if self.paired and self.paired[place] else ""
        return Table(f"{name} beside {first}{how}", ("", first, name, "difference"), rows, left_out=left_out)

    def __repr__(self) -> str:
        return in_short(self, kind=self.kind, names=self.names, figures=len(self.figures))


def _shown(value: Any) -> str:
    """Return a setting as a cell."""
    if value is None:
        return "-"
    return f"{value:g}" if isinstance(value, float) else str(value)


def labels(names: Sequence[str]) -> tuple[str, ...]:
    """Return the shortest ends of paths that tell them apart; those that are the same in full get a number.

    >>> labels(["a/x/report.json", "a/y/report.json"]), labels(["tree.pt", "best.pt"]), labels(["t.pt", "t.pt"])
    (('x/report.json', 'y/report.json'), ('tree.pt', 'best.pt'), ('t.pt (1)', 't.pt (2)'))
    """
    parts = [name.replace("\\", "/").split("/") for name in names]
    for length in range(1, max(map(len, parts)) + 1):
        ends = tuple("/".join(own[-length:]) for own in parts)
        if len(set(ends)) == len(ends):
            return ends
    return tuple(f"{name} ({place})" if list(names).count(name) > 1 else name for place, name in enumerate(names, 1))
