"""The contents of a model: its config.json as it is, the names of its files, and what these say about its weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils.hub import cached_file, get_checkpoint_shard_files

from treespec.errors import ModelError
from treespec.files.kinds import kind_of
from treespec.files.reading import parsed_object, read_bytes
from treespec.models.headers import Weights, read_weights
from treespec.models.locating import Place
from treespec.models.weights import INDEX, SINGLE

_MOST_CONFIG_BYTES = 4 << 20


@dataclass(frozen=True)
class Contents:
    """The files of a folder, or of a model in the hub's cache, before a weight is read."""

    folder: Path
    config: Mapping[str, Any]
    """The content of config.json, which anyone may have written; empty if there is none."""
    files: frozenset[str]
    weights: Weights


def contents_of(name: str, place: Place, revision: str | None, *, fetch: bool = False) -> Contents | None:
    """Return a model's contents; None if nothing of it is on this machine and the hub does not give it.

    Of a model on the hub, only its small files are fetched, or with `fetch` its weights too. Raises ModelError for damaged files.
    """
    folder = Path(place.path) if place.local else _fetched(place, revision, fetch)
    if folder is None or not folder.is_dir():
        return None
    path = folder / "config.json"
    config = _object(name, read_bytes(path, limit=_MOST_CONFIG_BYTES, error=ModelError)) if path.is_file() else {}
    files = frozenset(file.name for file in folder.iterdir() if file.is_file())
    return Contents(folder, config, files, read_weights(name, folder))


def _fetched(place: Place, revision: str | None, fetch: bool) -> Path | None:
    """Return the folder of a hub model in the cache, with the files that are needed; None if it has none of them."""
    found = [_file(place, revision, file) for file in ("config.json", INDEX)]
    if found[0] is None:
        found.append(_file(place, revision, "adapter_config.json"))
    if fetch and found[1] is not None:
        fetch_shards: Any = get_checkpoint_shard_files
        fetch_shards(place.path, found[1], revision=revision)
    elif fetch:
        found.append(_file(place, revision, SINGLE))
    return next((Path(path).parent for path in found if path is not None), None)


def _file(place: Place, revision: str | None, file: str) -> str | None:
    found: str | None = cached_file(place.path, file, revision=revision, _raise_exceptions_for_missing_entries=False)
    return found


def _object(name: str, data: bytes) -> dict[str, Any]:
    try:
        return parsed_object(data)
    except ValueError as error:
        found = kind_of(data)
        what = found if found is not None and ";" in found else "is no JSON object; save or download the model again"
        raise ModelError(f"{name} cannot be loaded: config.json {what}") from error
