"""Rows of a data set before they become prompts: the forms that a row may have."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from treespec.data.messages import CONVERSATIONS, Message, conversation, kind, listed_messages
from treespec.errors import DatasetError, listed
from treespec.files.fingerprint import fingerprint

MAX_CHARACTERS = 4_000_000
"""Largest length of a row's text: more takes seconds to tokenise, and most of it would be cut off."""

_REPLIES = {"instruction": ("output", "response"), "question": ("answer", "response")}
"""Keys of a question or an instruction, and those of the reply beside it."""
_MORE = {"instruction": ("input", "context")}

SYSTEM, ARGUMENTS = ("system", "system_prompt"), ("tools", "chat_template_kwargs")
"""Keys of a row's own system prompt, and of its own arguments of the chat template."""

TEXT_KEYS = ("messages", "text", "prompt", "turns", "article", *CONVERSATIONS[1:], *_REPLIES)
"""Keys that may hold a row's text, in the order in which they are tried."""

CATEGORY = "category"
"""Key that names the kind of task of a row, by which benchmarks report."""

UNFETCHED = "FULL BENCHMARK DATA SHOULD BE FETCHED FROM THE SOURCE"
"""The beginning of what SPEED-Bench has in the place of texts that its licence leaves out."""

COMPANIONS = (CATEGORY, *SYSTEM, *ARGUMENTS, *(key for keys in (*_REPLIES.values(), *_MORE.values()) for key in keys))
"""Keys whose values belong to a row's text, whichever key holds that."""

KEYS = ("image", "input_ids", *TEXT_KEYS)
"""Keys that may hold a row's content, in the order in which they are tried; beside an `image`, `prompt` holds the question about it."""


@dataclass(frozen=True)
class Row:
    """A row: a text, token ids that are taken as they are, or a picture and the question about it. `name` says where it comes from.

    For chat templates, a text is a conversation as well: `messages` end with the user's last one whose preceding replies are known;
    `reply` is the row's own answer to them, if it has one; `turns` are the user's later turns. A row of ids has none of these.
    `beside` are the row's values of SYSTEM and ARGUMENTS, and `left_out` counts what is in its messages and is no text.
    `unread` names the text keys beside a picture that has no question.
    """

    name: str
    text: str | None = None
    ids: tuple[int, ...] | None = None
    messages: tuple[Message, ...] = ()
    reply: str | None = None
    turns: tuple[str, ...] = ()
    beside: Mapping[str, Any] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)
    image: Path | None = None
    unread: tuple[str, ...] = ()
    category: str = ""
    """The kind of task that the row names under `category`; "" if it names none."""

    @property
    def sha256(self) -> str:
        """SHA-256 of the row's content, whatever its name. Raises DatasetError for a picture that cannot be read."""
        image = None if self.image is None else _digest(self.image)
        return fingerprint(self.text, self.ids, image)

    @classmethod
    def of_text(cls, name: str, text: str) -> "Row":
        """Return the row of a plain text, which as a conversation is one message of the user."""
        return cls(name, text=text, messages=({"role": "user", "content": text},))


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as e:
        raise DatasetError(f"cannot read {path}: {e.strerror or e}") from e


@dataclass(frozen=True)
class BadRow:
    """A row that holds neither text nor ids nor a picture that can be read. `reason` begins with its name."""

    name: str
    reason: str


def row_of(record: object, *, name: str, keys: Sequence[str] = KEYS) -> Row:
    """Return the row of a JSON object or of a data set record: the value of the first of `keys` that it has and that is not null.

    `input_ids` holds whole numbers. Any other text key holds one of
    - a string;
    - a list of strings: the user's turns, whose replies are not known. As text they are joined by line ends; as a conversation the
      first one begins it;
    - a list of `{"role": ..., "content": ...}`: as text the contents are joined; as a conversation they count up to the user's last.

    A row of `image`, the path of a picture, has the question about it in `prompt` or under the only other key, or none. Raises
    DatasetError that begins with `name`.
    """
    if not isinstance(record, Mapping):
        raise DatasetError(f'{name}: the row is {kind(record)}, but it must be an object such as {{"text": ...}}')
    there = [key for key in keys if key in record]
    key = next((key for key in there if record[key] is not None), there[0] if there else None)
    if key is None:
        raise _lacking(record, name, keys)
    named = record.get(CATEGORY)
    category = named if isinstance(named, str) and key != CATEGORY else ""
    if key == "image" and len(keys) > 1:
        return replace(_picture_row(record, name, keys), category=category)
    value = record[key]
    if key == "input_ids":
        if not isinstance(value, list | tuple) or not all(type(i) is int for i in value):
            raise DatasetError(f'{name}: "input_ids" must be a list of whole numbers; {_first_wrong(value)}')
        return Row(name, ids=tuple(value), category=category)
    beside = {key: record[key] for key in (*SYSTEM, *ARGUMENTS) if record.get(key)}
    return replace(_text_row(record, key, name, own_keys=keys == KEYS), beside=beside, category=category)


