"""How many prompts a run decoded, beside the other runs of its kind."""

import re
from collections.abc import Sequence
from dataclasses import replace

from benchmarks.reporting.markdown import counted, day, device
from benchmarks.reporting.run import Data, Kind, Run


def with_fewer(run: Run, kind: Kind, others: Sequence[Run]) -> Run:
    """Return the run with the sentence on its prompts, where another run of its kind decoded these prompts and more."""
    mine = kind.prompts(run.data)
    more = [
        (count, other)
        for other in others
        if (count := kind.prompts(other.data)) and mine and count > mine and _begins(run.data, other.data)
    ]
    if not more:
        return run
    count, other = max(more, key=lambda found: found[0])
    origin = other.data["provenance"]
    sentence = (
        f"These figures are of only {counted(mine or 0, 'prompt')}, the first {mine:,} of the {counted(count, 'prompt')} of the run on"
        f" {device(origin)} of {day(origin)} (`benchmarks/results/{other.file}`): tokens per step depend on the prompts,"
        " so those of the two runs cannot be compared."
    )
    return replace(run, most=count, fewer=sentence)


def prompts_cell(run: Run, kind: Kind) -> str:
    """Return how many prompts a run had, and of how many they are the first."""
    found = kind.prompts(run.data)
    return "" if found is None else f"{found:,}" if run.most is None else f"{found:,} of {run.most:,}"


def _begins(part: Data, whole: Data) -> bool:
    """Return whether the prompts of one file are the first ones of another's: the same rows of one Python's library, for the same models."""
    mine, other = (_rows(data) for data in (part, whole))
    same = all(part["provenance"][key] == whole["provenance"][key] for key in ("python", "models"))
    return bool(mine and other) and same and mine[:2] == other[:2] and mine[2] <= other[2]  # type: ignore[index]


def _rows(data: Data) -> tuple[str, int, int] | None:
    """Return (data set, first row, row after the last) of a file's prompts."""
    found = re.fullmatch(r"(.+)\[(\d+):(\d+)\]", data["provenance"]["dataset"] or "") if "provenance" in data else None
    return found and (found[1], int(found[2]), int(found[3]))
