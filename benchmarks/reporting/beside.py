"""What results of plans that ran end to end have in common: how fast each was beside the one that the profiles picked."""

from collections.abc import Sequence
from typing import Any

from benchmarks.reporting.markdown import counted, interval, table
from benchmarks.reporting.run import Data
from benchmarks.reporting.verdicts import Check, verdict

Row = dict[str, Any]


def lead(row: Row) -> float:
    """Return how much faster a plan was than the picked one, in percent."""
    return float(100 * (row["measured"]["over_picked"] - 1))


def by_speed(data: Data) -> list[Row]:
    """Return the plans, the fastest first."""
    return sorted(data["rows"], key=lead, reverse=True)


def over_picked(row: Row) -> str:
    """Return how fast a plan was, in the speed of the picked one, with the interval if it is known."""
    found, ends = row["measured"]["over_picked"], row["measured"]["over_picked_interval_95"]
    return f"{found:.3f}" if ends is None else interval(found, ends, 3)


def headline(data: Data, noun: str, name: str, picked: str) -> str:
    """Return how much faster the fastest plan was, whose `name` is given, than the `picked` one."""
    best = lead(by_speed(data)[0])
    return f"of {counted(len(data['rows']), noun)} run end to end, the fastest, {name}, is {best:+.1f} % beside the {picked} one"


def decoded(data: Data) -> int:
    """Return how many prompts were decoded."""
    return int(data["settings"]["prompts"])


def judged(checks: Sequence[Check]) -> str:
    """Return a table of figures with their goals."""
    return table(("figure", "measured", "goal"), [[check.what, f"{check.figure} {check.goal.unit}", verdict([check])] for check in checks])
