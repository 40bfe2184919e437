"""Reading what a launcher such as torchrun tells each of its processes, through the environment. This module loads without torch."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

from treespec.errors import SettingsError, counted


@dataclass(frozen=True)
class Launch:
    """The place of this process among those that a launcher has started."""

    rank: int
    """The number of this process, from 0 on."""
    local_rank: int
    """Its number among the processes of its host, which is also the number of its GPU."""
    processes: int
    local_processes: int
    """The number of processes on its host."""

    @classmethod
    def of(cls, environment: Mapping[str, str] = os.environ) -> "Launch | None":
        """Return the place that the environment tells, None where no launcher has set it. Raises SettingsError for values that are no numbers."""
        if "RANK" not in environment or "WORLD_SIZE" not in environment:
            return None
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
        values = [
            environment.get(name, environment[other]) for name, other in zip(names, ("RANK", "RANK", *["WORLD_SIZE"] * 2), strict=True)
        ]
        odd = next((f"{name} is {value!r:.40}" for name, value in zip(names, values, strict=True) if not value.isdecimal()), None)
        if odd is not None:
            raise SettingsError(
                f"the environment variable {odd}, but launchers set it to a whole number; start the processes with torchrun"
            )
        return cls(*map(int, values))


def require_one_way() -> NoReturn:
    """Raise SettingsError for a target that is to be offloaded and divided."""
    raise SettingsError(
        "`offload` streams the layers of a whole target through one GPU, and with `tensor_parallel` each process holds a part of it; drop one of them"
    )


def launched(processes: int, line: str = "SCRIPT.py") -> Launch:
    """Return the place of this process in a run of so many. `line` is what torchrun is to start, for the message.

    Raises SettingsError for a process that stands alone, and for a run of another number of processes.
    """
    found, command = Launch.of(), f"torchrun --nproc-per-node {processes} {line}"
    if found is None:
        raise SettingsError(
            f"`tensor_parallel` {processes} takes {processes} processes, and this one stands alone; start it with: {command}"
        )
    if found.processes != processes:
        raise SettingsError(
            f"`tensor_parallel` is {processes}, but {counted(found.processes, 'process was', 'processes were')} started; pass "
            f"`tensor_parallel` {found.processes}, or start it with: {command}"
        )
    return found
