"""ProcessedModel: a model whose logits pass through logits processors, each row with its own path as the text so far."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, PrefixConstrainedLogitsProcessor, SynthIDTextWatermarkLogitsProcessor

from treespec.decoding.protocol import ScoringModel, SlotModel, WatchfulModel
from treespec.errors import ModelError, counted, reason_of
from treespec.trees.placement import Placement, Prefix

Processor = Callable[[Any, Any], Any]
"""A logits processor of transformers: (`input_ids` int64 [rows, length], scores float32 [rows, vocabulary]) -> scores of that shape."""

_STATEFUL = (PrefixConstrainedLogitsProcessor, SynthIDTextWatermarkLogitsProcessor)
"""Processors of transformers that keep a state, or that call a function of the user's."""


@dataclass(frozen=True)
class Asking:
    """The circumstances in which `generate` would ask its processors about a text."""

    ends: frozenset[int] = frozenset()
    """The tokens that end the text: processors are not asked what follows them."""
    longest: int | None = None
    """The number of tokens, `padding` included, with which the text ends at the latest; None for no limit."""
    padding: tuple[int, ...] = ()
    """Tokens that processors see before the text, and that the model does not read."""
    row: int = 0
    """The row of the text in its batch."""
    rows: int = 1
    """The rows of the batch. Processors see the text in each of them, so that those with a state per row use the right one."""


