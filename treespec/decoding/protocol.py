"""What decoding asks of a language model: `SlotModel` to decode, `ScoringModel` to score, `CapturableModel` to capture. Tests use tabular ones."""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from treespec.trees.placement import Placement, Prefix


class SlotModel(Protocol):
    """A causal language model over one sequence, whose K/V rows live in slots that the caller addresses."""

    @property
    def vocabulary_size(self) -> int:
        """Width of a logits row."""

    @property
    def device(self) -> torch.device:
        """Where tokens and placements must be."""

    def allocate(self, capacity: int) -> None:
        """Make room for `capacity` slots and forget what is stored."""

    def prefill(self, tokens: Tensor, pixels: Tensor | None = None) -> Tensor:
        """Read tokens [length] causally into slots 0 .. length - 1; logits [vocabulary] after the last one.

        `pixels` [pictures, 3, height, width] are the prompt's pictures.
        """

    def forward(self, tokens: Tensor, place: Placement, keep: Tensor | None = None) -> Tensor:
        """Store q tokens, int64 [q], where they stand and return logits [q, vocabulary], or of the rows `keep` only."""

    def move(self, prefix: Prefix, offsets: Tensor, first: int) -> None:
        """Copy the K/V rows of slots `length + offsets` int64 [m] to slots `length + first ..`, all read before any is written."""


@runtime_checkable
class ScoringModel(Protocol):
    """A causal language model that reads whole rows at once, without slots."""

    def score(self, ids: Tensor, keep_from: int = 0, pixels: Tensor | None = None) -> Tensor:
        """Read int64 [batch, length] rows causally and return logits [batch, length - keep_from, vocabulary] of the last positions.

        `pixels` [pictures, 3, height, width] are the rows' pictures, equally many in each row. What is stored in slots stays.
        """


@runtime_checkable
class CapturableModel(SlotModel, Protocol):
    """A model whose passes can be captured in a CUDA graph, as long as its cache stays where it is."""

    name: str
    """What messages call it."""
    generation: int
    """How often the cache was made anew: what is captured belongs to one."""
    eager_reason: str
    """Why its passes cannot be captured; empty where they can."""
