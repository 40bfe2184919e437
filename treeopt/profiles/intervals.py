"""95 % intervals: of medians, of means over prompts, and of quotients of figures that have one.

The idea is the same everywhere: measured again and again in the same way, some 95 of 100 such intervals hold the figure that is estimated. They
speak of chance in the samples, and not of a machine or a text that has become another one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

Interval = tuple[float, float]
"""The two ends of a 95 % interval."""

FEWEST = 6
"""Fewest samples whose median has an interval: the smallest and the largest of five hold it in 94 of 100 cases only."""

_NORMAL = 1.96
"""Half of a 95 % interval, in standard errors, where these are known from many samples."""


def of_median(samples: Sequence[float]) -> Interval | None:
    """Return the interval of the median: two of the sorted samples, as far from the ends as 95 % allow; None for fewer than `FEWEST`.

    The samples are independent. The median is below the k-th smallest of n samples only if fewer than k of them are below the median, which has
    the chance of fewer than k heads in n tosses of a coin, whatever the distribution (David and Nagaraja, Order Statistics, sec. 7.1).

    >>> of_median(range(1, 21)), of_median(range(5))
    ((6, 15), None)
    """
    if len(samples) < FEWEST:
        return None
    ordered, place = sorted(samples), _place(len(samples))
    return ordered[place], ordered[-1 - place]


@cache
def _place(samples: int) -> int:
    """Return how many samples lie below the lower end: the most whose chance of a median still below them is 1 in 40 or less."""
    if samples > 1000:
        return int(samples / 2 - _NORMAL * math.sqrt(samples) / 2) - 1
    below, place = 1, 0
    while 40 * (below := below + math.comb(samples, place + 1)) <= 1 << samples:
        place += 1
    return place


def of_mean(mean: float, error: float, units: int) -> Interval:
    """Return the interval of a mean over so many independent units (prompts) with a standard error: Student's t; the normal one below two units."""
    if units < 2:
        half = _NORMAL * error
    else:
        from scipy.special import stdtrit

        half = float(stdtrit(units - 1, 0.975)) * error
    return mean - half, mean + half


def of_chance(chance: float, error: float, units: int) -> Interval:
    """Return the interval of a chance, which is a mean that lies between 0 and 1: that of `of_mean`, cut there.

    >>> of_chance(0.5, 0.1, 2), of_chance(0.001, 0.001, 0)
    ((0.0, 1.0), (0.0, 0.00296))
    """
    low, high = of_mean(chance, error, units)
    return max(0.0, low), min(1.0, high)


@dataclass(frozen=True)
class Uncertain:
    """A figure above 0 with the ends of its interval."""

    value: float
    low: float
    high: float

    @property
    def down(self) -> float:
        """The distance of the lower end: the logarithm of the value over it."""
        return math.log(self.value / self.low)

    @property
    def up(self) -> float:
        """The distance of the upper end: its logarithm over the value."""
        return math.log(self.high / self.value)


def quotient(above: Sequence[Uncertain], below: Sequence[Uncertain]) -> Uncertain:
    """Return the product of the figures `above` over that of those `below`.

    The distances of the ends of independent figures, in logarithms, add up as squares do (Zou and Donner, Statistics in Medicine 27, 2008:
    1693-1702). Each end counts by itself, because other work on a machine only makes times longer.

    >>> quotient([Uncertain(6.0, 5.0, 6.0)], [Uncertain(2.0, 2.0, 2.0)])
    Uncertain(value=3.0, low=2.5, high=3.0)
    """
    value = math.prod(figure.value for figure in above) / math.prod(figure.value for figure in below)
    down = math.hypot(*(figure.down for figure in above), *(figure.up for figure in below))
    up = math.hypot(*(figure.up for figure in above), *(figure.down for figure in below))
    return Uncertain(value, value * math.exp(-down), value * math.exp(up))


def difference(value: float, ends: Interval, base: float, base_ends: Interval) -> Interval:
    """Return the interval of `value` less `base`, two independent figures with the ends of their intervals.

    The distances of the ends add up as squares do, each end by itself (Zou and Donner, Statistics in Medicine 27, 2008: 1693-1702).

    >>> difference(5.0, (2.0, 9.0), 10.0, (7.0, 14.0))
    (-10.0, 0.0)
    """
    low = math.hypot(value - ends[0], base_ends[1] - base)
    high = math.hypot(ends[1] - value, base - base_ends[0])
    return value - base - low, value - base + high
