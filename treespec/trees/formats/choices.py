"""Choices: a tree as a list of its paths of ranks, without the root, as Medusa, EAGLE-1 and older versions of TensorRT-LLM and vLLM take it.

Medusa and EAGLE write `[[0], [1], [0, 0]]`, and vLLM's `speculative_token_tree` is the string `[(0,), (1,), (0, 0)]`. Both are read here, with
spaces and commas as Python allows them. Nothing is evaluated.
"""

import re
from collections.abc import Sequence
from itertools import pairwise

from treespec.errors import GrowMapError, counted
from treespec.trees.formats.sequoia import MAX_GROWMAP_SIZE
from treespec.trees.limits import MAX_SIZE
from treespec.trees.tree import SpeculationTree

_PATH = re.compile(r"\s*(?:\[([^\[\]()]*)\]|\(([^\[\]()]*)\))\s*(,?)")
_RANK = re.compile(r"\s*([0-9]{1,6})\s*")
_MOST_RANKS = MAX_GROWMAP_SIZE**2
"""Most ranks of all paths together: those of a chain of twice `MAX_GROWMAP_SIZE` tokens are more."""

Path = tuple[int, ...]


def choices_text(tree: SpeculationTree) -> str:
    """Return the paths as Medusa and EAGLE take them, which is JSON too, sorted by (length, ranks).

    >>> choices_text(SpeculationTree.from_paths([(0, 0), (1,)]))
    '[[0], [1], [0, 0]]'
    """
    return str([list(path) for path in tree.paths])


def tuples_text(tree: SpeculationTree) -> str:
    """Return the paths as vLLM takes them, sorted by (length, ranks).

    >>> tuples_text(SpeculationTree.from_paths([(0, 0), (1,)]))
    '[(0,), (1,), (0, 0)]'
    """
    return str(list(tree.paths))


def tree_of_choices(text: str) -> SpeculationTree:
    """Return the tree of choices in any order. A string may stand in quotation marks, as it does in a configuration.

    Raises GrowMapError with what is wrong and the path that it is about: a path twice, without its parent, or without its elder sibling.
    """
    return _tree(_parsed(text))


def _parsed(text: str) -> list[Path]:
    """Return the paths that a text lists. Raises GrowMapError for any other text."""
    body = text.strip()
    if len(body) > 1 and body[0] == body[-1] and body[0] in "\"'":
        body = body[1:-1].strip()
    if not (body.startswith("[") and body.endswith("]")) or len(body) < 2:
        raise GrowMapError("it is no list of paths in brackets, such as [[0], [1], [0, 0]]")
    paths: list[Path] = []
    at, end, ranks, comma = 1, len(body) - 1, 0, ","
    while found := _PATH.match(body, at, end):
        if not comma:
            raise GrowMapError(f"a comma is missing before {_short(found[0].strip())}")
        paths.append(_ranks(found[1] if found[2] is None else found[2]))
        at, comma, ranks = found.end(), found[3], ranks + len(paths[-1])
        if len(paths) >= MAX_SIZE or ranks > _MOST_RANKS:
            raise GrowMapError(f"it lists more than {MAX_SIZE - 1:,} paths, or more than {_MOST_RANKS:,} ranks; use a smaller tree")
    if rest := body[at:end].strip():
        raise GrowMapError(f"{_short(rest)} stands where a path is due, such as [0, 1] or (0, 1)")
    return paths


def _ranks(inside: str) -> Path:
    """Return the ranks between the brackets of a path."""
    parts = inside.split(",")
    if len(parts) > 1 and not parts[-1].strip():  # a comma may follow the last one
        parts.pop()
    if not "".join(parts).strip():
        raise GrowMapError("a path is empty: it would be the root, which choices leave out")
    found = [_RANK.fullmatch(part) for part in parts]
    for part, rank in zip(parts, found, strict=True):
        if rank is None:
            raise GrowMapError(f"{_short(part.strip())} stands where a rank is due: a whole number from 0 to 999999")
    return tuple(int(rank[1]) for rank in found if rank is not None)


def _tree(paths: Sequence[Path]) -> SpeculationTree:
    """Return the tree of paths that must be all there. Raises GrowMapError."""
    order = [(), *sorted(paths, key=lambda path: (len(path), path))]
    index = {path: node for node, path in enumerate(order)}
    if len(index) < len(order):
        twice = next(path for path, after in pairwise(order) if path == after)
        raise GrowMapError(f"path {_named(twice)} is there twice; keep one")
    for path in order[1:]:  # the shallow ones first, so that the first gap is named
        if path[:-1] not in index:
            raise GrowMapError(f"path {_named(path)} has no parent: {_named(path[:-1])} is missing; add it")
        if path[-1] and (elder := (*path[:-1], path[-1] - 1)) not in index:
            raise GrowMapError(f"path {_named(path)} has no elder sibling: {_named(elder)} is missing; add it, or lower the rank")
    return SpeculationTree((-1, *(index[path[:-1]] for path in order[1:])))


def _named(path: Path) -> str:
    """Return a path as a message shows it."""
    return str(list(path)) if len(path) <= 24 else f"[{', '.join(map(str, path[:20]))}, ...] of {counted(len(path), 'rank')}"


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
