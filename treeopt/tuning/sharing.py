"""Sharing a run among processes: the first one takes all decisions and writes, the others take their share of what it has measured on texts.

What is timed alone, the latencies, is measured by the first process while the others wait.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from treeopt.profiling.acceptance import profile_acceptance, trace_acceptance
from treespec.evaluation.runner import evaluate
from treespec.files.journal import discard
from treespec.files.processes import ALONE, Processes
from treespec.files.writing import make_folder
from treespec.models.pairs import Pair

T = TypeVar("T")

_SHARED: dict[str, Callable[..., Any]] = {one.__name__: one for one in (profile_acceptance, trace_acceptance, evaluate)}
"""The functions whose work processes can share, by name."""


@dataclass(frozen=True)
class Order:
    """A piece of work that all processes are to share, as the first one tells the others."""

    work: str
    draft: int
    """The place of the pair that does it."""
    given: Sequence[Any]
    named: Mapping[str, Any]
    journal: Path


@dataclass(frozen=True)
class Crew:
    """The pairs of a run, and the processes that share its work, each with pairs of its own."""

    pairs: Sequence[Pair]
    processes: Processes = field(default=ALONE)

    def share(self, work: Callable[..., T], draft: int, *given: Any, journal: Path, progress: Any, notice: Any = None, **named: Any) -> T:
        """Return what `work` returns for the pair at place `draft`, in the first process, when all have done their share. Raises its errors."""
        self.processes.exchange(Order(work.__name__, draft, given, named, journal))
        said = {} if notice is None else {"notice": notice}
        return work(self.pairs[draft], *given, **named, **said, journal=journal, processes=self.processes, progress=progress)

    def dismiss(self) -> None:
        """Tell the other processes that the run is over."""
        self.processes.exchange(None)

    def serve(self) -> None:
        """Take this process's share of all that the first one orders, until the run is over. A journal is deleted when the first one goes on."""
        before: Path | None = None
        while (order := self.processes.exchange(None)[0]) is not None:
            discard(before)
            before = order.journal
            make_folder(before.parent)
            _SHARED[order.work](self.pairs[order.draft], *order.given, **order.named, journal=before, processes=self.processes)
        discard(before)