def _text_row(record: Mapping[Any, Any], key: str, name: str, *, own_keys: bool) -> Row:
    """Return the row of a text key. The texts beside an instruction or a question are its own only where keys are not named."""
    value, where = record[key], f'{name}: "{key}"'
    if (messages := listed_messages(value)) is not None:
        found = conversation(messages, key, name)
        _require_text(found.text, where)
        return Row(name, text=found.text, messages=found.messages, reply=found.reply, left_out=found.left_out)
    if isinstance(value, str):
        more = _said(record, _MORE.get(key, ())) if own_keys else None
        row = Row.of_text(name, _require_text(f"{value}\n{more}" if more else value, where))
        reply = _said(record, _REPLIES.get(key, ())) if own_keys else None
        return replace(row, reply=reply and _require_text(reply, where))
    if isinstance(value, list | tuple) and value and all(isinstance(turn, str) for turn in value):
        if any(turn.startswith(UNFETCHED) for turn in value):
            raise DatasetError(
                f"{where} has a placeholder in the place of its text, which is not on the hub; prepare the data set by NVIDIA's prepare_data.py "
                "(Model-Optimizer, examples/specdec_bench) and name the file that it writes"
            )
        text = _require_text("\n".join(value), where)
        return Row(name, text=text, messages=({"role": "user", "content": value[0]},), turns=tuple(value[1:]))
    wanted = "a string, a list of strings or a list of messages"
    raise DatasetError(f'{name}: "{key}" is {kind(value)}, but it must be {wanted}')


def _said(record: Mapping[Any, Any], keys: Sequence[str]) -> str | None:
    """Return the first text that is not empty under these keys."""
    return next((record[key] for key in keys if isinstance(record.get(key), str) and record[key]), None)


def _lacking(record: Mapping[Any, Any], name: str, keys: Sequence[str]) -> DatasetError:
    found = ", ".join(repr(k) for k in list(record)[:8]) or "none"
    return DatasetError(f"{name}: the row has {none_of(keys)} (its keys: {found}); name the one that holds the text with `field`")


def _require_text(text: str, where: str) -> str:
    """Return a text. Raises DatasetError for one that is too long, and for half a surrogate pair."""
    if len(text) > MAX_CHARACTERS:
        raise DatasetError(f"{where} has {len(text):,} characters, above the limit of {MAX_CHARACTERS:,}; cut it into rows")
    return require_characters(text, where)


def require_characters(text: str, where: str) -> str:
    """Return a text. Raises DatasetError for half a surrogate pair, which no tokenizer takes.

    Python reads bytes that are no UTF-8 as such halves, those of a terminal too.
    """
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise DatasetError(
            f"{where} holds half a surrogate pair (\\u{ord(text[e.start]):04x} at character {e.start}), which is no text; pass text in UTF-8"
        ) from e
    return text


def read_row(record: object, *, name: str, keys: Sequence[str] = KEYS) -> Row | BadRow:
    """Return the row of `row_of`, or a BadRow with the reason why there is none. The reader of a data set decides whether that is an error."""
    try:
        return row_of(record, name=name, keys=keys)
    except DatasetError as e:
        return BadRow(name, str(e))


def _picture_row(record: Mapping[Any, Any], name: str, keys: Sequence[str]) -> Row:
    image, asked = record["image"], _asked(keys)
    if not isinstance(image, str) or not image:
        raise DatasetError(f'{name}: "image" is {kind(image)}, but it must be the path of a picture')
    key = next((key for key in asked if record.get(key) is not None), asked[0])
    if key not in record and keys != KEYS:
        raise _lacking(record, name, asked)
    prompt = record.get(key)
    if prompt is not None and not isinstance(prompt, str):
        raise DatasetError(f'{name}: "{key}" is {kind(prompt)}, but it must be a string')
    unread = [
        str(key) for key, value in record.items() if key != "image" and value and _is_said(value) and not str(key).lower().endswith("id")
    ]
    asks = prompt is not None or keys != KEYS
    return Row(name, text=prompt and _require_text(prompt, f'{name}: "{key}"'), image=Path(image), unread=() if asks else tuple(unread))


def _is_said(value: object) -> bool:
    """Return whether a value is a text, or a list of texts or of messages."""
    return isinstance(value, str) or (isinstance(value, list | tuple) and all(isinstance(part, str | Mapping) for part in value))


def _asked(keys: Sequence[str]) -> Sequence[str]:
    """Return the keys that may hold the question about a picture."""
    return ("prompt", "text") if keys == KEYS else keys[1:]


def keys_of(field: str | None, pictures: bool = False) -> tuple[str, ...]:
    """Return the keys that may hold a row's content. A `field` is the only one, or with `pictures` the only one beside `image`."""
    if field is None:
        return KEYS
    return ("image", field) if pictures else (field,)


def not_utf8(name: str, e: UnicodeDecodeError) -> str:
    """Return the reason why a file or a row of that name is no text."""
    return f"{name} is not UTF-8 text (byte {e.start} is 0x{e.object[e.start]:02x}); write it as UTF-8"


def none_of(keys: Sequence[str], what: str = "key") -> str:
    """Return the words which say that a row or a table has none of these keys or columns."""
    names = [f'"{key}"' for key in keys]
    return f"no {what} {names[0]}" if len(names) == 1 else f"none of the {what}s {listed(names)}"


def _first_wrong(ids: object) -> str:
    if not isinstance(ids, list | tuple):
        return f"it is {kind(ids)}"
    wrong = next(i for i, value in enumerate(ids) if type(value) is not int)
    return f"number {wrong} of them is {ids[wrong]!r:.40}"
