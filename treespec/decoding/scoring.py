"""Logits after every token of whole texts, by a model's own `score`, or slot by slot for a model without it."""

import torch
from torch import Tensor

from treespec.decoding.protocol import ScoringModel, SlotModel
from treespec.trees.placement import Placement


def score(model: SlotModel | ScoringModel, ids: Tensor, keep_from: int = 0, pixels: Tensor | None = None) -> Tensor:
    """Return logits [batch, length - keep_from, vocabulary] after the last tokens of texts int64 [batch, length]. See `ScoringModel.score`.

    A model without `score` reads one text after the other into its slots and so loses their content. Raises the model's errors.
    """
    if isinstance(model, ScoringModel):
        return model.score(ids, keep_from, pixels)
    pictures = [None] * len(ids) if pixels is None else pixels.chunk(len(ids))
    found = []
    for text, seen in zip(ids, pictures, strict=True):
        model.allocate(len(text))
        read = keep_from + 1
        logits = [model.prefill(text[:read], seen)[None]]
        if read < len(text):
            logits.append(model.forward(text[read:], Placement.causal(read, len(text) - read, ids.device)))
        found.append(torch.cat(logits))
    return torch.stack(found)
