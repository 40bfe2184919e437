"""GrowMap: a speculation tree with its metadata and provenance; the one reader and writer of growmap files.

The `.pt` is Sequoia's own format (arXiv 2402.12374), so files go both ways. A `.json` beside it says where it is from.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from treespec.errors import GrowMapError, TreeError
from treespec.files.fields import ROWS, Fields, amount, chances, checked_object, interval, natural, text, texts
from treespec.files.kinds import NOUNS, schema_of
from treespec.files.provenance import Provenance
from treespec.files.pt import dump_pt, load_pt
from treespec.files.reading import PipeablePath, StrPath, is_json_of, read_bytes, read_json, read_object
from treespec.files.writing import check_writable, has_content, is_special, json_text, refuse_to_replace, write_together
from treespec.tables import Drawing, Drawn, in_short
from treespec.trees.drawing import MAX_NODES, growmap
from treespec.trees.formats.sequoia import content_of, tree_of
from treespec.trees.formats.text import MAX_BYTES, read_tree
from treespec.trees.tree import SpeculationTree

SCHEMA = "treeopt.growmap"
VERSION = 1

MAX_FILE_BYTES = MAX_BYTES

_METADATA = {
    **dict.fromkeys(("expected_tokens_per_step", "predicted_seconds_per_step", "predicted_speedup", "certified_gap"), amount),
    **dict.fromkeys(("temperature", "top_p", "draft_temperature"), amount),
    **dict.fromkeys(("name", "solver", "smoothing", "drafting", "source", "latency_source"), text),
    **dict.fromkeys(("context", "extrapolated_from", "max_depth"), natural),
    "rank_probability": chances,
    "best_chain": checked_object({"depth": natural, "expected_tokens_per_step": amount, "predicted_seconds_per_step": amount}, null=False),
    "timed_rule": texts,
    "intervals_95": checked_object(
        dict.fromkeys(("expected_tokens_per_step", "predicted_seconds_per_step", "predicted_speedup"), interval)
    ),
    **{f"profiled_{key}": read for key, read in ROWS.items()},
}
"""Readers of the metadata that treeopt writes; other metadata are left alone."""


@dataclass(frozen=True)
class Promise:
    """The figures that a growmap promises. Those that it does not promise are None."""

    tokens_per_step: float | None = None
    """Expected tokens per step, the target's own token included."""
    seconds_per_step: float | None = None
    speedup: float | None = None
    """Seconds per token of autoregressive decoding divided by those with the tree."""
    certified_gap: float | None = None
    """Share of the seconds per token by which the best tree there is can be faster, at most."""
    rank_probability: tuple[tuple[float, ...], ...] | None = None
    """The chance of each rank, by depth of the parent, that the figures come from. The last row serves all deeper parents too."""
    tokens_per_step_interval: tuple[float, float] | None = None
    """The 95 % interval of a figure, as far as the errors of the profiles are known; so are the next two."""
    seconds_per_step_interval: tuple[float, float] | None = None
    speedup_interval: tuple[float, float] | None = None


def promise_of(metadata: Mapping[str, Any]) -> Promise:
    """Return what metadata promise."""
    rows = metadata.get("rank_probability")
    figures = ("expected_tokens_per_step", "predicted_seconds_per_step", "predicted_speedup")
    tokens, seconds, speedup = (metadata.get(name) for name in figures)
    ends: Mapping[str, Any] = metadata.get("intervals_95") or {}
    intervals = [None if ends.get(name) is None else interval(ends[name]) for name in figures]
    return Promise(tokens, seconds, speedup, metadata.get("certified_gap"), None if rows is None else tuple(map(tuple, rows)), *intervals)