class ProcessedModel:
    """A SlotModel that passes each row of another model's logits through processors, in order, as float32.

    A row is processed with the committed tokens and the row's own path in the tree as `input_ids`, so the output is what `generate` gives with
    these processors. Nothing but the token in each slot is kept, so a rejected branch leaves no trace. What `generate` would never be asked is
    not asked here: rows behind a token that the processors themselves rule out, behind the end of the text and beyond its length are
    left as the model gives them; no step reaches them.

    Rule for processors: they depend on `input_ids` alone. Trees ask about several continuations of one text in any order. In each pass
    the first row is asked about again after the others.

    Args:
        model: the model; passes need a prefix whose length the host knows.
        processors: logits processors of transformers, or functions of that form.
        asking: see `Asking`.

    Raises:
        ModelError: by each pass, if a processor fails or gives other scores when it is asked again.
    """

    def __init__(self, model: SlotModel, processors: Sequence[Processor], asking: Asking = Asking()) -> None:
        self.model, self.processors, self.asking = model, tuple(processors), asking
        self.name = str(getattr(model, "name", type(model).__name__))
        self.eager_reason = f"logits processors run path by path ({', '.join(dict.fromkeys(map(name_of, processors)))})"
        self._padding = torch.tensor(asking.padding, dtype=torch.int64, device=model.device)
        self._tokens = self._positions = torch.zeros(0, dtype=torch.int64, device=model.device)

    @property
    def vocabulary_size(self) -> int:
        """See `SlotModel.vocabulary_size`."""
        return self.model.vocabulary_size

    @property
    def device(self) -> torch.device:
        """See `SlotModel.device`."""
        return self.model.device

    @property
    def generation(self) -> int:
        """See `CapturableModel.generation`."""
        return int(getattr(self.model, "generation", 0))

    @property
    def capacity(self) -> int:
        """See `CapturableModel.capacity`."""
        return int(getattr(self.model, "capacity", 0))

    def committed(self, tokens: Sequence[int], *, last: bool = False) -> None:
        """See `WatchfulModel.committed`."""
        if isinstance(self.model, WatchfulModel):
            self.model.committed(tokens, last=last)

    @property
    def divided(self) -> bool:
        """See `WatchfulModel.divided`."""
        return isinstance(self.model, WatchfulModel) and self.model.divided

    def allocate(self, capacity: int) -> None:
        """See `SlotModel.allocate`."""
        self.model.allocate(capacity)
        if capacity > len(self._tokens):
            with torch.inference_mode(False):  # later passes may run outside of it
                self._tokens, self._positions = (torch.zeros(capacity, dtype=torch.int64, device=self.device) for _ in range(2))

    @torch.no_grad()
    def prefill(self, tokens: Tensor, pixels: Tensor | None = None) -> Tensor:
        """See `SlotModel.prefill`. Raises ModelError as the class says."""
        logits = self.model.prefill(tokens, pixels)
        self._tokens[: len(tokens)] = tokens
        self._positions[: len(tokens)] = torch.arange(len(tokens), device=tokens.device)
        return self.process(tokens, logits)

    @torch.no_grad()
    def forward(self, tokens: Tensor, place: Placement, keep: Tensor | None = None) -> Tensor:
        """See `SlotModel.forward`. The logits are float32. Raises ModelError as the class says."""
        length = place.prefix.known
        if length is None:
            raise RuntimeError("logits processors read the text, whose length the host does not know")
        logits = self.model.forward(tokens, place, keep)
        self._tokens.index_copy_(0, place.slots, tokens)
        self._positions.index_copy_(0, place.slots, place.positions)
        paths = self._paths(place, length)
        rows = range(len(paths)) if keep is None else keep.tolist()
        return self._pass([paths[row] for row in rows], logits, length)

    def move(self, prefix: Prefix, offsets: Tensor, first: int) -> None:
        """See `SlotModel.move`."""
        self.model.move(prefix, offsets, first)
        to = prefix.length + torch.arange(first, first + len(offsets), device=offsets.device)
        for kept in (self._tokens, self._positions):
            kept.index_copy_(0, to, kept.index_select(0, prefix.length + offsets))

    @torch.no_grad()
    def score(self, ids: Tensor, keep_from: int = 0, pixels: Tensor | None = None) -> Tensor:
        """See `ScoringModel.score`. The logits are float32. Raises ModelError also for a model that does not score."""
        if not isinstance(self.model, ScoringModel):
            raise ModelError(f"{self.name} does not score whole texts")
        logits = self.model.score(ids, keep_from, pixels)
        rows = [
            torch.stack([self.process(text[: keep_from + 1 + at], row) for at, row in enumerate(found)])
            for text, found in zip(ids, logits, strict=True)
        ]
        return torch.stack(rows)

    @torch.no_grad()
    def process(self, text: Tensor, logits: Tensor) -> Tensor:
        """Return logits [vocabulary] after a text int64 [length] as the processors leave them, float32. Raises ModelError."""
        asked = self._asked(text, logits)
        self._require_sound(text, logits, asked)
        return asked[-1]

    def _paths(self, place: Placement, length: int) -> list[tuple[int, ...]]:
        """Return the slots of the text that each of the pass's tokens ends, those of the committed tokens left out.

        A token of the prefix, which is written again, has the negative number of the slots behind it, less one.
        """
        visible, depths = place.visible.tolist(), place.depths.tolist()
        positions = self._positions[length : length + place.visible.shape[1]].tolist()
        order = sorted(range(len(positions)), key=positions.__getitem__)
        return [
            (depth,) if depth < 0 else tuple(length + column for column in order if seen[column])
            for seen, depth in zip(visible, depths, strict=True)
        ]

    def _pass(self, paths: list[tuple[int, ...]], logits: Tensor, length: int) -> Tensor:
        """Return the processed rows [rows, vocabulary] of a pass over the tokens at the ends of `paths`."""
        found: dict[tuple[int, ...], Tensor | None] = {}
        first: tuple[Tensor, Tensor, list[Tensor]] | None = None
        tokens = self._tokens.tolist() if len(paths) > 1 else []
        for index in sorted(range(len(paths)), key=lambda index: len(paths[index])):  # parents before their children
            path = paths[index]
            if not self._is_asked(path, found, tokens, length):
                found[path] = None
                continue
            text = self._text(path, length)
            asked = self._asked(text, logits[index])
            first = first or (text, logits[index], asked)
            found[path] = asked[-1]
        if first is not None:
            self._require_sound(*first)
        rows = [found[path] for path in paths]
        return torch.stack([logits[index].float() if row is None else row for index, row in enumerate(rows)])

    def _is_asked(self, path: tuple[int, ...], found: Mapping[tuple[int, ...], Tensor | None], tokens: list[int], length: int) -> bool:
        """Return whether `generate` could come to ask what follows this path. The rows of its ancestors are `found` if they are known."""
        above = path[:-1]
        if not above or above not in found:
            return True
        row, token, longest = found[above], tokens[path[-1]], self.asking.longest
        if row is None or token in self.asking.ends or (longest is not None and len(self.asking.padding) + length + len(path) >= longest):
            return False
        return token < len(row) and float(row[token]) > -torch.inf

    def _text(self, path: tuple[int, ...], length: int) -> Tensor:
        """Return the text that a path ends, int64 [tokens]."""
        if path[0] < 0:
            return self._tokens[: length + path[0] + 1]
        return torch.cat([self._tokens[:length], self._tokens[torch.tensor(path, device=self.device)]])

    def _asked(self, text: Tensor, logits: Tensor) -> list[Tensor]:
        """Return what each processor makes of logits [vocabulary] after a text, one after the other; the last is the result."""
        row, rows = self.asking.row, self.asking.rows
        ids = torch.cat([self._padding, text]).expand(rows, -1)
        scores = logits.to(torch.float32, copy=True).expand(rows, -1)
        found = [scores[row]]
        for processor in self.processors:
            try:
                scores = processor(ids.clone(), scores.clone())
            except Exception as error:
                raise ModelError(
                    f"the logits processor {name_of(processor)} fails after {counted(len(text), 'token')}: {reason_of(error)}"
                ) from error
            if not isinstance(scores, Tensor):
                raise ModelError(f"the logits processor {name_of(processor)} returns a {type(scores).__name__}; let it return the scores")
            if scores.shape != (rows, len(logits)):
                raise ModelError(f"the logits processor {name_of(processor)} turns scores of {[rows, len(logits)]} into {[*scores.shape]}")
            found.append(scores[row])
        return found

    def _require_sound(self, text: Tensor, logits: Tensor, before: list[Tensor]) -> None:
        """Raise ModelError if processors leave no token, or make something else of the same text and scores than they did `before`."""
        if float(before[-1].amax()) == -torch.inf < float(before[0].amax()):
            names = " and ".join(map(name_of, self.processors))
            raise ModelError(
                f"the logits processors rule out every token after {counted(len(text), 'token')} ({names}); loosen one of them"
            )
        if all(map(_is_known, self.processors)):
            return
        for processor, one, other in zip(self.processors, before[1:], self._asked(text, logits)[1:], strict=True):
            if not _is_known(processor) and not torch.allclose(one, other, rtol=1e-4, atol=1e-5, equal_nan=True):
                raise ModelError(
                    f"the logits processor {name_of(processor)} gives other scores when asked again about the same tokens: it keeps a state, and "
                    "trees ask about several continuations; pass one that depends on `input_ids` alone"
                )


def name_of(processor: Processor) -> str:
    """Return the name of a processor in messages."""
    return str(getattr(processor, "__name__", type(processor).__name__))


def _is_known(processor: Processor) -> bool:
    """Return whether a processor is one of transformers' own that depends on `input_ids` alone."""
    return type(processor).__module__ == LogitsProcessor.__module__ and not isinstance(processor, _STATEFUL)
