"""GrowMap: a speculation tree with its metadata and provenance; the one reader and writer of growmap files.

The `.pt` is Sequoia's own format (arXiv 2402.12374), so files go both ways. A `.json` beside it says where it is from.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treespec.errors import GrowMapError, TreeError, counted
from treespec.files.fields import ROWS, Fields, amount, chances, checked_object, natural, text
from treespec.files.kinds import NOUNS, schema_of
from treespec.files.provenance import Provenance
from treespec.files.pt import dump_pt, load_pt
from treespec.files.reading import PipeablePath, StrPath, is_json_of, read_bytes, read_json, read_object
from treespec.files.writing import check_writable, has_content, json_text, refuse_to_replace, write_together
from treespec.trees.tree import SpeculationTree

if TYPE_CHECKING:
    import torch

SCHEMA = "treeopt.growmap"
VERSION = 1

MAX_GROWMAP_SIZE = 2048
"""Largest tree size that a growmap file may hold: the format stores size x size integers of 8 bytes (32 MiB here)."""

MAX_FILE_BYTES = 64 << 20

_METADATA = {
    **dict.fromkeys(("expected_tokens_per_step", "predicted_seconds_per_step", "predicted_speedup", "certified_gap"), amount),
    **dict.fromkeys(("temperature", "top_p", "draft_temperature"), amount),
    **dict.fromkeys(("name", "solver", "smoothing", "drafting", "source", "latency_source"), text),
    **dict.fromkeys(("context", "max_depth"), natural),
    "rank_probability": chances,
    **{f"profiled_{key}": read for key, read in ROWS.items()},
}
"""Readers of the metadata that treeopt writes; other metadata are left alone."""

_KEYS = ("roots", "branches", "Successors", "mask", "depth", "size")


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


@dataclass(frozen=True)
class GrowMap:
    """A tree, its metadata (plain JSON: expected tokens per step, predicted seconds, ...) and the provenance of both."""

    tree: SpeculationTree
    metadata: Mapping[str, Any] = field(default_factory=dict)
    provenance: Provenance | None = None

    @property
    def promise(self) -> Promise:
        """Return what its metadata promise."""
        known, rows = self.metadata, self.metadata.get("rank_probability")
        return Promise(
            known.get("expected_tokens_per_step"),
            known.get("predicted_seconds_per_step"),
            known.get("predicted_speedup"),
            known.get("certified_gap"),
            None if rows is None else tuple(map(tuple, rows)),
        )

    def write(self, path: StrPath) -> None:
        """Write `path` in Sequoia's format and the sidecar beside it, both whole or not at all.

        Equal trees and metadata give an equal `.pt`, byte for byte. Raises GrowMapError for a tree above
        `MAX_GROWMAP_SIZE`, OutputError if it cannot be written or its sidecar would replace some other file.
        """
        sidecar = sidecar_path(path)
        if has_content(sidecar) and not is_json_of(sidecar, SCHEMA):
            refuse_to_replace(sidecar, "growmap's sidecar")
        metadata = json.loads(json.dumps(dict(self.metadata)))
        data = dump_pt(self._sequoia_dict(metadata))
        description = {
            "schema": SCHEMA,
            "version": VERSION,
            "parents": list(self.tree.parents),
            "metadata": metadata,
            "provenance": None if self.provenance is None else self.provenance.to_json(),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        try:
            text = json_text(description)
        except ValueError as e:
            raise GrowMapError(f"cannot write {path}: its metadata hold a number that is not finite ({e})") from e
        write_together([(path, data), (sidecar, text.encode() + b"\n")])

    def _sequoia_dict(self, metadata: dict[str, Any]) -> dict[str, Any]:
        """Return the content of the `.pt`: mask and depth as int64 tensors, the others as plain lists, and `treeopt` if there are metadata."""
        import torch

        refuse_size(self.tree.size, "this tree")
        derived = _derived(self.tree)
        content = {
            "roots": derived["roots"],
            "branches": derived["branches"],
            "Successors": derived["Successors"],
            "mask": torch.tensor(self.tree.ancestor_mask.astype("int64")),
            "depth": torch.tensor(self.tree.depths, dtype=torch.int64),
            "size": self.tree.size,
        }
        return content | ({"treeopt": metadata} if metadata else {})


def read_growmap(path: StrPath) -> GrowMap:
    """Read a growmap in Sequoia's format, written by treeopt or by any other tool.

    Nothing in the file is run or believed: the tree is rebuilt from `Successors`, and every other field must say the
    same. A sidecar, if there is one, must belong to this very file. Raises GrowMapError.
    """
    path = path if isinstance(path, PipeablePath) else PipeablePath(path)  # it is read once
    _refuse_other_kind(path)
    content = load_pt(path, limit=MAX_FILE_BYTES, error=GrowMapError)
    tree = _checked_tree(path, content)
    sidecar = PipeablePath(sidecar_path(path))
    if os.path.exists(sidecar) and Path(sidecar) != Path(path) and _is_sidecar(sidecar):
        return _with_sidecar(path, sidecar, tree)
    return GrowMap(tree, Fields(path, content, GrowMapError).get("treeopt", _metadata, {}))


def read_sidecar(path: StrPath) -> GrowMap:
    """Return the growmap that the sidecar of `path` describes, without opening the `.pt` itself: quick, and without torch.

    Raises GrowMapError.
    """
    sidecar = sidecar_path(path)
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
    check_writable(sidecar, SCHEMA)
    if has_content(path):
        try:
            _checked_tree(path, load_pt(path, limit=MAX_FILE_BYTES, error=GrowMapError))
        except GrowMapError:
            refuse_to_replace(path, "growmap")


def sidecar_path(path: StrPath) -> Path:
    """Return the path of a growmap's sidecar: tree.json for tree.pt. Raises GrowMapError for a name that leaves no place for it."""
    path = Path(path)
    if not path.name or path.suffix == ".json":
        raise GrowMapError(f"a growmap is a .pt file with a .json beside it, so {str(path)!r} cannot be its name; use NAME.pt")
    return path.with_suffix(".json")