@dataclass(frozen=True)
class GrowMap(Drawn):
    """A tree, its metadata (plain JSON: expected tokens per step, predicted seconds, ...) and the provenance of both."""

    noun: ClassVar[str] = "growmap"

    tree: SpeculationTree
    metadata: Mapping[str, Any] = field(default_factory=dict)
    provenance: Provenance | None = None

    @property
    def promise(self) -> Promise:
        """Return what its metadata promise."""
        return promise_of(self.metadata)

    @property
    def plan(self) -> SpeculationTree:
        """Return the plan to decode by, which is the tree itself."""
        return self.tree

    def __repr__(self) -> str:
        promise = self.promise
        return in_short(self, size=self.tree.size, depth=self.tree.depth, tokens_per_step=promise.tokens_per_step, speedup=promise.speedup)

    def summary(self, probability: Sequence[Sequence[float]] | None = None) -> dict[str, Any]:
        """Return the tree's shape, its metadata and the chance of each path, as plain data.

        `probability` is the chance of each rank, by depth of the parent; None stands for what the growmap promises. If neither is known,
        there are no chances.
        """
        tree, rows = self.tree, probability or self.promise.rank_probability
        chances = None if rows is None else tree.path_probabilities(rows)
        return {
            "size": tree.size,
            "depth": tree.depth,
            "max_branch": tree.max_branch,
            "level_widths": list(tree.level_widths),
            "paths": [list(path) for path in tree.paths],
            "path_probability": None if chances is None else chances[1:],
            "tokens_per_step_by_chances": None if chances is None else math.fsum(chances),
            "metadata": dict(self.metadata),
        }

    def drawing(self, probability: Sequence[Sequence[float]] | None = None, *, max_nodes: int = MAX_NODES) -> Drawing:
        """Return its figures and a picture of its `max_nodes` likeliest nodes. See `summary` for `probability`."""
        return Drawing(growmap(self.summary(probability), max_nodes))

    def write(self, path: StrPath) -> None:
        """Write `path` in Sequoia's format and the sidecar beside it, both whole or not at all. A device or pipe gets no sidecar.

        Equal trees and metadata give an equal `.pt`, byte for byte. Raises GrowMapError for a tree above
        `MAX_GROWMAP_SIZE`, OutputError if it cannot be written or its sidecar would replace some other file.
        """
        sidecar = sidecar_path(path)
        if is_special(sidecar) or (has_content(sidecar) and not is_json_of(sidecar, SCHEMA)):
            refuse_to_replace(sidecar, "growmap's sidecar")
        description = self.to_json()
        metadata = json.loads(json.dumps(description["metadata"]))
        data = dump_pt(content_of(self.tree) | ({"treeopt": metadata} if metadata else {}))
        text = described_text(path, description | {"sha256": hashlib.sha256(data).hexdigest()})
        write_together([(path, data)] if is_special(path) else [(path, data), (sidecar, text.encode() + b"\n")])

    def to_json(self) -> dict[str, Any]:
        """Return its description, which holds all that it is, as plain data."""
        return {
            "schema": SCHEMA,
            "version": VERSION,
            "parents": list(self.tree.parents),
            "metadata": dict(self.metadata),
            "provenance": None if self.provenance is None else self.provenance.to_json(),
        }


def described_text(path: StrPath, description: Mapping[str, Any]) -> str:
    """Return the JSON of a growmap's description, to be written to `path`. Raises GrowMapError for numbers that are not finite."""
    try:
        return json_text(description)
    except ValueError as e:
        raise GrowMapError(f"cannot write {path}: its metadata hold a number that is not finite ({e})") from e


def read_growmap(path: StrPath) -> GrowMap:
    """Read a growmap in Sequoia's format, written by treeopt or by any other tool, or a tree in any other format of `trees.conversion`.

    Nothing in the file is run or believed: in Sequoia's format the tree is rebuilt from `Successors`, and every other field must say the
    same. A sidecar, if there is one, must belong to this very file. What the file is, is seen from its content. Raises GrowMapError.
    """
    path = path if isinstance(path, PipeablePath) else PipeablePath(path)  # it is read once
    if schema_of(read_bytes(path, limit=MAX_FILE_BYTES, error=GrowMapError)) == SCHEMA:
        return _read_description(path)
    _refuse_other_kind(path)
    if (found := read_tree(path)) is not None:
        return GrowMap(found)
    content = load_pt(path, limit=MAX_FILE_BYTES, error=GrowMapError, remedy=_REMEDY)
    tree = tree_of(path, content)
    sidecar = PipeablePath(sidecar_path(path))
    if os.path.exists(sidecar) and not is_special(sidecar) and Path(sidecar) != Path(path) and _is_sidecar(sidecar):
        return _with_sidecar(path, sidecar, tree)
    return GrowMap(tree, Fields(path, content, GrowMapError).get("treeopt", metadata_of, {}))


def read_sidecar(path: StrPath) -> GrowMap:
    """Return the growmap that the sidecar of `path` describes, without opening the `.pt` itself: quick, and without torch.

    Raises GrowMapError.
    """
    return _read_description(sidecar_path(path))


