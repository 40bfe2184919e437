"""The load of the machine: torch's threads beside the other programs that run. Nothing heavy is imported for it."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from treespec.errors import counted

_LOADAVG = Path("/proc/loadavg")
_LOOKS, _SECONDS_APART = 5, 0.01
_SLACK = 0.5
"""Share of a core that other programs may take before it is said: there is always something that runs now and then."""


def threads() -> int | None:
    """Return the number of threads that torch computes with on the CPU; None if torch is not loaded."""
    torch = sys.modules.get("torch")
    return None if torch is None else int(torch.get_num_threads())


def load_average() -> float | None:
    """Return how many threads of all programs ran or waited to run, on average over the last minute; None where no system tells."""
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):  # Windows; a system that does not know
        return None


def others_running(wait: Callable[[float], None] = time.sleep) -> float | None:
    """Return how many threads of other programs run or wait to run: the load average, or what is seen in a few looks now if that is less.

    The load average alone would count a command that has just ended, such as the one before in a loop of commands. None where no system tells.
    """
    known = load_average()
    if known is None:
        return None
    seen = []
    for _ in range(_LOOKS):
        try:
            running = int(_LOADAVG.read_text(encoding="ascii").split()[3].partition("/")[0])
        except (OSError, ValueError, IndexError):  # not Linux
            return known
        seen.append(running - 1)  # this thread is one of them
        wait(_SECONDS_APART)
    return min(known, sum(seen) / len(seen))


def note_crowding(device: str, notice: Callable[[str], None] | None) -> None:
    """Tell `notice` if torch's threads have fewer idle cores, where it computes on the CPU. `device` is the kind of the device."""
    if device == "cpu" and notice is not None and (said := crowded(threads() or 1, others_running())) is not None:
        notice(said)


def crowded(own: int, others: float | None, cores: int | None = None) -> str | None:
    """Return the sentence that says that `own` threads have fewer idle cores, beside so many others; None where they have room.

    `cores` defaults to those of the machine, because other programs use all of them.

    >>> crowded(2, 1.2, 2)
    'other programs keep 1.2 of 2 cores busy, and torch has 2 threads: times will be longer and uneven; close them, or give torch fewer (`threads` 1)'
    >>> crowded(1, 0.4, 2), crowded(2, None, 2)
    (None, None)
    """
    known = cores or os.cpu_count() or 1
    if others is None or own <= known - others + _SLACK:
        return None
    fewer = max(1, int(known - others))
    remedy = f"close them, or give torch fewer (`threads` {fewer})" if fewer < own else "close them"
    busy = f"{min(others, known):.1f} of {known} cores" if others <= known else f"all {known} cores"
    return f"other programs keep {busy} busy, and torch has {counted(own, 'thread')}: times will be longer and uneven; {remedy}"
