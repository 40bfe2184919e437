"""One injectable timer: consecutive marks split a stretch of work into named parts that sum to the whole."""

import time
from itertools import pairwise
from typing import Protocol

import torch


class Timer(Protocol):
    """`begin`, then one `mark(name)` at the end of each part; `parts` reads and forgets them."""

    def begin(self) -> None:
        """Start a stretch of work."""

    def mark(self, name: str) -> None:
        """The work since `begin` or the last mark was `name`."""

    def parts(self) -> list[tuple[str, float]]:
        """(name, seconds) of every mark since `begin`, in order; waits for the device."""


class NoTimer:
    """Measures nothing and costs nothing: what decoding uses unless a breakdown is asked for."""

    def begin(self) -> None:
        """Nothing to start."""

    def mark(self, name: str) -> None:
        """Nothing to mark."""

    def parts(self) -> list[tuple[str, float]]:
        """No parts."""
        return []


class HostTimer:
    """Wall-clock marks by `time.perf_counter`, right where work is synchronous (CPU)."""

    def __init__(self) -> None:
        self._marks: list[tuple[str, float]] = []

    def begin(self) -> None:
        """Start a stretch of work."""
        self._marks = [("", time.perf_counter())]

    def mark(self, name: str) -> None:
        """Close the part `name`."""
        self._marks.append((name, time.perf_counter()))

    def parts(self) -> list[tuple[str, float]]:
        """Seconds between consecutive marks."""
        marks, self._marks = self._marks, []
        return [(name, end - start) for (_, start), (name, end) in pairwise(marks)]


class CudaTimer:
    """Marks by CUDA events on the current stream: no synchronisation until `parts`; launch gaps count to the part they delay."""

    def __init__(self) -> None:
        self._marks: list[tuple[str, torch.cuda.Event]] = []

    def _record(self, name: str, **how: bool) -> None:
        event = torch.cuda.Event(enable_timing=True, **how)  # type: ignore[no-untyped-call]
        event.record()
        self._marks.append((name, event))

    def begin(self) -> None:
        """Start a stretch of work once earlier work is done, so that it is not charged to it. Copies on other streams go on as in decoding."""
        torch.cuda.current_stream().synchronize()
        self._marks = []
        self._record("")

    def mark(self, name: str) -> None:
        """Close the part `name`."""
        self._record(name)

    def parts(self) -> list[tuple[str, float]]:
        """Seconds between consecutive events."""
        marks, self._marks = self._marks, []
        if marks:
            marks[-1][1].synchronize()
        return [(name, start.elapsed_time(end) / 1e3) for (_, start), (name, end) in pairwise(marks)]


class CapturedTimer(CudaTimer):
    """Marks inside a CUDA graph: recorded again at every replay, and read as often."""

    def _record(self, name: str, **how: bool) -> None:
        super()._record(name, external=True)

    def begin(self) -> None:
        """Start anew: only the marks of the capture are kept, which comes last."""
        self._marks = []
        self._record("")

    def parts(self) -> list[tuple[str, float]]:
        """Seconds between consecutive events of the last replay; waits for it."""
        marks = self._marks
        found = super().parts()
        self._marks = marks
        return found


def timer_for(device: torch.device) -> Timer:
    """The timer that measures work on this device."""
    return CudaTimer() if device.type == "cuda" else HostTimer()


def now(device: torch.device) -> float:
    """Host seconds once the current stream of the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
    return time.perf_counter()
