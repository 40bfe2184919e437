"""Raw samples of times, as latency profiles hold them, with their checks and their JSON."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from treeopt.profiles.intervals import FEWEST, Interval, of_median
from treespec.errors import ProfileError
from treespec.files.fields import MOST_SECONDS, count, mapping, numbers
from treespec.trees.limits import MAX_SIZE

Pick = Callable[[Sequence[float]], float]
"""A function that returns what stands for samples in a prediction: their median, or an end of its interval."""


BURST = 4
"""Samples of a point that are measured in a row. Then the other points take their turn."""
ENOUGH = FEWEST * BURST
"""Fewest samples whose median has an interval."""


def interval_of(seconds: Sequence[float]) -> Interval | None:
    """Return the 95 % interval of the median of samples; None for fewer than `ENOUGH`: `FEWEST` bursts of `BURST` samples.

    Samples in a row meet the same other work on a machine, so it is the bursts that are independent: the interval is that of the medians of bursts,
    and of the median of all, if that lies outside. On a busy machine, intervals of 20 samples, as if each was independent, held the median
    of 200 in 60 of 100 cases, and those of 6 bursts in 91.
    """
    ends = of_median([statistics.median(seconds[at : at + BURST]) for at in range(0, len(seconds) - BURST + 1, BURST)])
    middle = statistics.median(seconds)
    return None if ends is None else (min(ends[0], middle), max(ends[1], middle))


def low_end(seconds: Sequence[float]) -> float:
    """Return the lower end of the interval of the median of enough samples."""
    return _ends(seconds)[0]


def high_end(seconds: Sequence[float]) -> float:
    """Return the upper end of the interval of the median of enough samples."""
    return _ends(seconds)[1]


def _ends(seconds: Sequence[float]) -> Interval:
    found = interval_of(seconds)
    assert found is not None, "whoever asks has counted the samples"
    return found


@dataclass(frozen=True)
class LatencySample:
    """Raw seconds of one pass over `nodes` tree nodes after `context` cached tokens.

    The target reads a whole tree, whose size is `nodes`; the draft reads one level, whose width is `nodes`.
    """

    nodes: int
    context: int
    seconds: tuple[float, ...]

    @property
    def median_seconds(self) -> float:
        """Median of the samples, which predictions use."""
        return statistics.median(self.seconds)

    @property
    def interval(self) -> Interval | None:
        """The 95 % interval of the median; None for too few samples."""
        return interval_of(self.seconds)

    def summary(self, unit: str) -> dict[str, Any]:
        """Return the sample as plain data, with its median and how far its seconds spread in their place; its nodes are a `unit`."""
        return {
            unit: self.nodes,
            "context": self.context,
            "median_seconds": self.median_seconds,
            "interval_95": self.interval,
            "fastest_seconds": min(self.seconds),
            "slowest_seconds": max(self.seconds),
            "samples": len(self.seconds),
        }


def check_samples(name: str, unit: str, samples: Sequence[LatencySample]) -> None:
    """Raise ProfileError for samples that are none, too many, repeated or impossible."""
    if not samples:
        raise ProfileError(f"{name} holds no measurement; at least one {unit} is needed")
    check_count(name, samples, f"{unit}s")
    seen: set[tuple[int, int]] = set()
    for sample in samples:
        nodes, context = sample.nodes, sample.context
        if nodes < 1 or context < 0:
            raise ProfileError(f"{name} has {unit} {nodes} at context {context}, but a {unit} is 1 or more and a context 0 or more")
        if (nodes, context) in seen:
            raise ProfileError(f"{name} has {unit} {nodes} at context {context} twice; put all its samples into one entry")
        seen.add((nodes, context))
        check_seconds(f"{name} {unit} {nodes} at context {context}", sample.seconds)


def check_count(name: str, samples: Sequence[object], what: str) -> None:
    """Raise ProfileError for more measurements than a profile may have."""
    if len(samples) > MAX_SIZE:
        raise ProfileError(f"{name} holds {len(samples):,} measurements, but at most {MAX_SIZE:,} are read; keep those of fewer {what}")


def check_seconds(name: str, seconds: Sequence[float], least: float = 1e-12) -> None:
    """Raise ProfileError for no samples, or one that no clock can have shown."""
    if not seconds:
        raise ProfileError(f"{name} has no samples; at least one is needed")
    for value in seconds:
        if not least <= value <= MOST_SECONDS:  # also true for NaN
            raise ProfileError(f"{name} has a sample of {value} seconds, but it takes {least:g} to {MOST_SECONDS:g}; measure again")


def sample_entry(sample: LatencySample, unit: str) -> dict[str, Any]:
    """Return a sample as JSON, whose nodes are a `unit`."""
    return {unit: sample.nodes, "context": sample.context, "seconds": list(sample.seconds)}


def sample_of(value: Any, unit: str) -> LatencySample:
    """Return the sample of its JSON. Raises TypeError, ValueError."""
    item = mapping(value)
    missing = [key for key in (unit, "context", "seconds") if key not in item]
    if missing:
        raise ValueError(f"an entry without {', '.join(missing)}")
    return LatencySample(count(item[unit]), count(item["context"]), numbers(item["seconds"]))
