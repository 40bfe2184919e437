"""The grid of a latency profile: the tree sizes and level widths to measure, found by bisection where they are not given."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from treeopt.profiling.settings import LatencySettings, default_sizes, default_widths, dynamic_widths_of
from treeopt.profiling.shapes import SAMPLED_CHILDREN
from treespec.decoding.plans import DynamicBudget
from treespec.decoding.step_rule import GREEDY, StepRule

TOLERANCE = 0.04
"""Most that a pass may take longer than that of the next smaller measured number of nodes, as a share; predictions take the next larger one."""
_OF_A_STEP = 0.001
"""A draft level may take longer by this share of the target's pass, since a step has some ten levels."""


@dataclass(frozen=True)
class Grid:
    """The tree sizes, ascending, and the level widths, ascending, for each way to draft (`StepRule.levels`)."""

    sizes: tuple[int, ...]
    widths: dict[StepRule, tuple[int, ...]]

    @classmethod
    def of(cls, settings: LatencySettings, device: str, vocabulary: int, *, root: bool = False) -> "Grid":
        """Return all sizes and widths that settings ask for, or those that may be needed on a device where they leave it open.

        With `root`, level width 1 is among them: that of the root, where it is another matter than levels below.
        """
        sizes = settings.sizes or default_sizes(device, vocabulary)
        given = settings.widths or default_widths(device, vocabulary)
        dynamic = tuple(dynamic_widths_of(given, device, vocabulary))
        own = tuple(sorted({*given, *([1] if root else [])}))
        widths = {rule.levels: dynamic if rule.mode == DynamicBudget.drafter else own for rule in settings.rules}
        return cls(tuple(sorted({1, *sizes})), widths)

    def within(self, deepest: int) -> "Grid":
        """Return the grid without the widths whose levels lie deeper than `deepest` allows: many sampled children need a level more."""
        if deepest > 2:
            return self
        short = {
            rule: widths
            if rule == GREEDY.levels or rule.mode == DynamicBudget.drafter
            else tuple(w for w in widths if w <= SAMPLED_CHILDREN)
            for rule, widths in self.widths.items()
        }
        return Grid(self.sizes, short)


def needed(
    candidates: Sequence[int], measure: Callable[[list[int]], dict[int, float]], close: Callable[[float, float], bool]
) -> tuple[int, ...]:
    """Return those of the candidates, ascending, that have to be measured: between neighbours there is no other candidate, or they are close.

    `measure` returns seconds of several of them; `close` tells whether the seconds of two neighbours, of the smaller one first, are. The smallest
    and the largest are always needed.

    >>> stairs = lambda asked: {n: 1.0 if n <= 16 else 2.0 for n in asked}
    >>> needed((1, 2, 4, 8, 12, 16, 17, 24, 32, 48, 64), stairs, lambda a, b: b <= 1.04 * a)
    (1, 16, 17, 24, 64)
    """
    known = measure(sorted({candidates[0], candidates[-1]}))
    while True:
        places = [place for place, candidate in enumerate(candidates) if candidate in known]
        apart = [
            (low, high) for low, high in pairwise(places) if high > low + 1 and not close(known[candidates[low]], known[candidates[high]])
        ]
        if not apart:
            return tuple(sorted(known))
        known |= measure([candidates[(low + high) // 2] for low, high in apart])


def close_sizes(smaller: float, larger: float) -> bool:
    """Return whether target passes that take so many seconds are close."""
    return larger <= smaller * (1 + TOLERANCE)


def close_widths(target: float) -> Callable[[float, float], bool]:
    """Return whether draft levels are close, beside a `target` pass of one token."""
    return lambda smaller, larger: larger <= smaller * (1 + TOLERANCE) + target * _OF_A_STEP


def search(
    settings: LatencySettings,
    whole: Grid,
    time_sizes: Callable[[list[int]], dict[int, float]],
    time_widths: Callable[[StepRule, list[int]], dict[int, float]],
) -> Grid:
    """Return the part of a whole grid that has to be measured; what the settings give is kept as it is."""
    sizes = whole.sizes if settings.sizes is not None else needed(whole.sizes, time_sizes, close_sizes)
    if settings.widths is not None:
        return Grid(sizes, whole.widths)
    close = close_widths(time_sizes([1])[1])
    widths = {rule: needed(known, partial(time_widths, rule), close) for rule, known in whole.widths.items()}
    return Grid(sizes, widths)
