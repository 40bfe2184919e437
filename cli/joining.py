"""The processes that a launcher started for one command: which commands they share, the device of each, and which one speaks.

The first process alone prints. Where the command ends with an error, one process says it, whichever meets it first.
"""

import _thread
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click

from treeopt.cli import tensor_parallel
from treeopt.cli.flags import flag_of
from treeopt.cli.output import discard_journals, say, silent
from treespec.errors import ProcessesError, SettingsError
from treespec.files.joined import Joined, failed_alone, joined
from treespec.files.processes import ALONE, Place, Processes
from treespec.files.provenance import version_of

SHARED, OWN, ALONE_ONLY = "shared", "own", "alone"
"""The ways of a command with several processes: they share its work, its library joins them by itself, or they are refused. With
`--tensor-parallel`, all of them hold one target together, as `tensor_parallel.py` has it."""

_VISIBLE = "CUDA_VISIBLE_DEVICES"

_joined: list[Joined] = []
"""The processes that this one has joined last, also when it has left them."""


def processes() -> Processes:
    """Return the processes that share the running command."""
    ctx = click.get_current_context(silent=True)
    found: Processes = ALONE if ctx is None else ctx.meta.get(__name__, ALONE)
    return found


@contextmanager
def together(ctx: click.Context, way: str) -> Iterator[None]:
    """Run a command in this block with the others that a launcher started. All but the first are silent, unless --debug is given.

    Raises a usage error for a command that is not `SHARED`, and for a device that they cannot share; ProcessesError for another command line in
    one of them, and in place of an interruption that is due to the end of one.
    """
    place = Place.of()
    if place.size == 1 or way == OWN:
        yield
        return
    together = ctx.params.get("tensor_parallel", 1) > 1
    if way == ALONE_ONLY and not together:
        raise click.UsageError(f"{ctx.command_path} runs in one process, but a launcher started {place.size}; run it without the launcher.")
    with ExitStack() as held:
        if not place.first and not ctx.find_root().params.get("debug"):
            held.enter_context(silent())
        if together:  # they join when the target is loaded
            held.enter_context(_ending_together())
            yield
            return
        _take_device(place, ctx.params.get("device", "cpu"))
        several = held.enter_context(joined(place, interrupt=lambda: _thread.interrupt_main(signal.SIGTERM)))
        _joined[:] = [several]
        _require_same(ctx, several)
        _require_device(place, ctx.params.get("device", "cpu"))
        ctx.meta[__name__] = several
        try:
            yield
        finally:
            del ctx.meta[__name__]


@contextmanager
def _ending_together() -> Iterator[None]:
    """Have the processes that hold a target together end when this one does with an error, as `joined` does."""
    try:
        yield
    except BaseException as error:
        several = tensor_parallel.joined_processes()
        found = error if several is None else several.failed(error)
        if found is error:
            raise
        raise found from error


def complain(message: str, *, own: bool = True) -> None:
    """Say why the command ends on stderr, if this is the process to say it. If it is the process's `own` reason, it says which one it is."""
    try:
        place = Place.of()
    except SettingsError:
        place = Place()
    held = tensor_parallel.joined_processes()
    known = held or next((one for one in _joined if one.place == place), None)
    if place.size > 1 and not (failed_alone(place) if known is None else known.claims()):
        return
    name = f"rank {place.rank} of {place.size}" if known is None else known.name
    say(message if place.first or not own else f"{message} (on {name})", err=True)


def saved(output: Path | None, write: Callable[[], Any] = lambda: None) -> None:
    """Have the first process write a result, and then every one delete its journals of it."""
    if processes().place.first:
        write()
    processes().exchange(None)
    discard_journals(output)


def _take_device(place: Place, device: str) -> None:
    """Leave this process the one CUDA GPU that is its own, which is then `cuda:0`. It is called before anything has looked for GPUs."""
    kind, _, index = device.partition(":")
    if kind == "cpu":
        return
    if kind in ("mps", "xpu") or index:
        raise click.UsageError(
            f"--device {device} is one device, but a launcher started {place.size} processes, which need one each; pass --device cuda, by which each "
            "takes the GPU of its number on its host, or --device cpu."
        )
    given = os.environ.get(_VISIBLE)
    seen = None if given is None else [name for name in given.split(",") if name.strip()]
    if seen is None:
        os.environ[_VISIBLE] = str(place.local_rank)
    else:
        os.environ[_VISIBLE] = seen[place.local_rank] if place.local_rank < len(seen) else ""


def _require_device(place: Place, device: str) -> None:
    """Raise a usage error if this process is to have a GPU and found none."""
    if device.partition(":")[0] == "cpu":
        return
    import torch

    if not torch.cuda.is_available():
        raise click.UsageError(
            f"a launcher started {place.size} processes, {place.local_size} of them on this host, and there is no CUDA GPU for each; start as many as "
            "there are GPUs, or pass --device cpu."
        )


def _require_same(ctx: click.Context, several: Joined) -> None:
    """Raise ProcessesError for a process with other options, or of other software."""
    flags = {option.name: flag_of(option) or option.name for option in ctx.command.params if isinstance(option, click.Option)}
    own = {str(flags.get(name, name)): _shown(value) for name, value in ctx.params.items()}
    software = {name: str(version_of(name)) for name in ("treeopt", "torch", "transformers")}
    everybody = several.exchange((ctx.command_path, own, software))
    command, options, versions = everybody[0]
    for rank, (other, theirs, installed) in enumerate(everybody):
        who = f"rank {rank} of {len(everybody)}"
        if other != command:
            raise ProcessesError(f"{who} was started with {other}, but rank 0 with {command}; give all processes the same command line")
        for name, value in theirs.items():
            if value != options.get(name):
                raise ProcessesError(
                    f"{who} was started with {name} {value}, but rank 0 with {name} {options.get(name)}; give all processes the same command line"
                )
        for name, version in installed.items():
            if version != versions[name]:
                raise ProcessesError(f"{who} has {name} {version}, but rank 0 has {name} {versions[name]}; install the same on every host")


def _shown(value: Any) -> str:
    if isinstance(value, tuple | list):
        return ",".join(map(_shown, value)) or "none"
    return "none" if value is None else str(value)
