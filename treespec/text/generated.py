"""Generated: a text that a target wrote, with why it ended and what its steps yielded. No torch."""

from dataclasses import dataclass
from typing import Literal

from treespec.errors import counted

Ended = Literal["eos", "stop", "length", "room", "interrupted"]
"""The reason why a text ended: an EOS token, a stop string, `max_new_tokens`, the last position of the model, or its reader."""

_SHOWN = 60
"""Number of characters of a text that its `repr` shows."""


@dataclass(frozen=True, repr=False)
class Generated:
    """A generated text. `str` gives the text, `repr` its beginning and its figures."""

    text: str | None
    """The text behind the prompt, without special tokens, EOS and stop string; None if the pair has no tokenizer."""
    ids: tuple[int, ...]
    """The generated tokens, without the prompt: with the EOS token, and with those of the stop string as far as it was generated."""
    ended: Ended
    accepted_ranks: tuple[tuple[int, ...], ...]
    """For each step, the ranks on the way from the root to the last accepted node; there are none in steps of the target alone."""
    seconds: float
    """Seconds from the first token to the last; the prompt pass, which makes the first token, is not in them."""
    prompt_tokens: int
    stop: str | None = None
    """The stop string that ended the text."""

    @property
    def steps(self) -> int:
        """Return the number of steps; the prompt pass is none."""
        return len(self.accepted_ranks)

    @property
    def tokens(self) -> int:
        """Return the number of generated tokens."""
        return len(self.ids)

    @property
    def tokens_per_step(self) -> float | None:
        """Return the tokens that a step yielded on average; None without a step. The first token comes from the prompt pass."""
        return (self.tokens - 1) / self.steps if self.steps else None

    @property
    def tokens_per_second(self) -> float | None:
        """Return the tokens of the steps per second of the steps; None without a step."""
        return (self.tokens - 1) / self.seconds if self.steps and self.seconds > 0 else None

    def figures(self) -> str:
        """Return the figures in words."""
        found = f"{counted(self.tokens, 'token')} in {counted(self.steps, 'step')}"
        if self.tokens_per_step is not None:
            found += f", {self.tokens_per_step:.2f} tokens per step"
        if self.tokens_per_second is not None:
            found += f", {self.tokens_per_second:.1f} tokens per second"
        return f"{found}; ended by {self.ended}"

    def __str__(self) -> str:
        return str(list(self.ids)) if self.text is None else self.text

    def __repr__(self) -> str:
        whole = list(self.ids[: _SHOWN // 4]) if self.text is None else self.text[:_SHOWN]
        cut = self.tokens > _SHOWN // 4 if self.text is None else len(self.text) > _SHOWN
        return f"Generated({whole!r}{' ...' if cut else ''}: {self.figures()})"
