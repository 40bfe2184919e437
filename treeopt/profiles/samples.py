"""Raw samples of times, as latency profiles hold them, with their checks and their JSON."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from treespec.errors import ProfileError
from treespec.files.fields import MOST_SECONDS, count, mapping, numbers
from treespec.trees.limits import MAX_SIZE


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
