"""The texts on which models are measured, batch by batch: the target's own continuations, or the data set's."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from treeopt.profiling.continuation import continue_prompts
from treespec.data.prompts import Prompt, PromptSet
from treespec.data.tokens import unreadable
from treespec.decoding.rules import Sampling
from treespec.errors import CapacityError, ModelError, ProfileError, counted
from treespec.models.info import ModelInfo
from treespec.models.pairs import Target
from treespec.models.positions import readable, require_room
from treespec.models.tree_model import TreeModel

LOGITS_AT_ONCE = 1 << 27
"""Elements of one [batch, positions, vocabulary] block that a scoring pass may hold."""

Batch = Sequence[tuple[int, Prompt]]
"""Equally long prompts, each with its index in the set."""


def batches_of(prompts: PromptSet, size: int) -> list[list[tuple[int, Prompt]]]:
    """Return runs of at most `size` equally long prompts, the shortest first, each prompt with its index in the set."""
    batches: list[list[tuple[int, Prompt]]] = []
    for index, prompt in sorted(enumerate(prompts.prompts), key=lambda item: len(item[1].ids)):
        last = batches[-1] if batches else []
        if last and len(last) < size and len(last[0][1].ids) == len(prompt.ids):
            last.append((index, prompt))
        else:
            batches.append([(index, prompt)])
    return batches


def texts_to_measure(
    pair: Target,
    batch: Batch,
    method: str,
    gen_len: int,
    sampling: Sampling,
    generators: Sequence[torch.Generator],
    *,
    on_token: Callable[[int], None] = lambda done: None,
    pixels: Tensor | None = None,
    most: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return texts by one of `settings.METHODS`, int64 [batch, length + gen_len], and the positions that decoding drafts, bool [batch, gen_len - 1].

    `valid[:, i]` refers to generated token i + 1: token 0 comes from the prompt pass and is never drafted. A text ends with EOS or at the
    end of its row. Text i draws from `generators[i]`. `pixels` are the prompts' pictures. Where drafts can read no more than the `most` first
    tokens of a text, it ends with the one behind them, since decoding drafts none after that. Raises ModelError.
    """
    ids = torch.tensor([prompt.ids for _, prompt in batch], device=pair.target.device)
    if method == "on-policy":
        embeddings = None if pixels is None else pair.target.embed(ids, pixels)
        texts, valid = continue_prompts(
            pair.target.module, ids, gen_len, sampling, generators, pair.eos_token_ids, None, on_token, embeddings
        )
    else:
        texts, valid = _own_texts(batch, ids, gen_len)
    length = ids.shape[1]
    kept = texts.shape[1] if most is None else max(length + 1, min(texts.shape[1], most + 1))
    return texts[:, :kept], valid[:, 1 : kept - length]


def _own_texts(batch: Batch, ids: Tensor, gen_len: int) -> tuple[Tensor, Tensor]:
    """Return prompts with their rows' own continuations, padded with zeros: int64 [batch, length + gen_len], bool [batch, gen_len]."""
    texts = torch.zeros(len(batch), gen_len, dtype=torch.int64)
    valid = torch.zeros(len(batch), gen_len, dtype=torch.bool)
    for row, (_, prompt) in enumerate(batch):
        own = prompt.continuation[:gen_len]
        texts[row, : len(own)] = torch.tensor(own, dtype=torch.int64)
        valid[row, : len(own)] = True
    return torch.cat([ids, texts.to(ids.device)], dim=1), valid.to(ids.device)


def chunks(texts: Tensor, vocabulary: int) -> Iterator[slice]:
    """Yield runs of texts whose logits fit into one block of LOGITS_AT_ONCE; a single text always does."""
    rows = max(1, LOGITS_AT_ONCE // (texts.shape[1] * vocabulary))
    return (slice(first, first + rows) for first in range(0, len(texts), rows))


def require_text(prompts: PromptSet, method: str) -> None:
    """Raise ProfileError if rows hold too little text after their prompts to be measured on any of it."""
    if method == "teacher-forced" and all(len(prompt.continuation) < 2 for prompt in prompts):
        remedy = "conversations that end with a reply, or " if prompts.chat else "longer rows, a smaller `prompt_len`, or "
        if any(prompt.picture is not None for prompt in prompts):
            remedy = ""
        raise ProfileError(
            f"no position to measure: no row of {prompts.dataset} holds two tokens of text after its prompt; use {remedy}`method` on-policy"
        )


def require_positions(target: TreeModel | ModelInfo, prompts: PromptSet, gen_len: int) -> None:
    """Raise CapacityError if a prompt and its continuation have more tokens than the target can read, ModelError for unknown tokens."""
    highest = max((token for prompt in prompts for token in (*prompt.ids, *prompt.continuation)), default=0)
    if reason := unreadable((highest,), target.vocabulary_size):
        raise ModelError(f"a text for the target has {reason}")
    for prompt in prompts:
        require_room(target, prompt.ids, gen_len, whole=prompts.chat or prompt.picture is not None)


def require_drafted(drafts: Mapping[str, TreeModel | ModelInfo], prompts: PromptSet) -> None:
    """Raise CapacityError if one of the drafts, by role, has positions for nothing behind any of the prompts."""
    for role, draft in drafts.items():
        if (reason := no_room(draft, prompts)) is not None:
            raise CapacityError(f"no position to measure: the {role} model {reason}")


def no_room(draft: TreeModel | ModelInfo, prompts: PromptSet) -> str | None:
    """Return why a draft can draft nothing after any of the prompts; None if it can.

    The first token that is drafted comes after a generated one, which needs a position behind the prompt.
    """
    if any((most := readable(draft, prompt.ids)) is None or most > len(prompt.ids) for prompt in prompts):
        return None
    shortest = min(draft.positions_of(prompt.ids) for prompt in prompts)
    known = f"{counted(draft.max_positions or 0, 'position')}{draft.rope_note}"
    return f"has {known}, but prompts of {counted(shortest, 'token')} need {shortest + 1} or more; use shorter prompts"
