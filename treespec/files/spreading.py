"""Spreading: pieces of work that several processes share, each with a journal of its own, and every one of them gets all results."""

import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from treespec.errors import ProcessesError
from treespec.files.journal import Journal, journal_of_rank, journals_of_ranks, kept
from treespec.files.processes import ALONE, Processes

T = TypeVar("T")

_ASK_SECONDS = 0.5
"""Shortest time between two questions of a process, within a piece of work, how much the others have done."""


def spread(
    keys: Sequence[str],
    work: Callable[[str, Callable[[int], None]], T],
    *,
    journal: Path | None,
    fingerprint: str,
    read: Callable[[str, Any], T],
    keep: Callable[[T], Any],
    processes: Processes = ALONE,
    units: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, T]:
    """Return the results of all pieces of work in the order of their keys: those that journals keep, and else what `work(key, on_unit)` returns.

    Each process takes the next piece that nobody has, when it is ready for one. So a piece must not depend on who does it, nor on what that
    process did before. `keep` makes JSON of a result and `read(key, value)` a result of that, as `Journal` says. A process keeps what it did in a
    journal of its own beside `journal`; it reads those of all processes that it finds there, and asks the others for what they found, so a run
    goes on with another number of processes, in one folder or in one per host. `progress` is told the units that all processes have done, and how
    many there are: `units` for each piece, of which `on_unit` is told how many of a piece are done. Raises OutputError, ProcessesError (other work
    in another process, or one that has ended), and whatever `work` raises.
    """
    rank, name = processes.place.rank, f"spread {processes.rounds}"
    with Journal(None if journal is None else journal_of_rank(journal, rank), fingerprint, read) as log:
        found: dict[str, T] = {key: log.get(key) for key in keys if key in log}  # type: ignore[misc]
        if journal is not None:
            for number, other in {0: journal, **journals_of_ranks(journal)}.items():
                if rank == 0 and number >= processes.place.size:  # nobody else opens it, which moves it aside if it is of other work
                    Journal(other, fingerprint, read).close()
                if number != rank:
                    found = {**kept(other, fingerprint, read), **found}
        owners = _owners(processes.exchange((fingerprint, list(found))))
        todo = [key for key in keys if key not in owners]
        whole = len(keys) * units

        seen, asked = 0, 0.0

        def done(more: int = 0) -> int:
            nonlocal seen, asked
            asked = time.monotonic()
            seen = (len(keys) - len(todo) + processes.add(f"{name} done", more)) * units
            return seen

        def on_unit(part: int) -> None:  # it is called for every token, so the others are asked now and then
            known = seen if time.monotonic() - asked < _ASK_SECONDS else done()
            progress(min(known + part, whole), whole)

        if owners:
            progress(done(), whole)
        while (place := processes.add(f"{name} taken", 1) - 1) < len(todo):
            key = todo[place]
            found[key] = log.piece(key, partial(work, key, on_unit), keep)
            progress(done(1), whole)
        mine = {key: one for key, one in found.items() if owners.get(key, rank) == rank} if processes.place.size > 1 else {}
        given = processes.exchange({key: json.dumps(keep(one)) for key, one in mine.items()}, lambda: progress(done(), whole))
        for values in given:
            found |= {key: read(key, json.loads(value)) for key, value in values.items() if key not in found}
    return {key: found[key] for key in keys}


def _owners(held: Sequence[tuple[str, Sequence[str]]]) -> dict[str, int]:
    """Return which process has a piece already, the first one of several, from the fingerprint of the work of each and the keys that it found.

    Raises ProcessesError for one with other work.
    """
    other = next((rank for rank, (fingerprint, _) in enumerate(held) if fingerprint != held[0][0]), None)
    if other is not None:
        raise ProcessesError(
            f"rank {other} of {len(held)} would do other work than rank 0: its models, prompts, number types or software are others; "
            "give every process the same files and the same command line"
        )
    owners: dict[str, int] = {}
    for rank, (_, keys) in enumerate(held):
        for key in keys:
            owners.setdefault(key, rank)
    return owners
