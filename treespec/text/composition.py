"""Composition: the text of one answer, composed token by token, with who proposed each character."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from treespec.text.characters import Characters, Decoder
from treespec.text.stops import Stops


@dataclass(frozen=True)
class Piece:
    """A piece of a text: whole characters. It is `accepted` if the draft proposed the tokens that completed them, and else the target's own."""

    text: str
    accepted: bool


class Composition:
    """The text that tokens add to a prompt, up to a stop string. Pieces that are given out stay as they are.

    Special tokens have no text, so a stop string that is one of them ends the text at that token.
    """

    def __init__(self, tokenizer: Decoder, prompt: Sequence[int], stop: Sequence[str]) -> None:
        self._characters = Characters(tokenizer, prompt)
        self._stops = Stops(stop)
        self._special = {token: string for token, string in special_tokens(tokenizer).items() if string in stop} if stop else {}
        self._waiting: list[tuple[str, bool]] = []
        self._certain: list[tuple[str, bool]] = []
        self.stop: str | None = None
        """The stop string that ended the text; what follows is dropped."""
        self.text = ""
        """The text that has been given out."""

    def add(self, token: int, accepted: bool) -> None:
        """Add a token."""
        if token in self._special and self.stop is None:
            self._end()
            self.stop = self._special[token]
        self._push(self._characters.push(token), accepted)

    def end(self) -> None:
        """End the text: what was held back is certain now."""
        self._push(self._characters.end(), False)
        self._end()

    def take(self) -> Iterator[Piece]:
        """Yield what has become certain since the last call."""
        found, self._certain = self._certain, []
        for accepted, characters in groupby(found, key=lambda character: character[1]):
            text = "".join(character for character, _ in characters)
            self.text += text
            yield Piece(text, accepted)

    def _push(self, text: str, accepted: bool) -> None:
        if self.stop is not None:
            return
        self._waiting += ((character, accepted) for character in text)
        self._pass(self._stops.push(text))
        self.stop = self._stops.found

    def _end(self) -> None:
        if self.stop is None:
            self._pass(self._stops.end())

    def _pass(self, certain: str) -> None:
        """Move as many of the waiting characters to those that are certain."""
        self._certain += self._waiting[: len(certain)]
        del self._waiting[: len(certain)]


def special_tokens(tokenizer: Any) -> Mapping[int, str]:
    """Return the tokens that have no text, by id: those that a tokenizer of transformers skips."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    named = zip(getattr(tokenizer, "all_special_ids", ()), getattr(tokenizer, "all_special_tokens", ()), strict=False)
    return {**{token: str(known) for token, known in added.items() if known.special}, **{token: str(string) for token, string in named}}
