"""Stop strings, found in a text that comes in pieces."""

from collections.abc import Sequence


class Stops:
    r"""The search for stop strings in a text. It holds back no more than what may be the beginning of one.

    The first stop string is the one whose last character comes first. If several end there, it is the longest of them. So the end of
    the text depends on its characters alone, and not on how it is cut into tokens and steps. A stop string inside the prompt is none.

    >>> stops = Stops(["User:", "s"])
    >>> [stops.push(piece) for piece in ("Hello.", "\nUs", "er: hi")], stops.found
    (['Hello.', '\nU', ''], 's')
    >>> stops = Stops(["User:"])
    >>> [stops.push(piece) for piece in ("Hello.\nUs", "e a ", "Us")], stops.end()
    (['Hello.\n', 'Use a ', ''], 'Us')
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = tuple(strings)
        self._longest = max(map(len, self._strings), default=0)
        self._held = ""
        self.found: str | None = None
        """The stop string that ended the text."""

    def push(self, text: str) -> str:
        """Return what is certain to be in the text, now that `text` has followed. Behind a stop string there is nothing."""
        if self.found is not None:
            return ""
        self._held += text
        ends = [(at + len(string), at, string) for string in self._strings if (at := self._held.find(string)) >= 0]
        if ends:
            _, at, self.found = min(ends)
            certain, self._held = self._held[:at], ""
            return certain
        kept = next((n for n in range(min(self._longest - 1, len(self._held)), 0, -1) if self._begins(self._held[-n:])), 0)
        certain, self._held = self._held[: len(self._held) - kept], self._held[len(self._held) - kept :]
        return certain

    def end(self) -> str:
        """Return what was held back, for a text that ends here."""
        certain, self._held = self._held, ""
        return certain

    def _begins(self, text: str) -> bool:
        return any(string.startswith(text) for string in self._strings)
