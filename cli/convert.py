"""The command `treeopt convert`: a tree from one tool's format to another's."""

from pathlib import Path

import click

from treeopt.cli.help import TreeoptCommand, example, under
from treeopt.cli.options import format_option
from treeopt.cli.output import emit, is_there, note, note_written
from treeopt.cli.settings import wrong_usage
from treeopt.cli.values import GROWMAP_FILE, OUTPUT_FILE

NAMES = ["sequoia", "json", "umbrella", "medusa", "eagle", "vllm"]


@click.command(cls=TreeoptCommand, epilog=example("treeopt convert tree.pt choices.json --to medusa"))
@click.argument("tree", type=GROWMAP_FILE, metavar="IN")
@click.argument("output", type=OUTPUT_FILE, metavar="OUT")
@under(
    "Output",
    click.option(
        "--to",
        type=click.Choice(NAMES),
        help="Format of OUT: Sequoia's .pt, treeopt's own JSON, UMbreLLa's JSON, the choices of Medusa and EAGLE, or vLLM's string. "
        "[default: sequoia, if the name of OUT ends in .pt]",
    ),
)
@format_option
def convert(tree: Path, output: Path, to: str | None, output_format: str) -> None:
    """Write a tree in the format of another tool.

    IN is a growmap (.pt), its JSON, UMbreLLa's JSON, a list of choices or vLLM's string, or the name of a growmap that comes with treeopt;
    which of them it is, is seen.
    """
    from treespec.errors import counted
    from treespec.trees.conversion import FORMATS, SEQUOIA, format_for, left_behind, write_as
    from treespec.trees.growmap import read_growmap, sidecar_path

    with wrong_usage():
        form = format_for(output, to)
    growmap, earlier = read_growmap(tree), is_there(output)
    description = sidecar_path(output) if form == SEQUOIA and not earlier else None
    described = is_there(description)
    write_as(growmap, output, form)
    note_written(output, earlier)
    if description is not None and described:
        note_written(description, described)
    lost = left_behind(growmap, form)
    if lost is not None:
        note(lost)
    data = {"output": str(output), "to": form, "size": growmap.tree.size, "depth": growmap.tree.depth, "left_behind": lost}
    emit(
        output_format,
        data,
        [f"{output}: a tree of {counted(growmap.tree.size, 'node')} and depth {growmap.tree.depth}, as {FORMATS[form]}"],
    )
