"""Prompts: from the name or the path of a data set to the token prompts that profiling and evaluation run on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from treespec.data.chat import chat_ids, reply_ids, require_template
from treespec.data.pictures import PROMPT, QUESTION, Picture, PictureReader, find_picture
from treespec.data.rows import BadRow, Message, Row
from treespec.data.slices import DatasetSlice
from treespec.data.sources import DATASET_NAMES, open_rows
from treespec.errors import DatasetError, NoPromptError, SettingsError, counted
from treespec.files.fingerprint import fingerprint


class Tokenizer(Protocol):
    """The methods that a tokenizer must have. Those of transformers have them."""

    def encode(self, text: str) -> Sequence[int]:
        """Return the token ids of a text, after the special tokens that the model expects in front."""
        ...

    def __len__(self) -> int:
        """Return the number of tokens that it knows, added ones included."""
        ...


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


@dataclass(frozen=True)
class PromptSet:
    """The prompts taken from rows `start` to `end` - 1 of a data set.

    Of these rows, `skipped` were too short, `too_long` were whole prompts (conversations, pictures) with too many tokens, and the `bad` ones
    could not be read.
    """

    prompts: tuple[Prompt, ...]
    dataset: str
    start: int
    end: int
    skipped: int
    too_long: int = 0
    bad: tuple[BadRow, ...] = ()
    chat: bool = False
    row_sha256: str = ""
    """SHA-256 of the content of the first prompt's row, which tells data sets of one name apart."""

    def __len__(self) -> int:
        """Return the number of prompts."""
        return len(self.prompts)

    def __iter__(self) -> Iterator[Prompt]:
        """Yield the prompts in row order."""
        return iter(self.prompts)

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
            "chat": self.chat,
            **({"row": self.prompts[0].row, "row_sha256": self.row_sha256} if self.prompts else {}),
            "sha256": self.fingerprint,
        }


