"""What a figure is worth: goals that are met or missed, and speculation that was slower than what it is compared with."""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.reporting.markdown import bullets, interval

MARK = "✗ "
"""What stands before a figure that misses its goal, and before a speed-up below 1."""


@dataclass(frozen=True)
class Goal:
    """A limit that was set for a figure."""

    limit: float
    unit: str
    """The unit of the limit and of the figure, or an empty text: "ms"."""
    at_most: bool = True
    """Whether the figure must not exceed the limit. If not, it must reach it."""
    shown: str = ""
    """The limit as a page writes it; without one, as it is."""

    @property
    def bound(self) -> str:
        """Return the limit in words, without its unit."""
        return f"at {'most' if self.at_most else 'least'} {self.shown or f'{self.limit:,g}'}"

    @property
    def words(self) -> str:
        """Return the limit in words."""
        return f"{self.bound} {self.unit}".rstrip()


@dataclass(frozen=True)
class Check:
    """A figure beside its goal."""

    what: str
    value: float
    goal: Goal
    digits: int = 2

    @property
    def met(self) -> bool:
        """Return whether the figure, before rounding, meets its goal."""
        return self.value <= self.goal.limit if self.goal.at_most else self.value >= self.goal.limit

    @property
    def share(self) -> float:
        """Return how much of its room the figure takes: more than 1 misses the goal."""
        return self.value / self.goal.limit if self.goal.at_most else self.goal.limit / self.value

    @property
    def number(self) -> str:
        """Return the figure, with more digits where rounding would hide that it misses its goal."""
        return f"{self.value:,.{self.digits}f}" if self.met else apart(self.value, self.goal.limit, self.digits)

    @property
    def figure(self) -> str:
        """Return the figure, with the mark where it misses its goal."""
        return self.number if self.met else MARK + self.number

    @property
    def words(self) -> str:
        """Return whether the goal is met, in words."""
        return f"met: {self.goal.words}" if self.met else f"missed: {self.number} against {self.goal.words}"


@dataclass(frozen=True)
class Slower:
    """A way to speculate that was slower than what it is compared with."""

    what: str
    speedup: float
    than: str
    bounds: Sequence[float] | None = None
    """Its 95 % interval; None if the file has none."""

    @property
    def lost(self) -> bool:
        """Return whether speculation lost: no interval says that this may be chance."""
        return self.bounds is None or self.bounds[1] < 1

    @property
    def factor(self) -> str:
        """Return how fast it was beside what it is compared with."""
        return f"{speedup(self.speedup, self.bounds).removeprefix(MARK)} x"

    @property
    def words(self) -> str:
        """Return that speculation lost, and by how much."""
        return f"speculation lost, with {self.factor} the speed of {self.than}."


def verdict(checks: Sequence[Check]) -> str:
    """Return what a cell says of the goals of one row: that all are met, or each that is missed. Nothing for no goals."""
    if missed := [check.words for check in checks if not check.met]:
        return "; ".join(missed)
    return f"met: {', '.join(check.goal.words for check in checks)}" if checks else ""


def apart(value: float, limit: float, digits: int) -> str:
    """Return a figure rounded to `digits`, or to the fewest more that tell it from the limit.

    >>> apart(1.37, 1.35, 2), apart(1.3504, 1.35, 2)
    ('1.37', '1.3504')
    """
    while float(found := f"{value:.{digits}f}") == limit and value != limit:
        digits += 1
    return f"{float(found):,.{digits}f}"


def speedup(value: float, bounds: Sequence[float] | None = None) -> str:
    """Return a speed-up with its 95 % interval; one below 1 has the mark and is told from 1."""
    shown = MARK + apart(value, 1, 2) if value < 1 else f"{value:.2f}"
    return shown if bounds is None else shown + interval(value, bounds).removeprefix(f"{value:.2f}")


def told(slower: Sequence[Slower]) -> str:
    """Return a list that says in words where speculation lost, and what may be slower by chance."""
    unclear = [f"{one.what}, {one.factor}" for one in slower if not one.lost]
    chance = (
        f"{MARK}Slower than autoregressive decoding on these prompts, but with an interval that reaches 1, so that this may be chance: "
    )
    lost = [f"{MARK}{one.what}: {one.words}" for one in slower if one.lost]
    return bullets([*lost, *([f"{chance}{'; '.join(unclear)}."] if unclear else [])])
