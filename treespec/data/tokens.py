"""Tokens of a row: of its text, its ids, its conversation or the question about its picture; or the reason why it is bad."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from treespec.data.chat import Talk, chat_ids, reply_ids, talk_of
from treespec.data.encoding import encoded
from treespec.data.pictures import PROMPT, QUESTION, Picture, PictureReader, find_picture
from treespec.data.rows import BadRow, Row
from treespec.data.slices import ChatOptions
from treespec.errors import DatasetError, counted


class Tokenizer(Protocol):
    """The methods that a tokenizer must have. Those of transformers have them."""

    def encode(self, text: str) -> Sequence[int]:
        """Return the token ids of a text, after the special tokens that the model expects in front."""
        ...

    def __len__(self) -> int:
        """Return the number of tokens that it knows, added ones included."""
        ...


def token_ids(row: Row, tokenizer: Tokenizer | None, vocabulary_size: int | None) -> tuple[int, ...] | BadRow:
    """Return all token ids of a row, or the reason why the model cannot read it. Raises DatasetError for text without a tokenizer."""
    taken = RowReader(tokenizer, vocabulary_size).read(row)
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


PICTURED = 'pass a folder of pictures, or rows of {"image": PATH, "prompt": ...}'


@dataclass(frozen=True)
class Taken:
    """The tokens of a row: of its text, of its conversation (`talk`) and its `reply`, or of the question about its `picture`."""

    ids: tuple[int, ...]
    reply: tuple[int, ...] = ()
    picture: Picture | None = None
    talk: Talk = Talk()


@dataclass(frozen=True)
class RowReader:
    """The reader that turns rows into tokens for a model.

    `vocabulary_size` is the number of the model's embedding rows. With `chat`, rows are conversations in the tokenizer's chat template.
    With `pictures`, they are pictures, about which `picture_prompt` is asked if a row asks nothing itself.
    """

    tokenizer: Tokenizer | None
    vocabulary_size: int | None = None
    chat: ChatOptions | None = None
    pictures: PictureReader | None = None
    picture_prompt: str | None = None

    def read(self, row: Row) -> Taken | BadRow:
        """Return the tokens of a row, or the bad row. Raises DatasetError for text without a tokenizer, and for a picture that no model here reads."""
        try:
            taken = self._about_picture(row) if self.pictures is not None or row.image is not None else self._words(row)
        except _BadRowError as e:
            return BadRow(row.name, str(e))
        whole = self.chat is not None or self.pictures is not None
        reason = unreadable(taken.ids, self.vocabulary_size, whole=whole) or unreadable(taken.reply, self.vocabulary_size)
        return taken if reason is None else BadRow(row.name, f"{row.name}: the row has {reason}")

    def _about_picture(self, row: Row) -> Taken:
        if self.pictures is None:
            raise DatasetError(
                f"{row.name} is a picture, which needs a vision-language target (of the kind llava); here text is read only: pass a data set of text"
            )
        if row.image is None:
            raise _BadRowError(f"{row.name} has no picture, but the target reads pictures; {PICTURED}")
        if row.unread and self.picture_prompt is None:
            raise _BadRowError(
                f'{row.name}: nothing is asked about the picture under "prompt" or "text", but the row has text under {", ".join(map(repr, row.unread))}; '
                "name the key of what is asked with `field`, or pass a `picture_prompt` to ask the same about each",
            )
        asked = row.text if row.text is not None else self.picture_prompt or (QUESTION if self.chat is not None else PROMPT)
        with _bad_row():
            return Taken(self.pictures.ids(asked, row.name, self.chat), picture=find_picture(row.image, row.name))

    def _words(self, row: Row) -> Taken:
        if row.ids is not None:
            self._check_ids(row.name, row.ids)
            return Taken(row.ids)
        if self.tokenizer is None:
            raise DatasetError(
                f'{row.name} is text, but the model comes without a tokenizer; add its files to the folder, or give rows of "input_ids"'
            )
        with _bad_row():
            if self.chat is None:
                return Taken(encoded(self.tokenizer, row.text or "", row.name))
            talk = talk_of(row, self.chat)
            return Taken(chat_ids(self.tokenizer, talk, row.name), reply_ids(self.tokenizer, row.reply, row.name), talk=talk)

    def _check_ids(self, name: str, ids: Sequence[int]) -> None:
        known = None if self.tokenizer is None else len(self.tokenizer)
        wrong = next((i for i in ids if i < 0 or (known is not None and i >= known)), None)
        if wrong is not None:
            limit = "0 or more" if known is None else f"0 to {known - 1}"
            raise _BadRowError(f'{name}: "input_ids" holds {wrong}, but the model has ids {limit} only; the row is for another model')


class _BadRowError(Exception):
    """The reason why a row is bad, which `RowReader.read` returns."""


@contextmanager
def _bad_row() -> Iterator[None]:
    """Turn a DatasetError of this block into the reason of a bad row."""
    try:
        yield
    except DatasetError as e:
        raise _BadRowError(str(e)) from e
