"""The growmaps that come along, by name: the files of the package `treeopt.growmaps`, which holds data and no code."""

import os
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

from treespec.errors import GrowMapError, nearest
from treespec.files.reading import StrPath
from treespec.trees.growmap import GrowMap, read_growmap

PACKAGE = "treeopt.growmaps"
"""The package of data in whose folder the growmaps lie. It is looked up by its name; without it, no name is known."""


def folder() -> Path | None:
    """Return the folder of the growmaps that come along; None if they are not installed."""
    try:
        return Path(str(files(PACKAGE)))
    except ModuleNotFoundError:
        return None


def names() -> list[str]:
    """Return the names of the growmaps that come along, sorted."""
    home = folder()
    return [] if home is None else sorted(path.stem for path in home.glob("*.pt"))


def find_growmap(name: StrPath) -> Path:
    """Return the file of a growmap: a path as it is, or the file of a name that comes along. A file of that name in the way is taken first.

    Raises GrowMapError for a name that is neither.
    """
    path = Path(name)
    if path.exists() or os.path.dirname(name):
        return path
    known, home = names(), folder()
    if home is not None and str(name) in known:
        return home / f"{name}.pt"
    near = nearest(str(name).removesuffix(".pt"), known, 3)
    remedy = f"did you mean {' or '.join(near)}?" if near else "check the path"
    raise GrowMapError(f"there is no file {name}, and no growmap of that name comes along; {remedy}")


def load_growmap(name: StrPath) -> GrowMap:
    """Read a growmap by its path or by its name; one that was read before is not read again while its file stays. Raises GrowMapError."""
    path = find_growmap(name)
    try:
        state = path.stat()
    except OSError:
        return read_growmap(path)  # says what is wrong
    return _read(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=16)
def _read(path: Path, changed: int, size: int) -> GrowMap:
    """Read a growmap whose file has this time of change and size."""
    return read_growmap(path)
