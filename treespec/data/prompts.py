"""Prompts: from the name or the path of a data set to the token prompts that profiling and evaluation run on."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from treespec.checks import require_kind, require_whole
from treespec.data.chat import require_template
from treespec.data.choosing import Kept, Way, best, ways
from treespec.data.listed import IN_MEMORY, listed_rows
from treespec.data.messages import BEFORE, Message
from treespec.data.pictures import Picture, PictureReader
from treespec.data.rows import BadRow
from treespec.data.slices import ChatOptions, DatasetSlice
from treespec.data.sources import DATASET_NAMES, open_rows
from treespec.data.tokens import PICTURED, RowReader, Tokenizer, refused
from treespec.errors import DatasetError, NoPromptError, SettingsError, counted
from treespec.files.fingerprint import fingerprint
from treespec.tables import in_short

MOST_BAD_ROWS = 10_000
"""Number of bad rows at which skipping them ends: they are kept for the record, and so many show that the data set is of another kind."""


@dataclass(frozen=True)
class Prompt:
    """The token ids that a model starts from, and how their row goes on.

    A prompt is of one of three kinds:
    - text: the first tokens of a row;
    - conversation: `messages`, in the tokenizer's chat template, up to the model's turn;
    - picture: a question about `picture`.

    `row` is the row's 0-based place in the data set, `name` says the same for people. `continuation` is empty unless it was asked for,
    and shorter than asked for where the row ends.
    """

    row: int
    name: str
    ids: tuple[int, ...]
    continuation: tuple[int, ...] = ()
    picture: Picture | None = None
    messages: tuple[Message, ...] = ()
    """The messages of a conversation; other prompts have none."""
    turns: tuple[str, ...] = ()
    """The user's later turns, whose preceding replies are not known."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """The arguments of the chat template."""
    category: str = ""
    """The kind of task of its row; "" if the data set names none."""
    row_sha256: str = ""
    """SHA-256 of the content of its row, which tells data sets of one name apart."""


