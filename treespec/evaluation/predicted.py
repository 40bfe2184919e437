"""Prediction: what a growmap promises for a run, with intervals. No torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from treespec.files.fields import amount, checked_object, interval

Interval = tuple[float, float]

_FIGURES = ("tokens_per_step", "seconds_per_step", "speedup")


@dataclass(frozen=True)
class Prediction:
    """The growmap's promise, as far as it holds for a run: each figure is None if it is not predicted, and so is an interval that is not known."""

    tokens_per_step: float | None = None
    seconds_per_step: float | None = None
    rank_probability: tuple[tuple[float, ...], ...] | None = None
    """The profiled chance of each rank, over all positions, from which the rest was predicted. There is one row per depth of the
    parent; the last one is for all deeper parents too."""
    speedup: float | None = None
    tokens_per_step_interval: Interval | None = None
    """The 95 % interval of a figure; so are the next two."""
    seconds_per_step_interval: Interval | None = None
    speedup_interval: Interval | None = None

    @property
    def autoregressive_seconds(self) -> float | None:
        """The seconds of an autoregressive step, which follow from the speed-up."""
        tokens, seconds, speedup = self.tokens_per_step, self.seconds_per_step, self.speedup
        found = math.inf if not tokens or seconds is None or speedup is None else speedup * seconds / tokens
        return found if math.isfinite(found) else None

    def to_json(self) -> dict[str, Any]:
        """Return the figures as plain data, without the chances of ranks."""
        figures = {name: getattr(self, name) for name in _FIGURES}
        alone = {"autoregressive_seconds": self.autoregressive_seconds}
        return figures | alone | {"intervals_95": {name: getattr(self, f"{name}_interval") for name in _FIGURES}}


_READERS = {
    **dict.fromkeys((*_FIGURES, "autoregressive_seconds"), amount),
    "intervals_95": checked_object(dict.fromkeys(_FIGURES, interval)),
}


def prediction_from(value: Any, rank_probability: tuple[tuple[float, ...], ...] | None) -> Prediction:
    """Return the prediction of its JSON. Older files have two of its figures. Raises TypeError, ValueError."""
    found = checked_object(_READERS)(value)
    if odd := found.keys() - _READERS.keys():
        raise ValueError(f"it has the unknown key {min(odd)!r:.40}")
    ends: Mapping[str, Any] = found.get("intervals_95") or {}
    tokens, seconds, speedup = (found.get(name) for name in _FIGURES)
    intervals = [None if ends.get(name) is None else interval(ends[name]) for name in _FIGURES]
    return Prediction(tokens, seconds, rank_probability, speedup, *intervals)
