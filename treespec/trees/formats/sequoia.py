"""The content of a growmap's `.pt`, in Sequoia's own format (arXiv 2402.12374): made of a tree, and believed only where it agrees with one."""

from typing import TYPE_CHECKING, Any

from treespec.errors import GrowMapError, TreeError, counted
from treespec.files.reading import StrPath
from treespec.trees.tree import SpeculationTree

if TYPE_CHECKING:
    import torch

MAX_GROWMAP_SIZE = 2048
"""Largest tree size that a growmap file may hold: the format stores size x size integers of 8 bytes (32 MiB here)."""

KEYS = ("roots", "branches", "Successors", "mask", "depth", "size")


def content_of(tree: SpeculationTree) -> dict[str, Any]:
    """Return what the `.pt` holds: mask and depth as int64 tensors, the others as plain lists. Raises GrowMapError for a tree that is too large."""
    import torch

    refuse_size(tree.size, "this tree")
    derived = _derived(tree)
    return {
        "roots": derived["roots"],
        "branches": derived["branches"],
        "Successors": derived["Successors"],
        "mask": torch.tensor(tree.ancestor_mask.astype("int64")),
        "depth": torch.tensor(tree.depths, dtype=torch.int64),
        "size": tree.size,
    }


def lists_of(tree: SpeculationTree) -> dict[str, Any]:
    """Return the same in plain lists and numbers. Raises GrowMapError for a tree that is too large."""
    refuse_size(tree.size, "this tree")
    return {**_derived(tree), "mask": tree.ancestor_mask.astype("int64").tolist(), "depth": list(tree.depths), "size": tree.size}


def tree_of(path: StrPath, content: Any) -> SpeculationTree:
    """Return the tree of a loaded file, after every claim in it was compared with `Successors`. Raises GrowMapError."""
    if not isinstance(content, dict):
        vector = "; `treeopt grow` makes one of an acceptance vector" if type(content).__name__ == "Tensor" else ""
        raise GrowMapError(f"{path} holds a {type(content).__name__}, but a growmap is a dict with the keys {', '.join(KEYS)}{vector}")
    if missing := [key for key in KEYS if key not in content]:
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


def refuse_size(size: int, what: str) -> None:
    """Raise GrowMapError if `what` has more nodes than a growmap may have."""
    if size > MAX_GROWMAP_SIZE:
        raise GrowMapError(f"{what} has size {size}, but a growmap may have at most {MAX_GROWMAP_SIZE} nodes; use a smaller tree")


def _derived(tree: SpeculationTree) -> dict[str, list[list[int]]]:
    """Return the list fields of Sequoia's format: per level the ids and the child counts, per node the children."""
    return {
        "roots": [list(level) for level in tree.levels],
        "branches": [[len(tree.children[node]) for node in level] for level in tree.levels],
        "Successors": [list(children) for children in tree.children],
    }


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
