"""The conversion of trees from Python: from objects, files and lists of choices to the format of another tool."""

import logging
import os
from collections.abc import Sequence
from operator import index
from typing import Any

from treespec.decoding.plans import Plan
from treespec.errors import SettingsError
from treespec.files.reading import StrPath
from treespec.trees.conversion import format_for, left_behind, write_as
from treespec.trees.formats.choices import tree_of_choices
from treespec.trees.growmap import GrowMap
from treespec.trees.library import load_growmap
from treespec.trees.tree import SpeculationTree

_LOG = logging.getLogger("treeopt")


def convert(tree: GrowMap | SpeculationTree | StrPath | Sequence[Sequence[int]], output: StrPath, to: str | None = None) -> GrowMap:
    """Write a tree to `output` in the format of another tool, and return it as a growmap.

    `tree` is a growmap, a tree, a list of choices (`[[0], [1], [0, 0]]`), a file in any of the formats, or the name of a growmap that comes
    with treeopt. `to` names the format (see `treespec.trees.conversion.FORMATS`); None is Sequoia's, for a name that ends in .pt. What the
    format cannot hold of a growmap is logged.

    Raises SettingsError for an unknown format, GrowMapError for what is no tree, or too large for the format, OutputError.
    """
    form = format_for(output, to)
    if isinstance(tree, str | os.PathLike):
        growmap = load_growmap(tree)
    elif isinstance(tree, GrowMap):
        growmap = tree
    else:
        growmap = GrowMap(_of_choices(tree) if isinstance(tree, Sequence) else _static(tree))
    write_as(growmap, output, form)
    if (lost := left_behind(growmap, form)) is not None:
        _LOG.warning("%s", lost)
    return growmap


def _of_choices(choices: Sequence[Any]) -> SpeculationTree:
    """Return the tree of a list of choices. Raises SettingsError for another list, GrowMapError for choices that are no tree."""
    try:
        paths = [[index(rank) for rank in path] for path in choices]
    except TypeError as e:
        raise _no_tree(choices) from e
    return tree_of_choices(str(paths))


def _static(plan: Plan) -> SpeculationTree:
    """Return the tree of a plan that stays the same. Raises SettingsError for anything else."""
    described = plan.describe() if hasattr(plan, "describe") else {}
    if "parents" not in described:
        raise _no_tree(plan)
    return SpeculationTree(tuple(described["parents"]))


def _no_tree(given: object) -> SettingsError:
    return SettingsError(f"`tree` is {given!r:.60}, but it must be a tree, a file or a list of choices such as [[0], [1], [0, 0]]")
