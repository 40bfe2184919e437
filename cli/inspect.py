"""The command `treeopt inspect`: show a growmap, a profile, a trace or a report, or list the growmaps that come with treeopt."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from treeopt.cli.help import TreeoptCommand, example, under
from treeopt.cli.options import format_option
from treeopt.cli.output import emit, is_there, note_written
from treeopt.cli.values import GROWMAP_FILE, INPUT_FILE, OUTPUT_FILE, POSITIVE
from treespec.errors import GrowMapError, ProfileError
from treespec.files.reading import MAX_JSON_BYTES, PipeablePath, read_bytes, read_object
from treespec.tables import Parts
from treespec.trees.drawing import MAX_NODES

if TYPE_CHECKING:
    from treeopt.pictures.canvas import Canvas

_READERS = {
    "treeopt.acceptance": ("treeopt.profiles.acceptance", "read_acceptance"),
    "treeopt.latency": ("treeopt.profiles.latency", "read_latency"),
    "treeopt.budget": ("treespec.decoding.chosen", "read_budget"),
    "treeopt.trace": ("treeopt.profiles.trace", "read_trace"),
    "treeopt.evaluation": ("treespec.evaluation.report", "read_report"),
    "treeopt.potential": ("treeopt.profiles.potential", "read_potential"),
}
"""The module and the function that reads a file, by its schema."""

_PICTURES = {"treeopt.acceptance": "acceptance", "treeopt.latency": "latency", "treeopt.trace": "trace"}
"""The function of `treeopt.pictures.profiles` that draws a file, by its schema."""

Shown = tuple[dict[str, Any], Parts, "Callable[[], Canvas] | None"]
"""A result as plain data, its drawing, and what makes its picture; None if there is none."""


@click.command(cls=TreeoptCommand, epilog=example("treeopt inspect tree.pt --acceptance acceptance.json"))
@click.argument("file", type=GROWMAP_FILE, required=False, metavar="[FILE|NAME]")
@under(
    "Growmaps",
    click.option("--list", "listing", is_flag=True, help="List the growmaps that come with treeopt; their names stand for their files."),
    click.option(
        "--acceptance", type=INPUT_FILE, help="Acceptance profile for a growmap's path probabilities. [default: the one in its metadata]"
    ),
    click.option("--max-nodes", type=POSITIVE, help=f"Most nodes of a growmap to draw, the likeliest first. [default: {MAX_NODES}]"),
)
@under(
    "Output",
    click.option("--svg", type=OUTPUT_FILE, help="Picture to write as SVG, of a growmap, a profile or a trace. [default: none]"),
    click.option("--png", type=OUTPUT_FILE, help="The same picture as PNG. [default: none]"),
)
@format_option
def inspect(
    file: Path | None,
    listing: bool,
    acceptance: Path | None,
    max_nodes: int | None,
    svg: Path | None,
    png: Path | None,
    output_format: str,
) -> None:
    """Show a growmap, a budget, a profile, a trace, a report or a training.json.

    A growmap is a .pt file, the name of one that comes with treeopt, or a tree in a format that `treeopt convert` reads. Its picture is the
    tree, in which the area of a node is the chance that the accepted path goes through it; those of profiles are acceptance by rank and
    depth, and the staircase of latency.
    """
    if listing:
        _require_growmap("--list shows all of them", acceptance, max_nodes)
    if listing == (file is not None):
        raise click.UsageError("what is to be shown? Pass one of FILE, NAME and --list.")
    wanted = {kind: path for kind, path in (("svg", svg), ("png", png)) if path is not None}
    if wanted and listing:
        raise click.UsageError(f"--{min(wanted)} is for one file, and --list shows all growmaps; drop it.")
    if svg is not None and svg == png:
        raise click.UsageError(f"--svg and --png both name {svg}; name two files.")
    if wanted:
        from treeopt.pictures.writing import check_replaceable

        for kind, path in wanted.items():
            check_replaceable(path, kind)
    data, drawing, picture = _library() if file is None else _read(file, acceptance, max_nodes)
    if wanted:
        _write_pictures(wanted, file, picture)
    emit(output_format, data, drawing)


def _write_pictures(wanted: Mapping[str, Path], file: Path | None, picture: "Callable[[], Canvas] | None") -> None:
    """Write the picture of a file in each format. Raises ProfileError for a file of which there is none."""
    if picture is None:
        raise ProfileError(f"there is no picture of {file}; pass a growmap, an acceptance profile, a latency profile or a trace")
    from treeopt.pictures.writing import write

    canvas = picture()
    for kind, path in wanted.items():
        earlier = is_there(path)
        write(path, canvas.svg() if kind == "svg" else canvas.png())
        note_written(path, earlier)


def _require_growmap(found: str, acceptance: Path | None, max_nodes: int | None) -> None:
    """Raise a usage error for options of a growmap if something else was `found`."""
    for option, value in (("--acceptance", acceptance), ("--max-nodes", max_nodes)):
        if value is not None:
            raise click.UsageError(f"{option} is for one growmap, and {found}; drop it.")


def _library() -> Shown:
    from treeopt.cli import results, tables
    from treeopt.growmap_library import folder, shipped

    data = results.library_summary(shipped(), folder())
    return data, tables.library(data), None


def _read(path: Path, acceptance: Path | None, max_nodes: int | None) -> Shown:
    file = PipeablePath(path)
    schema = _schema_of(file)
    if schema is None and _is_vector(file):
        _require_growmap(f"{file} is an acceptance vector", acceptance, max_nodes)
        schema = "treeopt.acceptance"
    if schema is None or schema == "treeopt.growmap":
        return _growmap(file, acceptance, max_nodes)
    _require_growmap(f"{file} has the schema {schema!r:.60}", acceptance, max_nodes)
    if schema == "treeopt.training":
        return _training(file, path.parent)
    if schema in _READERS:
        module, reader = _READERS[schema]
        found = getattr(import_module(module), reader)(file)
        return found.summary(), found.drawing(), partial(_picture, schema, found) if schema in _PICTURES else None
    raise ProfileError(
        f"{file} has the schema {schema!r:.60}, which is no growmap, budget, acceptance, latency, trace, evaluation, potential or training of treeopt; "
        "pass one of these"
    )


def _training(file: PipeablePath, folder: Path) -> Shown:
    from treeopt.cli import results, tables
    from treeopt.training.record import read_record

    record, outcome = read_record(file)
    data = results.training_summary(outcome, record, folder)
    return data, tables.trained(data), None


def _growmap(file: PipeablePath, acceptance: Path | None, max_nodes: int | None) -> Shown:
    from treespec.trees.growmap import read_growmap

    growmap = read_growmap(file)
    rows: Sequence[Sequence[float]] | None = None
    if acceptance is not None:
        from treeopt.profiles.acceptance import read_acceptance

        profile = read_acceptance(acceptance)
        rows = profile.by_depth or (profile.rank_probability,)
    rule = _timed_rule(growmap.metadata)
    drawing = list(growmap.drawing(rows, max_nodes=max_nodes or MAX_NODES))
    if rule is not None:
        drawing.append(f"the predicted times are those of ({rule})")

    def picture() -> "Canvas":
        from treeopt.pictures import trees

        return trees.growmap(growmap, rows, max_nodes=max_nodes or trees.MAX_NODES)

    return growmap.summary(rows) | {"timed_rule_name": rule}, drawing, picture


def _picture(schema: str, found: Any) -> "Canvas":
    from treeopt.pictures import profiles

    canvas: Canvas = getattr(profiles, _PICTURES[schema])(found)
    return canvas


def _timed_rule(metadata: Mapping[str, Any]) -> str | None:
    """Return the name of the rule that a growmap's times are of; None if it has none of treeopt's own. Older growmaps name none but `GREEDY`."""
    from treespec.decoding.step_rule import GREEDY, rule_of

    if metadata.get("predicted_seconds_per_step") is None or "sequoia_config_sha256" in metadata:
        return None
    try:
        return rule_of(metadata["timed_rule"]).name if "timed_rule" in metadata else GREEDY.name
    except (TypeError, ValueError):
        return "a rule that is unknown here"


def _is_vector(file: PipeablePath) -> bool:
    """Return whether a .pt file holds one tensor, as acceptance vectors of Sequoia do. Raises GrowMapError for a file that is none."""
    from treespec.files.pt import load_pt
    from treespec.trees.formats.text import text_format
    from treespec.trees.growmap import MAX_FILE_BYTES

    if text_format(file) is not None:
        return False
    return type(load_pt(file, limit=MAX_FILE_BYTES, error=GrowMapError)).__name__ == "Tensor"


def _schema_of(file: PipeablePath) -> str | None:
    """Return the schema that a JSON file states, or None for a tree in another format. Raises ProfileError for JSON that is neither."""
    data = read_bytes(file, limit=MAX_JSON_BYTES, error=ProfileError)
    if data.startswith(b"PK") or (data.lstrip()[:1] != b"{" and Path(file).suffix.lower() != ".json"):
        return None
    from treespec.trees.formats.text import text_format

    if text_format(file) is not None:
        return None
    schema = read_object(file, "JSON file", error=ProfileError).get("schema")
    if not isinstance(schema, str):
        raise ProfileError(
            f'{file} is JSON without a "schema"; inspect reads growmaps, trees in other formats, profiles and reports of treeopt'
        )
    return schema
