"""Tokens become characters one by one, as the tokenizer would decode them all at once."""

from collections.abc import Sequence
from typing import Any, Protocol

_BROKEN = "\ufffd"
"""The character for bytes that are no character, or not yet."""
_LONGEST = 4
"""Largest number of bytes of a character, so that at most three wait for the next one."""
_WINDOW = 32
"""Largest number of tokens that are decoded anew for each token; half of them stay when the window moves."""


class Decoder(Protocol):
    """A tokenizer that decodes. Those of transformers do."""

    def decode(self, token_ids: list[int], skip_special_tokens: bool = False, **options: Any) -> str | list[str]:
        """Return the text of tokens. The one option that is used is `clean_up_tokenization_spaces`."""


class Characters:
    """The text that tokens add to a prompt, character by character. A character is given out when its last token has come, never in parts.

    The text is what `decode` has for prompt and tokens together, behind what it has for the prompt alone: so the space that
    sentencepiece drops in front of a text is there, and a character that the prompt left unfinished is finished. Special tokens have no
    text. Spaces are never cleaned up, for that takes back what was given out. To decode few tokens each time, only a window of the last
    ones is decoded; it moves where the text stays the same.

    Where bytes that are no text follow whole characters, some tokenizers (those with a token per byte) give up the characters as well;
    here they stay.
    """

    def __init__(self, tokenizer: Decoder, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        size = _WINDOW // 2
        self._window = list(prompt[-size:])
        while not self._decoded(self._window) and size < len(prompt):  # special tokens only; the space in front depends on what is before
            size *= 2
            self._window = list(prompt[-size:])
        unfinished = self._unfinished()
        tail = self._window[len(self._window) - unfinished :]
        self._window = self._window[: len(self._window) - unfinished]
        self._settled, self._prompts = len(self._window), 0
        self._given = self._whole(self._decoded(self._window))
        for token in tail:
            self.push(token)
        self._prompts = len(self._decoded(self._window)) - len(self._given)

    def push(self, token: int) -> str:
        """Return the characters that are whole now that `token` has followed."""
        self._window.append(token)
        text = self._decoded(self._window)
        if not text.startswith(self._given):  # what follows changes how the bytes before are read
            del self._window[: self._settled or -1]
            self._given, self._settled, text = "", 0, self._decoded(self._window)
        whole = self._whole(text)
        fresh = self._give(whole)
        if whole == text:
            self._settled = len(self._window)
            self._move()
        return fresh

    def end(self) -> str:
        """Return what was held back, for a text that ends here: bytes that are no character."""
        return self._give(self._decoded(self._window))

    def _give(self, text: str) -> str:
        """Return what is new in the text, without the prompt's own bytes that never became a character."""
        fresh = text[len(self._given) :]
        self._given = text
        broken = min(self._prompts, len(fresh) - len(fresh.lstrip(_BROKEN)))
        if fresh:
            self._prompts = self._prompts - broken if broken == len(fresh) else 0
        return fresh[broken:]

    def _unfinished(self) -> int:
        """Return how many tokens at the end of the prompt began a character that is not whole; 0 if they are not told from wrong bytes."""
        counts = range(min(_LONGEST + 1, len(self._window)))
        lasting = (count for count in counts if not self._decoded(self._window[: len(self._window) - count]).endswith(_BROKEN))
        return next(lasting, 0)

    def _whole(self, text: str) -> str:
        """Return the text without bytes at its end that the next token may make a character of."""
        broken = min(len(text) - len(text.rstrip(_BROKEN)), _LONGEST - 1)
        return text[: len(text) - broken]

    def _move(self) -> None:
        """Forget the first tokens of the window where the text of the others does not depend on them."""
        if len(self._window) <= _WINDOW:
            return
        rest = self._window[-(_WINDOW // 2) :]
        text = self._decoded(rest)
        if text and self._given.endswith(text):
            self._window, self._given, self._settled = rest, text, len(rest)

    def _decoded(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))
