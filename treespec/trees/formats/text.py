"""The formats of trees that are text: which of them a file has, the tree in it, and the text of a tree."""

from collections.abc import Callable, Mapping

from treespec.errors import GrowMapError
from treespec.files.kinds import JSON, kind_of, schema_of
from treespec.files.reading import PipeablePath, read_bytes, read_object
from treespec.files.writing import json_text
from treespec.trees.formats.choices import choices_text, tree_of_choices, tuples_text
from treespec.trees.formats.sequoia import lists_of, tree_of
from treespec.trees.tree import SpeculationTree

MAX_BYTES = 64 << 20
"""Largest file of a tree that is read."""

CHOICES, UMBRELLA = "choices", "umbrella"
_OWN_KEYS = {"roots", "branches", "Successors"}
"""Keys of UMbreLLa's JSON that other JSON is unlikely to have."""


def umbrella_text(tree: SpeculationTree) -> str:
    """Return UMbreLLa's JSON: Sequoia's six keys, with lists in place of tensors. Raises GrowMapError for a tree that is too large."""
    return json_text(lists_of(tree))


TEXTS: Mapping[str, Callable[[SpeculationTree], str]] = {
    UMBRELLA: umbrella_text,
    "medusa": choices_text,
    "eagle": choices_text,
    "vllm": tuples_text,
}
"""The text of a tree, by the name of the format. The text ends without a line break."""


def text_format(path: PipeablePath) -> str | None:
    """Return `CHOICES` or `UMBRELLA` for a file that looks like one of these, and None for any other. Raises GrowMapError if it cannot be read."""
    data = read_bytes(path, limit=MAX_BYTES, error=GrowMapError)
    head = data[:64].removeprefix(b"\xef\xbb\xbf").lstrip()
    if head[:1] == b"[" or (head[1:].lstrip()[:1] == b"[" and head[:1] in (b'"', b"'")):
        return CHOICES
    if kind_of(data) != JSON or schema_of(data) is not None:
        return None
    return UMBRELLA if _OWN_KEYS & read_object(path, "tree in JSON", error=GrowMapError).keys() else None


def read_tree(path: PipeablePath) -> SpeculationTree | None:
    """Return the tree of a file in one of these formats, and None for a file that has none of them. Raises GrowMapError for a tree that cannot be."""
    form = text_format(path)
    if form == UMBRELLA:
        return tree_of(path, read_object(path, "tree in JSON", error=GrowMapError))
    if form is None:
        return None
    data = read_bytes(path, limit=MAX_BYTES, error=GrowMapError)
    try:
        return tree_of_choices(data.decode("utf-8-sig"))
    except UnicodeDecodeError as e:
        raise GrowMapError(f"{path} is no tree: it is not text in UTF-8; copy or make it again") from e
    except GrowMapError as e:
        raise GrowMapError(f"{path}: {e}") from e
