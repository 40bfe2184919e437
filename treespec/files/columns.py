"""Columns of numbers inside JSON: their bytes as base64, which take less room than digits and are read at once."""

import base64
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treespec.errors import counted
from treespec.files.fields import text


def column_text(values: NDArray[Any], kind: str) -> str:
    """Return numbers as text. `kind` is NumPy's name of their type with its byte order, such as "<u4".

    >>> column_text(np.array([1, 2]), "<u2")
    'AQACAA=='
    """
    return base64.b64encode(np.ascontiguousarray(values).astype(kind).tobytes()).decode("ascii")


def column(kind: str, length: int, value: Any) -> NDArray[Any]:
    """Return the `length` numbers of such a text, read-only. Raises TypeError, ValueError for any other text.

    >>> column("<u2", 2, "AQACAA==").tolist()
    [1, 2]
    """
    try:
        data = base64.b64decode(text(value), validate=True)
    except ValueError as e:
        raise ValueError(f"{value!r:.40} is no base64 ({e})") from e
    wanted = length * np.dtype(kind).itemsize
    if len(data) != wanted:
        raise ValueError(f"{value!r:.40} has {counted(len(data), 'byte')}, not the {wanted} of {counted(length, 'number')}")
    return np.frombuffer(data, dtype=kind)
