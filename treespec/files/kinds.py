"""The kind of a file, from its first bytes, in words for a person who passed it in the place of another."""

import codecs
import os
import re

NOUNS = {
    "treeopt.acceptance": "an acceptance profile",
    "treeopt.latency": "a latency profile",
    "treeopt.trace": "a trace",
    "treeopt.growmap": "the description of a growmap",
    "treeopt.budget": "a budget of dynamic trees",
    "treeopt.evaluation": "a report of an evaluation",
    "treeopt.potential": "a report of a draft's potential",
    "treeopt.training": "the record of a training run",
    "treeopt.tuning": "the manifest of a tuning run",
    "treeopt.journal": "the journal of unfinished work",
}
"""A noun for each schema of a JSON file of treeopt."""

_SCHEMA = re.compile(rb'"schema":\s*"(treeopt\.[a-z]+)"')
HEAD = 4096
"""Number of bytes at the beginning of a file that say what it is."""
JSON, PARQUET = "is JSON", "is a table in the parquet format"
LFS_POINTER = b"version https://git-lfs"
"""The beginning of a file that git-lfs puts in the place of a large one."""
_BEGINNINGS = (
    (LFS_POINTER, "is a pointer of git-lfs in the place of the file; fetch the file with `git lfs pull`"),
    (b"/annex/objects/", "is a pointer of git-annex in the place of the file; fetch the file with `git annex get`"),
    (b"GGUF", "is a model in the GGUF format"),
    (b"PK\x05\x06", "is a zip archive with nothing in it"),
    (b"\x1f\x8b", "is packed with gzip; unpack it first"),
    (b"BZh", "is packed with bzip2; unpack it first"),
    (b"\xfd7zXZ", "is packed with xz; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "is packed with zstd; unpack it first"),
    (b"7z\xbc\xaf", "is a 7z archive; unpack it first"),
    (b"PAR1", PARQUET),
    (b"\x93NUMPY", "is an array of NumPy; save it as a tensor with torch.save"),
    (b"\x89HDF", "is a file in the HDF5 format"),
    (b"\x89PNG", "is a picture"),
    (b"\xff\xd8\xff", "is a picture"),
    (b"%PDF", "is a PDF document"),
    (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9", "was saved by a PyTorch before 1.6; load it there, and save it again with torch.save"),
)


def schema_of(data: bytes) -> str | None:
    """Return the schema of treeopt that JSON states near its beginning, or None."""
    head = data[:HEAD].removeprefix(codecs.BOM_UTF8).lstrip()
    found = _SCHEMA.search(head) if head[:1] == b"{" else None
    return found.group(1).decode() if found else None


def kind_of(data: bytes) -> str | None:
    """Return what a file is, from its content or from the first part of it, as the words after its name; None for text and what is not known."""
    head = data[:HEAD].removeprefix(codecs.BOM_UTF8).lstrip()
    schema = schema_of(data)
    if not data:
        return "is empty; copy or make it again"
    if schema in NOUNS:
        return f"is {NOUNS[schema]}"
    for beginning, words in _BEGINNINGS:
        if data.startswith(beginning):
            return words
    if data.startswith(b"PK\x03\x04"):
        return "is a file of torch.save" if b"data.pkl" in data[:HEAD] else "is a zip archive; unpack it first"
    if len(data) > 9 and 0 < int.from_bytes(data[:8], "little") < 1 << 32 and data[8:9] == b"{":
        return "is a file of weights in the safetensors format"
    if head[:15].lower().startswith((b"<!doctype html", b"<html")):
        if b'content="treeopt page' in data[:HEAD]:
            return "is a page of treeopt; open it in a browser"
        return "is a web page; download the file itself, on the hub from /resolve/ in the place of /blob/"
    if data[:1] == b"\x80" and data[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "is a bare pickle, which could run code and is not read; save its content with torch.save"
    if not head.strip(b"\0"):
        return "begins with nothing but zeros or spaces: a disk or a copy failed; copy or make it again"
    return JSON if head[:1] in (b"{", b"[") else None


def other_kind(path: str | os.PathLike[str], data: bytes, needed: str, remedy: str, *, json: bool = False) -> str | None:
    """Return a sentence about a file that is no JSON and something else than what is `needed`, or None if it is not known what it is.

    With `json`, JSON is something else too.
    """
    found = kind_of(data)
    if json and found is None and _is_text(data[:HEAD]):
        found = "is a text"
    if found is None or (not json and data.lstrip()[:1] in (b"{", b"[") and schema_of(data) != "treeopt.journal"):
        return None
    return f"{path} {found}" if ";" in found else f"{path} {found}, but {needed} is needed; {remedy}"


def _is_text(head: bytes) -> bool:
    """Return whether the first bytes of a file look like text in UTF-8 or UTF-16."""
    wide = head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = codecs.getincrementaldecoder("utf-16" if wide else "utf-8-sig")().decode(head)
    except UnicodeDecodeError:
        return False
    return all(character.isprintable() or character.isspace() for character in text)
