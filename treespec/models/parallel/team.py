"""Team: the processes that hold a target together, and all that they say to one another.

What is relied on for the collectives inside captured steps, by the documentation of NCCL ("Using NCCL with CUDA Graphs") and of torch
(`torch.cuda.graph`, `init_process_group`, ProcessGroupNCCL.hpp):

- All processes capture the same operations in the same order, and a replay is itself a collective: every process launches the same graphs in the same
  order. Steps are captured and launched alike in all of them, for the plans and the sizes of caches are the same.
- torch makes the communicator of a device at its first collective, and NCCL connects the ranks for an algorithm when a message first needs it.
  Neither may happen while a graph is captured. So `join` adds up one number, and whoever captures runs the same passes before, eagerly
  (`CapturedSteps`), after which it waits for the device.
- A collective that torch captures is not watched by the thread of its own that looks for errors and for time limits: if a partner ends, the replay
  waits on the device for ever. So a thread of ours looks after the others (`Joined`), and ends the process. Torch's thread asks CUDA about
  earlier, eager collectives now and then, which a capture in the mode "global" does not survive; beside a process group it is "thread_local".
- Rows of few tokens are exchanged through memory that all GPUs of a host see (`symmetric`), in which a graph launches nothing but our own kernel.
- NCCL waits for the end of graphs that hold its work when a communicator is destroyed, so they go first (`treespec.decoding.capture`).
- What NCCL reads in the environment, such as NCCL_NVLS_ENABLE, is the caller's: nothing here sets it but the name of a network interface,
  where none is given (`stay_local`).
"""

import atexit
import platform
import signal
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor, distributed

from treespec.errors import ModelError, ProcessesError, SettingsError, counted
from treespec.files import joined
from treespec.files.joined import Joined
from treespec.files.processes import Place
from treespec.models.parallel.launch import launched

if TYPE_CHECKING:
    from treespec.kernels.peers import Peers

T = TypeVar("T")

_gather: Callable[[Tensor, Tensor], Any] = getattr(distributed, "all_gather_single", None) or distributed.all_gather_into_tensor
"""Puts the tensors of all processes one behind another, along the first dimension. torch renamed it in 2.13."""

CHECK_EVERY = 16
"""The processes compare their tokens after so many steps."""
_PATIENCE_SECONDS = 1800.0
"""The longest time that a process waits in a collective for the others, if it is none that a graph holds."""
_END_SECONDS = 10
"""The time that a process has for its end when others may be lost, before the system ends it."""
_ours: list[Joined] = []
"""The processes of this run, if `join` has made their group: a process joins one group at most."""
_broken: list[str] = []
"""The reasons why collectives of this process have failed: it waits for nobody at its end."""


