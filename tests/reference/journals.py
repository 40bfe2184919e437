"""Lines of journals as a damaged or another programme's file could have them, with a checksum that is right."""

import json
import zlib
from typing import Any


def line_of(entry: dict[str, Any]) -> str:
    """A line without its end, whose checksum is that of this content."""
    rest = json.dumps({key: value for key, value in entry.items() if key != "crc32"})[1:]
    return f'{{"crc32": "{zlib.crc32(rest.encode() + bytes([10])):08x}", {rest}'
