"""The protocols of a language model: `SlotModel` to decode, `ScoringModel` to score, `CapturableModel` to capture.

Decoding asks nothing else of a model. Tests use tabular models.
"""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from treespec.trees.placement import Placement, Prefix


class SlotModel(Protocol):
    """A causal language model over one sequence, with keys and values in slots that the caller addresses."""

    @property
    def vocabulary_size(self) -> int:
        """Return the width of the logits."""

    @property
    def device(self) -> torch.device:
        """Return the device where tokens and placements must be."""

    def allocate(self, capacity: int) -> None:
        """Make a cache of at least `capacity` slots and forget its content."""

    def prefill(self, tokens: Tensor, pixels: Tensor | None = None) -> Tensor:
        """Read tokens [length] causally into slots 0 .. length - 1 and return logits [vocabulary] after the last one.

        `pixels` [pictures, 3, height, width] are the prompt's pictures.
        """

    def forward(self, tokens: Tensor, place: Placement, keep: Tensor | None = None) -> Tensor:
        """Store int64 [q] tokens in the slots of `place` and return logits [q, vocabulary], or only those of the tokens `keep`."""

    def move(self, prefix: Prefix, offsets: Tensor, first: int) -> None:
        """Copy keys and values of slots `length + offsets` int64 [m] to slots `length + first ..`; all are read before any is written."""


@runtime_checkable
class ScoringModel(Protocol):
    """A causal language model that reads whole texts at once, without slots."""

    def score(self, ids: Tensor, keep_from: int = 0, pixels: Tensor | None = None) -> Tensor:
        """Read texts int64 [batch, length] causally and return logits [batch, length - keep_from, vocabulary] of the last positions.

        `pixels` [pictures, 3, height, width] are the texts' pictures, equally many in each text. The content of the slots stays.
        """


@runtime_checkable
class CapturableModel(SlotModel, Protocol):
    """A model whose passes can be captured in a CUDA graph. Rule: they are valid only until the cache is replaced."""

    name: str
    """The name of the model in messages."""
    generation: int
    """Number of times that the cache was replaced. A captured step is valid for one generation only."""
    capacity: int
    """Number of slots that the cache has."""
    eager_reason: str
    """The reason why its passes cannot be captured and run eagerly; empty if they can be captured."""
