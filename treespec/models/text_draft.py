"""TextDraft: a draft that knows a part of the target's tokens, or reads the text without the target's pictures, or both."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from treespec.errors import CapacityError, counted
from treespec.models.generation import eos_token_ids
from treespec.models.loaded import LoadedModel
from treespec.models.tree_model import TreeModel
from treespec.models.vision import Vision
from treespec.models.vocabularies import SharedIds
from treespec.trees.placement import Placement, Prefix


class TextDraft(TreeModel):
    """Reads the target's tokens, and gives probability 0 to those that mean nothing, or something else, to it.

    If the target committed such a token, the draft reads its own id of it, or else its own EOS. If there is a `picture` token, the draft
    reads the text without pictures: these are left out of its cache, so its positions count words only. None of this changes the target's
    output; it can only lower acceptance.

    Args:
        module, name, kernels, vision: see `TreeModel`.
        shared: the ids that mean the same to both. Logits end with the last of them.
        vocabulary: the target's logits, whose ids it must be able to read.
        picture: the target's picture token (None: the draft passes over nothing).
    """

    def __init__(
        self,
        module: PreTrainedModel | LoadedModel,
        *,
        name: str,
        shared: SharedIds,
        vocabulary: int,
        picture: int | None = None,
        kernels: bool | None = None,
        vision: Vision | None = None,
    ) -> None:
        module = LoadedModel.of(module)
        device = module.module.device
        self._skipped = torch.zeros(1, dtype=torch.int64, device=device)
        self._known_skipped, self.picture = 0, None
        self._reads = torch.arange(vocabulary, device=device)
        self._missing = torch.tensor(shared.others, dtype=torch.int64, device=device)
        self.unknown = shared.others
        instead = min((i for i in eos_token_ids(module.module) if i < shared.size), default=0)
        self._reads[shared.size :].fill_(instead)
        self._reads[self._missing] = instead
        for ours, own in shared.read_as:
            self._reads[ours] = own
        super().__init__(module, name=name, vocabulary=shared.size, kernels=kernels, vision=vision)  # may try out a tree, without pictures
        self.picture = picture

    def positions_of(self, prompt: Sequence[int]) -> int:
        """See `TreeModel.positions_of`. Only words are counted."""
        return sum(token != self.picture for token in prompt)

    def allocate(self, capacity: int) -> None:
        """See `TreeModel.allocate`. Nothing is stored, so nothing is left out."""
        super().allocate(capacity)
        self._skip(0)

    def prefill(self, tokens: Tensor, pixels: Tensor | None = None, chunk: int = 512) -> Tensor:
        """See `TreeModel.prefill`. Picture tokens are skipped."""
        if self.picture is None:
            return self._known(super().prefill(self._reads[tokens], pixels, chunk))
        words = tokens[tokens != self.picture]
        if words.shape[0] < 2:
            raise CapacityError(
                f"the prompt has {counted(words.shape[0], 'token')} besides its picture, but the text-only draft {self.name} needs 2; add text"
            )
        self._skip(tokens.shape[0] - words.shape[0])
        return self._known(super().prefill(self._reads[words], None, chunk))

    def forward(self, tokens: Tensor, place: Placement, keep: Tensor | None = None) -> Tensor:
        """See `TreeModel.forward`."""
        return self._known(super().forward(self._reads[tokens], replace(place, prefix=self._own(place.prefix)), keep))

    def move(self, prefix: Prefix, offsets: Tensor, first: int) -> None:
        """See `TreeModel.move`."""
        super().move(self._own(prefix), offsets, first)

    def score(self, ids: Tensor, keep_from: int = 0, pixels: Tensor | None = None) -> Tensor:
        """See `TreeModel.score`. Pictures must be before `keep_from`, equally many in each row; later picture tokens count as unknown."""
        if self.picture is None:
            return self._known(super().score(self._reads[ids], keep_from, pixels))
        seen = (ids != self.picture) | (torch.arange(ids.shape[1], device=ids.device) >= keep_from)
        words = int(seen[0].sum())
        if not bool((seen.sum(1) == words).all()):
            raise CapacityError("rows of one batch must hold the same number of picture tokens in their prompts")
        return self._known(super().score(self._reads[ids[seen].view(ids.shape[0], words)], keep_from - (ids.shape[1] - words)))

    def _skip(self, count: int) -> None:
        self._skipped.fill_(count)
        self._known_skipped = count

    def _own(self, prefix: Prefix) -> Prefix:
        """Return the prefix as this model's cache holds it, without pictures."""
        if self.picture is None:
            return prefix
        return Prefix(prefix.length - self._skipped, None if prefix.known is None else prefix.known - self._known_skipped)

    def _known(self, logits: Tensor) -> Tensor:
        """Return logits [.., shared tokens]; those that mean something else to the draft have probability 0."""
        return logits.index_fill(-1, self._missing, float("-inf")) if self.unknown else logits
