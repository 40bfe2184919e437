"""Prompts as people have them: a string, token ids, the messages of a conversation, or a prompt of a data set."""

from collections.abc import Mapping, Sequence
from typing import Any

from treespec.data.chat import chat_ids, talk_of
from treespec.data.encoding import encoded
from treespec.data.listed import held
from treespec.data.messages import Message, dialogue
from treespec.data.prompts import Prompt, PromptSet
from treespec.data.rows import Row
from treespec.data.slices import ChatOptions
from treespec.data.tokens import unreadable
from treespec.errors import CapacityError, DatasetError, ModelError, counted
from treespec.models.pairs import Target, TargetInfo
from treespec.models.positions import readable

TextPrompt = str | Sequence[int] | Sequence[Message] | Prompt
"""One prompt: a text, token ids, messages, or a prompt of a data set. A tensor or an array of one dimension counts as token ids."""

_KINDS = "a string, a list of token ids or a list of messages with role and content"


def several(given: object) -> Sequence[Any] | None:
    """Return the prompts of a list of prompts, of a `PromptSet` or of a tensor with a prompt in each row; None for a single prompt."""
    if isinstance(given, PromptSet):
        return given.prompts
    listed = _plain(given)
    if not isinstance(listed, list | tuple) or not listed or _is_number(listed[0]) or isinstance(listed[0], Mapping):
        return None
    return listed


def read_prompt(pair: Target | TargetInfo, given: object, chat: ChatOptions = ChatOptions(), name: str = "the prompt") -> Prompt:
    """Return a prompt as the target reads it. Messages go through the tokenizer's chat template, with the additions of `chat`.

    Raises ModelError for words without a tokenizer, DatasetError for what is no prompt or what the template or the tokenizer refuses,
    CapacityError for a prompt without tokens and for one that is too long. The messages begin with `name`.
    """
    prompt = given if isinstance(given, Prompt) else Prompt(0, name, _ids(pair, _plain(given), chat, name))
    _check(pair, prompt, name)
    return prompt


def _ids(pair: Target | TargetInfo, given: object, chat: ChatOptions, name: str) -> tuple[int, ...]:
    if isinstance(given, str):
        return encoded(_tokenizer(pair, name), given, name)
    if not isinstance(given, list | tuple):
        raise DatasetError(f"{name} is a {type(given).__name__}, but it must be {_KINDS}")
    if all(_is_number(item) for item in given):
        return tuple(map(int, given))
    if not all(isinstance(item, Mapping) for item in given):
        raise DatasetError(f"{name} is a list of several kinds of things, but it must be {_KINDS}")
    tokenizer = _tokenizer(pair, name)
    if getattr(tokenizer, "chat_template", None) is None:
        raise DatasetError(
            f"{name} has messages, which need a chat template, but the target's tokenizer has none; pass a string or token ids, or set its chat_template"
        )
    return chat_ids(tokenizer, talk_of(Row(name, messages=dialogue(given, name)), chat), name)


def _tokenizer(pair: Target | TargetInfo, name: str) -> Any:
    if pair.tokenizer is None:
        raise ModelError(
            f"{name} is text, but {pair.target.name} comes without a tokenizer; pass token ids, or add its files to the folder"
        )
    return pair.tokenizer


def _check(pair: Target | TargetInfo, prompt: Prompt, name: str) -> None:
    """Raise an error for a prompt that the target cannot read."""
    ids, target = prompt.ids, pair.target
    if not ids:
        raise CapacityError(f"{name} is empty, but decoding needs at least 1 token; pass a longer one")
    if min(ids) < 0:
        raise DatasetError(f"{name} has token {min(ids)}, but ids are 0 or more")
    if reason := unreadable(ids, target.vocabulary_size):
        raise DatasetError(f"{name} has {reason}")
    most = readable(target, ids)
    if most is not None and len(ids) > most:
        raise CapacityError(
            f"{name} has {counted(len(ids), 'token')}, but the target model reads {most}{target.rope_note}; pass a shorter one"
        )


def _plain(given: object) -> object:
    """Return the list that a tensor or an array holds, and a list without things of other libraries; anything else as it is."""
    if hasattr(given, "tolist"):
        return given.tolist()
    if isinstance(given, range):
        return list(given)
    return [held(item) for item in given] if isinstance(given, list | tuple) else given


def _is_number(item: object) -> bool:
    return isinstance(item, int) and not isinstance(item, bool)
