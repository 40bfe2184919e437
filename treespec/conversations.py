"""Conversations of which only the user's side is known: the target's own replies stand between the turns."""

from collections.abc import Callable
from dataclasses import replace

import torch

from treespec.chat import chat_ids
from treespec.dataset_rows import Row
from treespec.decoding import Request, decode_autoregressive
from treespec.errors import ModelError
from treespec.models.pairs import Pair
from treespec.prompts import Prompt, PromptSet
from treespec.stepping import Engine

Progress = Callable[[str, int, int], None]


@torch.inference_mode()
def answered(
    pair: Pair, prompts: PromptSet, reply_len: int, longest: int, progress: Progress = lambda what, done, total: None
) -> PromptSet:
    """A prompt for every turn of the user, in the place of one for the first: those after it stand behind the target's replies.

    Replies are greedy and have at most `reply_len` tokens, without the EOS. A conversation ends before a turn that would make it longer
    than `longest` tokens, which is counted in `too_long`. Raises ModelError, CapacityError.
    """
    if not any(prompt.turns for prompt in prompts):
        return prompts
    if pair.tokenizer is None:
        raise ModelError("conversations need the target's tokenizer; put its files into the target's folder")
    engine = Engine(pair.target) if pair.target.device.type == "cuda" else None
    found: list[Prompt] = []
    too_long, total, done = prompts.too_long, sum(len(prompt.turns) for prompt in prompts), 0
    for prompt in prompts:
        found.append(prompt)
        for number, turn in enumerate(prompt.turns, start=2):
            last = found[-1]
            request = Request(last.ids, reply_len, pair.eos_token_ids)
            tokens = [t for record in decode_autoregressive(pair.target, request, engine=engine) for t in record.tokens]
            said = pair.tokenizer.decode([t for t in tokens if t not in pair.eos_token_ids], skip_special_tokens=True)
            messages = (*last.messages, ("assistant", str(said).strip()), ("user", turn))
            name = f"{prompt.name}, turn {number}"
            ids = chat_ids(pair.tokenizer, Row(name, messages=messages))
            done += 1
            progress("writing replies", done, total)
            if len(ids) > longest:
                too_long += 1
                done += len(prompt.turns) - number + 1
                break
            found.append(Prompt(prompt.row, name, ids, messages=messages))
    return replace(prompts, prompts=tuple(found), too_long=too_long)
