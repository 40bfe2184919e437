"""Requests to a data set, as plain data: a slice of its rows, the length of prompts, and additions to conversations."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from treespec.errors import SettingsError

PROMPT_LEN, WHOLE_PROMPT_LEN = 128, 1024
"""Tokens of a prompt that is cut, and most tokens of a whole one, unless others are asked for."""

ROOM = "there is room for"
"""The words of an error for whole prompts that the models' positions or the cache bound."""

SUFFIXES = (".jsonl", ".json", ".parquet", ".txt")
"""Endings of the files that are read as data sets."""


@dataclass(frozen=True)
class DatasetSlice:
    """Rows `start` up to `end` (left out) of a data set. Their text is under `field` if that is no usual key."""

    dataset: str
    field: str | None = None
    start: int = 0
    end: int | None = None
    skip_bad_rows: bool = False

    def __post_init__(self) -> None:
        if self.start < 0:
            raise SettingsError(f"`start` is {self.start}, but rows are counted from 0; pass 0 or more")
        if self.end is not None and self.end <= self.start:
            raise SettingsError(f"`end` {self.end} leaves no rows from `start` {self.start}; pass `end` {self.start + 1} or more")


_TAKEN = frozenset(
    (
        "conversation",
        "conversations",
        "messages",
        "chat_template",
        "add_generation_prompt",
        "continue_final_message",
        "tokenize",
        "tokenizer_kwargs",
        "return_assistant_tokens_mask",
        "sanitize_control_tokens",
        "padding",
        "truncation",
        "max_length",
        "return_tensors",
        "return_dict",
    )
)
"""Names that are no arguments of templates: those of transformers' own functions around them."""


@dataclass(frozen=True)
class ChatOptions:
    """The additions to every conversation: a `system` prompt, where it has none, and `arguments` of the chat template."""

    system: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        wrong = next((name for name in self.arguments if name in _TAKEN or not name.isidentifier()), None)
        if wrong is not None:
            raise SettingsError(f"`chat_args` has {wrong!r}, which cannot be an argument of a chat template; pass another name")

    def describe(self) -> dict[str, Any]:
        """Return the options as plain JSON."""
        return {"system": self.system, "chat_args": dict(self.arguments)}
