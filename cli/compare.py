"""The command `treeopt compare`: growmaps, budgets, profiles or reports side by side, with their differences."""

from pathlib import Path

import click

from treeopt.cli.help import TreeoptCommand, example, under
from treeopt.cli.options import format_option
from treeopt.cli.output import emit
from treeopt.cli.settings import wrong_usage
from treeopt.cli.values import GROWMAP_FILE, name_list, names_metavar
from treeopt.comparing.fields import FIELDS


@click.command(cls=TreeoptCommand, epilog=example("treeopt compare report.json dynamic.json --format markdown"))
@click.argument("things", type=GROWMAP_FILE, nargs=-1, required=True, metavar="A B...")
@under(
    "Comparison",
    click.option(
        "--across",
        type=name_list(FIELDS),
        metavar=names_metavar(FIELDS),
        multiple=True,
        help="Fields that may differ, such as device to hold two GPUs against one another; without this, what must not be mixed is refused.",
    ),
)
@format_option
def compare(things: tuple[Path, ...], across: tuple[tuple[str, ...], ...], output_format: str) -> None:
    """Hold growmaps, budgets, profiles or reports of evaluations against one another.

    All are of one kind. The first is what the others are compared with: each difference is of the other less the first, with its 95 %
    interval, taken prompt by prompt where all prompts are the same. A growmap is a .pt file, or the name of one that comes with treeopt; a budget
    is what `treeopt grow --dynamic` wrote.
    """
    from treeopt.comparing.compare import compare as run
    from treeopt.growmap_library import folder

    with wrong_usage():
        found = run(*(t.stem if t.parent == folder() else t for t in things), across=[name for names in across for name in names])
    emit(output_format, found.summary(), found.drawing())
