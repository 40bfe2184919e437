"""The page of an evaluation: what `--html` writes, from the report, the growmap and the profiles beside it."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from treeopt.cli.help import words_of
from treeopt.cli.output import is_there, note_written
from treeopt.cli.tensor_parallel import own_place
from treeopt.cli.values import OUTPUT_FILE

if TYPE_CHECKING:
    from treeopt.pictures.beside import Beside
    from treespec.evaluation.report import EvaluationReport
    from treespec.trees.growmap import GrowMap

html_option = click.option(
    "--html",
    type=OUTPUT_FILE,
    callback=own_place,
    help="Page to write as well: one file of HTML with the figures, pictures, sample texts and commands; no network. [default: none]",
)


def check_page(path: Path | None) -> None:
    """Raise OutputError now if the page, if one is wanted, cannot be written."""
    if path is not None:
        from treeopt.pictures.writing import check_replaceable

        check_replaceable(path, "html")


def write_page(path: Path | None, report: "EvaluationReport", grown: "GrowMap | None", growmap_file: Path | None) -> None:
    """Write the page, if one is wanted. The profiles are those in the growmap's folder from which it was made."""
    if path is None:
        return
    from treeopt.pictures import beside
    from treeopt.pictures.page import page
    from treeopt.pictures.writing import write

    found = beside.Beside() if grown is None or growmap_file is None else beside.profiles_beside(growmap_file, grown)
    commands, notes = [], []
    if grown is not None and growmap_file is not None and found.files:
        commands.append(_grow(grown, growmap_file, found))
        notes.append("Limits of the search, if some were given, are not recorded in the growmap; with others, the tree may be another one.")
    context = click.get_current_context()
    commands.append(shlex.join([*context.command_path.split(), *words_of(context)]))
    text = page(
        acceptance=found.acceptance,
        latency=found.latency,
        growmap=grown if report.mode == "tree" else None,
        report=report,
        commands=commands,
        command_notes=notes,
        missing=found.missing,
    )
    earlier = is_there(path)
    write(path, text)
    note_written(path, earlier)


def _grow(grown: "GrowMap", file: Path, found: "Beside") -> str:
    """Return the command that makes a growmap of its profiles."""
    words = ["treeopt", "grow"]
    for name, path in found.files.items():
        words += [f"--{name}", str(path)]
    known = grown.metadata
    words += ["--context", str(known["context"])] if known.get("context") is not None and "latency" in found.files else []
    words += ["--smoothing", str(known["smoothing"])] if known.get("smoothing", "none") != "none" else []
    words += ["--size", str(grown.tree.size), "--depth", str(max(1, grown.tree.depth))] if "latency" not in found.files else []
    return shlex.join([*words, "-o", str(file)])
