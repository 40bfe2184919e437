"""The texts on which models are measured, batch by batch: the target's own continuations, or the data set's."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from treeopt.profiling.continuation import continue_prompts
from treeopt.profiling.forest import Forest
from treespec.data.prompts import Prompt, PromptSet
from treespec.data.tokens import unreadable
from treespec.decoding.rules import Sampling
from treespec.errors import CapacityError, ModelError, ProfileError, counted
from treespec.models.info import ModelInfo
from treespec.models.pairs import Target
from treespec.models.positions import Positioned, readable, require_room
from treespec.models.tree_model import TreeModel

LOGITS_AT_ONCE = 1 << 27
"""Elements of one [batch, positions, vocabulary] block that a scoring pass may hold."""

MOST_AT_ONCE = {True: 64, False: 16}
"""Default number of prompts of a batch: where they are continued as a forest, and elsewhere."""

Batch = Sequence[tuple[int, Prompt]]
"""Prompts, each with its index in the set."""


@dataclass(frozen=True)
class Texts:
    """Equally long texts of some prompts of a batch."""

    rows: list[int]
    """Their places in the batch."""
    tokens: Tensor
    """int64 [texts, length + gen_len]: prompts with their continuations."""
    valid: Tensor
    """bool [texts, positions]: which of the last tokens decoding would draft. The first generated token is never among them."""
    lengths: list[int]
    """Tokens of each continuation, an EOS included, and also those behind what drafts can read."""
    ended: list[bool]
    """Whether each continuation ended with an EOS, and not with its budget."""


class TextSource:
    """The texts on which a target's drafts are measured, by one of `settings.METHODS`.

    A target whose passes can be captured continues a batch of prompts of any lengths as a `Forest`; others read equally long
    prompts, or pictures, by the plain module.
    """

    def __init__(self, target: Target, prompts: PromptSet, method: str, gen_len: int, sampling: Sampling, batch_size: int | None) -> None:
        """Divide the prompts into `batches` of at most `batch_size`; None: of MOST_AT_ONCE."""
        self.target, self.method, self.gen_len, self.sampling = target, method, gen_len, sampling
        own = method == "on-policy"
        pictures = any(prompt.picture is not None for prompt in prompts)
        self._as_forest = own and not pictures and target.target.device.type == "cuda" and not target.target.eager_reason
        size = batch_size or MOST_AT_ONCE[self._as_forest or not own]
        self.batches: list[Batch] = even_batches(prompts, size) if self._as_forest else batches_of(prompts, size)
        self._forest: Forest | None = None

    def texts(
        self,
        batch: Batch,
        generators: Sequence[torch.Generator],
        most: Callable[[Sequence[int]], int | None],
        *,
        on_token: Callable[[int], None] = lambda done: None,
        pixels: Tensor | None = None,
    ) -> Iterator[Texts]:
        """Yield the texts of a batch, by their length.

        A text ends with EOS or at the end of its row. Text i draws from `generators[i]`. `pixels` are the prompts' pictures. Where drafts can
        read no more than the `most` first tokens of a text after a prompt, it ends with the one behind them, since decoding drafts none after
        that. Raises CapacityError, ModelError.
        """
        generated, valid = self._continue(batch, generators, on_token, pixels)
        lengths = valid.sum(1)
        last = generated.gather(1, (lengths - 1).clamp(min=0)[:, None])[:, 0].tolist()
        ended = [token in self.target.eos_token_ids for token in last]
        for length, rows in _by_length(batch).items():
            ids = torch.tensor([batch[row][1].ids for row in rows], device=generated.device)
            limit = most(batch[rows[0]][1].ids)
            kept = self.gen_len if limit is None else max(1, min(self.gen_len, limit + 1 - length))
            tokens = torch.cat([ids, generated[rows, :kept]], dim=1)
            yield Texts(rows, tokens, valid[rows, 1:kept], lengths[rows].tolist(), [ended[row] for row in rows])

    def _continue(
        self, batch: Batch, generators: Sequence[torch.Generator], on_token: Callable[[int], None], pixels: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return what follows the prompts, int64 [batch, gen_len], and which of it is text, up to and including EOS: bool [batch, gen_len]."""
        model = self.target.target
        if self.method != "on-policy":
            return _own_texts(batch, self.gen_len, model.device)
        if self._as_forest:
            return self._grown(batch, generators, on_token)
        found = torch.zeros(len(batch), self.gen_len, dtype=torch.int64, device=model.device)
        valid = torch.zeros(len(batch), self.gen_len, dtype=torch.bool, device=model.device)
        for length, rows in _by_length(batch).items():  # one length, in batches of `batches_of`
            ids = torch.tensor([batch[row][1].ids for row in rows], device=model.device)
            embeddings = None if pixels is None else model.embed(ids, pixels[rows])
            drawn = [generators[row] for row in rows]
            texts, valid[rows] = continue_prompts(
                model.module, ids, self.gen_len, self.sampling, drawn, self.target.eos_token_ids, None, on_token, embeddings
            )
            found[rows] = texts[:, length:]
        return found, valid

    def _grown(self, batch: Batch, generators: Sequence[torch.Generator], on_token: Callable[[int], None]) -> tuple[Tensor, Tensor]:
        """Continue a batch as a forest, in as many parts as memory demands."""
        if self._forest is None:
            wanted = max(slots_of(other, self.gen_len) for other in self.batches)
            largest = max(len(prompt.ids) for other in self.batches for _, prompt in other) + self.gen_len
            slots = max(largest, min(wanted, self.target.least(most_slots(self.target.target))))
            self._forest = Forest(self.target.target, slots, self.gen_len, self.sampling, self.target.eos_token_ids)
        parts = parts_of(batch, self.gen_len, self._forest.slots)
        prompts = [prompt.ids for _, prompt in batch]
        grown = []
        for number, part in enumerate(parts):

            def told(done: int, number: int = number) -> None:
                on_token((number * self.gen_len + done) // len(parts))

            grown.append(self._forest.grow(prompts[part], generators[part], told))
        written, valid = zip(*grown, strict=True)
        return torch.cat(written), torch.cat(valid)


def _by_length(batch: Batch) -> dict[int, list[int]]:
    """Return the places in a batch of the prompts of each length."""
    found: dict[int, list[int]] = {}
    for place, (_, prompt) in enumerate(batch):
        found.setdefault(len(prompt.ids), []).append(place)
    return found


def batches_of(prompts: PromptSet, size: int) -> list[Batch]:
    """Return runs of at most `size` equally long prompts, the shortest first, each prompt with its index in the set."""
    batches: list[list[tuple[int, Prompt]]] = []
    for index, prompt in sorted(enumerate(prompts.prompts), key=lambda item: len(item[1].ids)):
        last = batches[-1] if batches else []
        if last and len(last) < size and len(last[0][1].ids) == len(prompt.ids):
            last.append((index, prompt))
        else:
            batches.append([(index, prompt)])
    return list(batches)


def even_batches(prompts: PromptSet, size: int) -> list[Batch]:
    """Return prompts of any lengths in as few batches of at most `size` as possible, whose sizes differ by one at most."""
    ordered = sorted(enumerate(prompts.prompts), key=lambda item: len(item[1].ids))
    return [ordered[part] for part in even_parts(len(ordered), -(-len(ordered) // size))]


def even_parts(count: int, parts: int) -> list[slice]:
    """Return `count` items as so many runs whose lengths differ by one at most."""
    edges = [count * part // parts for part in range(parts + 1)]
    return [slice(first, end) for first, end in pairwise(edges)]


def slots_of(batch: Batch, gen_len: int) -> int:
    """Return the cache slots that a batch needs."""
    return sum(len(prompt.ids) + gen_len for _, prompt in batch)


def parts_of(batch: Batch, gen_len: int, slots: int) -> list[slice]:
    """Return a batch in as few even parts as fit into so many cache slots, or single prompts, the longest of which needs no more."""
    whole = range(1, len(batch) + 1)
    return next(
        parts for parts in (even_parts(len(batch), count) for count in whole) if all(_fits(batch[part], gen_len, slots) for part in parts)
    )


def _fits(batch: Batch, gen_len: int, slots: int) -> bool:
    return slots_of(batch, gen_len) <= slots


def most_slots(model: TreeModel) -> int:
    """Return the number of cache slots of a model that fit into half of the memory that is free on its device."""
    free, _ = torch.cuda.mem_get_info(model.device)
    return free // 2 // model.slot_bytes


def _own_texts(batch: Batch, gen_len: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the rows' own continuations, padded with zeros: int64 [batch, gen_len], bool [batch, gen_len]."""
    texts = torch.zeros(len(batch), gen_len, dtype=torch.int64)
    valid = torch.zeros(len(batch), gen_len, dtype=torch.bool)
    for row, (_, prompt) in enumerate(batch):
        own = prompt.continuation[:gen_len]
        texts[row, : len(own)] = torch.tensor(own, dtype=torch.int64)
        valid[row, : len(own)] = True
    return texts.to(device), valid.to(device)


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


def require_drafted(drafts: Mapping[str, Positioned], prompts: PromptSet) -> None:
    """Raise CapacityError if one of the drafts, by role, has positions for nothing behind any of the prompts."""
    for role, draft in drafts.items():
        if (reason := no_room(draft, prompts)) is not None:
            raise CapacityError(f"no position to measure: the {role} model {reason}")


def no_room(draft: Positioned, prompts: PromptSet) -> str | None:
    """Return why a draft can draft nothing after any of the prompts; None if it can.

    The first token that is drafted comes after a generated one, which needs a position behind the prompt.
    """
    if any((most := readable(draft, prompt.ids)) is None or most > len(prompt.ids) for prompt in prompts):
        return None
    shortest = min(draft.positions_of(prompt.ids) for prompt in prompts)
    known = f"{counted(draft.max_positions or 0, 'position')}{draft.rope_note}"
    return f"has {known}, but prompts of {counted(shortest, 'token')} need {shortest + 1} or more; use shorter prompts"
