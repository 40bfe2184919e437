"""The passes that heads which propose level by level have in common: one over slots, and one over whole texts, with the same layers.

A whole text is read for all of its roots at once, one pass per level. Level 1 reads every token with the target's state before it. Level d
reads, for each root, the token that stands d - 1 places behind it in the text with what level d - 1 made for this root; it sees the keys
and values that level 1 has of the text up to the root, and those that levels 2 to d have of this root's chain alone. That is what a
decoding step does along the path that the target then accepts, and what EAGLE-3 calls training-time test (arXiv 2503.01840, section 3.2).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor, nn

from treespec.decoding.protocol import HeadLevel
from treespec.errors import CapacityError, counted
from treespec.models.heads.borrowed import Borrowed
from treespec.models.heads.layers import Attention, LayerSizes, Rope, Seats
from treespec.trees.placement import Placement


class Plan(Protocol):
    """The part of a head's build that its passes need."""

    @property
    def sizes(self) -> LayerSizes:
        """The sizes of its layers."""

    @property
    def rows(self) -> int:
        """Number of draft tokens."""


class LayeredHead(nn.Module, ABC):
    """A head of decoder layers with keys and values of its own. It is a `LevelHead` and a `ScoringHead`; subclasses have its layers."""

    name: str
    kind: str
    state_layers: tuple[int, ...]
    target_ids: Tensor | None = None
    notes: tuple[str, ...] = ()
    attentions: tuple[Attention, ...]
    """The attention of each of its layers, which subclasses set."""

    def __init__(self, name: str, plan: Plan, borrowed: Borrowed) -> None:
        super().__init__()
        self.name, self.borrowed = name, borrowed
        self.rope, self._rows = Rope(plan.sizes), plan.rows

    @property
    def vocabulary_size(self) -> int:
        """See `Head.vocabulary_size`."""
        return self._rows

    def filled(self, weights: Mapping[str, Tensor]) -> Self:
        """Take weights by their canonical names as they are, without copying them, and return the head: in eval mode and without gradients."""
        self.load_state_dict(weights, assign=True)
        return self.to(self.borrowed.embedding.device).requires_grad_(False).eval()

    def allocate(self, capacity: int) -> None:
        """See `LevelHead.allocate`."""
        for attention in self.attentions:
            attention.allocate(capacity)

    @abstractmethod
    def features(self, states: Tensor) -> Tensor:
        """See `LevelHead.features`; states may be [.., state layers, Ht]."""

    @abstractmethod
    def read(self, tokens: Tensor, features: Tensor, seats: Seats, keep: Tensor | None = None) -> HeadLevel:
        """Read tokens int64 [.., q] beside features [.., q, H]; `seats` says what they see. For `keep` see `LevelHead.forward`."""

    def forward(self, tokens: Tensor, features: Tensor, place: Placement, keep: Tensor | None = None) -> HeadLevel:
        """See `LevelHead.forward`."""
        return self.read(tokens, features, self.rope.slots(place, features, self.attentions[0].capacity), keep)

    def score(self, tokens: Tensor, states: Tensor, levels: int) -> Iterator[Tensor]:
        """See `ScoringHead.score`. The head's slots are neither read nor written, and gradients flow through all levels."""
        require_levels(tokens, levels)
        length = tokens.shape[1]
        features = self.features(states[:, :-1])
        held: dict[Attention, list[tuple[Tensor, Tensor]]] = {}
        for level in range(1, levels + 1):
            read = tokens[:, level:]
            positions = torch.arange(level - 1, length - 1, device=tokens.device)
            seats = Chains(*self.rope.turns(positions, features), held)
            found = self.read(read, features[:, : read.shape[1]], seats)
            yield found.logits
            features = found.features


def require_levels(tokens: Tensor, levels: int) -> None:
    """Raise CapacityError unless texts int64 [batch, length] have so many levels below their first root."""
    if not 1 <= levels < tokens.shape[1]:
        raise CapacityError(
            f"texts of {counted(tokens.shape[1], 'token')} have {counted(tokens.shape[1] - 1, 'level')} below the first root, but {levels} "
            "are asked for; give longer texts, or ask for fewer"
        )


@dataclass(frozen=True)
class Chains:
    """The places of one level of whole texts: the roots of each text, in order, and behind each of them a chain of its own."""

    cos: Tensor
    sin: Tensor
    held: dict[Attention, list[tuple[Tensor, Tensor]]]
    """Keys and values [batch, shared heads, roots, head width] of each layer, level by level. A level adds its own."""

    def attended(self, layer: Attention, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """See `Seats.attended`: root by root, what level 1 has of the text up to the root, and what the other levels have of its chain."""
        levels = self.held.setdefault(layer, [])
        levels.append((keys, values))
        roots, shared = queries.shape[-2], keys.shape[1]
        queries = queries.reshape(len(queries), shared, -1, *queries.shape[-2:]) * queries.shape[-1] ** -0.5
        (text_keys, text_values), *chain = ((k[:, :, None, :roots], v[:, :, None, :roots]) for k, v in levels)
        later = torch.ones(roots, roots, dtype=torch.bool, device=queries.device).triu(1)
        text = (queries @ text_keys.transpose(-1, -2)).masked_fill(later, float("-inf"))
        own = [(queries * k).sum(-1, keepdim=True) for k, _ in chain]
        shares = torch.cat((text, *own), dim=-1).float().softmax(-1).to(values.dtype)
        found = shares[..., :roots] @ text_values
        for place, (_, v) in enumerate(chain, start=roots):
            found = found + shares[..., place : place + 1] * v
        return found.flatten(1, 2)
