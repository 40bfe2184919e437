"""A language model that is a function of its whole context, and that notices every mistake in slots, masks and positions."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from treespec.trees.placement import Placement, Prefix

Rule = Callable[[tuple[int, ...]], Sequence[float]]
"""context -> next-token logits."""


class TabularModel:
    """A SlotModel without weights: row i's logits are `rule(tokens that row i attends to, in order of position)`.

    Fails when the tokens attended to are not exactly positions 0, 1, ... up to the row's own, each from a written slot.
    """

    def __init__(self, vocabulary: int, rule: Rule) -> None:
        self.vocabulary_size = vocabulary
        self.device = torch.device("cpu")
        self.rule = rule
        self.passes: list[int] = []
        self.allocate(0)

    def allocate(self, capacity: int) -> None:
        self.capacity = capacity
        self.stored: dict[int, tuple[int, int]] = {}

    def prefill(self, tokens: Tensor, pixels: Tensor | None = None) -> Tensor:
        assert pixels is None
        assert len(tokens) <= self.capacity
        for slot, token in enumerate(tokens.tolist()):
            self.stored[slot] = (slot, token)
        return torch.tensor(self.rule(tuple(tokens.tolist())))

    def forward(self, tokens: Tensor, place: Placement, keep: Tensor | None = None) -> Tensor:
        positions, slots, mask = place.positions, place.slots, place.mask()
        assert place.prefix.length.tolist() == [place.prefix.known]
        assert mask.dtype == torch.bool
        assert mask.shape[0] == len(tokens)
        assert mask.shape[1] <= self.capacity
        self.passes.append(len(tokens))
        for token, position, slot in zip(tokens.tolist(), positions.tolist(), slots.tolist(), strict=True):
            assert 0 <= slot < self.capacity, f"slot {slot} of {self.capacity}"
            self.stored[slot] = (position, token)
        rows = []
        for row, position in enumerate(positions.tolist()):
            visible = sorted(self.stored[slot] for slot in mask[row].nonzero().flatten().tolist())
            assert [p for p, _ in visible] == list(range(position + 1)), (
                f"row at position {position} sees positions {[p for p, _ in visible]}"
            )
            rows.append(self.rule(tuple(token for _, token in visible)))
        logits = torch.tensor(rows)
        return logits if keep is None else logits[keep]

    def move(self, prefix: Prefix, offsets: Tensor, first: int) -> None:
        assert prefix.known is not None
        moved = [self.stored.get(prefix.known + offset) for offset in offsets.tolist()]
        for slot, content in enumerate(moved, prefix.known + first):
            if content is None:
                self.stored.pop(slot, None)
            else:
                self.stored[slot] = content


def random_rule(vocabulary: int, seed: int, memory: int = 3) -> Rule:
    """Logits drawn from a generator seeded by the last `memory` tokens."""

    def rule(context: tuple[int, ...]) -> Sequence[float]:
        key = hash((seed, *context[-memory:])) & 0x7FFFFFFF
        return torch.randn(vocabulary, generator=torch.Generator().manual_seed(key)).tolist()

    return rule


def noisy_rule(rule: Rule, vocabulary: int, seed: int, noise: float) -> Rule:
    """A worse copy of a rule: a draft for it."""
    other = random_rule(vocabulary, seed)
    return lambda context: [a + noise * b for a, b in zip(rule(context), other(context), strict=True)]
