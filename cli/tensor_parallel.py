"""A command that several processes run together, as `--tensor-parallel` has it: the first of them alone writes (`joining.py` has who speaks)."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

import click

from treespec.models.parallel.launch import launched

if TYPE_CHECKING:
    from collections.abc import Callable

    from treeopt.cli.options import DraftsOptions, ModelOptions
    from treespec.files.joined import Joined
    from treespec.models.parallel.team import Team

T = TypeVar("T")


class _Together:
    """The place of this process among others, as far as it is known."""

    def __init__(self) -> None:
        self.team: Team | None = None
        self.line = ""
        self.kept: TemporaryDirectory[str] | None = None
        self.files = 0


_TOGETHER = _Together()


def take_part(processes: int, line: str) -> None:
    """Note that this process runs a command together with others, and by what line.

    Raises SettingsError unless it is one of so many processes of a launcher.
    """
    _TOGETHER.line = line
    if not launched(processes, line).first:
        _TOGETHER.kept = TemporaryDirectory(prefix="treeopt-")


def own_place(ctx: click.Context, parameter: click.Parameter, value: Path | None) -> Path | None:
    """Return the place of an output: in a process that is not the first, one that nobody sees."""
    if value is None or _TOGETHER.kept is None:
        return value
    _TOGETHER.files += 1
    folder = Path(_TOGETHER.kept.name) / str(_TOGETHER.files)
    folder.mkdir()
    return folder / value.name


def team_of(models: ModelOptions | DraftsOptions, device: str) -> Team | None:
    """Return the team of this process, which is joined at the first call; None where one process holds the target. `device` is the one to run on.

    Raises SettingsError, ModelError.
    """
    if models.tensor_parallel > 1 and _TOGETHER.team is None:
        from treespec.files.provenance import version_of
        from treespec.models.pairs import team_of as found

        _TOGETHER.team = found(models.tensor_parallel, "cuda" if models.device == "auto" else device, line=_TOGETHER.line)
        assert _TOGETHER.team is not None
        versions = {f"the version of {name}": version_of(name) for name in ("treeopt", "torch", "transformers")}
        _TOGETHER.team.require_same({"the command line": shlex.join(sys.argv[1:]), **versions})
    return _TOGETHER.team


def of_first(find: Callable[[], T]) -> T:
    """Return what `find` returns in the first process, which alone reads standard input."""
    team: Any = _TOGETHER.team
    return find() if team is None else team.first(find)


def are_several() -> bool:
    """Return whether this process runs the command together with others."""
    return _TOGETHER.team is not None


def joined_processes() -> Joined | None:
    """Return the processes that this one has joined; None before that."""
    return None if _TOGETHER.team is None else _TOGETHER.team.processes
