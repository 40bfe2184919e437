"""Typed reading of JSON fields, in files or in metadata that anyone may have written."""

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from typing import Any, NoReturn, TypeVar

from treespec.errors import ProfileError, TreeoptError, counted, nearest

T = TypeVar("T")
Reader = Callable[[Any], Any]

MOST_SECONDS = 1e12


class Fields:
    """The fields of one file. A field that is missing or has another type raises `error` with the file, the key and the value."""

    def __init__(self, path: str | os.PathLike[str], data: Mapping[str, Any], error: type[TreeoptError] = ProfileError) -> None:
        self._path = path
        self._data = data
        self._error = error

    def get(self, key: str, read: Callable[[Any], T], default: Any = None) -> T:
        """Return the value of `key` as `read` takes it, or the default as `read` takes it if the key is absent. Raises `error` if there is neither."""
        value = self._data.get(key, default)
        if value is None:
            self._refuse(f"has no {key!r}; make the file again, or add the key")
        try:
            return read(value)
        except (TypeError, ValueError, KeyError, RecursionError) as e:
            self._refuse(f"has a {key!r} that cannot be: {e}; make the file again, or correct it")

    def optional(self, key: str, read: Callable[[Any], T]) -> T | None:
        """Return the value of `key` as `read` takes it, or None if it is absent or null."""
        return None if self._data.get(key) is None else self.get(key, read)

    def text(self, key: str, default: str | None = None) -> str:
        """Return the text under `key`."""
        return self.get(key, text, default)

    def require_spelling(self, *known: str) -> None:
        """Raise `error` for a key that is none of the `known` ones, but nearly one that is absent. Other unknown keys are passed over."""
        for key in self._data:
            near = nearest(key, [name for name in known if name not in self._data])
            if near and key not in known:
                self._refuse(f"has the key {key!r:.40}, of which nothing is known; write {near[0]!r} if that is meant, or drop it")

    def build(self, make: Callable[[], T]) -> T:
        """Return what `make` returns, and put the name of the file into the errors that it raises."""
        try:
            return make()
        except self._error as e:
            if str(e).startswith(str(self._path)):
                raise
            raise self._error(f"{self._path}: {e}") from e

    def _refuse(self, what: str) -> NoReturn:
        raise self._error(f"{self._path} {what}")


def number(value: Any) -> float:
    """Return a finite int or float as float. Raises TypeError for anything else, bools included, and ValueError if it is not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r:.40} is no number")
    if not abs(value) <= sys.float_info.max:  # also true for NaN
        raise ValueError(f"{value!r:.40} is not finite")
    return float(value)


def amount(value: Any) -> float:
    """Return a number of 0 or more as float."""
    if number(value) < 0:
        raise ValueError(f"{value!r:.40} is below 0")
    return float(value)


def seconds(value: Any) -> float:
    """Return a number of seconds, at most MOST_SECONDS, so that sums and ratios stay finite."""
    if amount(value) > MOST_SECONDS:
        raise ValueError(f"{value!r:.40} is above {MOST_SECONDS:g} seconds")
    return float(value)


def count(value: Any) -> int:
    """Return a whole number."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{value!r:.40} is no whole number")
    return value


def natural(value: Any) -> int:
    """Return a whole number that can count the rows of a file or the items of a list."""
    if not 0 <= count(value) <= sys.maxsize:
        raise ValueError(f"{value!r:.40} is not in 0 to {sys.maxsize}")
    return int(value)


def text(value: Any) -> str:
    """Return a string. Raises ValueError for half a surrogate pair."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is no text")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError(f"{value!r:.40} holds half a surrogate pair, which is no text")
    return value


def flag(value: Any) -> bool:
    """Return true or false."""
    if not isinstance(value, bool):
        raise TypeError(f"{value!r:.40} is neither true nor false")
    return value


def listed(value: Any) -> list[Any]:
    """Return a list."""
    if not isinstance(value, list):
        raise TypeError(f"{value!r:.40} is no list")
    return value


def list_of_length(length: int, value: Any) -> list[Any]:
    """Return a list of exactly `length` items."""
    if len(listed(value)) != length:
        raise ValueError(f"{value!r:.40} has {counted(len(value), 'item')}, not {length}")
    return listed(value)


def mapping(value: Any) -> dict[str, Any]:
    """Return an object."""
    if not isinstance(value, dict):
        raise TypeError(f"{value!r:.40} is no object")
    return value


def numbers(value: Any) -> tuple[float, ...]:
    """Return a list of numbers."""
    return tuple(number(x) for x in listed(value))


def counts(value: Any) -> tuple[int, ...]:
    """Return a list of whole numbers, each as of `natural`."""
    return tuple(natural(x) for x in listed(value))


def interval(value: Any) -> tuple[float, float]:
    """Return the two ends of an interval of amounts, in order."""
    low, high = map(amount, list_of_length(2, list(value) if isinstance(value, tuple) else value))
    if low > high:
        raise ValueError(f"{value!r:.60} is no interval: its ends are not in order")
    return low, high


def rows(value: Any) -> tuple[tuple[float, ...], ...]:
    """Return a list of lists of numbers."""
    return tuple(numbers(row) for row in listed(value))


def chances(value: Any) -> tuple[tuple[float, ...], ...]:
    """Return p[depth][rank]. It has at least one row, and no row is empty."""
    found = rows(value)
    if not found or not all(row and all(0 <= p <= 1 for p in row) for row in found):
        raise ValueError(f"{value!r:.40} is not made of rows of probabilities")
    return found


def checked_object(readers: Mapping[str, Reader], *, null: bool = True) -> Callable[[Any], dict[str, Any]]:
    """Return a reader that checks the listed keys of an object and returns it unchanged. With `null`, each of them may be null."""

    def read(value: Any) -> dict[str, Any]:
        found = mapping(value)
        for key, reader in readers.items():
            if key in found and not (null and found[key] is None):
                try:
                    reader(found[key])
                except (TypeError, ValueError) as e:
                    raise ValueError(f"{key}: {e}") from e
        return found

    return read


def texts(value: Any) -> dict[str, str]:
    """Return an object whose values are all texts."""
    return {text(key): text(item) for key, item in mapping(value).items()}


def as_dataclass(kind: Callable[..., T], read: Callable[[Any], dict[str, Any]]) -> Callable[[Any], T]:
    """Return a reader that builds a dataclass from an object with exactly its fields; a field with a default may be absent."""

    def make(value: Any) -> T:
        found, known = read(value), fields(kind)  # type: ignore[arg-type]
        odd = found.keys() - {field.name for field in known}
        lacks = {field.name for field in known if field.default is field.default_factory is MISSING} - found.keys()
        if odd or lacks:
            raise ValueError(f"it {'has the unknown key' if odd else 'lacks'} {min(odd or lacks)!r:.40}")
        return kind(**found)

    return make


ROWS: Mapping[str, Reader] = {
    "dataset": text,
    "start": natural,
    "end": natural,
    "row": natural,
    "row_sha256": text,
    "chat": flag,
    "system": text,
    "chat_args": mapping,
}
"""Readers of the keys that say which rows of a data set were read, and how: `start` to `end` - 1, one of them and the SHA-256 of its content;
whether they were conversations, and the system prompt and the arguments of the chat template that these were given."""
