"""The positions that models have, held against the tokens that they are to read. Models need not be loaded for it.

The last generated token is never read, so that a text may have one token more than its model has positions.
"""

from collections.abc import Sequence
from typing import Protocol

from treespec.errors import CapacityError, counted


class Positioned(Protocol):
    """A model, or the facts about one."""

    @property
    def max_positions(self) -> int | None:
        """Return the number of positions that the model knows; None for no limit."""

    @property
    def rope_note(self) -> str:
        """See `Family.rope_note`."""

    def positions_of(self, prompt: Sequence[int]) -> int:
        """Return the number of positions that a prompt takes."""


def readable(model: Positioned, prompt: Sequence[int]) -> int | None:
    """Return how many of the first tokens of a text that begins with `prompt` a model can read; None for no limit."""
    return None if model.max_positions is None else model.max_positions + len(prompt) - model.positions_of(prompt)


def require_room(target: Positioned, prompt: Sequence[int], gen_len: int, *, whole: bool = False) -> None:
    """Raise CapacityError if a target cannot generate so many tokens after a prompt; the message says what would fit.

    A `whole` prompt cannot be cut.
    """
    length, most = target.positions_of(prompt), target.max_positions
    if most is None or length + gen_len - 1 <= most:
        return
    fits = [f"`gen_len` {most - length + 1} or less"] if length <= most else []
    fits += [f"`prompt_len` {most - gen_len + 1} or less"] if gen_len <= most and not whole else []
    raise CapacityError(
        f"{length} prompt and {counted(gen_len, 'generated token')} need {counted(length + gen_len - 1, 'position')}, "
        f"but the target model has {most}{target.rope_note}; "
        f"pass {', or '.join(fits) or 'a smaller `gen_len` and shorter prompts'}"
    )
