"""Fingerprints: equal for work of equal inputs and options, and unequal for other work."""

import hashlib
import json
from typing import Any


def fingerprint(*parts: Any) -> str:
    """Return the SHA-256 of plain data; the order of a dict's keys does not count. Raises TypeError for values that JSON cannot hold.

    >>> fingerprint({"a": 1, "b": 2}, "c") == fingerprint({"b": 2, "a": 1}, "c")
    True
    >>> fingerprint("a", "b") == fingerprint("b", "a")
    False
    """
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
