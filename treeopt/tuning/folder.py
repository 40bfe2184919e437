"""The folder of a tuning run: what it was made with, and which of its files are finished. So a run that was killed goes on."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

from treespec.errors import OutputError
from treespec.files.fields import mapping
from treespec.files.journal import discard
from treespec.files.locks import alone, lock_of
from treespec.files.provenance import Provenance, version_of
from treespec.files.reading import read_json
from treespec.files.toml import toml_text
from treespec.files.writing import check_writable, make_folder, write_bytes, write_json, write_together

TUNING_SCHEMA, VERSION = "treeopt.tuning", 1
MANIFEST, SETTINGS, PAGE = "manifest.json", "settings.toml", "page.html"
FILES = ("acceptance.json", "latency.json", "trace.json", "tree.pt", "tree.json", "report.json", PAGE, SETTINGS, MANIFEST)
"""The files of a whole run. There is no trace where steps cannot be replayed."""

_REMEDY = "pass another `output`, or remove that folder"


class Folder:
    """The folder, and its manifest, which says what it was made with and which files are finished.

    A file is finished when the manifest has its SHA-256. It is made again only if it was removed, or if one of those that it was made of was.
    """

    def __init__(self, out: Path) -> None:
        """Read the manifest, if there is one. Raises OutputError for one of another version, and for files that are of no run."""
        self.out = out
        self.data: dict[str, Any] = {}
        path = out / MANIFEST
        if path.is_file():
            try:
                self.data = read_json(path, schema=TUNING_SCHEMA, version=VERSION, error=OutputError)
            except OutputError as e:
                raise OutputError(f"{str(e).partition(';')[0]}; {_REMEDY}") from e
            try:
                for key in ("made_with", "files", "seconds"):
                    mapping(self.data[key])
            except (KeyError, TypeError) as e:
                raise OutputError(f"{path} is damaged: it lacks what a run writes; {_REMEDY}") from e
            return
        other = next((name for name in FILES if (out / name).exists()), None)
        if other is not None:
            raise OutputError(f"{out} holds {other}, but no {MANIFEST}: no run of this kind made it; {_REMEDY.partition(',')[0]}")

    def compare(self, part: str, values: Mapping[str, Any]) -> None:
        """Raise OutputError, naming the first field that differs, if the folder was made with other values of a part of what it records."""
        known = self.data.get("made_with", {}).get(part)
        if known is None:
            return
        for name in dict.fromkeys([*known, *values]):
            before, now = known.get(name), values.get(name)
            if _plain(before) != _plain(now):
                same = "take them from its settings.toml" if part == "settings" else "run it as it was run before"
                raise OutputError(
                    f"{self.out} was made with {_shown(part, name)} {_value(before)}, but this run has {_value(now)}; {_REMEDY}, or {same}"
                )

    def begin(self, made_with: Mapping[str, Mapping[str, Any]]) -> None:
        """Compare all parts with what the folder was made with or, in a new folder, record them. Raises OutputError."""
        for part, values in made_with.items():
            self.compare(part, values)
        make_folder(self.out)
        check_writable(self.out / MANIFEST, TUNING_SCHEMA)
        if not self.data:
            plain = {part: _plain(values) for part, values in made_with.items()}
            self.data = {"finished": False, "made_with": plain, "files": {}, "seconds": {}, "notes": {}}
            self.save()
        text = toml_text(made_with.get("settings", {})).encode()
        if not (self.out / SETTINGS).is_file():
            write_bytes(self.out / SETTINGS, text)

    def stage(self, files: Sequence[str], made_of: Sequence[str], make: Callable[[Path], None]) -> bool:
        """Make files, unless they are finished already, and return whether they were made.

        `make` gets the path of a journal, writes the files, and is not called again once they are recorded. Raises OutputError for a
        finished file that was changed since.
        """
        journal = self.out / f"{files[0]}.journal"
        if self._finished(files, made_of):
            discard(journal)  # a kill may have left it behind
            return False
        for name in files:
            make_folder((self.out / name).parent)
        started = perf_counter()
        make(journal)
        sources = {name: self.data["files"][name]["sha256"] for name in made_of}
        for name in files:
            self.data["files"][name] = {"sha256": _digest(self.out / name), "made_of": sources}
        self.data["seconds"][files[0]] = self.data["seconds"].get(files[0], 0.0) + perf_counter() - started
        self.save()
        discard(journal)
        return True

    def copy(self, sources: Sequence[str], targets: Sequence[str]) -> None:
        """Copy finished files under other names, whole or not at all. Those that stay where they are, are left alone."""
        moved = [(source, target) for source, target in zip(sources, targets, strict=True) if source != target]
        if moved:
            files = [(self.out / target, (self.out / source).read_bytes()) for source, target in moved]
            self.stage([target for _, target in moved], [source for source, _ in moved], lambda journal: write_together(files))

    def noted(self, key: str, find: Callable[[], Any]) -> Any:
        """Return a decision of this run: the one that is in the manifest, or else what `find` returns, which is kept there."""
        if key not in self.data["notes"]:
            self.data["notes"][key] = find()
            self.save()
        return self.data["notes"][key]

    def finish(self, **facts: Any) -> None:
        """Record that all is done, with facts about the result."""
        self.data["files"][SETTINGS] = {"sha256": _digest(self.out / SETTINGS), "made_of": {}}
        self.data |= {"finished": True, **facts, "provenance": self.data.get("provenance") or Provenance.collect().to_json()}
        self.save()

    def save(self) -> None:
        """Write the manifest."""
        write_json(self.out / MANIFEST, {"schema": TUNING_SCHEMA, "version": VERSION, **self.data})

    @property
    def spent(self) -> float:
        """Return the seconds of all finished stages."""
        return float(sum(self.data["seconds"].values()))

    def _finished(self, files: Sequence[str], made_of: Sequence[str]) -> bool:
        known = self.data["files"]
        for name in files:
            path, record = self.out / name, known.get(name)
            if (
                record is None
                or not path.is_file()
                or any(record["made_of"].get(one) != known.get(one, {}).get("sha256") for one in made_of)
            ):
                return False
            if _digest(path) != record["sha256"]:
                raise OutputError(f"{path} was changed since this run made it; remove it, and it is made again, or pass another `output`")
        return True


@contextmanager
def claimed(out: Path) -> Iterator[None]:
    """Keep other runs out of the folder during this block. Raises OutputError if one is in it already."""
    make_folder(out)
    with alone(lock_of(out / MANIFEST), out):
        yield


def versions() -> dict[str, Any]:
    """Return the versions of what decides the result."""
    return {name: version_of(name) for name in ("treeopt", "torch", "transformers")}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _plain(value: Any) -> Any:
    """Return a value as it comes back from JSON."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def _shown(part: str, name: str) -> str:
    return f"`{name}`" if part == "settings" else f"other {part}: {name}" if part in ("models", "prompts") else name


def _value(value: Any) -> str:
    if value is None:
        return "none"
    return ",".join(map(_value, value)) if isinstance(value, list | tuple) else f"{value:g}" if isinstance(value, float) else f"{value}"
