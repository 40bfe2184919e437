"""The command `treeopt demo`: the whole loop on the embedded pair."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from treeopt.cli.help import TreeoptCommand, example, under
from treeopt.cli.options import device_option, format_option
from treeopt.cli.output import Progress, emit

if TYPE_CHECKING:
    from rich.console import Console


@click.command(cls=TreeoptCommand, epilog=example("treeopt demo --out treeopt-demo"))
@under("Models", device_option)
@under(
    "Output",
    click.option(
        "--out", type=click.Path(file_okay=False, path_type=Path), default="treeopt-demo", show_default=True, help="Folder to write."
    ),
    format_option,
)
def demo(out: Path, device: str, output_format: str) -> None:
    """Run the whole loop on a tiny pair and real text.

    The demo profiles, generates and evaluates with the embedded pair. It needs no network and 30 seconds to 2 minutes on two idle CPU cores.
    """
    from treeopt.cli.inputs import resolve_device
    from treeopt.cli.results import acceptance_summary, evaluation_summary, generation_summary, latency_summary
    from treeopt.demo import FILES, run_demo

    with Progress() as progress:
        result = run_demo(out, resolve_device(device), progress)
    data = {
        "out": str(out),
        "files": list(FILES),
        "acceptance": acceptance_summary(result.acceptance),
        "latency": latency_summary(result.latency),
        "growmap": generation_summary(result.optimization, frontier=False),
        "evaluation": evaluation_summary(result.report),
        "verdict": result.verdict,
        "seconds": result.seconds,
    }
    emit(output_format, data, _render)


def _render(console: "Console", data: Mapping[str, Any]) -> None:
    from treeopt.cli import tables

    tables.acceptance(console, data["acceptance"], ranks=8)
    tables.generation(console, data["growmap"])
    tables.evaluation(console, data["evaluation"])
    console.print(data["verdict"], highlight=False, soft_wrap=True)
    stages = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in data["seconds"].items())
    console.print(f"{sum(data['seconds'].values()):.0f} s in all ({stages})", highlight=False, soft_wrap=True)
    console.print(f"{data['out']}: {' '.join(data['files'])}", highlight=False, soft_wrap=True)
