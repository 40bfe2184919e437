"""Timers that are passed as arguments: consecutive marks split a stretch of work into named parts that sum to the whole."""

import time
from itertools import pairwise
from typing import Protocol

import torch


class Timer(Protocol):
    """A timer of parts. Call `begin`, then `mark(name)` at the end of each part; `parts` returns and forgets the marks."""

    def begin(self) -> None:
        """Start a stretch of work."""

    def mark(self, name: str) -> None:
        """Give the work since `begin` or the last mark the name `name`."""

    def parts(self) -> list[tuple[str, float]]:
        """Return (name, seconds) of every mark since `begin`, in order. Waits for the device."""


class NoTimer:
    """A timer that measures nothing and costs nothing. Decoding uses it unless a breakdown is asked for."""

    def begin(self) -> None:
        """Do nothing."""

    def mark(self, name: str) -> None:
        """Do nothing with the part `name`."""

    def parts(self) -> list[tuple[str, float]]:
        """Return no parts."""
        return []


class HostTimer:
    """A wall-clock timer by `time.perf_counter`, which is right if work is synchronous (CPU)."""

    def __init__(self) -> None:
        self._marks: list[tuple[str, float]] = []

    def begin(self) -> None:
        """Start a stretch of work."""
        self._marks = [("", time.perf_counter())]

    def mark(self, name: str) -> None:
        """Close the part `name`."""
        self._marks.append((name, time.perf_counter()))

    def parts(self) -> list[tuple[str, float]]:
        """Return the seconds between consecutive marks."""
        marks, self._marks = self._marks, []
        return [(name, end - start) for (_, start), (name, end) in pairwise(marks)]


class WaitingTimer(HostTimer):
    """A wall-clock timer that waits for the device at every mark, for devices without a timer of events of ours (MPS, XPU)."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device

    def begin(self) -> None:
        """Start a stretch of work after earlier work on the device is done."""
        torch.accelerator.synchronize(self._device)
        super().begin()

    def mark(self, name: str) -> None:
        """Close the part `name` when the device has done it."""
        torch.accelerator.synchronize(self._device)
        super().mark(name)


class CudaTimer:
    """A timer by CUDA events on the current stream. It synchronises only in `parts`; a launch gap counts to the part that it delays."""

    def __init__(self) -> None:
        self._marks: list[tuple[str, torch.cuda.Event]] = []

    def _record(self, name: str, **how: bool) -> None:
        event = torch.cuda.Event(enable_timing=True, **how)  # type: ignore[no-untyped-call]
        event.record()
        self._marks.append((name, event))

    def begin(self) -> None:
        """Start a stretch of work after earlier work on the stream is done, so that only new work is timed. Other streams go on."""
        torch.cuda.current_stream().synchronize()
        self._marks = []
        self._record("")

    def mark(self, name: str) -> None:
        """Close the part `name`."""
        self._record(name)

    def parts(self) -> list[tuple[str, float]]:
        """Return the seconds between consecutive events."""
        marks, self._marks = self._marks, []
        if marks:
            marks[-1][1].synchronize()
        return [(name, start.elapsed_time(end) / 1e3) for (_, start), (name, end) in pairwise(marks)]


class CapturedTimer(CudaTimer):
    """A timer with marks inside a CUDA graph; every replay records them again."""

    def _record(self, name: str, **how: bool) -> None:
        super()._record(name, external=True)

    def begin(self) -> None:
        """Start again. So only the marks of the last run are kept, which is the capture."""
        self._marks = []
        self._record("")

    def parts(self) -> list[tuple[str, float]]:
        """Return the seconds between consecutive events of the last replay. Waits for it."""
        marks = self._marks
        found = super().parts()
        self._marks = marks
        return found


def timer_for(device: torch.device) -> Timer:
    """Return a timer that measures work on this device."""
    if device.type == "cuda":
        return CudaTimer()
    return HostTimer() if device.type == "cpu" else WaitingTimer(device)


def now(device: torch.device) -> float:
    """Wait until the current stream of the device has nothing left to do, and return the host's seconds."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
    elif device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()
