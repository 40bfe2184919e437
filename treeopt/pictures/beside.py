"""Finding the profiles that a growmap was made from, among the files beside it, by their SHA-256."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from treeopt.profiles.acceptance import AcceptanceProfile, read_acceptance
from treeopt.profiles.latency import LatencyProfile, read_latency
from treespec.errors import TreeoptError
from treespec.files.reading import MAX_JSON_BYTES
from treespec.trees.growmap import GrowMap

_MOST_FILES = 256
_T = TypeVar("_T")


@dataclass(frozen=True)
class Beside:
    """The profiles that were found, their files, and sentences about those that were not."""

    acceptance: AcceptanceProfile | None = None
    latency: LatencyProfile | None = None
    files: dict[str, Path] = field(default_factory=dict)
    missing: tuple[str, ...] = ()


def profiles_beside(path: Path, grown: GrowMap) -> Beside:
    """Return the profiles in the folder of a growmap, or in `profiles` there, that are the very files which its metadata name by their SHA-256.

    A trace is one of them if acceptance models were compared on it; one that only says what is promised leads to the same tree without it.
    """
    wanted = {name: grown.metadata.get(f"{name}_sha256") for name in ("acceptance", "latency")}
    if len((grown.metadata.get("acceptance_model") or {}).get("models", ())) > 1:
        wanted["trace"] = grown.metadata.get("trace_sha256")
    files: dict[str, Path] = {}
    if any(wanted.values()):
        for file in _candidates(path.parent):
            digest = _sha256(file)
            files |= {name: file for name, known in wanted.items() if known == digest and name not in files}
    missing = tuple(_missing(name, known) for name, known in wanted.items() if name not in files)
    return Beside(_read(files.get("acceptance"), read_acceptance), _read(files.get("latency"), read_latency), files, missing)


def _candidates(folder: Path) -> Iterator[Path]:
    found = [path for place in (folder, folder / "profiles") for pattern in ("*.json", "*.pt") for path in sorted(place.glob(pattern))]
    for path in found[:_MOST_FILES]:
        if path.is_file() and path.stat().st_size <= MAX_JSON_BYTES:
            yield path


def _sha256(path: Path) -> str | None:
    """Return the SHA-256 of a file; None for one that cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None


def _read(path: Path | None, read: Callable[[Path], _T]) -> _T | None:
    try:
        return None if path is None else read(path)
    except TreeoptError:  # the growmap names it, but its name or its form is none that can be read
        return None


def _missing(name: str, known: object) -> str:
    what = name if name == "trace" else f"{name} profile"
    if not isinstance(known, str):
        return f"The growmap does not say from which {what} it was made, so it is not shown."
    return f"The {what} of the growmap (SHA-256 {known[:12]}...) is not in the growmap's folder, so it is not shown; copy it there."
