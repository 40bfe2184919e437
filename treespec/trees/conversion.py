"""Conversion of growmaps to the formats of other tools. What a file is, `read_growmap` sees by itself, so that this goes both ways."""

from collections.abc import Mapping
from pathlib import Path

from treespec.errors import GrowMapError, SettingsError, listed
from treespec.files.reading import PipeablePath, StrPath, is_json_of
from treespec.files.writing import check_writable, has_content, is_special, refuse_to_replace, write_bytes
from treespec.trees.formats.text import CHOICES, TEXTS, UMBRELLA, text_format
from treespec.trees.growmap import SCHEMA, GrowMap, check_growmap_writable, described_text

SEQUOIA, DESCRIPTION = "sequoia", "json"
FORMATS: Mapping[str, str] = {
    SEQUOIA: "Sequoia's .pt",
    DESCRIPTION: "treeopt's own JSON",
    UMBRELLA: "UMbreLLa's JSON",
    "medusa": "Medusa's choices",
    "eagle": "EAGLE's choices",
    "vllm": "vLLM's string",
}
"""The formats by name, in words."""
_ENDINGS = {"vllm": ".txt"}
"""The endings to name where a file of text would end in .pt; .json of all others."""


def format_for(path: StrPath, wanted: str | None = None) -> str:
    """Return the name of the format to write to `path`: the wanted one, or Sequoia's for a name that ends in .pt.

    Raises SettingsError for an unknown name, for a path that leaves it open, and for a text in a file that ends in .pt.
    """
    if wanted is not None and wanted not in FORMATS:
        raise SettingsError(f"`to` is {wanted!r:.40}, but it must be one of {', '.join(FORMATS)}")
    binary = Path(path).suffix.lower() == ".pt"
    if wanted is not None and wanted != SEQUOIA and binary:
        named = Path(path).with_suffix(_ENDINGS.get(wanted, ".json")).name
        raise SettingsError(
            f"`to` {wanted} writes text, but the name {Path(path).name} ends in .pt; name the file {named}, or pass `to` {SEQUOIA}"
        )
    if wanted is not None:
        return wanted
    if binary:
        return SEQUOIA
    raise SettingsError(f"the name {Path(path).name} does not say the format to write; pass `to` {' or '.join(FORMATS)}")


def write_as(growmap: GrowMap, path: StrPath, form: str) -> None:
    """Write a growmap to `path` in one of `FORMATS`, whole or not at all; choices and strings end with a line break.

    Raises GrowMapError for a tree that is too large for the format, OutputError if the file cannot be written or is something else than
    a tree in that format now.
    """
    if form == SEQUOIA:
        check_growmap_writable(path)
        growmap.write(path)
        return
    if form == DESCRIPTION:
        _check_description(path)
        text = described_text(path, growmap.to_json())
    else:
        _check_text(path, form)
        text = TEXTS[form](growmap.tree)
    write_bytes(path, text.encode() + b"\n")


def left_behind(growmap: GrowMap, form: str) -> str | None:
    """Return a sentence on what of a growmap a format cannot hold; None if it holds all."""
    lost = [name for name, held in (("metadata", growmap.metadata), ("provenance", growmap.provenance)) if held]
    if form in (SEQUOIA, DESCRIPTION) or not lost:
        return None
    return f"{FORMATS[form]} {'hold' if FORMATS[form].endswith('choices') else 'holds'} the tree alone: the growmap's {listed(lost)} stay behind"


def _check_description(path: StrPath) -> None:
    check_writable(path, SCHEMA)
    growmap = Path(path).with_suffix(".pt")
    if Path(path).suffix == ".json" and growmap.exists() and not is_special(path):
        raise GrowMapError(f"{path} is the place of the description of {growmap}, which has one already; name another output")


def _check_text(path: StrPath, form: str) -> None:
    """Raise OutputError now if a text cannot be written, or would replace something else than a tree in that format."""
    check_writable(path)
    if is_special(path) or not has_content(path):
        return
    try:
        held = None if is_json_of(path, SCHEMA) else text_format(PipeablePath(path))
    except GrowMapError:
        held = None
    if held != (UMBRELLA if form == UMBRELLA else CHOICES):
        refuse_to_replace(path, f"tree in that format ({FORMATS[form]})")
