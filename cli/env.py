"""The command `treeopt env`: the facts about a machine that a bug report needs, and what is done with each family of models."""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import click

from treeopt.cli.help import TreeoptCommand, example, under
from treeopt.cli.options import format_option
from treeopt.cli.output import emit, note
from treespec.tables import Parts, Table

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

    data = families() if of_families else describe()
    emit(output_format, data, draw(data) if of_families else [tables.pairs(data)])


def families() -> dict[str, Any]:
    """Return what is done with each family that the installed transformers has, as plain data."""
    from treespec.files.provenance import version_of
    from treespec.models.support import all_families

    return {"transformers": version_of("transformers"), "families": [asdict(family) for family in all_families()]}


def draw(data: Mapping[str, Any]) -> Parts:
    """Draw what is done with each family: first those that are tested, then those that are checked, then those that are refused."""
    families: Sequence[Mapping[str, Any]] = data["families"]
    by_status = {status: [row for row in families if row["exact"] == status] for status in ("tested", "checked when loaded", "refused")}
    total = ", ".join(f"{len(rows)} {what}" for what, rows in by_status.items())
    columns = ("family", "exact with trees", "kernels", "captured", "why not")
    cells = [_row(row) for rows in by_status.values() for row in rows]
    return [
        Table(f"families of transformers {data['transformers']}: {total}", columns, cells, left=columns),
        "kernels and graphs are for CUDA; settings of one model, such as layers that slide or are shared, may change its row",
    ]


def _row(family: Mapping[str, Any]) -> tuple[str, ...]:
    refused = family["exact"] == "refused"
    inside = "" if family["inside"] is None or refused else f" ({'' if family['pictures'] else 'text only: '}{family['inside']})"
    runs = ("-", "-") if refused else (family["kernels"], "yes" if family["captured"] else "no")
    return (family["model_type"] + inside, family["exact"], *runs, family["refused"] or family["eager"])


def describe() -> dict[str, Any]:
    """Return versions, processor and GPUs as plain data, without user, host or folder names.

    Where torch cannot be loaded, a line on stderr says why, and what only torch knows is null.
    """
    from treeopt import __version__
    from treeopt.cli.errors import explain
    from treespec.files.load import load_average
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
        "load_average": load_average(),
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
