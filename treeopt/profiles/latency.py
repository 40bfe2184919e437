"""LatencyProfile: how long passes take per tree size, level width and context, as versioned JSON with raw samples."""

import bisect
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from treeopt.profiles.drawing import latency
from treeopt.profiles.latency_model import LatencyModel
from treespec.errors import ProfileError
from treespec.files.fields import MOST_SECONDS, Fields, count, listed, mapping, numbers
from treespec.files.provenance import provenance_fields
from treespec.files.reading import StrPath, read_json
from treespec.files.writing import write_json
from treespec.tables import Drawing, Drawn, in_short
from treespec.trees.limits import MAX_SIZE

LATENCY_SCHEMA = "treeopt.latency"
VERSION = 1


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


@dataclass(frozen=True)
class LatencyProfile(Drawn):
    """Raw seconds of target passes, draft passes and the rest of a step (`overhead_seconds`), on one machine.

    Raises ProfileError for measurements that are empty or repeated, or that no clock can have shown.
    """

    target: tuple[LatencySample, ...]
    draft: tuple[LatencySample, ...]
    overhead_seconds: tuple[float, ...]
    provenance: dict[str, Any] | None = None
    autoregressive_overhead_seconds: tuple[float, ...] = ()
    """Overhead of autoregressive steps, which accept and move nothing. If it is empty, the overhead of tree steps is taken."""

    def __post_init__(self) -> None:
        _check_samples("target", "size", self.target)
        _check_samples("draft", "width", self.draft)
        _check_seconds("overhead_seconds", self.overhead_seconds, least=0.0)
        if self.autoregressive_overhead_seconds:
            _check_seconds("autoregressive_overhead_seconds", self.autoregressive_overhead_seconds, least=0.0)

    @property
    def contexts(self) -> tuple[int, ...]:
        """The contexts at which the target was measured, ascending."""
        return tuple(sorted({s.context for s in self.target}))

    def at_context(self, context: int | None = None) -> LatencyModel:
        """Return the medians at the measured context that equals `context` or is the next larger one; None stands for the smallest.

        Raises ProfileError, naming the measured contexts, if none is large enough.
        """
        chosen = _next_context(context, self.contexts, "target")
        draft = _next_context(chosen, tuple(sorted({s.context for s in self.draft})), "draft")
        sizes = sorted((s.nodes, s.median_seconds) for s in self.target if s.context == chosen)
        widths = sorted((s.nodes, s.median_seconds) for s in self.draft if s.context == draft)
        apart = self.autoregressive_overhead_seconds
        overheads = statistics.median(self.overhead_seconds), statistics.median(apart) if apart else None
        return LatencyModel(chosen, tuple(sizes), tuple(widths), *overheads)

    def to_json(self) -> dict[str, Any]:
        """Return the content of the profile's file."""
        data: dict[str, Any] = {
            "schema": LATENCY_SCHEMA,
            "version": VERSION,
            "target": [_entry(s, "size") for s in self.target],
            "draft": [_entry(s, "width") for s in self.draft],
            "overhead_seconds": list(self.overhead_seconds),
        }
        if self.autoregressive_overhead_seconds:
            data["autoregressive_overhead_seconds"] = list(self.autoregressive_overhead_seconds)
        return data if self.provenance is None else data | {"provenance": self.provenance}

    def summary(self) -> dict[str, Any]:
        """Return the profile as plain data, with medians in seconds in place of the raw samples."""
        return {
            "target": [{"size": s.nodes, "context": s.context, "median_seconds": s.median_seconds} for s in self.target],
            "draft": [{"width": s.nodes, "context": s.context, "median_seconds": s.median_seconds} for s in self.draft],
            "overhead_seconds": statistics.median(self.overhead_seconds),
        }

    def drawing(self) -> Drawing:
        """Return median milliseconds of target passes and draft levels, with a column per context."""
        return Drawing(latency(self.summary()))

    def __repr__(self) -> str:
        most = {"max_size": max(s.nodes for s in self.target), "max_width": max(s.nodes for s in self.draft)}
        contexts = len(self.contexts)
        return in_short(self, sizes=len({s.nodes for s in self.target}), **most, contexts=self.contexts if contexts <= 4 else contexts)

    def write(self, path: StrPath) -> None:
        """Write the file whole or not at all. Raises OutputError."""
        write_json(path, self.to_json())


def read_latency(path: StrPath) -> LatencyProfile:
    """Read a `treeopt.latency` file. Raises ProfileError."""
    data = Fields(path, read_json(path, schema=LATENCY_SCHEMA, version=VERSION, error=ProfileError))

    def samples(unit: str) -> Callable[[Any], tuple[LatencySample, ...]]:
        return lambda value: tuple(_sample(item, unit) for item in listed(value))

    return data.build(
        lambda: LatencyProfile(
            target=data.get("target", samples("size")),
            draft=data.get("draft", samples("width")),
            overhead_seconds=data.get("overhead_seconds", numbers),
            autoregressive_overhead_seconds=data.get("autoregressive_overhead_seconds", numbers, []),
            provenance=data.optional("provenance", provenance_fields),
        )
    )


def _check_samples(name: str, unit: str, samples: Sequence[LatencySample]) -> None:
    if not samples:
        raise ProfileError(f"{name} holds no measurement; at least one {unit} is needed")
    if len(samples) > MAX_SIZE:
        raise ProfileError(f"{name} holds {len(samples):,} measurements, but at most {MAX_SIZE:,} are read; keep those of fewer sizes")
    seen: set[tuple[int, int]] = set()
    for sample in samples:
        nodes, context = sample.nodes, sample.context
        if nodes < 1 or context < 0:
            raise ProfileError(f"{name} has {unit} {nodes} at context {context}, but a {unit} is 1 or more and a context 0 or more")
        if (nodes, context) in seen:
            raise ProfileError(f"{name} has {unit} {nodes} at context {context} twice; put all its samples into one entry")
        seen.add((nodes, context))
        _check_seconds(f"{name} {unit} {nodes} at context {context}", sample.seconds)


def _check_seconds(name: str, seconds: Sequence[float], least: float = 1e-12) -> None:
    if not seconds:
        raise ProfileError(f"{name} has no samples; at least one is needed")
    for value in seconds:
        if not least <= value <= MOST_SECONDS:  # also true for NaN
            raise ProfileError(f"{name} has a sample of {value} seconds, but it takes {least:g} to {MOST_SECONDS:g}; measure again")


def _next_context(context: int | None, measured: tuple[int, ...], model: str) -> int:
    at = 0 if context is None else bisect.bisect_left(measured, context)
    if at == len(measured):
        raise ProfileError(
            f"the {model} was not measured at context {context} or beyond, only at {', '.join(map(str, measured))}; "
            f"profile it there, or ask for at most {measured[-1]}"
        )
    return measured[at]


def _entry(sample: LatencySample, unit: str) -> dict[str, Any]:
    return {unit: sample.nodes, "context": sample.context, "seconds": list(sample.seconds)}


def _sample(value: Any, unit: str) -> LatencySample:
    item = mapping(value)
    missing = [key for key in (unit, "context", "seconds") if key not in item]
    if missing:
        raise ValueError(f"an entry without {', '.join(missing)}")
    return LatencySample(count(item[unit]), count(item["context"]), numbers(item["seconds"]))
