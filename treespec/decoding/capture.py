"""The capture of a CUDA graph that leaves no trace where CUDA refuses it."""

import atexit
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch

_JOINED: "WeakSet[torch.cuda.CUDAGraph]" = WeakSet()
"""Graphs that were captured beside a process group. NCCL waits for the end of those that hold its work when it leaves the group."""


@contextmanager
def capturing(graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream, pool: Any = None) -> Iterator[None]:
    """Capture what the context launches on the current device into `graph`, on `stream`; its memory comes from `pool`, or a pool of its own.

    Where the capture is refused, `torch.cuda.graph` leaves its stream the current one, and the device's default random generator as if the
    capture went on: everything random on that device fails from then on ("Offset increment outside graph capture"). Here both are as before.

    Raises the error of the refusal (see `is_refused_capture`), and those of the context.
    """
    if _beside_others():
        if not _JOINED:
            atexit.register(_release)  # the last to be registered is called first: before the group is left
        _JOINED.add(graph)
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    before = generator.clone_state()
    with torch.cuda.stream(torch.cuda.current_stream()):
        try:
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode=_strictness()):
                yield
        except BaseException:
            generator.graphsafe_set_state(before)
            raise


def _strictness() -> str:
    """Return whose unsafe calls end a capture: this thread's alone beside a process group, whose own thread asks CUDA now and then."""
    return "thread_local" if _beside_others() else "global"


def _beside_others() -> bool:
    """Return whether this process is in a process group."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _release() -> None:
    """Drop the graphs that hold work of a process group. The process ends."""
    for graph in list(_JOINED):
        graph.reset()


def is_refused_capture(error: RuntimeError) -> bool:
    """Return whether CUDA or PyTorch refused an operation because a stream was capturing. All other errors are bugs.

    There is no error class for this, so the message decides ("operation not permitted when stream is capturing", "... during CUDA graph
    capture").
    """
    return "captur" in str(error).lower()