def _derived(tree: SpeculationTree) -> dict[str, list[list[int]]]:
    """Return the list fields of Sequoia's format: per level the ids and the child counts, per node the children."""
    return {
        "roots": [list(level) for level in tree.levels],
        "branches": [[len(tree.children[node]) for node in level] for level in tree.levels],
        "Successors": [list(children) for children in tree.children],
    }


def _checked_tree(path: StrPath, content: Any) -> SpeculationTree:
    """Return the tree of a loaded file, after every claim in it was compared with `Successors`."""
    if not isinstance(content, dict):
        vector = "; `treeopt grow` makes one of an acceptance vector" if type(content).__name__ == "Tensor" else ""
        raise GrowMapError(f"{path} holds a {type(content).__name__}, but a growmap is a dict with the keys {', '.join(_KEYS)}{vector}")
    if missing := [key for key in _KEYS if key not in content]:
        raise GrowMapError(f"{path} is no growmap: it lacks {', '.join(missing)}")
    size = _exact(content["size"])
    size = size[0] if isinstance(size, list) and len(size) == 1 else size
    if type(size) is not int or size < 1:
        raise GrowMapError(f"{path}: size is {content['size']!r:.60}, but it must be a whole number from 1 on")
    refuse_size(size, str(path))
    successors = _lists(path, "Successors", content["Successors"])
    if len(successors) != size:
        raise GrowMapError(f"{path}: size is {size}, but Successors has {counted(len(successors), 'node')}")
    parents = [-1]
    for node, children in enumerate(successors):
        for child in children:
            if not 0 <= child < size:
                raise GrowMapError(f"{path}: Successors[{node}] names node {child}, but ids lie in [0, {size - 1}]")
            if child <= node:
                raise GrowMapError(f"{path}: Successors[{node}] names node {child}, which does not come after it: the tree has a cycle")
            if child != len(parents):
                raise GrowMapError(
                    f"{path}: Successors[{node}] names node {child} where {len(parents)} is due: "
                    "every node but 0 has one parent, and ids are breadth-first"
                )
            parents.append(node)
    if len(parents) != size:
        raise GrowMapError(f"{path}: size is {size}, but only {counted(len(parents), 'node')} can be reached from the root")
    try:
        tree = SpeculationTree(tuple(parents))
    except TreeError as e:
        raise GrowMapError(f"{path}: {e}") from e
    for key, expected in _derived(tree).items():
        found = _lists(path, key, content[key])
        if found != expected:
            raise GrowMapError(f"{path}: {key} disagrees with Successors{_first_difference(found, expected)}; the file is damaged")
    _check_tensor(path, "depth", content["depth"], tree.depths)
    _check_tensor(path, "mask", content["mask"], tree.ancestor_mask)
    return tree


