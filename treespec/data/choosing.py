"""Choosing how rows become prompts: by their first tokens, or whole."""

from dataclasses import dataclass, field

from treespec.data.rows import Row
from treespec.data.slices import PROMPT_LEN, ROOM, WHOLE_PROMPT_LEN
from treespec.data.tokens import Taken
from treespec.errors import counted


@dataclass(frozen=True)
class Kept:
    """A row that makes a prompt: its place, its tokens, and the prompt's part of them with what follows it."""

    number: int
    row: Row
    taken: Taken
    ids: tuple[int, ...]
    continuation: tuple[int, ...]


@dataclass
class Way:
    """One way of making prompts, and what it has made so far of the rows that it was given.

    A prompt is a row's first `most` tokens, or a `whole` row of at most `most` tokens (None: of any length). A row's own text after it is kept up to
    `continuation_len` tokens: that is the reply of a conversation, and of a whole row with `halves` its second half.
    """

    whole: bool
    most: int | None
    wanted: int
    continuation_len: int = 0
    halves: bool = False
    kept: list[Kept] = field(default_factory=list)
    cut: int = 0
    """Number of prompts that are the beginning of a longer row."""
    others: list[int] = field(default_factory=list)
    """Lengths of the rows that are too short, or as whole ones too long."""
    blank: int = 0
    """Number of rows without any text, which make no whole prompt."""

    @property
    def full(self) -> bool:
        """Whether there are as many prompts as wanted."""
        return len(self.kept) == self.wanted

    @property
    def short(self) -> int:
        """Number of rows that were too short."""
        return self.blank if self.whole else len(self.others)

    def take(self, number: int, row: Row, taken: Taken) -> None:
        """Make a prompt of a row if it can be one, and count it if not. A way that is full takes no more rows."""
        if self.full:
            return
        ids, rest = taken.ids, taken.reply
        if self.whole and not (ids and (row.text is None or row.text.strip() or taken.talk.messages or taken.picture)):
            self.blank += 1
            return
        if self.most is not None and (len(ids) > self.most if self.whole else len(ids) < self.most):
            self.others.append(len(ids))
            return
        if not self.whole or self.halves:
            at = max(1, len(ids) // 2) if self.halves else self.most
            ids, rest = ids[:at], ids[at:]
            self.cut += bool(rest) and not self.halves
        self.kept.append(Kept(number, row, taken, ids, rest[: self.continuation_len]))

    def describe_limit(self, room: int | None) -> str:
        """Return the words for what bounds whole prompts."""
        if self.most == room:
            return f"{ROOM} {counted(max(0, self.most or 0), 'token')} of a prompt (a smaller `gen_len` leaves more)"
        return f"`prompt_len` is {self.most}"


def ways(
    *, prompt_len: int | None, whole: bool, limited: bool, room: int | None, wanted: int, continuation_len: int, own_text: bool
) -> list[Way]:
    """Return the ways in which prompts may be made, the preferred one first; `best` chooses.

    Rows are cut after `prompt_len` tokens. Without it they are cut after PROMPT_LEN, or taken whole where too few are as long. `whole` ones
    are bounded by `prompt_len`, by the target's `room`, and if they are `limited` by WHOLE_PROMPT_LEN. `own_text` rows have no reply to
    measure on, so that they are halved if there is a `continuation_len`.
    """
    halves = own_text and continuation_len > 0

    def whole_rows(most: int | None) -> Way:
        bounds = [bound for bound in (most, room) if bound is not None]
        return Way(True, min(bounds, default=None), wanted, continuation_len, halves)

    if whole:
        return [whole_rows(prompt_len or (WHOLE_PROMPT_LEN if limited else None))]
    cut = Way(False, prompt_len or PROMPT_LEN, wanted, continuation_len)
    return [cut] if prompt_len is not None else [cut, whole_rows(WHOLE_PROMPT_LEN)]


def best(tried: list[Way]) -> Way:
    """Return the way to use: whole rows if those that are long enough to be cut are fewer than wanted, and whole ones are more or they are none."""
    cut, *others = tried
    return next((whole for whole in others if not cut.full and (len(whole.kept) > len(cut.kept) or not cut.kept)), cut)
