"""Conditions on which the processes of a run can hold a target together. This module loads without torch."""

from typing import NoReturn

from treespec.errors import SettingsError, counted
from treespec.files.processes import Place


def require_one_way() -> NoReturn:
    """Raise SettingsError for a target that is to be offloaded and divided."""
    raise SettingsError(
        "`offload` streams the layers of a whole target through one GPU, and with `tensor_parallel` each process holds a part of it; drop one of them"
    )


def launched(processes: int, line: str = "SCRIPT.py") -> Place:
    """Return the place of this process in a run of so many. `line` is what torchrun is to start, for the message.

    Raises SettingsError for a process that stands alone, and for a run of another number of processes.
    """
    found, command = Place.of(), f"torchrun --nproc-per-node {processes} {line}"
    if found.size == 1:
        raise SettingsError(
            f"`tensor_parallel` {processes} takes {processes} processes, and this one stands alone; start it with: {command}"
        )
    if found.size != processes:
        raise SettingsError(
            f"`tensor_parallel` is {processes}, but {counted(found.size, 'process was', 'processes were')} started; pass "
            f"`tensor_parallel` {found.size}, or start it with: {command}"
        )
    return found
