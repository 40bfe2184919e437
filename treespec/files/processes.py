"""The place of a process among those that a launcher started, and what they tell one another; alone, unless `joined.py` joins them.

A launcher is torchrun, accelerate launch, or any other that sets the same variables of the environment. Every process makes the same exchanges in
the same order.
"""

import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from treespec.errors import SettingsError


@dataclass(frozen=True)
class Place:
    """The place of this process among those that a launcher started: its rank of `size`, and its rank of `local_size` on its host."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @classmethod
    def of(cls, environment: Mapping[str, str] = os.environ) -> "Place":
        """Return the place that RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE give; alone, unless the first two are set.

        Raises SettingsError for numbers that fit no group, and where the place of the store is not known.
        """
        if "RANK" not in environment or "WORLD_SIZE" not in environment:
            return cls()
        rank, size, local_rank, local_size = (
            _whole(environment, name, default)
            for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0), ("LOCAL_WORLD_SIZE", 1))
        )
        for name, value, of, most in (("RANK", rank, "WORLD_SIZE", size), ("LOCAL_RANK", local_rank, "LOCAL_WORLD_SIZE", local_size)):
            if value >= most:
                raise SettingsError(
                    f"{name} is {value}, but {of} is {most}: ranks go from 0 to {most - 1}; let a launcher such as torchrun set both"
                )
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not environment.get(name)]
        if size > 1 and missing:
            raise SettingsError(
                f"WORLD_SIZE is {size}, but {missing[0]} is not set, so the processes cannot find one another; start them with torchrun or accelerate launch"
            )
        return cls(rank, size, local_rank, local_size)

    @property
    def first(self) -> bool:
        """Whether this process is the one that prints and writes results."""
        return self.rank == 0

    @property
    def on_one_host(self) -> bool:
        """Whether all processes are on this host."""
        return self.local_size == self.size


class Processes:
    """This process alone, which is what every function takes where none is named. `Joined` are several."""

    place = Place()

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._rounds = 0

    def add(self, name: str, amount: int) -> int:
        """Add to a counter that all processes share, which begins at 0, and return what it is then."""
        self._counts[name] += amount
        return self._counts[name]

    def exchange(self, value: Any, meanwhile: Callable[[], None] = lambda: None) -> list[Any]:
        """Return the values of all processes by rank, when all have called this. `meanwhile` is called again and again while others are awaited.

        Raises ProcessesError if another process ends first.
        """
        self._rounds += 1
        return [value]

    @property
    def rounds(self) -> int:
        """Return how many exchanges there were: a number that is the same in all processes, and larger after each."""
        return self._rounds


ALONE = Processes()
"""This process alone."""


def _whole(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, str(default))
    if not text.isdecimal() or (default == 1 and int(text) < 1):
        raise SettingsError(
            f"{name} is {text!r:.40}, but it must be a whole number of {default} or more; let a launcher such as torchrun set it"
        )
    return int(text)
