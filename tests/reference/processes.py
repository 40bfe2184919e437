"""Threads that take the part of processes, in one process: for what is shared, and how results come together."""

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

from treespec.errors import ProcessesError
from treespec.files.processes import Place, Processes

T = TypeVar("T")


class _Shared:
    """What all of them see."""

    def __init__(self, size: int) -> None:
        self.lock, self.barrier = threading.Lock(), threading.Barrier(size)
        self.counts: Counter[str] = Counter()
        self.given: list[Any] = [None] * size


class Thread(Processes):
    """One of several."""

    def __init__(self, shared: _Shared, rank: int, size: int) -> None:
        super().__init__()
        self._shared, self.place = shared, Place(rank, size, rank, size)

    def add(self, name: str, amount: int) -> int:
        with self._shared.lock:
            self._shared.counts[name] += amount
            return self._shared.counts[name]

    def exchange(self, value: Any, meanwhile: Callable[[], None] = lambda: None) -> list[Any]:
        self._rounds += 1
        self._shared.given[self.place.rank] = value
        try:
            self._shared.barrier.wait(60)
            found = list(self._shared.given)
            self._shared.barrier.wait(60)
        except threading.BrokenBarrierError as e:
            raise ProcessesError("another one ended") from e
        meanwhile()
        return found


def together(size: int, work: Callable[[Processes], T]) -> list[T]:
    """What `work` returns in each of so many, by rank. Raises the first error of one."""
    shared, found, errors = _Shared(size), [None] * size, []

    def run(rank: int) -> None:
        try:
            found[rank] = work(Thread(shared, rank, size))
        except BaseException as e:
            errors.append(e)
            shared.barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return found  # type: ignore[return-value]