def _read_description(sidecar: StrPath) -> GrowMap:
    """Return the growmap of a description, from nothing but that file. Raises GrowMapError."""
    content = read_json(sidecar, schema=SCHEMA, version=VERSION, error=GrowMapError)
    parents = content.get("parents")
    if not isinstance(parents, list) or not all(type(parent) is int for parent in parents):
        raise GrowMapError(f"{sidecar}: parents must be a list of whole numbers; make the growmap again")
    try:
        tree = SpeculationTree(tuple(parents))
    except TreeError as e:
        raise GrowMapError(f"{sidecar}: {e}") from e
    return _described(sidecar, content, tree)


def check_growmap_writable(path: StrPath) -> None:
    """Raise OutputError now if a growmap or its sidecar cannot be written to `path`, or would replace a file of another kind."""
    sidecar = sidecar_path(path)
    check_writable(path)
    if is_special(path):
        return
    if is_special(sidecar):
        refuse_to_replace(sidecar, "growmap's sidecar")
    check_writable(sidecar, SCHEMA)
    if has_content(path):
        try:
            tree_of(path, load_pt(path, limit=MAX_FILE_BYTES, error=GrowMapError))
        except GrowMapError:
            refuse_to_replace(path, "growmap")


def sidecar_path(path: StrPath) -> Path:
    """Return the path of a growmap's sidecar: tree.json for tree.pt. Raises GrowMapError for a name that leaves no place for it."""
    path = Path(path)
    if not path.name or path.suffix == ".json":
        raise GrowMapError(f"a growmap is a .pt file with a .json beside it, so {str(path)!r} cannot be its name; use NAME.pt")
    return path.with_suffix(".json")


_REMEDIES = {
    "treeopt.acceptance": "`treeopt grow` makes one of it",
    "treeopt.budget": "`treeopt evaluate` with `budget` and `treeopt run` with `budget` take it; here pass the .pt file that `treeopt grow` wrote",
}
"""Remedies for files that are no growmap, by schema."""


_REMEDY = "pass one, or a tree as JSON of treeopt or UMbreLLa, a list of choices, or vLLM's string"
"""The remedy for a file that holds no tree in any format."""


def _refuse_other_kind(path: PipeablePath) -> None:
    """Raise GrowMapError for a JSON file of treeopt that is no growmap, with the file to pass in its place."""
    schema = schema_of(read_bytes(path, limit=MAX_FILE_BYTES, error=GrowMapError))
    if schema in NOUNS:
        remedy = _REMEDIES.get(schema, "pass the .pt file that `treeopt grow` wrote")
        raise GrowMapError(f"{path} is {NOUNS[schema]}, but a growmap is needed; {remedy}")


def _is_sidecar(path: PipeablePath) -> bool:
    """Return whether a .json file is a sidecar of treeopt: a file of another tool may lie beside a growmap under its name.

    Raises GrowMapError for a file that is no JSON.
    """
    data = read_bytes(path, limit=MAX_FILE_BYTES, error=GrowMapError)
    try:
        return read_object(path, "JSON file", error=GrowMapError).get("schema") == SCHEMA
    except GrowMapError as e:
        if data.lstrip()[:1] == b"[":
            return False
        raise GrowMapError(f"{path} lies beside the growmap but cannot be read ({e}); remove it or make the growmap again") from e


def _with_sidecar(path: PipeablePath, sidecar: PipeablePath, tree: SpeculationTree) -> GrowMap:
    content = read_json(sidecar, schema=SCHEMA, version=VERSION, error=GrowMapError)
    if content.get("sha256") != path.sha256 or content.get("parents") != list(tree.parents):
        raise GrowMapError(f"{sidecar} describes another file than {path}; remove it if it is stale, or make the growmap again")
    return _described(sidecar, content, tree)


def _described(sidecar: StrPath, content: Mapping[str, Any], tree: SpeculationTree) -> GrowMap:
    """Return the growmap of a tree with the metadata and the provenance of its sidecar's content."""
    data = Fields(sidecar, content, GrowMapError)
    return GrowMap(tree, data.get("metadata", metadata_of, {}), data.optional("provenance", Provenance.from_json))


def metadata_of(value: Any) -> dict[str, Any]:
    """Return metadata, which anyone may have written: known ones are checked by their readers, and the others must be plain JSON."""
    found = checked_object(_METADATA)(value)
    json_text({text(key): item for key, item in found.items()})
    return found
