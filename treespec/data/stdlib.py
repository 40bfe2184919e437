"""The running Python's own standard library as text, split for ever into training and held-out modules.

The split depends on nothing but the dotted module name, so it is the same on every machine: a module is held out when
the first byte of the SHA-256 of its name is below `HELD_OUT_BELOW` (1 in 8). The embedded pair is trained on the other
modules only. The data set `stdlib` serves held-out ones only, `stdlib-train` the others: to train on, never to measure on.
"""

import hashlib
import os
import sysconfig
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

Split = Literal["train", "held-out"]

HELD_OUT_BELOW = 32
"""Share of the modules, out of 256, that training never sees."""

PIECE_CHARACTERS = 6000
"""A data set row is a run of whole lines about this long (some 1,500 to 2,000 tokens of the embedded pair)."""

_GENERATED_TABLES = ("encodings", "pydoc_data")  # character maps and rendered documentation: not text that people write
_THIRD_PARTY = ("site-packages", "dist-packages")
_NOT_EVERYWHERE = ("test", "tests", "idlelib", "lib2to3", "tkinter", "turtledemo", "ensurepip", "distutils")  # absent from some Pythons


@dataclass(frozen=True)
class Module:
    """One source file of the standard library."""

    name: str
    path: Path

    @property
    def held_out(self) -> bool:
        """True if the module belongs to the evaluation side of the split."""
        return hashlib.sha256(self.name.encode()).digest()[0] < HELD_OUT_BELOW

    @cached_property
    def text(self) -> str:
        """The module's source. Undecodable bytes (a few test files have some on purpose) become U+FFFD."""
        return self.path.read_text(encoding="utf-8", errors="replace")


def modules(split: Split, root: Path | None = None) -> Iterator[Module]:
    """Return the modules of one side of the split, sorted by name.

    `held-out` leaves out the packages that not every distribution of Python carries, so that its rows are much the
    same everywhere; `train` takes all that is there. `root` stands in for the standard library's folder in tests.
    """
    folder = root or Path(sysconfig.get_paths()["stdlib"])
    for path in _sources(folder, _THIRD_PARTY if split == "train" else (*_THIRD_PARTY, *_NOT_EVERYWHERE)):
        parts = path.relative_to(folder).with_suffix("").parts
        if parts[0] in _GENERATED_TABLES or any(p in _THIRD_PARTY or p.startswith("config-") for p in parts):
            continue
        module = Module(".".join(parts).removesuffix(".__init__"), path)
        if split == "train" and not module.held_out:
            yield module
        if split == "held-out" and module.held_out and not any(p in _NOT_EVERYWHERE for p in parts):
            yield module


def _sources(folder: Path, without: Collection[str]) -> list[Path]:
    """Return the Python files below a folder, sorted, without a look into folders of these names: what is installed there may be vast."""
    found: list[Path] = []
    for inside, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in without]
        found += (Path(inside, name) for name in files if name.endswith(".py"))
    return sorted(found)


def pieces(lines: Iterable[str], characters: int = PIECE_CHARACTERS) -> Iterator[str]:
    """Yield runs of whole lines of `characters` or a little more. A last run of less than half joins the one before it."""
    held, piece = "", ""
    for line in lines:
        piece += line
        if len(piece) >= characters:
            if held:
                yield held
            held, piece = piece, ""
    if held and len(piece) >= characters // 2:
        yield held
        held = ""
    if held + piece:
        yield held + piece


def split_rows(split: Split, root: Path | None = None) -> list[tuple[str, str]]:
    """Return the name and the text of every piece of one side of the split: the first pieces of all modules, then all second pieces, and so on.

    Modules follow one another in the order of their names' hashes, so that any run of rows mixes many modules.
    """
    rows = [
        (index, hashlib.sha256(m.name.encode()).hexdigest(), f"{m.name}#{index}", piece)
        for m in modules(split, root)
        for index, piece in enumerate(pieces(m.text.splitlines(keepends=True)))
    ]
    return [(name, piece) for _, _, name, piece in sorted(rows)]