@dataclass(frozen=True)
class PromptSet:
    """The prompts taken from rows `start` to `end` - 1 of a data set.

    Of these rows, `skipped` were too short, `too_long` were whole prompts with more than `most` tokens, and the `bad` ones could not be
    read. With `whole` false, prompts are the first `most` tokens of rows, and `cut` of them are of longer rows. With `halved`, a
    prompt is the first half of a row, and the second one is its continuation.
    """

    prompts: tuple[Prompt, ...]
    dataset: str
    start: int
    end: int
    skipped: int
    too_long: int = 0
    bad: tuple[BadRow, ...] = ()
    chat: bool = False
    whole: bool = False
    most: int | None = None
    cut: int = 0
    halved: bool = False
    options: ChatOptions = ChatOptions()
    """The additions to every conversation."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Numbers of the parts of messages that were left out, by kind."""

    def __len__(self) -> int:
        """Return the number of prompts."""
        return len(self.prompts)

    def __repr__(self) -> str:
        return in_short(self, prompts=len(self), rows=self.label)

    def __iter__(self) -> Iterator[Prompt]:
        """Yield the prompts in row order."""
        return iter(self.prompts)

    def split(self, count: int) -> tuple["PromptSet", "PromptSet"]:
        """Return the first `count` prompts and the others, as sets of their own. Raises SettingsError if either has none.

        The counts of rows that made no prompt stay with the first.
        """
        require_whole(1, count=count)
        if not 0 < count < len(self):
            raise SettingsError(
                f"`count` is {count}, but {counted(len(self), 'prompt')} can be split after 1 to {len(self) - 1}; load more"
            )
        border = self.prompts[count].row
        rest = replace(self, prompts=self.prompts[count:], start=border, skipped=0, too_long=0, bad=(), cut=0, left_out={})
        return replace(self, prompts=self.prompts[:count], end=border), rest

    @property
    def label(self) -> str:
        """The data set and the rows that were taken, in the form of provenance: `cnn[0:100]`."""
        return f"{self.dataset}[{self.start}:{self.end}]"

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all token ids, continuations included: equal for equal work."""
        return fingerprint(*((p.ids, p.continuation, *([] if p.picture is None else [p.picture.sha256])) for p in self.prompts))

    def describe(self) -> dict[str, Any]:
        """Return provenance as plain JSON; a path is reduced to its last part."""
        return {
            "dataset": self.dataset,
            "start": self.start,
            "end": self.end,
            "prompts": len(self.prompts),
            "skipped": self.skipped,
            "too_long": self.too_long,
            "bad_rows": [row.name for row in self.bad],
            "prompt_len": max((len(prompt.ids) for prompt in self.prompts), default=0),
            "whole": self.whole,
            "cut": self.cut,
            "left_out": dict(self.left_out),
            "chat": self.chat,
            **(self.options.describe() if self.chat else {}),
            **({"row": self.prompts[0].row, "row_sha256": self.prompts[0].row_sha256} if self.prompts else {}),
            "sha256": self.fingerprint,
        }


def load_prompts(
    dataset: str | Sequence[object],
    tokenizer: Tokenizer | None,
    *,
    num_prompts: int,
    prompt_len: int | None = None,
    whole_prompts: bool = False,
    room: int | None = None,
    start: int = 0,
    end: int | None = None,
    continuation_len: int = 0,
    vocabulary_size: int | None = None,
    chat: bool = False,
    chat_options: ChatOptions = ChatOptions(),
    field: str | None = None,
    skip_bad_rows: bool = False,
    pictures: PictureReader | None = None,
    picture_prompt: str | None = None,
) -> PromptSet:
    """Return prompts of rows in file order, from row `start` up to `end` (left out) or `num_prompts` prompts.

    `dataset` is one of DATASET_NAMES, a hub id, a .jsonl, .json, .parquet or .txt file, a folder saved by `datasets`, or a list of rows in
    memory: texts, lists of token ids or of messages, and objects such as the lines of a .jsonl file. `field` is the key that
    holds the rows' text if it is none of the usual ones. Rows of `input_ids` are taken as they are, and need no tokenizer. `vocabulary_size` is
    the number of the model's embedding rows, which may be smaller than the number of its tokenizer's tokens; rows with tokens beyond it are
    bad. Fewer than `num_prompts` prompts come back if the rows end.

    A prompt is the first `prompt_len` tokens of a row; rows of fewer tokens are skipped and counted. Without `prompt_len` that is
    PROMPT_LEN, but where fewer than `num_prompts` rows are so long, rows are taken whole. With `whole_prompts` they always are, and rows of
    more than `prompt_len` tokens, or than the target has `room` for, are skipped and counted. What follows a whole row is its second
    half if a continuation is asked for.

    With `chat`, a prompt is a row's whole conversation in the tokenizer's chat template, up to where the model is to answer, with
    `chat_options`. Prompts of more than `prompt_len` (WHOLE_PROMPT_LEN) tokens are skipped and counted.

    With `pictures`, rows are pictures (a folder of them, or rows of `image` and `prompt`), and a prompt is the whole question about one:
    the row's own, else `picture_prompt`, else a question for a description. A row that has other text of its own is bad instead, unless
    `picture_prompt` is given.

    Raises SettingsError if no rows are asked for; DatasetError for an unknown data set, a tokenizer without a chat template, or a bad row
    (`skip_bad_rows` skips bad rows and counts them); NoPromptError if there is no row at `start`, or none that makes a prompt.
    """
    if num_prompts < 1 or (prompt_len is not None and prompt_len < 1) or continuation_len < 0:
        raise SettingsError(
            f"`num_prompts` {num_prompts} and `prompt_len` {prompt_len} must be 1 or more, `continuation_len` {continuation_len} 0 or more"
        )
    DatasetSlice(str(dataset), field, start, end)  # checks `start` and `end`
    require_kind(ChatOptions, chat_options=chat_options)
    if chat and tokenizer is not None:
        require_template(tokenizer, chat_options)
    if pictures is not None and isinstance(dataset, str) and dataset in DATASET_NAMES:
        raise DatasetError(f"data set {dataset} is text, but the target reads pictures; {PICTURED}")
    limited = chat or pictures is not None
    tried = ways(
        prompt_len=prompt_len,
        whole=whole_prompts or limited,
        limited=limited,
        room=room,
        wanted=num_prompts,
        continuation_len=continuation_len,
        own_text=not limited,
    )
    reader = RowReader(tokenizer, vocabulary_size, chat_options if chat else None, pictures, picture_prompt)
    if isinstance(dataset, str):
        name, rows = open_rows(dataset, field, pictures=pictures is not None, end=end)
    else:
        name, rows = IN_MEMORY, islice(listed_rows(dataset, field), end)
    bad: dict[int, BadRow] = {}
    read = 0
    for read, row in enumerate(rows, start=1):
        if read <= start:
            continue
        taken = row if isinstance(row, BadRow) else reader.read(row)
        if isinstance(taken, BadRow) or isinstance(row, BadRow):
            assert isinstance(taken, BadRow)
            if not skip_bad_rows:
                raise refused(taken)
            bad[read - 1] = taken
            if len(bad) == MOST_BAD_ROWS:
                raise DatasetError(f"{name} has {MOST_BAD_ROWS:,} bad rows, too many to be skipped; {next(iter(bad.values())).reason}")
            continue
        for way in tried:
            way.take(read - 1, row, taken)
        if tried[0].full:
            break
    if read <= start:
        raise no_row_at(start, name, read)
    way = best(tried)
    if not way.kept:
        raise NoPromptError(_no_prompt(name, way, list(bad.values()), room))
    last = way.kept[-1].number + 1 if way.full else read
    left_out = sum((Counter(kept.row.left_out) for kept in way.kept), Counter[str]())
    return PromptSet(
        tuple(_prompt(kept, chat) for kept in way.kept),
        name,
        start,
        last,
        way.short,
        len(way.others) if way.whole else 0,
        tuple(row for number, row in bad.items() if number < last),
        chat,
        whole=way.whole,
        most=way.most,
        cut=way.cut,
        halved=way.halves,
        options=chat_options,
        left_out={what: count for what, count in left_out.items() if chat or what != BEFORE},
    )


def _prompt(kept: Kept, chat: bool) -> Prompt:
    talk = kept.taken.talk
    turns = kept.row.turns if chat else ()
    return Prompt(
        kept.number,
        kept.row.name,
        kept.ids,
        kept.continuation,
        kept.taken.picture,
        talk.messages,
        turns,
        talk.arguments,
        kept.row.category,
        kept.row.sha256,
    )


def no_row_at(start: int, name: str, rows: int) -> NoPromptError:
    """Return the error for a slice that starts after the last row."""
    if not rows:
        return NoPromptError(f"data set {name} has no rows; name one that has some")
    count = counted(rows, "row")
    return NoPromptError(f"data set {name} has no row at `start` {start}: it has {count}, counted from 0; pass `start` {rows - 1} or less")


def _no_prompt(name: str, way: Way, bad: Sequence[BadRow], room: int | None) -> str:
    """Return the reason why none of a slice's rows makes a prompt."""
    if not way.others and not way.blank:
        return f"{name}: {counted(len(bad), 'row was', 'rows were')} read, and none is good, the first because of this: {bad[0].reason}"
    if not way.others:
        read = f"{counted(way.blank, 'row was', 'rows were')} read"
        beside = f" beside {counted(len(bad), 'bad one')}" if bad else ""
        return f"{name}: {read}{beside}, and none holds any text of which the tokenizer makes tokens; name rows that do"
    if not any(way.others):
        return (
            f"no row of {name} has a token ({counted(len(way.others), 'row was', 'rows were')} read); name other rows or, where these hold text, "
            "use tokenizer files that fit the model"
        )
    if way.whole:
        least, limit = min(way.others), way.describe_limit(room)
        remedy = "" if way.most == room else f"`prompt_len` {least} or more, or "
        return (
            f"no whole prompt of {name} is short enough: {limit}, but the shortest of {len(way.others)} has {counted(least, 'token')}; "
            f"pass {remedy}shorter ones"
        )
    longest = max(way.others)
    shorter = {1: "`prompt_len` 1, `whole_prompts`, or "}.get(longest, f"`prompt_len` {longest} or less, `whole_prompts`, or ")
    return (
        f"no row of {name} is long enough: `prompt_len` is {way.most}, but the longest row of {len(way.others)} has {counted(longest, 'token')}; "
        f"pass {shorter}longer rows"
    )
