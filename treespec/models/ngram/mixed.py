"""MixedDraft: a model and n-grams beside it, as one draft. What followed the same tokens before refines what the model says."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from treespec.files.provenance import public_name
from treespec.models.ngram.corpus import Corpus, draft_name
from treespec.models.ngram.draft import NgramDraft
from treespec.models.ngram.table import NgramTable
from treespec.models.tree_model import TreeModel
from treespec.trees.placement import Placement, Prefix


class MixedDraft:
    """A draft whose probabilities are a model's, refined by what followed the same tokens in the text and in a corpus.

    The model's distribution stands where an n-gram draft has the frequencies of tokens: below all contexts (see `NgramDraft`). So the model speaks
    alone where nothing is known of the last tokens, and the n-grams where they have occurred often. Both read every token, at the same places. A
    token that the model does not know can be proposed by the n-grams.

    Args:
        model: the model.
        vocabulary: the target's logits, all of which can be drafted.
        corpus: the corpus that was counted, for records.
        table: its counts.
    """

    def __init__(self, model: TreeModel, vocabulary: int, corpus: Corpus | None = None, table: NgramTable | None = None) -> None:
        self.model, self.ngrams = model, NgramDraft(vocabulary, model.device, corpus, table, beside=True)
        self._corpus = corpus
        self.name = draft_name(corpus, model.name)
        self.vocabulary_size, self.device, self.dtype = vocabulary, model.device, model.dtype
        self.max_positions, self.rope_note = model.max_positions, model.rope_note
        self.unknown: tuple[int, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what people should know of how the model was loaded, in sentences."""
        return self.model.notes

    @property
    def eager_reason(self) -> str:
        """See `CapturableModel.eager_reason`: that of the model, which a cache may bring."""
        return self.model.eager_reason

    @property
    def generation(self) -> int:
        """See `CapturableModel.generation`."""
        return self.model.generation + self.ngrams.generation

    @property
    def capacity(self) -> int:
        """Number of slots that both have."""
        return min(self.model.capacity, self.ngrams.capacity)

    def describe(self) -> dict[str, Any]:
        """Return the facts that identify work with the draft, as plain JSON: those of the model, with the n-grams' beside them."""
        name = draft_name(self._corpus, public_name(self.model.name))
        return {**self.model.describe(), "name": name, "beside": self.ngrams.describe()}

    def identity(self) -> dict[str, Any]:
        """Return what the draft is, whatever device and number type it runs in."""
        return {**self.model.identity(), "beside": self.ngrams.identity()}

    def release(self) -> None:
        """See `TreeModel.release`."""
        self.model.release()

    def positions_of(self, prompt: Sequence[int]) -> int:
        """See `TreeModel.positions_of`."""
        return self.model.positions_of(prompt)

    def allocate(self, capacity: int) -> None:
        """See `TreeModel.allocate`."""
        self.model.allocate(capacity)
        self.ngrams.allocate(capacity)

    def prefill(self, tokens: Tensor, pixels: Tensor | None = None) -> Tensor:
        """See `TreeModel.prefill`. The n-grams do not look at pictures."""
        return self.ngrams.prefill(tokens, below=self._below(self.model.prefill(tokens, pixels)))

    def forward(self, tokens: Tensor, place: Placement, keep: Tensor | None = None) -> Tensor:
        """See `TreeModel.forward`."""
        return self.ngrams.forward(tokens, place, keep, self._below(self.model.forward(tokens, place, keep)))

    def move(self, prefix: Prefix, offsets: Tensor, first: int) -> None:
        """See `TreeModel.move`."""
        self.model.move(prefix, offsets, first)
        self.ngrams.move(prefix, offsets, first)

    def score(self, ids: Tensor, keep_from: int = 0, pixels: Tensor | None = None) -> Tensor:
        """See `TreeModel.score`."""
        return self.ngrams.score(ids, keep_from, below=self._below(self.model.score(ids, keep_from, pixels)))

    @torch.inference_mode()
    def _below(self, logits: Tensor) -> Tensor:
        """Return logits [.., the model's] as those of all tokens; -inf for those that the model does not have."""
        return F.pad(logits, (0, self.vocabulary_size - logits.shape[-1]), value=float("-inf"))
