"""Typed reading of a profile file's fields."""

import os
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar

from treespec.errors import ProfileError

T = TypeVar("T")


class Fields:
    """The fields of one file; what is missing or of another type raises ProfileError with the file and the key."""

    def __init__(self, path: str | os.PathLike[str], data: Mapping[str, Any]) -> None:
        self._path = path
        self._data = data

    def get(self, key: str, read: Callable[[Any], T], default: Any = None) -> T:
        """The value of `key` as `read` takes it; the default's where the key is absent and there is a default."""
        value = self._data.get(key, default)
        if value is None:
            self._refuse(f"has no {key!r}; make the profile again, or add the key")
        try:
            return read(value)
        except (TypeError, ValueError, KeyError, OverflowError) as e:
            self._refuse(f"has a {key!r} that cannot be: {e}")

    def optional(self, key: str, read: Callable[[Any], T]) -> T | None:
        """The value of `key`, or None where it is absent or null."""
        return None if self._data.get(key) is None else self.get(key, read)

    def text(self, key: str, default: str | None = None) -> str:
        """The text under `key`."""
        return self.get(key, text, default)

    def build(self, make: Callable[[], T]) -> T:
        """What `make` makes; its ProfileErrors get the name of the file."""
        try:
            return make()
        except ProfileError as e:
            if str(e).startswith(str(self._path)):
                raise
            raise ProfileError(f"{self._path}: {e}") from e

    def _refuse(self, what: str) -> NoReturn:
        raise ProfileError(f"{self._path} {what}")


def number(value: Any) -> float:
    """An int or float, as float; no bool."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r:.40} is no number")
    return float(value)


def count(value: Any) -> int:
    """A whole number."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{value!r:.40} is no whole number")
    return value


def text(value: Any) -> str:
    """A string."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is no text")
    return value


def listed(value: Any) -> list[Any]:
    """A list."""
    if not isinstance(value, list):
        raise TypeError(f"{value!r:.40} is no list")
    return value


def mapping(value: Any) -> dict[str, Any]:
    """An object."""
    if not isinstance(value, dict):
        raise TypeError(f"{value!r:.40} is no object")
    return value


def numbers(value: Any) -> tuple[float, ...]:
    """A list of numbers."""
    return tuple(number(x) for x in listed(value))


def counts(value: Any) -> tuple[int, ...]:
    """A list of whole numbers."""
    return tuple(count(x) for x in listed(value))


def rows(value: Any) -> tuple[tuple[float, ...], ...]:
    """A list of lists of numbers."""
    return tuple(numbers(row) for row in listed(value))
