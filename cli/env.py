"""The command `treeopt env`: the facts about a machine that a bug report needs, and what is done with each family of models."""

import importlib.metadata
import os
import platform
from dataclasses import asdict
from typing import Any

import click

from treeopt.cli.help import TreeoptCommand, example
from treeopt.cli.options import format_option
from treeopt.cli.output import emit

_LIBRARIES = ("torch", "transformers", "tokenizers", "datasets", "numpy", "scipy", "click", "rich")


@click.command(cls=TreeoptCommand, epilog=example("treeopt env --format json"))
@click.option(
    "--families",
    "of_families",
    is_flag=True,
    help="Print instead what is done with each family of models: whether trees are exact, run by kernels and captured in CUDA graphs.",
)
@format_option
def env(of_families: bool, output_format: str) -> None:
    """Print versions and hardware, for a bug report."""
    from treeopt.cli import tables

    if of_families:
        emit(output_format, families(), tables.families)
    else:
        emit(output_format, describe(), tables.pairs)


def families() -> dict[str, Any]:
    """Return what is done with each family that the installed transformers has, as plain data."""
    from treespec.models.support import all_families

    return {"transformers": _version("transformers"), "families": [asdict(family) for family in all_families()]}


def describe() -> dict[str, Any]:
    """Return versions, processor and GPUs as plain data, without user, host or folder names."""
    import torch

    from treeopt import __version__
    from treespec.files.provenance import cpu_name

    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return {
        "treeopt": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: _version(name) for name in _LIBRARIES},
        "cpu": cpu_name(),
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "gpus": [f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, compute capability {gpu.major}.{gpu.minor}" for gpu in gpus],
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
