"""Text that a terminal shows and does not obey: what comes from files, names and libraries passes here before people see it."""

import re

_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters but for tab and newline
    "\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"  # unseen, or turning the text around
    "\ud800-\udfff"  # half a surrogate pair, as bytes of a file's name that are no text become
    "\U0001d173-\U0001d17a\U000e0000-\U000e007f]"
)


def printable(text: str) -> str:
    r"""Return text in which everything that a terminal would obey, or not show, is written out.

    >>> print(printable("a\x1b[2Jb\u202ec"))
    a\x1b[2Jb\u202ec
    """
    return text if text.isascii() and text.isprintable() else _HIDDEN.sub(lambda found: ascii(found[0])[1:-1], text)
