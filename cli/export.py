"""The command `treeopt export`: the numbers that a serving engine takes, from profiles."""

from pathlib import Path

import click

from treeopt.cli.help import TreeoptCommand, example, under
from treeopt.cli.options import format_option, output_option
from treeopt.cli.output import emit, is_there, note_written
from treeopt.cli.settings import wrong_usage
from treeopt.cli.values import INPUT_FILE, POSITIVE, int_list

NAMES = ["sglang", "tensorrt-llm", "vllm", "llama.cpp", "transformers"]


@click.command(cls=TreeoptCommand, epilog=example("treeopt export --to sglang --acceptance acceptance.json --latency latency.json"))
@under("Engine", click.option("--to", type=click.Choice(NAMES), required=True, help="Engine that takes the numbers."))
@under(
    "Profiles",
    click.option(
        "--acceptance",
        type=INPUT_FILE,
        help="Acceptance profile, best one with --dynamic for an engine that grows trees, or an acceptance vector of Sequoia (.pt). "
        "[required without --budget]",
    ),
    click.option(
        "--latency",
        type=INPUT_FILE,
        multiple=True,
        help="Latency profile, best one that was measured in that engine; given once for each batch size. [required without --budget]",
    ),
    click.option(
        "--budget", type=INPUT_FILE, help="Budget that `treeopt grow --dynamic` chose, in the place of both profiles. [default: none]"
    ),
    click.option("--batch", type=int_list, metavar="N,...", help="Batch sizes to export. [default: all that were measured]"),
    click.option("--context", type=POSITIVE, help="Context of the latency profiles. [default: the smallest measured]"),
)
@output_option(None)
@format_option
def export(
    to: str,
    acceptance: Path | None,
    latency: tuple[Path, ...],
    budget: Path | None,
    batch: tuple[int, ...] | None,
    context: int | None,
    output: Path | None,
    output_format: str,
) -> None:
    """Print the numbers for a serving engine, ready to paste.

    Beside them stands what they should give, by the profiles, and what is lossy. With -o, what is to paste is also written to a file.
    """
    from treeopt.exports.export import HEAD
    from treeopt.exports.export import export as export_to
    from treespec.files.writing import check_writable, refuse_to_replace, write_bytes

    earlier = is_there(output)
    if output is not None:
        check_writable(output)
        if earlier:
            with output.open("rb") as file:
                if file.read(len(HEAD)) != HEAD.encode():
                    refuse_to_replace(output, "export")
    with wrong_usage():
        found = export_to(to, acceptance, latency, budget=budget, batch=batch, context=context)
    if output is not None:
        write_bytes(output, found.text.encode())
        note_written(output, earlier)
    emit(output_format, found.summary(), found.drawing())