def load_prompts(
    dataset: str,
    tokenizer: Tokenizer | None,
    *,
    num_prompts: int,
    prompt_len: int,
    start: int = 0,
    end: int | None = None,
    continuation_len: int = 0,
    vocabulary_size: int | None = None,
    chat: bool = False,
    field: str | None = None,
    skip_bad_rows: bool = False,
    pictures: PictureReader | None = None,
    picture_prompt: str | None = None,
) -> PromptSet:
    """Return the first `prompt_len` tokens of rows in file order, from row `start` up to `end` (left out) or `num_prompts` prompts.

    `dataset` is one of DATASET_NAMES, a .jsonl, .json, .parquet or .txt file, or a folder saved by `datasets`. `field` is the key that
    holds the rows' text if it is none of the usual ones. Rows of fewer tokens are skipped and counted; rows of `input_ids` are taken as
    they are, and need no tokenizer. `vocabulary_size` is the number of the model's embedding rows, which may be smaller than the number
    of its tokenizer's tokens; rows with tokens beyond it are bad. Fewer than `num_prompts` prompts come back if the rows end.

    With `chat`, a prompt is a row's whole conversation in the tokenizer's chat template, up to where the model is to answer;
    rows of `input_ids` are whole prompts too. Prompts of more than `prompt_len` tokens are skipped and counted.

    With `pictures`, rows are pictures (a folder of them, or rows of `image` and `prompt`), and a prompt is the whole question about one:
    the row's own, else `picture_prompt`, else a question for a description. A row that has other text of its own is bad instead, unless
    `picture_prompt` is given.

    Raises SettingsError if no rows are asked for; DatasetError for an unknown data set, a tokenizer without a chat template, or a bad row
    (`skip_bad_rows` skips bad rows and counts them); NoPromptError if there is no row at `start`, or none that makes a prompt.
    """
    if num_prompts < 1 or prompt_len < 1 or continuation_len < 0:
        raise SettingsError(
            f"`num_prompts` {num_prompts} and `prompt_len` {prompt_len} must be 1 or more, `continuation_len` {continuation_len} 0 or more"
        )
    DatasetSlice(dataset, field, start, end)  # checks `start` and `end`
    if chat and tokenizer is not None:
        require_template(tokenizer)
    whole = chat or pictures is not None
    if pictures is not None and dataset in DATASET_NAMES:
        raise DatasetError(f"data set {dataset} is text, but the target reads pictures; {_PICTURED}")
    name, rows = open_rows(dataset, field, pictures=pictures is not None, end=end)
    prompts: list[Prompt] = []
    bad: list[BadRow] = []
    others: list[int] = []  # lengths of rows that are too short, or as conversations too long
    read, first = 0, ""
    for read, row in enumerate(rows, start=1):
        if read <= start:
            continue
        taken: _Taken | BadRow
        if isinstance(row, BadRow):
            taken = row
        elif pictures is not None or row.image is not None:
            taken = _about_picture(row, pictures, picture_prompt, chat)
        else:
            taken = _tokens(row, tokenizer, chat)
        taken = _readable(taken, row.name, vocabulary_size, whole)
        if isinstance(taken, BadRow):
            if not skip_bad_rows:
                raise refused(taken)
            bad.append(taken)
            continue
        assert isinstance(row, Row)
        ids = taken.ids
        if len(ids) > prompt_len if whole else len(ids) < prompt_len:
            others.append(len(ids))
            continue
        rest = taken.reply if whole else ids[prompt_len:]
        first = first or row.sha256
        talk = (row.messages, row.turns) if chat else ()
        prompts.append(Prompt(read - 1, row.name, ids[:prompt_len], rest[:continuation_len], taken.picture, *talk))
        if len(prompts) == num_prompts:
            break
    if read <= start:
        raise no_row_at(start, name, read)
    if not prompts:
        raise NoPromptError(_no_prompt(name, prompt_len, others, bad, whole))
    skipped, too_long = (0, len(others)) if whole else (len(others), 0)
    return PromptSet(tuple(prompts), name, start, read, skipped, too_long, tuple(bad), chat, first)


def token_ids(row: Row, tokenizer: Tokenizer | None, vocabulary_size: int | None) -> tuple[int, ...] | BadRow:
    """Return all token ids of a row, or the reason why the model cannot read it. Raises DatasetError for text without a tokenizer."""
    taken = _readable(_tokens(row, tokenizer, False), row.name, vocabulary_size)
    return taken if isinstance(taken, BadRow) else taken.ids


def unreadable(ids: Sequence[int], vocabulary_size: int | None, *, whole: bool = False) -> str | None:
    """Return why these ids are invalid for a model with `vocabulary_size` embedding rows, or None if they are valid.

    With `vocabulary_size` None, every id is valid. Ids that are a `whole` prompt must not be empty.
    """
    if whole and not ids:
        return "no tokens, but a prompt has at least one"
    wrong = max(ids, default=0)
    if vocabulary_size is None or wrong < vocabulary_size:
        return None
    return (
        f"token {wrong}, but the model has {counted(vocabulary_size, 'embedding row')}, for ids 0 to {vocabulary_size - 1} only; "
        "give it rows for added tokens (resize_token_embeddings), or use rows and tokenizer files that belong to it"
    )


def refused(row: BadRow) -> DatasetError:
    """Return the error for a bad row, for callers that do not skip bad rows."""
    return DatasetError(f"{row.reason} (`skip_bad_rows` goes on without such rows)")


def no_row_at(start: int, name: str, rows: int) -> NoPromptError:
    """Return the error for a slice that starts after the last row."""
    if not rows:
        return NoPromptError(f"data set {name} has no rows; name one that has some")
    count = counted(rows, "row")
    return NoPromptError(f"data set {name} has no row at `start` {start}: it has {count}, counted from 0; pass `start` {rows - 1} or less")


