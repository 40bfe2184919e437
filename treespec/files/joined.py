"""Processes that work together, and the end of all of them when one ends.

torch.distributed carries what they exchange: its store the small things, gloo the large ones.
"""

import _thread
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

from treespec.errors import ProcessesError, counted
from treespec.files.meeting import JOIN_SECONDS, connect, stay_local, store_is_the_launchers
from treespec.files.processes import Place, Processes

FAIL_SECONDS = 30.0
"""Longest wait of a process that ends before it has joined the others, to find out whether another one says why."""
BEAT_SECONDS = 0.5
"""Time between two looks of each process at the others."""
SILENT_SECONDS = 20.0
"""A process of another host that was not heard of for so long counts as ended: its host may be gone."""
GRACE_SECONDS = 5.0
"""Time in which a process ends by itself when another has ended, before it is ended at once."""

_LOOK_SECONDS = 0.2
"""Longest time between two looks of a process that waits for the others, which may be measuring times beside it."""

HERE, LEFT, FAILED = b"here", b"left", b"failed"
"""The states of a process, in the store."""

_AGAIN = "what is finished is kept: run the same command again to go on"


class Joined(Processes):
    """Several processes. A thread looks after the others: when one ends, `lost` says which, and the main thread is interrupted."""

    def __init__(self, place: Place, store: Any, interrupt: Callable[[], None]) -> None:
        """Take a store that all processes have. `interrupt` disturbs the main thread."""
        super().__init__()
        self.place, self._store, self._interrupt = place, store, interrupt
        self.lost: str | None = None
        self._claimed: bool | None = None
        self._names: list[str] = []
        self._processes: list[tuple[str, int]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="treeopt-watch", daemon=True)
        self._store.set(f"state/{place.rank}", HERE)

    def gather(self) -> None:
        """Wait until all processes are there, before a process group can be made. Raises ProcessesError if one has failed by then, or not all come."""
        until = time.monotonic() + JOIN_SECONDS
        self.add("come", 1)
        while (come := self.add("come", 0)) < self.place.size:
            self.check()
            if time.monotonic() > until:
                raise ProcessesError(
                    f"{come} of {counted(self.place.size, 'process', 'processes')} came within {JOIN_SECONDS:.0f} s; see to it that all were started"
                )
            time.sleep(_LOOK_SECONDS)

    def start(self) -> None:
        """Look after the others from now on."""
        self._store.add(f"beat/{self.place.rank}", 1)
        self._processes = self.exchange((_host(), os.getpid()))
        name = socket.gethostname()
        self._names = [f"rank {rank} of {self.place.size}" for rank in range(self.place.size)]
        hosts = self.exchange(name)
        if len(set(hosts)) > 1:
            self._names = [f"{rank} on {host}" for rank, host in zip(self._names, hosts, strict=True)]
        self._thread.start()

    @property
    def name(self) -> str:
        """Return the name of this process for people: its rank, and its host if there are several."""
        return self._names[self.place.rank] if self._names else f"rank {self.place.rank} of {self.place.size}"

    def add(self, name: str, amount: int) -> int:
        """See `Processes.add`."""
        try:
            return int(self._store.add(f"count/{name}", amount))
        except RuntimeError as e:
            raise ProcessesError(self.lost or self._store_lost()) from e

    def meet(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Wait until all processes have called this, however long that takes. Raises ProcessesError if another one ends first."""
        self._rounds += 1
        name = f"round {self._rounds}"
        self.add(name, 1)
        waited = 0.01
        while self.add(name, 0) < self.place.size:
            self.check()
            meanwhile()
            time.sleep(waited)
            waited = min(2 * waited, _LOOK_SECONDS)

    def exchange(self, value: Any, meanwhile: Callable[[], None] = lambda: None) -> list[Any]:
        """See `Processes.exchange`. Values travel pickled, between processes of one run only."""
        from torch import distributed

        self.meet(meanwhile)
        found: list[Any] = [None] * self.place.size
        try:
            distributed.all_gather_object(found, value)
        except RuntimeError as e:
            raise ProcessesError(self.who() or f"another process ended while results were exchanged: {str(e).splitlines()[0]}") from e
        meanwhile()
        return found

    def check(self) -> None:
        """Raise ProcessesError if another process has ended."""
        if self.lost is not None:
            raise ProcessesError(self.lost)
        if not self._thread.is_alive():  # before it starts, while others join
            reason = self._failed()
            if reason is not None:
                raise ProcessesError(reason)

    @property
    def over(self) -> bool:
        """Whether this process has told the others of its end."""
        return self._over.is_set()

    def who(self) -> str | None:
        """Return which other process has ended before its time, in words, once the watch has had the time to see it; None if none has."""
        self._over.wait(2 * BEAT_SECONDS)
        return self.lost

    def ended(self) -> str | None:
        """Return which other process has ended before its time, in words; None if none has, as far as can be told at once."""
        if self.lost is None and self._processes:
            with suppress(RuntimeError):
                self.lost = self._gone(self._states())
        return self.lost

    def claims(self) -> bool:
        """Return whether this process is the one that tells people why all of them end: the first to ask. No two say it."""
        if self._claimed is None:
            try:
                self._claimed = int(self._store.add("said", 1)) == 1
            except RuntimeError:  # the store ended with the process that held it
                self._claimed = self.place.rank == 1 or self.place.local_rank == 0
        return self._claimed

    def leave(self) -> None:
        """End together: wait until all processes are done. Raises ProcessesError if one has ended before."""
        self.exchange(None)
        self.depart()

    def depart(self) -> None:
        """End, and wait for nobody: the others need this process no more."""
        self._stop(LEFT)

    def fail(self) -> None:
        """Have the others end too, because this one does, and claim to say why."""
        self.claims()
        self._stop(FAILED)

    def failed(self, error: BaseException) -> BaseException:
        """Have the others end too, because of an error here. Return the error to raise: another one for an interruption that is due to their end."""
        lost = self.ended() if isinstance(error, KeyboardInterrupt) else None
        self.fail()
        return error if lost is None else ProcessesError(lost)

    def _stop(self, state: bytes) -> None:
        """Tell the others how this process ends. The one that may hold their store stays until they know."""
        self._over.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join()
        with suppress(RuntimeError):  # then the store is gone, and whoever held it
            self._store.set(f"state/{self.place.rank}", state)
            until = time.monotonic() + GRACE_SECONDS
            while self.place.first and not store_is_the_launchers() and HERE in self._states() and time.monotonic() < until:
                time.sleep(0.02)

    def _states(self) -> list[bytes]:
        """Return the states of all processes by rank. One that has not come yet is here."""
        keys = [f"state/{rank}" for rank in range(self.place.size)]
        if self._processes:  # all have come
            return list(self._store.multi_get(keys))
        return [self._store.get(key) if self._store.check([key]) else HERE for key in keys]

    def _failed(self) -> str | None:
        """Return which other process has failed, in words."""
        rank = next((rank for rank, state in enumerate(self._states()) if state == FAILED), None)
        return None if rank is None else f"rank {rank} of {self.place.size} ended with an error, and so do the others"

    def _gone(self, states: list[bytes]) -> str | None:
        """Return which process of this host is there no more, in words, although it did not say that it ends."""
        here = self._processes[self.place.rank][0]
        for rank, (host, process) in enumerate(self._processes):
            if host != here or rank == self.place.rank or states[rank] != HERE or _is_there(process):
                continue
            if self._states()[rank] == HERE:  # asked again: it may have said so and ended since `states` were read
                return f"{self._names[rank]} was ended from outside (process {process} is gone), and so the others end; {_AGAIN}"
        return None

    def _watch(self) -> None:
        """Look after the others until this process is over. If one has ended, interrupt the main thread, and end it if that does not help."""
        heard: dict[int, tuple[int, float]] = {}
        while not self._over.wait(BEAT_SECONDS):
            try:
                self._store.add(f"beat/{self.place.rank}", 1)
                states = self._states()
                self.lost = self._failed() or self._gone(states) or self._silent(heard, states)
            except RuntimeError:
                self.lost = self._store_lost()
            if self.lost is None:
                continue
            self._interrupt()
            if not self._over.wait(GRACE_SECONDS):
                if self.claims():  # to stderr itself: something else may be in the place of `sys.stderr`
                    os.write(2, f"error: {self.lost}\n".encode())
                with suppress(RuntimeError):
                    self._store.set(f"state/{self.place.rank}", FAILED)
                os._exit(1)
            return

    def _silent(self, heard: dict[int, tuple[int, float]], states: list[bytes]) -> str | None:
        """Return which process of another host was not heard of for long, in words. Of one on this host it is known whether it is there (`_gone`)."""
        now, here = time.monotonic(), self._processes[self.place.rank][0]
        beats = self._store.multi_get([f"beat/{rank}" for rank in range(self.place.size)])
        for rank, beat in enumerate(map(int, beats)):
            if self._processes[rank][0] == here or states[rank] != HERE:
                continue
            if heard.get(rank, (-1, 0.0))[0] != beat:
                heard[rank] = beat, now
            elif now - heard[rank][1] > SILENT_SECONDS:
                return f"{self._names[rank]} was not heard of for {SILENT_SECONDS:.0f} s, and so the others end; {_AGAIN}"
        return None

    def _store_lost(self) -> str:
        whose = "the launcher" if store_is_the_launchers() else f"rank 0 of {self.place.size}"
        return f"{whose}, which holds what the processes share, is gone, and so they end; {_AGAIN}"


def join(
    place: Place, backends: str = "gloo", seconds: float = JOIN_SECONDS, interrupt: Callable[[], None] = _thread.interrupt_main
) -> Joined:
    """Join the processes that a launcher started, and look after them from then on.

    It makes the process group of torch.distributed with these `backends`, whose longest wait is `seconds`; where all processes are on one host, it
    listens on the loopback interface alone. Raises ProcessesError if not all come within JOIN_SECONDS, or one ends.
    """
    from torch import distributed
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]

    stay_local(place)
    store = connect(place)
    processes = Joined(place, store, interrupt)
    try:
        processes.gather()
        distributed.init_process_group(
            backends,
            store=PrefixStore("gloo", store),
            rank=place.rank,
            world_size=place.size,
            timeout=timedelta(seconds=seconds),
        )
        processes.start()
    except BaseException as error:
        found = processes.failed(error)
        if distributed.is_initialized():
            distributed.destroy_process_group()
        if found is error:
            raise
        raise found from error
    return processes


@contextmanager
def joined(place: Place, *, interrupt: Callable[[], None] = _thread.interrupt_main) -> Iterator[Joined]:
    """Join the processes that a launcher started, and leave them at the end of the block, or end them if it raises. Torch has no group afterwards.

    Raises ProcessesError as `join` does, if a process ends before its time, and in place of an interruption that is due to that.
    """
    from torch import distributed

    processes = join(place, interrupt=interrupt)
    try:
        yield processes
        processes.leave()
    except BaseException as error:
        found = processes.failed(error)
        if found is error:
            raise
        raise found from error
    finally:
        distributed.destroy_process_group()


def failed_alone(place: Place) -> bool:
    """Have the others end because this process ends before it has joined them, and return whether it is the one that says why."""
    try:
        store = connect(place, FAIL_SECONDS)
    except ProcessesError:
        return True
    processes = Joined(place, store, lambda: None)
    processes.fail()
    return processes.claims()


def _host() -> str:
    """Return what processes share that see one another's numbers: the host, and on Linux the namespace of processes."""
    with suppress(OSError):
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    return socket.gethostname()


def _is_there(process: int) -> bool:
    """Return whether a process of this host runs. One that has ended, and that its parent did not look after, does not."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    with suppress(OSError, IndexError), open(f"/proc/{process}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] not in ("Z", "X")
    return True
