"""TextDraft: a text-only draft for a target that sees pictures or knows tokens that the draft does not know."""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from treespec.errors import CapacityError, counted
from treespec.models.loaded import LoadedModel
from treespec.models.tree_model import TreeModel
from treespec.trees.placement import Placement, Prefix


class TextDraft(TreeModel):
    """Reads the target's text without its pictures: picture tokens are left out of its cache, so its positions count words only.

    For decoding it is a model of the target's vocabulary: tokens that it does not know have probability 0, and if the target
    committed one, it reads its own EOS instead. Neither changes the target's output; both can only lower acceptance.

    Args:
        module, name, kernels: see `TreeModel`.
        shared: how many of the first ids mean the same to both.
        vocabulary: the target's logits.
        picture: the target's picture token.
    """

    def __init__(
        self, module: PreTrainedModel | LoadedModel, *, name: str, shared: int, vocabulary: int, picture: int, kernels: bool | None = None
    ) -> None:
        module = LoadedModel.of(module)
        self._skipped = torch.zeros(1, dtype=torch.int64, device=module.module.device)
        self._known_skipped, self._instead, self.shared, self.picture = 0, 0, shared, -1
        super().__init__(module, name=name, vocabulary=shared, kernels=kernels)  # may try out a tree, without pictures
        self.shared = shared = self.vocabulary_size  # no more than it has logits
        self.picture, self.vocabulary_size = picture, vocabulary
        self._instead = min((i for i in self.eos_token_ids if i < shared), default=0)

    def positions_of(self, prompt: Sequence[int]) -> int:
        """See `TreeModel.positions_of`. Only words are counted."""
        return sum(token != self.picture for token in prompt)

    @property
    def known_tokens(self) -> int:
        """See `TreeModel.known_tokens`."""
        return self.shared

    def allocate(self, capacity: int) -> None:
        """See `TreeModel.allocate`. Nothing is stored, so nothing is left out."""
        super().allocate(capacity)
        self._skip(0)

    def prefill(self, tokens: Tensor, pixels: Tensor | None = None, chunk: int = 512) -> Tensor:
        """See `TreeModel.prefill`. Picture tokens are skipped."""
        words = tokens[tokens != self.picture]
        if words.shape[0] < 2:
            raise CapacityError(
                f"the prompt has {counted(words.shape[0], 'token')} besides its picture, but the text-only draft {self.name} needs 2; add text"
            )
        self._skip(tokens.shape[0] - words.shape[0])
        return self._widened(super().prefill(self._readable(words), None, chunk))

    def forward(self, tokens: Tensor, place: Placement, keep: Tensor | None = None) -> Tensor:
        """See `TreeModel.forward`."""
        return self._widened(super().forward(self._readable(tokens), replace(place, prefix=self._own(place.prefix)), keep))

    def move(self, prefix: Prefix, offsets: Tensor, first: int) -> None:
        """See `TreeModel.move`."""
        super().move(self._own(prefix), offsets, first)

    def score(self, ids: Tensor, keep_from: int = 0, pixels: Tensor | None = None) -> Tensor:
        """See `TreeModel.score`. Pictures must be before `keep_from`, equally many in each row; later picture tokens count as unknown."""
        seen = (ids != self.picture) | (torch.arange(ids.shape[1], device=ids.device) >= keep_from)
        words = int(seen[0].sum())
        if not bool((seen.sum(1) == words).all()):
            raise CapacityError("rows of one batch must hold the same number of picture tokens in their prompts")
        return self._widened(super().score(self._readable(ids[seen].view(ids.shape[0], words)), keep_from - (ids.shape[1] - words)))

    def _skip(self, count: int) -> None:
        self._skipped.fill_(count)
        self._known_skipped = count

    def _own(self, prefix: Prefix) -> Prefix:
        """Return the prefix as this model's cache holds it, without pictures."""
        return Prefix(prefix.length - self._skipped, None if prefix.known is None else prefix.known - self._known_skipped)

    def _readable(self, tokens: Tensor) -> Tensor:
        return torch.where(tokens < self.shared, tokens, self._instead)

    def _widened(self, logits: Tensor) -> Tensor:
        """Return logits [.., vocabulary of the target]; tokens that the draft does not know have probability 0."""
        missing = self.vocabulary_size - logits.shape[-1]
        return F.pad(logits, (0, missing), value=float("-inf")) if missing else logits
