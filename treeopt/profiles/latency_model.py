"""LatencyModel: predicted seconds at one context, from the medians of a latency profile."""

import bisect
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from treespec.errors import ProfileError


@dataclass(frozen=True)
class LatencyModel:
    """Predicted seconds at one context: (nodes, median seconds) pairs of target sizes and draft widths, ascending.

    The time of an unmeasured number of nodes is that of the next larger measured one.
    """

    context: int
    target: tuple[tuple[int, float], ...]
    draft: tuple[tuple[int, float], ...]
    overhead_seconds: float
    autoregressive_overhead_seconds: float | None = None
    """Overhead of a step without a tree, if it was measured apart."""

    @property
    def largest_size(self) -> int:
        """Largest tree size with a known time."""
        return self.target[-1][0]

    @property
    def largest_width(self) -> int:
        """Largest draft level width with a known time."""
        return self.draft[-1][0]

    def target_seconds(self, size: int) -> float:
        """Return the seconds of one target pass over `size` nodes. Raises ProfileError beyond the largest measured size."""
        return _predict(size, self.target, "tree size")

    def autoregressive_seconds(self) -> float:
        """Return the seconds per token without speculation: one target pass over the last token, and the overhead of such a step."""
        apart = self.autoregressive_overhead_seconds
        return self.target_seconds(1) + (self.overhead_seconds if apart is None else apart)

    def draft_seconds(self, width: int) -> float:
        """Return the seconds of one draft pass over `width` nodes. Raises ProfileError beyond the largest measured width."""
        return _predict(width, self.draft, "draft level width")

    def target_table(self, largest: int) -> NDArray[np.float64]:
        """Return target seconds by size, [largest + 1]; they are infinite at 0 and beyond the measured sizes."""
        return _table(largest, self.target)

    def draft_table(self, largest: int) -> NDArray[np.float64]:
        """Return draft seconds by width, [largest + 1]; they are infinite at 0 and beyond the measured widths."""
        return _table(largest, self.draft)


def _predict(nodes: int, measured: tuple[tuple[int, float], ...], what: str) -> float:
    if nodes < 1:
        raise ProfileError(f"{what} {nodes} has no time; ask for 1 or more")
    at = bisect.bisect_left(measured, (nodes, -math.inf))
    if at == len(measured):
        raise ProfileError(f"{what} {nodes} is beyond {measured[-1][0]}, the largest measured one; profile it, or ask for less")
    return measured[at][1]


def _table(largest: int, measured: tuple[tuple[int, float], ...]) -> NDArray[np.float64]:
    nodes = np.array([n for n, _ in measured])
    seconds = np.array([*(s for _, s in measured), np.inf])
    table = seconds[np.searchsorted(nodes, np.arange(largest + 1))]
    table[0] = np.inf
    return table
