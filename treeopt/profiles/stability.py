"""The stability of times: points whose median is uncertain, and a line that warns of them.

pyperf calls a benchmark unstable where its standard deviation is above a tenth of its mean. Here it is the interval of the median that must not
reach further than a fifth of it: it rests on a few bursts, and is about two standard deviations wide on either side. More samples make it narrower.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from treeopt.profiles.samples import ENOUGH, interval_of
from treespec.errors import counted

MOST_REACH = 0.2
"""Furthest that an end of the interval of a stable median lies from it, as a share of it."""
MOST_UNSTABLE = 0.25
"""Largest share of unstable points of a profile whose times are not called those of a busy machine."""


@dataclass(frozen=True)
class Point:
    """The samples of something that was measured, in seconds, with its name."""

    name: str
    seconds: tuple[float, ...]

    @property
    def reach(self) -> float:
        """The distance of the further end of the median's interval from it, as a share of it; 0 for too few samples."""
        ends, median = interval_of(self.seconds), statistics.median(self.seconds)
        return 0.0 if ends is None else max(ends[1] - median, median - ends[0]) / median

    def __str__(self) -> str:
        low, high = interval_of(self.seconds) or (min(self.seconds), max(self.seconds))
        return f"{self.name}: {_ms(statistics.median(self.seconds))} [{_ms(low)}, {_ms(high)}] ms"


def _ms(seconds: float) -> str:
    """Return milliseconds with three digits, or more where there are more before the point."""
    ms = 1e3 * seconds
    return f"{ms:.3g}" if ms < 999.5 else f"{ms:.0f}"


def unstable(points: Sequence[Point]) -> list[Point]:
    """Return the points whose median is uncertain by more than `MOST_REACH`, the worst first."""
    return sorted((point for point in points if point.reach > MOST_REACH), key=lambda point: -point.reach)


def is_busy(points: Sequence[Point]) -> bool:
    """Return whether so many points are unstable that other work must have been going on."""
    return len(unstable(points)) > MOST_UNSTABLE * len(points)


def instability(points: Sequence[Point]) -> str | None:
    """Return that points are unstable, in words that go on a sentence: how many, and the worst of them with its median; None without any."""
    found = unstable(points)
    if not found:
        return None
    return (
        f"the median of {len(found)} of {len(points)} points is uncertain by more than {100 * MOST_REACH:.0f} %, most of all of {found[0]}"
    )


def too_few(points: Sequence[Point]) -> int | None:
    """Return the fewest samples of a point if they are too few for an interval, so that noise is not seen in them; None if all have enough."""
    fewest = min((len(point.seconds) for point in points), default=ENOUGH)
    return fewest if fewest < ENOUGH else None


def warning(points: Sequence[Point], threads: int | None = None) -> str | None:
    """Return a line that warns of unstable points, or else of too few samples to tell, and says what to do; None if neither is so.

    `threads` are those that torch had, if it is known.
    """
    found = instability(points)
    if found is None:
        few = too_few(points)
        return (
            None if few is None else f"noise cannot be told from {counted(few, 'sample')} of a point: take `repetitions` {ENOUGH} or more"
        )
    remedy = "close other programs or take more `repetitions`"
    if threads != 1:
        remedy = "close other programs, give torch fewer `threads`, or take more `repetitions`"
    return f"the times are unstable: {found}; {remedy}"
