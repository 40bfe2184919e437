"""LatencyModel: predicted seconds at one context, from the medians of a latency profile."""

import bisect
import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from treeopt.profiles.rest import Fit, Rest
from treespec.decoding.step_rule import GREEDY, StepRule
from treespec.errors import ProfileError
from treespec.trees.tree import SpeculationTree


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
    rule: StepRule = GREEDY
    """The rule whose times these are."""
    rest: Rest | None = None
    """Time of a step beside its passes, by its tree. If it is None, `overhead_seconds` is taken for all trees."""
    fitted: Fit | None = None
    """The fit of the rest, if it was fitted."""
    root: tuple[tuple[int, float], ...] = ()
    """For dynamic trees, the draft pass over the root, by level width."""
    below: float | None = None
    """Seconds of the draft pass over one node below the root, where it is another than that over the root, which is the one of width 1: of heads. One
    that proposes all levels at once has computed them at the root. None if both are the same."""

    @property
    def largest_size(self) -> int:
        """Largest tree size with a known time."""
        return self.target[-1][0]

    @property
    def largest_width(self) -> int:
        """Largest draft level width with a known time."""
        return self.draft[-1][0]

    @property
    def shortest_level(self) -> float:
        """Least seconds of a draft pass."""
        return min([seconds for _, seconds in self.draft] + ([] if self.below is None else [self.below]))

    def target_seconds(self, size: int) -> float:
        """Return the seconds of one target pass over `size` nodes. Raises ProfileError beyond the largest measured size."""
        return _predict(size, self.target, "tree size")

    def autoregressive_seconds(self) -> float:
        """Return the seconds per token without speculation: one target pass over the last token, and the overhead of such a step."""
        apart = self.autoregressive_overhead_seconds
        return self.target_seconds(1) + (self.overhead_seconds if apart is None else apart)

    def draft_seconds(self, width: int) -> float:
        """Return the seconds of one draft pass over `width` nodes, 1 of which are the root. Raises ProfileError beyond the largest measured width."""
        return _predict(width, self.draft, "draft level width")

    def level_seconds(self, width: int) -> float:
        """Return the seconds of one draft pass over `width` nodes below the root. Raises ProfileError beyond the largest measured width."""
        return self.below if width == 1 and self.below is not None else self.draft_seconds(width)

    def rest_seconds(self, tree: SpeculationTree) -> float:
        """Return the seconds of a step with this tree beside its passes."""
        return self.overhead_seconds if self.rest is None else self.rest.seconds(tree)

    def step_seconds(self, tree: SpeculationTree) -> float:
        """Return the seconds of one step; the root alone is an autoregressive step.

        Raises ProfileError for a size or level width beyond the measured ones.
        """
        if tree.size == 1:
            return self.autoregressive_seconds()
        draft = self.draft_seconds(1) + sum(self.level_seconds(width) for width in tree.level_widths[1:-1])
        return self.target_seconds(tree.size) + draft + self.rest_seconds(tree)

    def dynamic_seconds(self, size: int, depth: int, width: int) -> float:
        """Return the seconds of one step with dynamic trees of such a budget. Raises ProfileError beyond what was measured."""
        if not self.root or self.rest is None:
            raise ProfileError(f"these are times of {self.rule.name}, not of dynamic trees; profile the latency of dynamic trees too")
        levels = _predict(width, self.root, "level width") + (depth - 1) * _predict(width, self.draft, "level width")
        return self.target_seconds(size) + levels + self.rest.at(size, 1 + depth * width, depth)

    def target_table(self, largest: int) -> NDArray[np.float64]:
        """Return target seconds by size, [largest + 1]; they are infinite at 0 and beyond the measured sizes."""
        return _table(largest, self.target)

    def level_table(self, largest: int) -> NDArray[np.float64]:
        """Return the `level_seconds` by width, [largest + 1]; they are infinite at 0 and beyond the measured widths."""
        table = _table(largest, self.draft)
        if self.below is not None:
            table[1:2] = self.below
        return table


def extrapolated(near: LatencyModel, far: LatencyModel, context: int) -> LatencyModel:
    """Return the times at a context beyond those of two models: each time goes on along the line through both, and never falls.

    Passes grow with the context, because attention reads it; the rest of a step, which does not, is that of the `far` model.
    """
    share = (context - far.context) / (far.context - near.context)

    def line(before: tuple[tuple[int, float], ...], last: tuple[tuple[int, float], ...]) -> tuple[tuple[int, float], ...]:
        known = [_predict(min(nodes, before[-1][0]), before, "") for nodes, _ in last]
        return tuple((nodes, seconds + share * max(0.0, seconds - earlier)) for (nodes, seconds), earlier in zip(last, known, strict=True))

    root = line(near.root, far.root) if near.root and far.root else far.root
    below = far.below
    if near.below is not None and far.below is not None:
        ((_, below),) = line(((1, near.below),), ((1, far.below),))
    return replace(far, context=context, target=line(near.target, far.target), draft=line(near.draft, far.draft), root=root, below=below)


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