def _no_prompt(name: str, prompt_len: int, others: Sequence[int], bad: Sequence[BadRow], whole: bool) -> str:
    """Return the reason why none of a slice's rows makes a prompt."""
    if not others:
        return f"{name}: {counted(len(bad), 'row was', 'rows were')} read, and none is good, the first because of this: {bad[0].reason}"
    if whole:
        return (
            f"no whole prompt of {name} is short enough: `prompt_len` is {prompt_len}, but the shortest of {len(others)} has "
            f"{counted(min(others), 'token')}; pass `prompt_len` {min(others)} or more, or shorter ones"
        )
    longest = max(others)
    shorter = {0: "", 1: "`prompt_len` 1, or "}.get(longest, f"`prompt_len` {longest} or less, or ")
    return (
        f"no row of {name} is long enough: `prompt_len` is {prompt_len}, but the longest row of {len(others)} has {counted(longest, 'token')}; "
        f"pass {shorter}longer rows"
    )


_PICTURED = 'pass a folder of pictures, or rows of {"image": PATH, "prompt": ...}'


@dataclass(frozen=True)
class _Taken:
    """The tokens of a row: of its text, of its conversation and its `reply`, or of the question about its `picture`."""

    ids: tuple[int, ...]
    reply: tuple[int, ...] = ()
    picture: Picture | None = None


def _about_picture(row: Row, pictures: PictureReader | None, prompt: str | None, chat: bool) -> _Taken | BadRow:
    """Return the tokens of the question about a row's picture, or the bad row. Raises DatasetError for a model that reads text only."""
    if pictures is None:
        raise DatasetError(
            f"{row.name} is a picture, which needs a vision-language target (of the kind llava); here text is read only: pass a data set of text"
        )
    if row.image is None:
        return BadRow(row.name, f"{row.name} has no picture, but the target reads pictures; {_PICTURED}")
    if row.unread and prompt is None:
        return BadRow(
            row.name,
            f'{row.name}: nothing is asked about the picture under "prompt" or "text", but the row has text under {", ".join(map(repr, row.unread))}; '
            "name the key of what is asked with `field`, or pass a `picture_prompt` to ask the same about each",
        )
    asked = row.text if row.text is not None else prompt or (QUESTION if chat else PROMPT)
    try:
        return _Taken(pictures.ids(asked, row.name, chat), picture=find_picture(row.image, row.name))
    except DatasetError as e:
        return BadRow(row.name, str(e))


def _readable(taken: _Taken | BadRow, name: str, vocabulary_size: int | None, whole: bool = False) -> _Taken | BadRow:
    """Return `taken`, or a bad row if the model cannot read its ids."""
    if isinstance(taken, BadRow):
        return taken
    reason = unreadable(taken.ids, vocabulary_size, whole=whole) or unreadable(taken.reply, vocabulary_size)
    return taken if reason is None else BadRow(name, f"{name}: the row has {reason}")


def _tokens(row: Row, tokenizer: Tokenizer | None, chat: bool) -> _Taken | BadRow:
    """Return the tokens of a row's text, ids or conversation, or the bad row. Raises DatasetError for text without a tokenizer."""
    if row.ids is None:
        if tokenizer is None:
            raise DatasetError(
                f'{row.name} is text, but the model comes without a tokenizer; add its files to the folder, or give rows of "input_ids"'
            )
        try:
            return _Taken(chat_ids(tokenizer, row), reply_ids(tokenizer, row)) if chat else _Taken(tuple(tokenizer.encode(row.text or "")))
        except DatasetError as e:
            return BadRow(row.name, str(e))
    known = None if tokenizer is None else len(tokenizer)
    wrong = next((i for i in row.ids if i < 0 or (known is not None and i >= known)), None)
    if wrong is None:
        return _Taken(row.ids)
    limit = "0 or more" if known is None else f"0 to {known - 1}"
    reason = f'"input_ids" holds {wrong}, but the model has ids {limit} only; the row is for another model'
    return BadRow(row.name, f"{row.name}: {reason}")
