"""Prompts for a pair, from a data set or a list in memory, as the steps of `treeopt.api` take them."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

from treespec.data.listed import is_conversation
from treespec.data.prompts import PromptSet
from treespec.data.prompts import load_prompts as read_rows
from treespec.data.slices import WHOLE_PROMPT_LEN, ChatOptions
from treespec.errors import SettingsError, counted
from treespec.evaluation.conversations import with_replies
from treespec.evaluation.settings import EvaluationSettings
from treespec.models.pairs import Target

_LOG = logging.getLogger("treeopt")

_GEN_LEN = EvaluationSettings.gen_len

Progress = Callable[[str, int, int], None]
"""A function that is told the progress: (name of the work, done, total)."""


def load_prompts(
    dataset: str,
    pair: Target,
    *,
    num_prompts: int = 64,
    prompt_len: int | None = None,
    whole_prompts: bool = False,
    start: int = 0,
    end: int | None = None,
    gen_len: int = _GEN_LEN,
    own_text: bool = False,
    chat: bool = False,
    chat_options: ChatOptions = ChatOptions(),
    field: str | None = None,
    skip_bad_rows: bool = False,
    picture_prompt: str | None = None,
) -> PromptSet:
    """Return prompts for a pair from a data set: a name such as "cnn" or "stdlib", a hub id, a file or a folder.

    See `treespec.data.prompts.load_prompts` for the arguments. Whole prompts leave the target room for `gen_len` tokens. With `own_text`, the
    next `gen_len` tokens of each row are kept too, for profiles by the method "teacher-forced".

    Raises DatasetError, SettingsError; NoPromptError if no row makes a prompt.
    """
    return _read(
        dataset,
        pair,
        gen_len,
        num_prompts=num_prompts,
        prompt_len=prompt_len,
        whole_prompts=whole_prompts,
        start=start,
        end=end,
        continuation_len=gen_len if own_text else 0,
        chat=chat,
        chat_options=chat_options,
        field=field,
        skip_bad_rows=skip_bad_rows,
        picture_prompt=picture_prompt,
    )


def prompts(
    items: Sequence[object],
    pair: Target,
    *,
    gen_len: int = _GEN_LEN,
    chat: bool | None = None,
    chat_options: ChatOptions = ChatOptions(),
    field: str | None = None,
    skip_bad_rows: bool = False,
) -> PromptSet:
    """Return prompts for a pair from a list in memory. They are taken whole, and leave the target room for `gen_len` tokens.

    An item is a text, a list or a tensor of token ids, a list of messages (`{"role": ..., "content": ...}`), or an object such as a line
    of a .jsonl file. With `chat`, each is a conversation in the tokenizer's chat template; None: if all are lists of messages.

    Raises DatasetError for an item that is none of these or that is too long, SettingsError for an empty list.
    """
    items = items.tolist() if hasattr(items, "tolist") else items
    if not isinstance(items, Sequence) or isinstance(items, str | bytes) or not len(items):
        raise SettingsError(f"`items` is {items!r:.40}, but it must be a list of one prompt or more; put a single prompt into a list")
    talks = sum(map(is_conversation, items))
    if chat is None and 0 < talks < len(items):
        raise SettingsError(
            f"{talks} of {counted(len(items), 'prompt')} are lists of messages and the others are not; pass `chat` True for the chat template for all, "
            "or False for plain text"
        )
    found = _read(
        items,
        pair,
        gen_len,
        num_prompts=len(items),
        whole_prompts=True,
        chat=talks > 0 if chat is None else chat,
        chat_options=chat_options,
        field=field,
        skip_bad_rows=skip_bad_rows,
    )
    left_out = [(found.too_long, "too long"), (found.skipped, "without text"), (len(found.bad), "bad")]
    if len(found) < len(items):
        said = ", ".join(f"{count} {why}" for count, why in left_out if count)
        _LOG.warning("%s of %s make prompts: %s", len(found), counted(len(items), "item"), said)
    return found


def _read(dataset: str | Sequence[object], pair: Target, gen_len: int, **options: Any) -> PromptSet:
    pictures, positions = pair.pictures, pair.target.max_positions
    return read_rows(
        dataset,
        pair.tokenizer if pictures is None else pictures.tokenizer,
        room=None if positions is None else positions + 1 - gen_len,  # the last token needs no position
        vocabulary_size=pair.target.vocabulary_size,
        pictures=pictures,
        **options,
    )


def prompt_set(pair: Target, given: PromptSet | Sequence[object], gen_len: int) -> PromptSet:
    """Return the prompts of a list as `prompts` does, and a PromptSet as it is."""
    return given if isinstance(given, PromptSet) else prompts(given, pair, gen_len=gen_len)


def complete(pair: Target, found: PromptSet, gen_len: int, progress: Progress, room: int | None = None) -> PromptSet:
    """Return a prompt for every turn of conversations whose later turns are known. The target writes the replies in between."""
    if not any(prompt.turns for prompt in found):
        return found
    longest = WHOLE_PROMPT_LEN if room is None else min(WHOLE_PROMPT_LEN, room)
    return with_replies(pair, found, gen_len, longest, progress=progress)
