"""Checks that settings share. Each raises a SettingsError that names the parameter, its value and what it must be."""

from numbers import Integral
from typing import Any

from treespec.errors import SettingsError


def require_whole(least: int, **values: Any) -> None:
    """Raise SettingsError for a value that is no whole number, or one below `least`."""
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool):
            remedy = f" of Python; pass int({name})" if not isinstance(value, bool) and isinstance(value, Integral) else ""
            raise SettingsError(f"`{name}` is {value!r}, but it must be a whole number{remedy}")
        if value < least:
            raise SettingsError(f"`{name}` is {value}, but it must be {least} or more")


def require_at_most(most: int, **values: int) -> None:
    """Raise SettingsError for a value above `most`."""
    for name, value in values.items():
        if value > most:
            raise SettingsError(f"`{name}` is {value}, but it must be {most:,} or less")


def require_number(**values: Any) -> None:
    """Raise SettingsError for a value that is no number."""
    for name, value in values.items():
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise SettingsError(f"`{name}` is {value!r}, but it must be a number")


def require_kind(kind: type, **values: Any) -> None:
    """Raise SettingsError for a value that is no `kind`."""
    for name, value in values.items():
        if not isinstance(value, kind):
            raise SettingsError(f"`{name}` is {value!r}, but it must be a {kind.__name__}; write {name}={kind.__name__}(...)")
