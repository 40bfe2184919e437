"""Conversations that contain the user's turns only: the target writes the replies between them."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from treespec.data.chat import Talk, chat_ids
from treespec.data.prompts import Prompt, PromptSet
from treespec.data.rows import BadRow
from treespec.data.tokens import unreadable
from treespec.decoding.engine import Engine
from treespec.decoding.loop import Request, decode_autoregressive
from treespec.errors import DatasetError, ModelError
from treespec.files.fields import text
from treespec.files.fingerprint import fingerprint
from treespec.files.journal import Journal
from treespec.models.pairs import Target

Progress = Callable[[str, int, int], None]


@torch.inference_mode()
def with_replies(
    pair: Target,
    prompts: PromptSet,
    reply_len: int,
    longest: int,
    *,
    skip_bad_rows: bool = False,
    journal: Path | None = None,
    progress: Progress = lambda what, done, total: None,
) -> PromptSet:
    """Expand each conversation into one prompt per user turn, with the target's own replies in between.

    Replies are greedy and have at most `reply_len` tokens, without the EOS. A conversation ends before a turn that would make it longer
    than `longest` tokens or longer than the pair can continue; that turn and those after it are counted in `too_long`. Replies survive
    an interruption in `journal`; the caller discards it when the work that needs them is done.

    Raises ModelError if there is no tokenizer. Raises DatasetError for a turn that the template refuses or turns into no tokens, and for
    one with a token that the target lacks; with `skip_bad_rows`, the conversation ends there instead.
    """
    total = sum(len(prompt.turns) for prompt in prompts)
    if not total:
        return prompts
    if pair.tokenizer is None:
        raise ModelError("conversations need the target's tokenizer; put its files into the target's folder")
    if pair.target.max_positions is not None:
        longest = min(longest, pair.target.max_positions + 1 - reply_len)
    engine = Engine(pair.target) if pair.target.device.type == "cuda" else None
    found: list[Prompt] = []
    bad, too_long, done = list(prompts.bad), prompts.too_long, 0
    work = _fingerprint(pair, prompts, reply_len)
    with Journal(pair.own(journal, work), work, lambda key, value: text(value)) as log:
        for prompt in prompts:
            found.append(prompt)
            for number, turn in enumerate(prompt.turns, start=2):
                last = found[-1]
                key = hashlib.sha256(json.dumps(last.ids).encode()).hexdigest()
                said = log.piece(key, partial(_reply, pair, Request(last.ids, reply_len, pair.eos_token_ids), engine))
                messages = (*last.messages, {"role": "assistant", "content": said}, {"role": "user", "content": turn})
                name, left = f"{prompt.name}, turn {number}", len(prompt.turns) - number + 2
                try:
                    ids = chat_ids(pair.tokenizer, Talk(messages, last.arguments), name)
                    if reason := unreadable(ids, pair.target.vocabulary_size, whole=True):
                        raise DatasetError(f"{name}: the turn has {reason}")
                except DatasetError as e:
                    if not skip_bad_rows:
                        raise DatasetError(f"{e} (`skip_bad_rows` goes on without such turns)") from e
                    bad.append(BadRow(name, str(e)))
                    progress("writing replies", done := done + left, total)
                    break
                if len(ids) > longest:
                    too_long += left
                    progress("writing replies", done := done + left, total)
                    break
                found.append(replace(last, name=name, ids=ids, messages=messages, turns=(), continuation=()))
                progress("writing replies", done := done + 1, total)
    return replace(prompts, prompts=tuple(found), too_long=too_long, bad=tuple(bad))


def _reply(pair: Target, request: Request, engine: Engine | None) -> str:
    """Return the target's own reply, without the EOS."""
    assert pair.tokenizer is not None
    tokens = [t for record in decode_autoregressive(pair.target, request, engine=engine) for t in record.tokens]
    return str(pair.tokenizer.decode([t for t in tokens if t not in pair.eos_token_ids], skip_special_tokens=True)).strip()


def _fingerprint(pair: Target, prompts: PromptSet, reply_len: int) -> str:
    return fingerprint(pair.alone().describe(), prompts.fingerprint, reply_len)
