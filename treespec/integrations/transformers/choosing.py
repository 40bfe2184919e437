"""From the lists that `generate` hands over to the way in which tokens are chosen here, and to where texts end."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import (
    EosTokenCriteria,
    LogitNormalization,
    MaxLengthCriteria,
    PrefixConstrainedLogitsProcessor,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from treespec.decoding.rules import Sampling
from treespec.models.processed import Processor

_PLAIN: tuple[tuple[type, ...], ...] = (
    (),
    (TemperatureLogitsWarper,),
    (TopPLogitsWarper,),
    (TemperatureLogitsWarper, TopPLogitsWarper),
)
"""The lists of processors that a `Sampling` does as well."""


@dataclass(frozen=True)
class Choice:
    """The way in which the target's tokens are chosen."""

    sampling: Sampling
    processors: tuple[Processor, ...]
    """Processors that logits pass through before; empty if `sampling` says it all."""
    temperature: float
    """The temperature for the draft, where it has none of its own: that of the target, wherever it is applied."""


def choice_of(processors: Sequence[Any], *, do_sample: bool) -> Choice:
    """Return the way to choose tokens as `generate` does with these processors."""
    found = [processor for processor in processors if type(processor) is not LogitNormalization]  # it changes no distribution
    if not do_sample:
        return Choice(Sampling(), tuple(found), 0.0)
    temperature, top_p, plain = 1.0, 1.0, tuple(map(type, found)) in _PLAIN
    for processor in found:
        if isinstance(processor, TemperatureLogitsWarper):
            temperature *= float(processor.temperature)
        elif isinstance(processor, TopPLogitsWarper):
            top_p = float(processor.top_p)
            plain = plain and processor.min_tokens_to_keep == 1 and processor.filter_value == -float("inf") and top_p > 0
    return Choice(Sampling(temperature, top_p), (), temperature) if plain else Choice(Sampling(1.0), tuple(found), temperature)


class OneRow:
    """A constraint of a batch, asked about one row of it: `generate` hands the number of the row to the user's function."""

    def __init__(self, whole: PrefixConstrainedLogitsProcessor, row: int) -> None:
        self.__name__ = type(whole).__name__
        allowed = whole._prefix_allowed_tokens_fn
        self._row, self._asked = row, PrefixConstrainedLogitsProcessor(lambda _, text: allowed(row, text), 1)

    def __call__(self, input_ids: Any, scores: Tensor) -> Tensor:
        """Return the scores [rows, vocabulary] with those of the row constrained."""
        here = slice(self._row, self._row + 1)
        found = scores.clone()
        found[here] = self._asked(input_ids[here], scores[here])
        return found


def for_row(processors: Iterable[Processor], row: int) -> tuple[Processor, ...]:
    """Return processors of a batch that can be asked about one row of it alone."""
    return tuple(OneRow(each, row) if isinstance(each, PrefixConstrainedLogitsProcessor) else each for each in processors)


@dataclass(frozen=True)
class Stops:
    """The places where texts end."""

    ends: frozenset[int]
    """EOS tokens."""
    longest: int
    """Most tokens of a text, its prompt and padding included."""
    others: tuple[Any, ...]
    """Stopping criteria that must be asked token by token."""
    pads: bool
    """Whether `generate` pads texts that end before others; without EOS tokens it goes on with them."""

    @classmethod
    def of(cls, criteria: Iterable[Any], longest: int) -> "Stops":
        """Return where these criteria end texts, and `longest` tokens where none of them says how many there may be."""
        ends: set[int] = set()
        others, lengths, pads = [], [], False
        for each in criteria:
            pads = pads or hasattr(each, "eos_token_id")
            if type(each) is MaxLengthCriteria:
                lengths.append(int(each.max_length))
            elif type(each) is EosTokenCriteria:
                ends |= set(each.eos_token_id.flatten().tolist())
            else:
                others.append(each)
        return cls(frozenset(ends), min(lengths, default=longest), tuple(others), pads)

    def reached(self, text: Tensor, row: int, rows: int) -> bool:
        """Return whether one of the others ends a text int64 [length], row `row` of a batch. All of them are asked, as `generate` does."""
        ids = text.expand(rows, -1)
        answers = [each(ids, None) for each in self.others]
        return any(bool(answer[row]) if isinstance(answer, Tensor) and answer.ndim else bool(answer) for answer in answers)
