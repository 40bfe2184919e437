"""The command `treeopt demo`: the whole loop on the embedded pair."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from treeopt.cli.help import TreeoptCommand, example, under
from treeopt.cli.options import device_option, format_option, threads_option
from treeopt.cli.output import emit, is_there, note
from treeopt.cli.progress import Progress
from treespec.errors import listed
from treespec.tables import Parts

if TYPE_CHECKING:
    from treeopt.demo import DemoResult


@click.command(cls=TreeoptCommand, epilog=example("treeopt demo --out treeopt-demo"))
@under("Models", device_option, threads_option)
@under(
    "Output",
    click.option(
        "--out", type=click.Path(file_okay=False, path_type=Path), default="treeopt-demo", show_default=True, help="Folder to write."
    ),
    format_option,
)
def demo(out: Path, device: str, output_format: str) -> None:
    """Run the whole loop on a tiny pair and real text.

    The demo profiles, generates and evaluates with the embedded pair. It needs no network and about a minute on two idle CPU cores.
    """
    from treeopt.cli.inputs import resolve_device
    from treeopt.cli.results import generation_summary
    from treeopt.demo import FILES, run_demo

    earlier = [name for name in FILES if is_there(out / name)]
    with Progress() as progress:
        result = run_demo(out, resolve_device(device), progress, notice=note)
    if earlier:
        note(f"wrote {out}, in place of an earlier {listed(earlier)}")
    data = {
        "out": str(out),
        "files": list(FILES),
        "acceptance": result.acceptance.summary(),
        "latency": result.latency.summary(),
        "growmap": generation_summary(result.optimization, frontier=False),
        "notes": list(result.notes),
        "evaluation": result.report.summary(),
        "verdict": result.verdict,
        "seconds": result.seconds,
    }
    emit(output_format, data, _drawing(result, data))


def _drawing(result: "DemoResult", data: Mapping[str, Any]) -> Parts:
    from treeopt.cli import tables

    stages = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in result.seconds.items())
    return [
        *result.acceptance.drawing(ranks=8),
        *tables.generation(data["growmap"]),
        *result.notes,
        *result.report.drawing(),
        result.verdict,
        f"{sum(result.seconds.values()):.0f} s in all ({stages})",
        f"{data['out']}: {' '.join(data['files'])}",
    ]
