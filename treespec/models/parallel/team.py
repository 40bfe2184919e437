"""Team: the processes that hold a target together, and all that they say to one another."""

import atexit
import platform
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, distributed
from torch.distributed.rendezvous import rendezvous

from treespec.errors import ModelError, SettingsError, counted
from treespec.files.joined import stay_local
from treespec.files.processes import Place
from treespec.models.parallel.launch import launched

T = TypeVar("T")

_gather: Callable[[Tensor, Tensor], Any] = getattr(distributed, "all_gather_single", None) or distributed.all_gather_into_tensor
"""Puts the tensors of all processes one behind another, along the first dimension. torch renamed it in 2.13."""

CHECK_EVERY = 16
"""The processes compare their tokens after so many steps."""
_PATIENCE = timedelta(minutes=30)
"""The longest time that a process waits for the others."""
_MEETING = timedelta(minutes=10)
"""The longest time that a process waits for the others to start."""
_lost: list[str] = []
"""The reasons why processes of this run are lost, as far as this one knows: it waits for none of them at its end."""
_FAILED = "treeopt/failed"
"""The key under which the processes count those that fail."""


class Team:
    """All processes of a run, of which this is one. Rule: every one of them calls the same methods in the same order.

    Each method raises ModelError if another process has ended or does not answer.
    """

    _kept: TemporaryDirectory[str] | None

    def __init__(self, rank: int, size: int, device: str, backend: str, hosts: int = 1, store: Any = None) -> None:
        self.rank, self.size, self.device, self.backend, self.hosts = rank, size, device, backend, hosts
        self._store, self._kept, self._files = store, None, 0
        self._host = torch.device("cpu") if "gloo" in distributed.get_backend_config() else torch.device(device)
        self._tokens, self._steps = 0, 0

    def sum(self, x: Tensor) -> Tensor:
        """Add up the x of all processes, in place, and return it. No host synchronisation on CUDA."""
        with _together():
            distributed.all_reduce(x)
        return x

    def joined(self, x: Tensor, width: int) -> Tensor:
        """Return the columns [.., n] of all processes side by side, without those behind the first `width`: [.., width]."""
        parts = torch.empty(self.size, *x.shape, dtype=x.dtype, device=x.device)
        with _together():
            _gather(parts.flatten(0, 1) if x.dim() > 1 else parts.flatten(), x.contiguous())
        return parts.movedim(0, -2).flatten(-2)[..., :width]

    def agreed(self, value: T) -> T:
        """Return what the first process passes: a time that it measured, or a decision that rests on times."""
        box = [value]
        with _together():
            distributed.broadcast_object_list(box, src=0, device=self._host)
        return box[0]

    def first(self, find: Callable[[], T]) -> T | None:
        """Return what `find` returns in the first process; it is not called in the others."""
        return self.agreed(find() if self.rank == 0 else None)

    def own(self, path: Path | None) -> Path | None:
        """Return where this process keeps a file, or a folder of files, that the first one keeps at `path`: a copy, which ends with the process.

        None if the first process keeps none.
        """
        held = self.agreed(None if path is None else _content(path))
        if self.rank == 0 or held is None:
            return path
        if self._kept is None:
            self._kept = TemporaryDirectory(prefix="treeopt-")
        self._files += 1
        place = Path(self._kept.name) / str(self._files)
        for name, data in held.items():
            file = place / name if name else place
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
        return place

    def fails_first(self) -> bool:
        """Return whether this is the first process to ask: of processes that all fail, one says why. It does not wait for the others."""
        if self._store is None:
            return self.rank == 0
        try:
            return int(self._store.add(_FAILED, 1)) == 1
        except RuntimeError:  # whoever kept the store is gone, and may not have said anything
            return True

    def require_same(self, facts: Mapping[str, Any]) -> None:
        """Raise SettingsError, in all processes, if one of these facts is another one in another process."""
        every: list[Any] = [None] * self.size
        with _together():
            distributed.all_gather_object(every, dict(facts))
        for name, value in every[0].items():
            other = next((rank for rank, found in enumerate(every) if found.get(name) != value), None)
            if other is not None:
                raise SettingsError(
                    f"the processes of this run differ in {name}: process 0 has {value!s:.80}, and process {other} has "
                    f"{every[other].get(name)!s:.80}; start all of them in the same way, with the same files"
                )

    def committed(self, tokens: Sequence[int], *, last: bool = False) -> None:
        """Take note of the tokens of a step. After some steps, and after the `last` one of a text, those of all processes are compared.

        Raises ModelError if they differ.
        """
        self._tokens, self._steps = zlib.crc32(np.asarray(tokens, dtype="<i8").tobytes(), self._tokens), self._steps + 1
        if not last and self._steps % CHECK_EVERY:
            return
        known = torch.tensor([self._steps, self._tokens], device=self._host)
        every = torch.empty(self.size, 2, dtype=known.dtype, device=self._host)
        with _together():
            _gather(every.flatten(), known)
        other = next((rank for rank, found in enumerate(every.tolist()) if found != known.tolist()), None)
        if other is not None:
            raise ModelError(
                f"the processes have decoded other tokens than one another (process {self.rank} and process {other}, within the last "
                f"{counted(CHECK_EVERY, 'step')}): their drafts or their random numbers differ; run all of them on machines of one kind"
            )


