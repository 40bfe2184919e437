"""TOML: settings as people write them. They are read with the standard library, and written so that they can be read back."""

import json
import tomllib
from collections.abc import Mapping
from typing import Any

from treespec.errors import SettingsError
from treespec.files.reading import StrPath, read_bytes

_MOST_BYTES = 1 << 20
"""Largest file of settings."""


def read_toml(path: StrPath) -> dict[str, Any]:
    """Return the table that a TOML file holds. Raises SettingsError for a file that cannot be read, or is no TOML."""
    try:
        return tomllib.loads(read_bytes(path, limit=_MOST_BYTES, error=SettingsError).decode())
    except UnicodeDecodeError as e:
        raise SettingsError(f"{path} is no TOML: it is no text in UTF-8; settings are lines such as temperature = 0.6") from e
    except (tomllib.TOMLDecodeError, RecursionError) as e:
        raise SettingsError(f"{path} is no TOML: {e}; settings are lines such as temperature = 0.6") from e


def toml_text(settings: Mapping[str, Any]) -> str:
    r"""Return texts, numbers, truth values and lists of them as TOML, one key per line. Keys without a value (None) are left out.

    >>> print(toml_text({"dataset": "a \"b\"", "temperature": [0.0, 0.6], "chat": False, "end": None}), end="")
    dataset = "a \"b\""
    temperature = [0.0, 0.6]
    chat = false
    """
    return "".join(f"{_key(key)} = {_value(value)}\n" for key, value in settings.items() if value is not None)


def _key(key: str) -> str:
    return key if key.replace("_", "a").replace("-", "a").isalnum() and key.isascii() else _text(key)


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, value))}]"
    return json.dumps(value) if isinstance(value, bool | int | float) else _text(str(value))


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