def _lists(path: StrPath, key: str, value: Any) -> list[list[int]]:
    found = _exact(value)
    if not isinstance(found, list) or not all(isinstance(row, list) and all(type(item) is int for item in row) for row in found):
        raise GrowMapError(f"{path}: {key} must be a list of lists of whole numbers")
    return found


def _exact(value: Any, depth: int = 2) -> Any:
    """Return plain lists of whole numbers where other tools save the same as tuples, tensors or floats; other values as they are."""
    import torch

    if isinstance(value, torch.Tensor) and value.ndim <= depth and value.numel() <= MAX_GROWMAP_SIZE**2 and not value.is_complex():
        value = _plain(value).tolist()
    if isinstance(value, list | tuple) and depth:
        return [_exact(item, depth - 1) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _plain(value: "torch.Tensor") -> "torch.Tensor":
    """Return the tensor as its numbers are seen: a view may be one of negative or conjugate numbers."""
    return value.detach().resolve_conj().resolve_neg()


def _first_difference(found: list[list[int]], expected: list[list[int]]) -> str:
    for index, (x, y) in enumerate(zip(found, expected, strict=False)):
        if x != y:
            return f" at entry {index}"
    return f" in length: {len(found)} instead of {len(expected)}"


def _check_tensor(path: StrPath, key: str, value: Any, expected: Any) -> None:
    """Compare numbers with an array: a tensor of any type, or lists. A tensor's claims are checked before anything of its size is touched."""
    import numpy as np
    import torch

    array = np.asarray(expected).astype(np.int64)
    shape = list(array.shape)
    found = type(value).__name__
    if isinstance(value, torch.Tensor):
        found = f"{value.dtype} {list(value.shape)}"
        known = value.layout == torch.strided and not value.is_complex() and not value.is_quantized and list(value.shape) == shape
        numbers = _plain(value).to(torch.float64).numpy() if known else None
    else:
        numbers = _array(_exact(value), shape)
    if numbers is None:
        raise GrowMapError(f"{path}: {key} is {found}, but it must be torch.int64 {shape}, or the same numbers in another type or in lists")
    different = np.argwhere(numbers != array)
    if len(different):
        raise GrowMapError(f"{path}: {key} disagrees with Successors at {different[0].tolist()}; the file is damaged")


def _array(value: Any, shape: list[int]) -> Any:
    """Return lists of numbers as an array of that shape, or None if they are anything else."""
    import numpy as np

    rows = value if len(shape) == 2 else [value]
    if not isinstance(rows, list | tuple) or len(rows) != (shape[0] if len(shape) == 2 else 1):
        return None
    for row in rows:
        if not isinstance(row, list | tuple) or len(row) != shape[-1] or not all(isinstance(item, int | float) for item in row):
            return None
    return np.array(value, dtype=np.float64)


def refuse_size(size: int, what: str) -> None:
    """Raise GrowMapError if `what` has more nodes than a growmap may have."""
    if size > MAX_GROWMAP_SIZE:
        raise GrowMapError(f"{what} has size {size}, but a growmap may have at most {MAX_GROWMAP_SIZE} nodes; use a smaller tree")


def _refuse_other_kind(path: PipeablePath) -> None:
    """Raise GrowMapError for a JSON file of treeopt, with the file to pass in its place."""
    schema = schema_of(read_bytes(path, limit=MAX_FILE_BYTES, error=GrowMapError))
    if schema == SCHEMA:
        growmap = Path(path).with_suffix(".pt")
        remedy = f"pass {growmap}" if growmap.exists() else f"{growmap} is not there: copy it too, or make the growmap again"
        raise GrowMapError(f"{path} describes a growmap, which is in the .pt file beside it; {remedy}")
    if schema in NOUNS:
        remedy = "`treeopt grow` makes one of it" if schema == "treeopt.acceptance" else "pass the .pt file that `treeopt grow` wrote"
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
    return GrowMap(tree, data.get("metadata", _metadata, {}), data.optional("provenance", Provenance.from_json))


def _metadata(value: Any) -> dict[str, Any]:
    """Return metadata, which anyone may have written: known ones are checked by their readers, and the others must be plain JSON."""
    found = checked_object(_METADATA)(value)
    json_text({text(key): item for key, item in found.items()})
    return found