class Team:
    """All processes of a run, of which this is one. Rule: every one of them calls the same methods in the same order.

    Each method raises ProcessesError or ModelError if another process has ended or does not answer. `processes` look after one another; None where the caller
    made their group, whose limits of time then hold.
    """

    _kept: TemporaryDirectory[str] | None

    def __init__(self, rank: int, size: int, device: str, backend: str, hosts: int = 1, processes: Joined | None = None) -> None:
        self.rank, self.size, self.device, self.backend, self.hosts = rank, size, device, backend, hosts
        self.processes, self._kept, self._files = processes, None, 0
        self._host = torch.device("cpu") if "gloo" in distributed.get_backend_config() else torch.device(device)
        self._tokens, self._steps = 0, 0
        self._peers: dict[torch.dtype, Peers | None] = {}
        self.note = ""
        """What people should know of how sums are added up, as a sentence; empty if nothing."""

    def peers(self, dtype: torch.dtype) -> "Peers | None":
        """Return the memory through which GPUs of one host exchange rows of this type, made once; None where collectives add up.

        That is on CPUs, over several hosts, and for GPUs that cannot read one another's memory.
        """
        if self.backend != "nccl":
            return None
        if dtype not in self._peers:
            from treespec.models.parallel.symmetric import peers_of

            with _together():
                self._peers[dtype], why = peers_of(torch.device(self.device), dtype, self.rank, self.hosts)
            if why:
                self.note = f"NCCL adds up what the processes compute, which takes longer than reading one another's memory: {why}"
        return self._peers[dtype]

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

    def least(self, value: int) -> int:
        """Return the least of the values that the processes pass, such as what fits into the memory of each."""
        known = torch.tensor([value], device=self._host)
        with _together():
            distributed.all_reduce(known, op=distributed.ReduceOp.MIN)
        return int(known)

    def first(self, find: Callable[[], T]) -> T | None:
        """Return what `find` returns in the first process, however long it takes: it may wait for a person. It is not called in the others.

        Raises ProcessesError if a process ends meanwhile.
        """
        found = find() if self.rank == 0 else None
        if self.processes is not None:
            self.processes.meet()  # a collective has a limit of time
        return self.agreed(found)

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
    """Have this process end if its partner is gone, after an error of torch or an interruption due to that. Other errors stay as they are.

    Raises ProcessesError where it is known who has ended, else ModelError.
    """
    try:
        yield
    except (RuntimeError, KeyboardInterrupt) as error:
        torn = isinstance(error, distributed.DistError) or "gloo" in str(error)
        if not torn and not isinstance(error, KeyboardInterrupt):  # errors of memory, or of capturing
            raise
        lost = _ours[-1].ended() if _ours else None
        if lost is None and torn and _ours:
            lost = _ours[-1].who()
        if lost is None and not torn:
            raise
        _broken.append(lost or str(error))
        if lost is not None:
            raise ProcessesError(lost) from error
        raise ModelError(
            "another process of this run has ended, or does not answer, and each holds a part of the target; its own message says why, "
            f"or the launcher's report ({' '.join(str(error).split())[:160]}); run the same command again"
        ) from error


def join(processes: int, device: str, line: str = "SCRIPT.py") -> Team:
    """Return the team of so many processes on a kind of device: "cpu", or "cuda", where each process takes the GPU of its own number.

    A process group that the caller has made is taken; else one is made, which lasts as long as the process. `line` is what torchrun is to
    start, for the message. Raises SettingsError for another number of processes, for a device that is not there, and ProcessesError if the
    processes do not find one another, or one of them ends.
    """
    made = distributed.is_available() and distributed.is_initialized()
    if made and distributed.get_world_size() != processes:
        raise SettingsError(
            f"`tensor_parallel` is {processes}, but the process group has {counted(distributed.get_world_size(), 'process', 'processes')}; "
            "pass that number"
        )
    launch = None if made else launched(processes, line)
    own = _own_device(device, launch)
    if launch is not None:
        _ours.append(joined.join(launch, "gloo" if own == "cpu" else "cpu:gloo,cuda:nccl", _PATIENCE_SECONDS))
        atexit.register(leave)
    names: list[Any] = [None] * processes
    with _together():
        distributed.all_gather_object(names, platform.node())
        if own != "cpu":
            distributed.all_reduce(torch.zeros(1, device=own))  # makes the communicator, before anything is captured
            torch.cuda.synchronize(own)
    backend = "gloo" if own == "cpu" else "nccl"
    return Team(distributed.get_rank(), processes, own, backend, len(set(names)), _ours[-1] if _ours else None)


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


def leave() -> None:
    """Leave the process group that `join` has made, so that nothing listens any more. It waits for no other process.

    After an error the others are told of the end, and the system ends this process if the device still waits for one of them.
    """
    if not _ours:
        return
    processes = _ours.pop()
    failed = bool(_broken) or processes.over or getattr(sys, "last_value", None) is not None
    if not failed:
        processes.depart()
        if distributed.is_initialized():
            distributed.destroy_process_group()
        return
    processes.fail()
    if torch.cuda.is_available():
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(_END_SECONDS)
