"""Checked reading: whole files below a limit, and JSON of one schema and version."""

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any, NoReturn, cast

from treespec.errors import OutputError, TreeoptError
from treespec.files.kinds import NOUNS, other_kind

MAX_JSON_BYTES = 256 << 20
"""Largest JSON file that is read; larger ones are refused before they are read."""
_MAX_JSON_MEMORY = 256 << 20
"""Most bytes that the values of a JSON file may take in memory, by a count of its brackets and commas before it is parsed."""

StrPath = str | os.PathLike[str]


def user_path(path: StrPath, error: type[TreeoptError]) -> Path:
    """Return the path with a leading `~` or `~NAME` replaced by that home folder. Raises `error` if there is no such folder."""
    try:
        return Path(path).expanduser()
    except RuntimeError as e:
        raise error(f"{path} begins with the home folder of a user who has none; give the whole path") from e


class PipeablePath(os.PathLike[str]):
    """A path whose content is kept by the first `read_bytes`, so that a pipe, which can be read once only, can be read again."""

    def __init__(self, path: StrPath) -> None:
        self._path = os.fspath(path)
        self.content: bytes | None = None
        self.json: Any = None
        """What `read_object` made of the content."""

    def __fspath__(self) -> str:
        """Return the path."""
        return self._path

    __str__ = __fspath__

    @property
    def sha256(self) -> str:
        """SHA-256 of the content. The path must have been read before."""
        assert self.content is not None
        return hashlib.sha256(self.content).hexdigest()


def read_bytes(
    path: StrPath, *, limit: int, error: type[TreeoptError], remedy: str = "it is not the kind of file that belongs here"
) -> bytes:
    """Return the content of a file of at most `limit` bytes. Raises `error` if the file is missing, unreadable or larger.

    `remedy` is what to do about one that is larger.
    """
    if isinstance(path, PipeablePath):
        if path.content is None:
            path.content = read_bytes(os.fspath(path), limit=limit, error=error, remedy=remedy)
        return path.content
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size  # 0 for a pipe
            too_large = size > limit
            data = b"" if too_large else file.read((size or limit) + 1)  # Python takes memory for all that is asked for
    except FileNotFoundError as e:
        raise error(f"there is no file {path}; check the path") from e
    except IsADirectoryError as e:
        raise error(f"{path} is a folder; name a file") from e
    except (OSError, ValueError) as e:
        raise error(f"cannot read {path}: {getattr(e, 'strerror', None) or e}") from e
    if too_large or len(data) > limit:
        raise error(f"{path} is larger than the limit of {limit} bytes; {remedy}")
    return data


def read_json(
    path: StrPath, *, schema: str, version: int | tuple[int, ...], error: type[TreeoptError], limit: int = MAX_JSON_BYTES
) -> dict[str, Any]:
    """Return the JSON object in a file of treeopt. Its `schema` and `version` must be as given (one of several), and its numbers finite.

    Raises `error` if the file is missing, too large, no JSON, of another schema or of another version.
    """
    content = read_object(path, f"{schema} file", error=error, limit=limit, needed=schema)
    found = content.get("schema")
    if found != schema:
        nouns = NOUNS.get(schema), NOUNS.get(found) if isinstance(found, str) else None
        if all(nouns):
            raise error(f"{path} is {nouns[1]}, but {nouns[0]} is needed; {_remedy(str(found), schema)}")
        raise error(f"{path} has schema {_short(found)}, but {schema!r} is needed; pass a file with that schema")
    found = content.get("version")
    known = (version,) if isinstance(version, int) else version
    if type(found) is not int or found not in known:
        named = f"version{'s' if len(known) > 1 else ''} {' and '.join(map(str, known))}"
        raise error(f"{path} has {schema} version {_short(found)}, but this treeopt reads {named}; make the file again")
    return content


def read_object(path: StrPath, what: str, *, error: type[TreeoptError], limit: int = MAX_JSON_BYTES, needed: str = "") -> dict[str, Any]:
    """Return the JSON object in a file, whose numbers must be finite. Raises `error` that calls the file no `what` of the schema `needed`.

    It is parsed only if its values fit into memory. The object of a `PipeablePath` is kept there, and not read twice.
    """
    if isinstance(path, PipeablePath) and path.json is not None:
        return cast(dict[str, Any], path.json)
    data = read_bytes(path, limit=limit, error=error)
    memory = 200 * data.count(b"{") + 72 * data.count(b"[") + 40 * data.count(b",")
    if memory > _MAX_JSON_MEMORY:
        raise error(f"{path} is not a {what}: its values would take {memory >> 20} MiB, and {_MAX_JSON_MEMORY >> 20} MiB is the limit")
    try:
        content = json.loads(data, parse_constant=_refuse_constant, parse_float=_finite)
    except RecursionError as e:
        raise error(f"{path} is not a {what}: its JSON is nested too deeply") from e
    except ValueError as e:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise error(
            other_kind(path, data, NOUNS.get(needed, f"a {what}"), _remedy("", needed))
            or f"{path} is not a {what}: no valid JSON ({e}); copy or make it again"
        ) from e
    if not isinstance(content, dict):
        raise error(f"{path} is not a {what}: it holds a JSON {type(content).__name__}, not an object")
    if isinstance(path, PipeablePath):
        path.json = content
    return content


_WRITERS = {
    "treeopt.acceptance": "`treeopt profile acceptance`",
    "treeopt.latency": "`treeopt profile latency`",
    "treeopt.trace": "`treeopt profile acceptance` with `trace`",
    "treeopt.budget": "`treeopt grow` with `dynamic`",
}
"""The commands that write files of some schemas."""

_REMEDIES = {
    ("treeopt.growmap", "treeopt.acceptance"): "pass the profile from which it was grown",
    ("treeopt.trace", "treeopt.acceptance"): "pass the acceptance profile that was made with it",
    ("treeopt.latency", "treeopt.acceptance"): "pass an acceptance profile here; a latency profile goes where `latency` is asked for",
    ("treeopt.acceptance", "treeopt.latency"): "pass a latency profile here; an acceptance profile goes where `acceptance` is asked for",
}


def _remedy(found: str, needed: str) -> str:
    wrote = _WRITERS.get(needed)
    return _REMEDIES.get((found, needed)) or (f"{wrote} writes one" if wrote else "pass one")


def parsed_object(data: bytes) -> dict[str, Any]:
    """Return the JSON object in bytes that others' programs wrote. Raises ValueError with what they are instead, as the words after "it is"."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as e:
        raise ValueError("no JSON") from e
    if not isinstance(found, dict):
        raise ValueError("no JSON object")
    return found


def is_json_of(path: StrPath, schema: str) -> bool:
    """Return whether a file holds a JSON object of this schema, of any version."""
    try:
        return read_object(path, "JSON file", error=OutputError).get("schema") == schema
    except OutputError:
        return False


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is beyond the range of numbers")
    return value
