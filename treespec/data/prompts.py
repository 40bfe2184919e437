"""A data set name or a path -> PromptSet: the token prompts that profiling and evaluation run on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from treespec.data.chat import chat_ids, reply_ids, require_template
from treespec.data.pictures import PROMPT, QUESTION, Picture, PictureReader, find_picture
from treespec.data.rows import BadRow, Message, Row
from treespec.data.slices import DatasetSlice
from treespec.data.sources import DATASET_NAMES, open_rows
from treespec.errors import DatasetError, NoPromptError, SettingsError
from treespec.files.fingerprint import fingerprint


class Tokenizer(Protocol):
    """What is asked of a tokenizer; those of transformers have it."""

    def encode(self, text: str) -> Sequence[int]:
        """Token ids of a text, with the special tokens that the model expects in front."""
        ...

    def __len__(self) -> int:
        """Number of tokens that it knows, added ones included."""
        ...


@dataclass(frozen=True)
class Prompt:
    """The first tokens of a row, or its conversation up to the model's turn, or what it asks about a picture; and how the row goes on.

    `row` is the row's 0-based place in the data set, `name` says the same for people. `continuation` is empty unless it
    was asked for, and shorter than asked for where the row ends.
    """

    row: int
    name: str
    ids: tuple[int, ...]
    continuation: tuple[int, ...] = ()
    picture: Picture | None = None
    messages: tuple[Message, ...] = ()
    """The conversation that it is, where it is one."""
    turns: tuple[str, ...] = ()
    """What the user says next, after replies that are not known."""


@dataclass(frozen=True)
class PromptSet:
    """The prompts taken from rows `start` to `end` - 1 of a data set.

    `skipped` of these rows were too short, `too_long` whole prompts (conversations, pictures) had too many tokens, and `bad` rows were no
    rows.
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
    """Of the content of the first prompt's row: tells data sets of one name apart."""

    def __len__(self) -> int:
        """Number of prompts."""
        return len(self.prompts)

    def __iter__(self) -> Iterator[Prompt]:
        """The prompts in row order."""
        return iter(self.prompts)

    @property
    def label(self) -> str:
        """The data set and the rows that were taken, as provenance names them: `cnn[0:100]`."""
        return f"{self.dataset}[{self.start}:{self.end}]"

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all token ids, continuations included: equal for equal work."""
        return fingerprint(*((p.ids, p.continuation, *([] if p.picture is None else [p.picture.sha256])) for p in self.prompts))

    def describe(self) -> dict[str, Any]:
        """Provenance as plain JSON; of a path only the last part is kept."""
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
    """The first `prompt_len` tokens of rows in file order, from row `start` up to `end` (left out) or `num_prompts` prompts.

    `dataset` is one of DATASET_NAMES, a .jsonl, .json, .parquet or .txt file, or a folder saved by `datasets`; `field` is the
    key that holds the rows' text where it is none of the usual ones. Rows of fewer tokens are skipped and counted; rows of
    `input_ids` are taken as they are, and need no tokenizer. `vocabulary_size` is how many embedding rows the model has, which may be
    fewer than its tokenizer has tokens: rows with others are bad. Fewer than `num_prompts` prompts come
    back where the rows end.

    With `chat`, a prompt is a row's whole conversation in the tokenizer's chat template, up to where the model is to answer;
    rows of `input_ids` are whole prompts too; those of more than `prompt_len` tokens are skipped and counted.

    With `pictures`, rows are pictures (a folder of them, or rows of `image` and `prompt`), and a prompt is all that is asked about one:
    the row's own, else `picture_prompt`, else a question for a description, unless the row has text of its own elsewhere: then it is bad.

    Raises SettingsError: no rows are asked for; DatasetError: no such data set, no chat template, or a bad row (which `skip_bad_rows`
    skips, and keeps count of); NoPromptError: no row at `start`, or none that makes a prompt.
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
    """All token ids of a row, or why it has none that the model knows. Raises DatasetError: text without a tokenizer."""
    taken = _readable(_tokens(row, tokenizer, False), row.name, vocabulary_size)
    return taken if isinstance(taken, BadRow) else taken.ids


def unreadable(ids: Sequence[int], vocabulary_size: int | None, *, whole: bool = False) -> str | None:
    """Why a model of so many embedding rows (None: not known) cannot read these ids, as a `whole` prompt if they are; None where it can."""
    if whole and not ids:
        return "no tokens, but a prompt has at least one"
    wrong = max(ids, default=0)
    if vocabulary_size is None or wrong < vocabulary_size:
        return None
    return (
        f"token {wrong}, but the model has {vocabulary_size} embedding rows, for ids 0 to {vocabulary_size - 1} only; "
        "give it rows for added tokens (resize_token_embeddings), or use rows and tokenizer files that belong to it"
    )


def refused(row: BadRow) -> DatasetError:
    """The error that a bad row is where bad rows are not skipped."""
    return DatasetError(f"{row.reason} (`skip_bad_rows` goes on without such rows)")


def no_row_at(start: int, name: str, rows: int) -> NoPromptError:
    """The error that a slice is which begins behind a data set's last row."""
    if not rows:
        return NoPromptError(f"data set {name} has no rows; name one that has some")
    count = f"{rows} row{'s' if rows > 1 else ''}"
    return NoPromptError(f"data set {name} has no row at `start` {start}: it has {count}, counted from 0; pass `start` {rows - 1} or less")


def _no_prompt(name: str, prompt_len: int, others: Sequence[int], bad: Sequence[BadRow], whole: bool) -> str:
    """Why a slice that has rows makes no prompt."""
    if not others:
        return f"each of the {len(bad)} rows of {name} that were read is bad, the first because of this: {bad[0].reason}"
    if whole:
        return (
            f"no whole prompt of {name} is short enough: `prompt_len` is {prompt_len}, but the shortest of {len(others)} has {min(others)} "
            f"tokens; pass `prompt_len` {min(others)} or more, or shorter ones"
        )
    longest = max(others)
    shorter = {0: "", 1: "`prompt_len` 1, or "}.get(longest, f"`prompt_len` {longest} or less, or ")
    return (
        f"no row of {name} is long enough: `prompt_len` is {prompt_len}, but the longest of {len(others)} rows has {longest} tokens; "
        f"pass {shorter}longer rows"
    )


_PICTURED = 'pass a folder of pictures, or rows of {"image": PATH, "prompt": ...}'


@dataclass(frozen=True)
class _Taken:
    """What a row gives: its tokens, or those of its conversation and its reply, or those about its picture."""

    ids: tuple[int, ...]
    reply: tuple[int, ...] = ()
    picture: Picture | None = None


def _about_picture(row: Row, pictures: PictureReader | None, prompt: str | None, chat: bool) -> _Taken | BadRow:
    """Raises DatasetError for a model that reads text only."""
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
    """The same, or why the model cannot read it."""
    if isinstance(taken, BadRow):
        return taken
    reason = unreadable(taken.ids, vocabulary_size, whole=whole) or unreadable(taken.reply, vocabulary_size)
    return taken if reason is None else BadRow(name, f"{name}: the row has {reason}")


def _tokens(row: Row, tokenizer: Tokenizer | None, chat: bool) -> _Taken | BadRow:
    """Raises DatasetError for text without a tokenizer."""
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
