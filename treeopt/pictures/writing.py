"""Writing pictures and pages: whole or not at all, and never over a file of another kind."""

from pathlib import Path

from treespec.errors import OutputError
from treespec.files.reading import StrPath
from treespec.files.writing import check_writable, has_content, refuse_to_replace, write_bytes

GENERATOR = "treeopt page"
"""The words near the beginning of every page, by which one is known again."""

_KNOWN = {
    "svg": (b"<svg", "picture in SVG"),
    "png": (b"\x89PNG", "picture in PNG"),
    "html": (GENERATOR.encode(), "page of treeopt"),
}
"""The bytes near the beginning of a file of each kind, and the name of the kind."""
_HEAD = 1024

_ENDINGS = {
    ".svg": "svg",
    ".png": "png",
    ".html": "html",
    ".htm": "html",
    **dict.fromkeys((".jpg", ".jpeg", ".gif", ".webp", ".pdf", ".eps"), "another"),
}
"""The kind that the ending of a name stands for."""


def check_replaceable(path: StrPath, kind: str) -> None:
    """Raise OutputError now if a file of a `kind` ("svg", "png" or "html") cannot be written to `path`, or would replace one of another kind.

    A name whose ending is that of another format is refused too: it would mislead whoever opens the file.
    """
    ending = Path(path).suffix
    named = _ENDINGS.get(ending.lower(), kind)
    if named != kind:
        other = f", or pass it as `{named}`" if {kind, named} == {"svg", "png"} else ""
        raise OutputError(f"`{kind}` writes {kind.upper()}, but the name {path} ends in {ending}; name a file that ends in .{kind}{other}")
    check_writable(path)
    sign, noun = _KNOWN[kind]
    if has_content(path):
        with open(path, "rb") as file:
            if sign not in file.read(_HEAD):
                refuse_to_replace(path, noun)


def write(path: StrPath, content: bytes | str) -> None:
    """Write a picture or a page whole or not at all. Raises OutputError."""
    write_bytes(path, content.encode() if isinstance(content, str) else content)
