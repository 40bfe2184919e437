"""NgramDraft: a draft without weights, whose logits are the logarithms of a back-off distribution over what followed the same tokens before.

Under its counts there may be what a model says of each token, in place of how frequent that is: see `below`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from treespec.errors import CapacityError, counted
from treespec.kernels.plain import widest
from treespec.models.ngram import LONGEST, NGRAM
from treespec.models.ngram.corpus import Corpus, draft_name
from treespec.models.ngram.table import NgramTable
from treespec.trees.placement import Placement, Prefix

_NEVER = 1e30
"""The weight beside which no occurrence counts."""


class Priors(NamedTuple):
    """The weights of what all weaker contexts say, beside that of an occurrence."""

    token: float
    """The weight beside a token in the text, whatever is before it."""
    corpus: tuple[float, ...]
    """The weights beside contexts of 1, 2, .. tokens in the corpus."""
    text: tuple[float, ...]
    """The weights beside contexts of 1, 2, .. tokens in the text."""


ALONE = Priors(64.0, (16.0,) * LONGEST, (2.0,) * LONGEST)
"""The weights without a model. They were chosen on greedy and warm texts of the embedded target; docs/drafts.md has what they give."""
BESIDE_MODEL = Priors(_NEVER, (*(_NEVER,) * 3, *(128.0,) * (LONGEST - 3)), (_NEVER, *(8.0,) * (LONGEST - 1)))
"""The weights where a model stands below all contexts. After short ones it knows better what follows: after one token in the text, and after up to three in
a corpus, where occurrences are many. benchmarks/log/drafts.md has what was tried."""

WINDOW = 4096
"""The tokens of a text that are looked at, the newest ones."""
_NEW = 64
"""An occurrence at the beginning of the text counts half as much as one at its end; this is the difference, in whole numbers."""
_SCALE = 2.0**60
"""Probabilities are added up as whole numbers, so that the order of the additions changes nothing."""
_LEAST = 1e-30
"""Least weight of what is below all contexts, so that every token has a probability above 0."""
_ROWS_AT_ONCE = 128
"""Most positions of a text that are scored at once."""


class NgramDraft:
    """A draft that reads tokens and keeps them in its slots; it has no keys and values.

    The last 1, 2, .. LONGEST tokens before a place are its contexts. What followed a context earlier in the text is counted; the ancestors of a node
    belong to its text, as they do for every model, so that its logits do not depend on the tree that it stands in. Tokens before the newest WINDOW ones
    do not count as text. So the work of a pass is bounded; below that bound, it follows the length of the text, and in captured steps, whose launches
    cannot follow it, the number of slots. What followed a context in the corpus is counted too. Each context refines what the weaker ones say, as in
    a hierarchical Dirichlet model (MacKay and Peto, "A hierarchical Dirichlet language model", 1995): with N occurrences, c(t) of them before token t,

        P(t) = (c(t) + prior * P(t by the weaker contexts)) / (N + prior)

    From the weakest on, these are the empty context in the text, the contexts in the corpus, and the contexts in the text, longer ones above
    shorter ones. Below all stand the frequencies in the corpus, and the order of the ids: smaller ones are the more frequent in most
    vocabularies. So every token has a probability above 0. Methods run in inference mode, and no pass waits for the device.

    Args:
        vocabulary: the target's logits, all of which can be drafted.
        device: where tokens and placements are.
        corpus: the corpus that was counted, for records.
        table: its counts.
        beside: whether every pass is given what a model says, `below` it: logits [.., vocabulary] of the same places. That is then what is below all
            contexts, and the short ones are not counted, because a model knows better.
    """

    def __init__(
        self,
        vocabulary: int,
        device: str | torch.device = "cpu",
        corpus: Corpus | None = None,
        table: NgramTable | None = None,
        *,
        beside: bool = False,
    ) -> None:
        self.name = draft_name(corpus)
        self.vocabulary_size, self.device, self.dtype = vocabulary, torch.device(device), torch.float32
        self.max_positions: int | None = None
        self.rope_note = self.eager_reason = ""
        self.unknown: tuple[int, ...] = ()
        self.notes: tuple[str, ...] = ()
        self.generation = self.capacity = 0
        self._corpus = corpus
        self._table = None if table is None else table.to(self.device)
        wide = widest(self.device)
        last = 1.0 / torch.arange(2, vocabulary + 2, dtype=wide, device=self.device)
        last /= last.sum()
        if self._table is not None:
            last += self._table.unigrams
            last /= last.sum()
        self._last = last.float()
        priors = BESIDE_MODEL if beside else ALONE
        weights = [priors.token, *(() if self._table is None else priors.corpus), *priors.text]
        self._priors = torch.tensor(weights, dtype=wide, device=self.device)
        self._slots = torch.zeros(2, 0, dtype=torch.int64, device=self.device)

    capacity: int
    """Number of slots."""
    generation: int
    """Number of times that the slots were replaced. A captured step is valid for one generation only."""

    def describe(self) -> dict[str, Any]:
        """Return the facts that identify the draft, as plain JSON."""
        return {"name": self.name, "kind": NGRAM, "longest": LONGEST, "corpus": None if self._corpus is None else self._corpus.sha256}

    def identity(self) -> dict[str, Any]:
        """Return what the draft is, whatever device it is on."""
        return self.describe()

    def release(self) -> None:
        """Nothing was changed in any module, so there is nothing to undo."""

    def positions_of(self, prompt: Sequence[int]) -> int:
        """Return the number of positions that a prompt takes."""
        return len(prompt)

    @torch.inference_mode()
    def allocate(self, capacity: int) -> None:
        """Make at least `capacity` slots and forget their content; slots that are enough are kept. Raises CapacityError."""
        if capacity < 1:
            raise CapacityError(f"{counted(capacity, 'slot was', 'slots were')} asked for, but a draft needs at least 1")
        if capacity > self.capacity:
            self._slots = torch.zeros(2, capacity, dtype=torch.int64, device=self.device)
            self.capacity, self.generation = capacity, self.generation + 1

    @torch.inference_mode()
    def prefill(self, tokens: Tensor, pixels: Tensor | None = None, below: Tensor | None = None) -> Tensor:
        """Read tokens int64 [length] into slots 0 .. length - 1 and return logits [vocabulary] after the last. Pictures are not looked at."""
        length = tokens.shape[0]
        if length < 1:
            raise CapacityError("the prompt is empty, but a draft needs at least 1 token to start from")
        self._require(length)
        places = torch.arange(length, device=tokens.device)
        self._slots[:, :length] = torch.stack([tokens, places])
        return self._logits(tokens[None], places[-1:], below)[0]

    @torch.inference_mode()
    def forward(self, tokens: Tensor, place: Placement, keep: Tensor | None = None, below: Tensor | None = None) -> Tensor:
        """Store int64 [q] tokens in the slots of `place` and return float32 logits [q, vocabulary], or only those of the tokens `keep`."""
        known, positions, visible = place.prefix.known, place.positions, place.visible
        self._require(1 if known is None else known + visible.shape[1])
        self._slots.index_copy_(1, place.slots, torch.stack([tokens, positions]))
        if keep is not None:
            positions, visible = positions.index_select(0, keep), visible.index_select(0, keep)
        texts, first = self._texts(place.prefix, visible)
        return self._logits(texts, positions - first, below)

    @torch.inference_mode()
    def move(self, prefix: Prefix, offsets: Tensor, first: int) -> None:
        """Copy slots `length + offsets` int64 [m] to slots `length + first ..`; all are read before any is written."""
        places = prefix.length + torch.arange(first, first + offsets.shape[0], device=offsets.device)
        self._slots.index_copy_(1, places, self._slots.index_select(1, prefix.length + offsets))

    @torch.inference_mode()
    def score(self, ids: Tensor, keep_from: int = 0, pixels: Tensor | None = None, below: Tensor | None = None) -> Tensor:
        """Read texts int64 [batch, length] and return logits [batch, length - keep_from, vocabulary]. The slots stay as they are."""
        length = ids.shape[1]
        if not 0 <= keep_from < length:
            raise CapacityError(f"logits from position {keep_from} on were asked for, but the rows have {counted(length, 'token')}")
        places = torch.split(torch.arange(keep_from, length, device=ids.device), _ROWS_AT_ONCE)
        said = [[None] * len(places)] * len(ids) if below is None else [torch.split(rows, _ROWS_AT_ONCE) for rows in below]
        return torch.stack(
            [
                torch.cat([self._logits(text.expand(len(some), -1), some, rows) for some, rows in zip(places, under, strict=True)])
                for text, under in zip(ids, said, strict=True)
            ]
        )

    def _require(self, slots: int) -> None:
        if slots > self.capacity:
            raise CapacityError(f"{self.name}: the pass needs {counted(slots, 'slot')}, but there are {self.capacity}; allocate more first")

    def _texts(self, prefix: Prefix, visible: Tensor) -> tuple[Tensor, Tensor]:
        """Return the text that each of q tokens ends, int64 [q, any], and the position int64 [1] at which all of them begin.

        That is the newest part of the prefix, and behind it what each token sees of the slots `visible` [q, m]. The number of columns goes by the slots
        where only the device knows how many of them hold something, because launches depend on shapes alone.
        """
        rows, behind = visible.shape
        before = min(WINDOW, self.capacity if prefix.known is None else prefix.known)
        first = (prefix.length - before).clamp_min(0)
        newest = self._slots[0].index_select(0, first + torch.arange(before, device=visible.device))
        tokens, positions = self._slots.index_select(1, prefix.length + torch.arange(behind, device=visible.device))
        found = tokens.new_zeros(rows, before + behind + 1)  # the last column takes what is not seen
        found[:, :before] = newest
        found.scatter_(1, (positions - first).masked_fill(~visible, before + behind), tokens.expand(rows, -1))
        return found[:, :-1], first

    def _logits(self, texts: Tensor, positions: Tensor, below: Tensor | None) -> Tensor:
        """Return logits [q, vocabulary] after the tokens at `positions` int64 [q] of texts int64 [q, any]; what follows them is not looked at.

        `below` is what a model says, logits [q, vocabulary] or [vocabulary]. Of longer texts, the `WINDOW` tokens that end with each place are the text.
        """
        if texts.shape[1] > WINDOW:
            start = (positions - (WINDOW - 1)).clamp_min(0)
            texts = texts.gather(1, start[:, None] + torch.arange(WINDOW, device=texts.device))
            positions = positions - start
        contexts = positions[:, None] - torch.arange(LONGEST, device=texts.device)
        contexts = texts.gather(1, contexts.clamp_min(0)).masked_fill(contexts < 0, -1)  # the newest token first
        shared, weights = _occurrences(texts, positions, contexts)
        ends = shared.new_zeros(len(texts), LONGEST + 1).scatter_add_(1, shared, weights)
        counts = ends.flip(1).cumsum(1).flip(1) / (2.0 * _NEW)  # by length: an occurrence of a context is one of all shorter ones
        said = None if self._table is None else self._table.look_up(contexts)
        if said is not None:
            counts = torch.cat([counts[:, :1], said[1].sum(-1), counts[:, 1:]], dim=1)
        totals = counts + self._priors
        passed = (self._priors / totals).flip(1).cumprod(1).flip(1)  # the weight of all that is weaker than each context
        each = F.pad(passed[:, 1:], (0, 1), value=1.0) / totals  # the weight of one occurrence of it
        own = torch.cat([each[:, :1], each[:, -LONGEST:]], dim=1).cumsum(1).gather(1, shared) * weights / (2.0 * _NEW)
        sums = texts.new_zeros(len(texts), self.vocabulary_size)
        sums.scatter_add_(1, F.pad(texts[:, 1:], (0, 1)), _whole(own))
        if said is not None:
            sums.scatter_add_(1, said[0].flatten(1), _whole(said[1] * each[:, 1:-LONGEST, None]).flatten(1))
        last = self._last if below is None else below.float().softmax(-1)
        chances: Tensor = sums.float() / _SCALE + passed[:, :1].float().clamp_min(_LEAST) * last
        return chances.clamp_min(torch.finfo(torch.float32).tiny).log()


def _whole(chances: Tensor) -> Tensor:
    """Return chances as whole numbers of `_SCALE`."""
    return (chances * _SCALE).round().to(torch.int64)


def _occurrences(texts: Tensor, positions: Tensor, contexts: Tensor) -> tuple[Tensor, Tensor]:
    """Return how much of its context each of q tokens shares with every place of its text, and the weight of what follows there.

    The first is the number of equal tokens up to and including that place, int64 [q, any], at most LONGEST. The weight, int64 [q, any], is from
    _NEW at the beginning of the text to 2 * _NEW at its end, and 0 where nothing follows.
    """
    places = torch.arange(texts.shape[1], device=texts.device)
    windows = F.pad(texts, (LONGEST - 1, 0), value=-1).unfold(1, LONGEST, 1)  # the oldest token first
    equal = (windows == contexts.flip(1)[:, None]).flip(-1)
    shared = equal.cumprod(-1, dtype=torch.int8).sum(-1)
    weights = _NEW + _NEW * (places + 1) // (positions[:, None] + 1)
    return shared, weights.masked_fill(places >= positions[:, None], 0)
