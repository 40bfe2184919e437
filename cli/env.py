"""The command `treeopt env`: the facts about a machine that a bug report needs, and what is done with each family of models."""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from treeopt.cli.help import TreeoptCommand, example, under
from treeopt.cli.options import format_option
from treeopt.cli.output import emit, note

if TYPE_CHECKING:
    from rich.console import Console

_LIBRARIES = ("torch", "transformers", "tokenizers", "datasets", "numpy", "scipy", "click", "rich")


@click.command(cls=TreeoptCommand, epilog=example("treeopt env --format json"))
@under(
    "Output",
    click.option(
        "--families",
        "of_families",
        is_flag=True,
        help="Print instead what is done with each family of models: whether trees are exact, run by kernels and captured in CUDA graphs.",
    ),
)
@format_option
def env(of_families: bool, output_format: str) -> None:
    """Print versions and hardware, for a bug report."""
    from treeopt.cli import tables

    if of_families:
        emit(output_format, families(), draw)
    else:
        emit(output_format, describe(), tables.pairs)


def families() -> dict[str, Any]:
    """Return what is done with each family that the installed transformers has, as plain data."""
    from treespec.files.provenance import version_of
    from treespec.models.support import all_families

    return {"transformers": version_of("transformers"), "families": [asdict(family) for family in all_families()]}


def draw(console: "Console", data: Mapping[str, Any]) -> None:
    """Draw what is done with each family: first those that are tested, then those that are checked, then those that are refused."""
    from rich.table import Table

    rows: Sequence[Mapping[str, Any]] = data["families"]
    counts = {status: sum(row["exact"] == status for row in rows) for status in ("tested", "checked when loaded", "refused")}
    total = ", ".join(f"{n} {what}" for what, n in counts.items())
    console.print(
        f"families of transformers {data['transformers']}: {total}", style="italic", highlight=False, markup=False, soft_wrap=True
    )
    table = Table()
    for column in ("family", "exact with trees", "kernels", "captured", "why not"):
        table.add_column(column, overflow="fold")
    for status in counts:
        for row in rows:
            if row["exact"] == status:
                text = (
                    "" if row["inside"] is None or status == "refused" else f" ({'' if row['pictures'] else 'text only: '}{row['inside']})"
                )
                runs = ("-", "-") if status == "refused" else (row["kernels"], "yes" if row["captured"] else "no")
                table.add_row(row["model_type"] + text, status, *runs, row["refused"] or row["eager"])
    console.print(table)
    line = "kernels and graphs are for CUDA; settings of one model, such as layers that slide or are shared, may change its row"
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def describe() -> dict[str, Any]:
    """Return versions, processor and GPUs as plain data, without user, host or folder names.

    Where torch cannot be loaded, a line on stderr says why, and what only torch knows is null.
    """
    from treeopt import __version__
    from treeopt.cli.errors import explain
    from treespec.files.provenance import cpu_name, version_of

    known: dict[str, Any] = {"torch_threads": None, "cuda": None, "other_devices": None, "gpus": None}
    try:
        known = _torch_facts()
    except (ImportError, MemoryError, OSError) as error:
        note(f"torch cannot be loaded: {explain(error)}")
    return {
        "treeopt": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: version_of(name) for name in _LIBRARIES},
        "cpu": cpu_name(),
        "cpu_count": os.cpu_count(),
        **known,
    }


def _torch_facts() -> dict[str, Any]:
    import torch

    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return {
        "torch_threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "other_devices": [kind for kind in ("mps", "xpu") if torch.get_device_module(kind).is_available()],
        "gpus": [f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, compute capability {gpu.major}.{gpu.minor}" for gpu in gpus],
    }
