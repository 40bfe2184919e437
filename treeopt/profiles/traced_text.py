"""TracedText: one text of a trace, with its prompt, its length and its end, as a trace's file holds it. No torch."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treespec.files.fields import flag, listed, mapping, natural, text

Counts = int | NDArray[np.int64]


@dataclass(frozen=True)
class TracedText:
    """One text: its prompt, its length and its end.

    The target chose `tokens` tokens after the prompt: the first, which came with the prompt pass, and the EOS that ended the text, if
    `eos`, are among them; without one, the text ended with the budget.
    """

    row: int
    """Place of the prompt's row in the data set."""
    prompt_sha256: str
    """The first digits of the SHA-256 of the prompt's ids, by which prompts are compared."""
    prompt_tokens: int
    tokens: int
    eos: bool
    target_reads: int | None = None
    """Tokens behind the prompt for which the target has positions (None: trees are never cut for them)."""
    draft_reads: int | None = None
    """Tokens behind the prompt for which the draft has positions. Behind them nothing is drafted."""

    @property
    def drafted(self) -> int:
        """Return the number of its tokens that a draft can propose: those after the first, as far as the draft can read."""
        return self.tokens - 1 if self.draft_reads is None else min(self.tokens - 1, self.draft_reads)

    def room(self, root: Counts, gen_len: int, size: Counts, depth: Counts) -> NDArray[np.int64]:
        """Return the number of nodes of a step whose root is token `root` of the text; the arguments are broadcast.

        It is the `size` of the plan or more, except close to the last positions of a model: see `treespec.decoding.loop.decode`. `gen_len` is the
        budget of the text, and `depth` the plan's.
        """
        most = gen_len + np.asarray(size)
        target, draft = (most if reads is None else np.minimum(reads, most) for reads in (self.target_reads, self.draft_reads))
        found: NDArray[np.int64] = np.maximum(1, np.where(root + depth > draft, np.minimum(target, draft + 1), target) - root)
        return found


def _limit(value: Any) -> int | None:
    return None if value is None else natural(value)


_TEXT_FIELDS = {
    "row": natural,
    "prompt_sha256": text,
    "prompt_tokens": natural,
    "tokens": natural,
    "eos": flag,
    "target_reads": _limit,
    "draft_reads": _limit,
}


def texts_of(value: Any) -> tuple[TracedText, ...]:
    """Return the texts of a file, which has a list per field. Raises LookupError, TypeError, ValueError."""
    lists = {name: [read(item) for item in listed(mapping(value)[name])] for name, read in _TEXT_FIELDS.items()}
    lengths = {len(items) for items in lists.values()}
    if len(lengths) > 1:
        raise ValueError(f"its lists have {' and '.join(map(str, sorted(lengths)))} entries, but each text has one in every list")
    return tuple(TracedText(**dict(zip(lists, row, strict=True))) for row in zip(*lists.values(), strict=True))
