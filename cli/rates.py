"""The pace of a stage of work: how much of what is done, how fast it goes on and how long it takes still, in a few words."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from treespec.errors import counted

UNITS = {
    "evaluating": "prompt",
    "writing replies": "reply",
    "training": "step",
    "writing held-out texts": "token",
    "writing texts": "token",
    "cross-validating": "part",
    "profiling latency": "burst",
    "choosing what to time": "point",
    "profiling acceptance": "pass",
    "measuring potential": "pass",
}
"""The unit that each stage counts. A stage that is not here writes texts."""

_MANY = {"reply": "replies", "pass": "passes"}
_WINDOW = 30.0
"""Seconds back from now over which the pace is taken, so that it follows the machine."""
_AT_ONCE = 1e-3
"""Seconds for a unit below which it was there already: it came from a journal and says nothing of the pace."""


@dataclass
class Pace:
    """The pace of one stage, from the moments at which it told its progress."""

    unit: str
    clock: Callable[[], float] = time.monotonic
    _seen: deque[tuple[float, int]] = field(default_factory=deque)

    @classmethod
    def of(cls, stage: str) -> "Pace":
        """Return the pace of a stage by its name, behind which may stand a colon and what it is of."""
        return cls(UNITS.get(stage.partition(":")[0], "text"))

    @property
    def units(self) -> str:
        """The unit's plural."""
        return _MANY.get(self.unit, self.unit + "s")

    def told(self, done: int, total: int) -> str:
        """Note that `done` of `total` units are done now, and return it in words: `3/12 prompts, 2.5 prompts/s, 4 s left`."""
        now = self.clock()
        if self._seen:
            before, last = self._seen[-1]
            if done < last or now - before < _AT_ONCE * (done - last):
                self._seen.clear()
        self._seen.append((now, done))
        while len(self._seen) > 2 and now - self._seen[1][0] > _WINDOW:
            self._seen.popleft()
        words = [f"{done}/{counted(total, self.unit, self.units)}"]
        began, first = self._seen[0]
        if done > first and now > began:
            rate = (done - first) / (now - began)
            words.append(f"{rate:.1f} {self.units}/s" if rate >= 1 else f"{1 / rate:.1f} s/{self.unit}")
            if done < total:
                words.append(f"{duration((total - done) / rate)} left")
        return ", ".join(words)


def duration(seconds: float) -> str:
    """Return a time in words, short ones in seconds and long ones in minutes or hours.

    >>> duration(0.4), duration(75), duration(400), duration(9000)
    ('1 s', '75 s', '7 min', '2.5 h')
    """
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
