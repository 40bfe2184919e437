"""SlotModel: all that decoding asks of a language model. TreeModel implements it; tests use tabular ones."""

from typing import Protocol

import torch
from torch import Tensor


class SlotModel(Protocol):
    """A causal language model over one sequence, whose K/V rows live in slots that the caller addresses."""

    @property
    def vocabulary_size(self) -> int:
        """Width of a logits row."""

    @property
    def device(self) -> torch.device:
        """Where tokens, positions, slots and masks must be."""

    def allocate(self, capacity: int) -> None:
        """Make room for `capacity` slots and forget what is stored."""

    def prefill(self, tokens: Tensor) -> Tensor:
        """Read tokens [length] causally into slots 0 .. length - 1; logits [vocabulary] after the last one."""

    def forward(self, tokens: Tensor, positions: Tensor, slots: Tensor, mask: Tensor, keep: Tensor | None = None) -> Tensor:
        """Store the q tokens in their slots and return logits [q, vocabulary], or of the rows `keep` only.

        `tokens`, `positions`, `slots` are int64 [q]; `mask` is bool [q, kv], True where the token may attend to the slot.
        """

    def move(self, source: Tensor, destination: Tensor) -> None:
        """Copy the K/V rows of slots `source` [m] to `destination` [m], all read before any is written."""
