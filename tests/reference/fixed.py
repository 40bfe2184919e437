"""A model that launches nothing: it gives logits that are there already, so that what stands between passes can be counted."""

import torch
from torch import Tensor

from treespec.trees.placement import Prefix


class FixedModel:
    """Reads nothing; the rows of its logits [rows, vocabulary] belong to the first tokens of each pass."""

    def __init__(self, logits: Tensor) -> None:
        self.logits, self.vocabulary_size, self.device = logits, logits.shape[1], logits.device

    @classmethod
    def random(cls, rows: int, vocabulary: int, device: str) -> "FixedModel":
        """Of float16 logits, the same in every row."""
        logits = torch.randn(1, vocabulary, generator=torch.Generator().manual_seed(0))
        return cls(logits.expand(rows, -1).half().to(device).contiguous())

    def forward(self, tokens: Tensor, place: object, keep: Tensor | None = None) -> Tensor:
        return self.logits[: tokens.shape[0]]

    def move(self, prefix: Prefix, offsets: Tensor, first: int) -> None:
        pass
