"""Text becomes token ids: without a second BOS, without an EOS behind it, and with the tokenizer's failures in one line."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from treespec.data.rows import require_characters
from treespec.errors import DatasetError, is_panic, reason_of


def encoded(tokenizer: Any, text: str, name: str, *, special: bool = True) -> tuple[int, ...]:
    """Return the token ids of a text, after the tokens that the tokenizer puts in front of every text, unless `special` is false.

    These stand there once, also if the text begins with them itself, and those that it puts behind a text, such as an EOS, are left out:
    a prompt goes on. Raises DatasetError beginning with `name` for a text that the tokenizer fails on.
    """
    if not special:
        return _encode(tokenizer, text, name, add_special_tokens=False)
    whole = _encode(tokenizer, text, name)
    if not hasattr(tokenizer, "bos_token_id"):  # it is not of transformers, and puts nothing around a text
        return whole
    if tokenizer.is_fast and _at_most_one_bos(tokenizer, whole):
        return whole
    bare = _encode(tokenizer, text, name, add_special_tokens=False)
    if not bare:
        return whole[:-1] if len(whole) > 1 and whole[-1] == tokenizer.eos_token_id else whole
    front = next((whole[:at] for at in range(len(whole) - len(bare) + 1) if whole[at : at + len(bare)] == bare), None)
    if front is None:  # the text is read in another way there
        return whole
    while front and bare[: len(front)] == front:
        bare = bare[len(front) :]
    return front + bare


def _at_most_one_bos(tokenizer: Any, whole: tuple[int, ...]) -> bool:
    """Return whether the tokenizer's own ids are known to be right without a look at those of the bare text, which takes as long again."""
    added = tokenizer.num_special_tokens_to_add()
    bos = tokenizer.bos_token_id
    return added == 0 or (added == 1 and bos is not None and whole[:1] == (bos,) and whole[1:2] != (bos,))


def _encode(tokenizer: Any, text: str, name: str, **options: bool) -> tuple[int, ...]:
    """Return the tokenizer's own ids. Raises DatasetError beginning with `name`."""
    require_characters(text, name)
    try:
        with _without_backtrace():
            return tuple(int(i) for i in tokenizer.encode(text, **options))
    except BaseException as e:
        if not isinstance(e, Exception) and not is_panic(e):
            raise
        raise DatasetError(f"{name}: the tokenizer fails on this text ({reason_of(e)}); correct its tokenizer.json, or the text") from e


@contextmanager
def _without_backtrace() -> Iterator[None]:
    """Keep stderr silent during this block: the tokenizers library prints a backtrace of its own there before it raises."""
    try:
        stderr = os.dup(2)
    except OSError:  # there is no stderr
        yield
        return
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(silence)
        os.close(stderr)