@contextmanager
def _together() -> Iterator[None]:
    """Turn the error of a process whose partner is gone into a ModelError. Errors of memory and of capturing stay as they are."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, distributed.DistError) and "gloo" not in str(error):
            raise
        _lost.append(" ".join(str(error).split())[:160])
        raise ModelError(
            "another process of this run has ended, or does not answer, and each holds a part of the target; its own message says why, "
            f"or the launcher's report ({_lost[-1]}); run the same command again"
        ) from error


def join(processes: int, device: str, line: str = "SCRIPT.py") -> Team:
    """Return the team of so many processes on a kind of device: "cpu", or "cuda", where each process takes the GPU of its own number.

    A process group that the caller has made is taken; else one is made, which lasts as long as the process. `line` is what torchrun is to
    start, for the message. Raises SettingsError for another number of processes, for a device that is not there, and ModelError if the
    processes do not find one another.
    """
    made = distributed.is_available() and distributed.is_initialized()
    if made and distributed.get_world_size() != processes:
        raise SettingsError(
            f"`tensor_parallel` is {processes}, but the process group has {counted(distributed.get_world_size(), 'process', 'processes')}; "
            "pass that number"
        )
    launch = None if made else launched(processes, line)
    own, store = _own_device(device, launch), None
    if launch is not None:
        stay_local(launch)
        with _meeting():
            store, rank, size = next(rendezvous("env://", launch.rank, launch.size, timeout=_MEETING))
            kinds = "gloo" if own == "cpu" else "cpu:gloo,cuda:nccl"
            distributed.init_process_group(kinds, store=store, rank=rank, world_size=size, timeout=_PATIENCE)
        atexit.register(_leave)
    names: list[Any] = [None] * processes
    with _together():
        distributed.all_gather_object(names, platform.node())
    return Team(distributed.get_rank(), processes, own, "gloo" if own == "cpu" else "nccl", len(set(names)), store)


def _content(path: Path) -> dict[str, bytes]:
    """Return the content of a file, under the name "", or of the files of a folder; nothing if there is neither."""
    if path.is_dir():
        return {file.relative_to(path).as_posix(): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}
    return {"": path.read_bytes()} if path.is_file() else {}


def _own_device(device: str, launch: Place | None) -> str:
    """Return the name of this process's device. Raises SettingsError."""
    kind, _, number = device.partition(":")
    if kind not in ("cpu", "cuda") or (number and kind == "cuda"):
        raise SettingsError(
            f"`tensor_parallel` gives each process a device of its own, but `device` is {device}; pass `device` cuda, or cpu"
        )
    if kind == "cpu":
        return "cpu"
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        raise SettingsError(
            "`tensor_parallel` runs on a GPU for each process, and torch finds none on this machine; pass `device` cpu to run on processors"
        )
    if launch is None:
        return f"cuda:{torch.cuda.current_device()}"
    if launch.local_size > count:
        raise SettingsError(
            f"{counted(launch.local_size, 'process', 'processes')} of this run are on this machine, which has {counted(count, 'GPU')}; "
            f"start {count} of them here"
        )
    torch.cuda.set_device(launch.local_rank)
    return f"cuda:{launch.local_rank}"


@contextmanager
def _meeting() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise ModelError(
            f"the processes of this run do not find one another ({' '.join(str(error).split())[:160]}); start them with torchrun"
        ) from error


def _leave() -> None:
    """Leave the process group, so that nothing listens any more. If others are lost, the end of the process does the same, and waits for none."""
    if distributed.is_initialized() and not _lost:
        distributed.destroy_process_group()
