"""The protocols of drafts: all that the project asks of a model that drafts beside a target, loaded (`Draft`) and before that (`DraftInfo`).

A model with weights is a draft of this kind, and so is the n-gram draft. Another kind is one more class for each of the two protocols.
"""

from typing import Any, Protocol

import torch
from transformers import PreTrainedTokenizerBase

from treespec.decoding.protocol import ScoringModel, SlotModel
from treespec.models.facts import named
from treespec.models.heads.bound import BoundHead
from treespec.models.positions import Positioned
from treespec.models.tree_model import TreeModel


class NamedDraft(ScoringModel, Positioned, Protocol):
    """A draft that is profiled and named in records."""

    @property
    def vocabulary_size(self) -> int:
        """Return the width of its logits."""

    @property
    def device(self) -> torch.device:
        """Return the device where tokens are."""

    @property
    def name(self) -> str:
        """Return its name in messages, which are of folders too."""

    @property
    def dtype(self) -> torch.dtype:
        """Return the number type of its logits."""

    @property
    def eager_reason(self) -> str:
        """Return why its passes cannot be captured; empty if they can be. Then it is a `CapturableModel`."""

    @property
    def unknown(self) -> tuple[int, ...]:
        """Return the ids below `vocabulary_size` that always have probability 0."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what people should know of how it was loaded, in sentences."""

    def describe(self) -> dict[str, Any]:
        """Return the facts that identify work with it, as plain JSON: at least `name`.

        Those of these that apply go into records: `revision`; `adapter`, with its `name`; `quantization`.
        """

    def identity(self) -> dict[str, Any]:
        """Return what tells it from others, whatever device and number type it runs in, as plain JSON."""

    def release(self) -> None:
        """Undo what was changed in what the caller gave. The draft cannot be used afterwards."""


class ModelDraft(SlotModel, NamedDraft, Protocol):
    """A draft that reads texts itself. A `TreeModel` is one, whether it is a target or a draft, and the n-gram draft is."""


Draft = ModelDraft | BoundHead
"""The type of a draft beside a target: a model, or a head that reads the target's states."""


class DraftInfo(Positioned, Protocol):
    """The facts about a draft that fits a target, before a weight is read."""

    @property
    def name(self) -> str:
        """See `Draft.name`."""

    @property
    def vocabulary_size(self) -> int:
        """Return the number of first tokens that it can draft."""

    @property
    def quantization(self) -> str | None:
        """Return the type of its weights, if they are stored quantised."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """Return the tokenizer of its tokens, if its files have one."""

    @property
    def has_weights(self) -> bool:
        """Return whether a pass reads weights, which take time and memory."""

    def load_draft(self, target: TreeModel, *, device: str, dtype: str) -> Draft:
        """Load the draft beside its loaded target. Its files are not looked at again. Raises ModelError."""


def recorded_name(model: Draft) -> str:
    """Return a model's name for records: without folders, and with its revision if one is known."""
    return named(model.describe())
