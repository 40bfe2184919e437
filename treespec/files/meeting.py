"""The place where the processes of a run meet: the store of torch.distributed, and the interface of the network on which they listen."""

import os
import socket
from datetime import timedelta
from typing import Any

from treespec.errors import ProcessesError, counted
from treespec.files.processes import Place

JOIN_SECONDS = 300.0
"""Longest wait for all processes to be there. Nothing is loaded before."""


def connect(place: Place, seconds: float = JOIN_SECONDS) -> Any:
    """Return the store of torch.distributed that the processes share. Raises ProcessesError if it cannot be reached within so many seconds."""
    from torch.distributed import PrefixStore, rendezvous  # type: ignore[attr-defined]

    try:
        store, _, _ = next(rendezvous("env://", place.rank, place.size, timeout=timedelta(seconds=seconds)))
    except RuntimeError as e:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise ProcessesError(
            f"{counted(place.size, 'process', 'processes')} were to meet at {where}, but not all did within {seconds:.0f} s ({str(e).splitlines()[0][:120]}); "
            "see to it that all were started, and that this address can be reached from every host"
        ) from e
    return PrefixStore("treeopt", store)


def stay_local(place: Place) -> None:
    """Have gloo and NCCL listen on the loopback interface alone if all processes are on this host. A choice that was made before is kept."""
    if place.on_one_host and (loopback := _loopback()) is not None:
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(name, loopback)


def store_is_the_launchers() -> bool:
    """Return whether the store is torchrun's, and does not end with a process of the group."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _loopback() -> str | None:
    """Return the name of the loopback interface; None where interfaces have other names."""
    names = [name for _, name in socket.if_nameindex()]
    return next((name for name in ("lo", "lo0") if name in names), None)
