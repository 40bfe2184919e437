"""The command `treeopt replay`: tokens per step of trees on the texts of a trace, without models."""

from pathlib import Path

import click

from treeopt.cli.help import TreeoptCommand, example, under
from treeopt.cli.options import format_option
from treeopt.cli.output import emit
from treeopt.cli.values import GROWMAP_FILE, INPUT_FILE


@click.command(cls=TreeoptCommand, epilog=example("treeopt replay tree.pt 68m_7b-64 --trace trace.json"))
@click.argument("trees", type=GROWMAP_FILE, nargs=-1, required=True, metavar="TREE...")
@under(
    "Texts",
    click.option("--trace", type=INPUT_FILE, required=True, help="Trace that `treeopt profile acceptance` wrote."),
    click.option(
        "--acceptance",
        type=INPUT_FILE,
        help="Acceptance profile of the same pair and sampling, whose prediction is shown beside. [default: the growmap's own promise, if it is of them]",
    ),
)
@format_option
def replay(trees: tuple[Path, ...], trace: Path, acceptance: Path | None, output_format: str) -> None:
    """Count the steps of trees on the texts of a trace.

    They are exactly those of decoding these texts with each tree, ends included, and no model is needed. A TREE is a growmap (.pt), or the name
    of one that comes with treeopt.
    """
    from treeopt.growmap_library import folder
    from treeopt.optimizer.replay_report import replay_trees

    found = replay_trees([tree.stem if tree.parent == folder() else tree for tree in trees], trace, acceptance)
    emit(output_format, found.summary(), found.drawing())
