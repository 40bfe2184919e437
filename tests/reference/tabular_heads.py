"""Heads without weights on a tabular target with states: they notice every mistake in states, features, slots, masks and positions.

A state is the number of a context, and so is a feature. So a head knows what it was told, and compares it with what it sees in its own slots.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from tests.reference.tabular import Rule, TabularModel
from treespec.decoding.protocol import HeadLevel
from treespec.trees.placement import Placement, Prefix

Context = tuple[int, ...]


class Contexts:
    """Numbers for contexts, as states [.., 2]: the number, and 1 if it comes from the target."""

    def __init__(self) -> None:
        self.known: list[Context] = [()]

    def state(self, context: Context, of_target: bool) -> Tensor:
        self.known.append(context)
        return torch.tensor([len(self.known) - 1, float(of_target)], dtype=torch.float64)

    def context(self, state: Tensor) -> tuple[Context, bool]:
        number, of_target = state.tolist()
        return self.known[int(number)], bool(of_target)


class StateTabular(TabularModel):
    """A tabular target that keeps the contexts of its tokens as states."""

    def __init__(self, vocabulary: int, rule: Rule) -> None:
        self.contexts = Contexts()
        self.state_layers: tuple[int, ...] = ()
        super().__init__(vocabulary, rule)

    def keep_states(self, layers: Sequence[int]) -> None:
        if tuple(layers) != self.state_layers:
            self.state_layers = tuple(layers)
            self.allocate(self.capacity)

    def allocate(self, capacity: int) -> None:
        super().allocate(capacity)
        self.states = torch.zeros(capacity, len(self.state_layers), 2, dtype=torch.float64)

    def prefill(self, tokens: Tensor, pixels: Tensor | None = None) -> Tensor:
        for slot in range(len(tokens)):
            self.states[slot] = self.contexts.state(tuple(tokens[: slot + 1].tolist()), of_target=True)
        return super().prefill(tokens, pixels)

    def forward(self, tokens: Tensor, place: Placement, keep: Tensor | None = None) -> Tensor:
        logits = super().forward(tokens, place, keep)
        for row, slot in enumerate(place.slots.tolist()):
            seen = sorted(self.stored[other] for other in place.mask()[row].nonzero().flatten().tolist())
            self.states[slot] = self.contexts.state(tuple(token for _, token in seen), of_target=True)
        return logits

    def move(self, prefix: Prefix, offsets: Tensor, first: int) -> None:
        super().move(prefix, offsets, first)
        moved = self.states[prefix.length + offsets]
        self.states[int(prefix.length) + first : int(prefix.length) + first + len(offsets)] = moved


@dataclass(frozen=True)
class _Read:
    """A token in a head's slot."""

    position: int
    token: int
    committed: bool
    """Whether it was read with a state of the target."""


class TabularHead:
    """A `LevelHead`: each row's logits are `rule(the text so far)` over its draft tokens."""

    kind, state_layers, notes = "tabular", (2, 5, 7), ()

    def __init__(self, target: StateTabular, rule: Rule, target_ids: Tensor | None = None) -> None:
        self.name, self.rule, self.target_ids, self.contexts = "the-head", rule, target_ids, target.contexts
        self.vocabulary_size = target.vocabulary_size if target_ids is None else len(target_ids)
        self.passes: list[int] = []
        self.allocate(0)

    def allocate(self, capacity: int) -> None:
        self.capacity = capacity
        self.stored: dict[int, _Read] = {}

    def features(self, states: Tensor) -> Tensor:
        assert states.shape[1:] == (3, 2)
        return states[:, 0]

    def forward(self, tokens: Tensor, features: Tensor, place: Placement, keep: Tensor | None = None) -> HeadLevel:
        self.passes.append(len(tokens))
        rows = list(zip(tokens.tolist(), features, place.positions.tolist(), place.slots.tolist(), strict=True))
        for token, feature, position, slot in rows:
            assert 1 <= slot < self.capacity, f"slot {slot} of {self.capacity}"
            self.stored[slot] = _Read(position, token, self.contexts.context(feature)[1])
        logits, after = [], []
        asked = range(len(rows)) if keep is None else keep.tolist()
        for row in asked:
            token, feature, position, _ = rows[row]
            seen = sorted(
                (self.stored[slot] for slot in place.mask()[row].nonzero().flatten().tolist() if slot), key=lambda read: read.position
            )
            told, of_target = self.contexts.context(feature)
            assert [read.position for read in seen] == list(range(1, position + 1))
            assert (*told, token) == (told[0], *(read.token for read in seen)), "the feature is that of another token, or was read of one"
            assert len(told) == position
            committed = [read.committed for read in seen]
            assert committed == sorted(committed, reverse=True), "a drafted token was not read again when it was committed"
            assert of_target or sum(committed) >= int(place.prefix.length), "the root is read with the target's state"
            said = torch.tensor(self.rule((*told, token)))
            logits.append(said if self.target_ids is None else said[self.target_ids])
            after.append(self.contexts.state((*told, token), of_target=False))
        if not logits:
            return HeadLevel(torch.empty(0, self.vocabulary_size), torch.empty(0, 2))
        return HeadLevel(torch.stack(logits), torch.stack(after))


class TabularParallelHead:
    """A `ParallelHead`: the logits of level d are `rule(the text so far)`, by the rule of that level.

    The rules read the context of the state before the root. The states of all tokens must be those of the text whenever the head reads one.
    """

    kind, state_layers, notes, target_ids = "tabular", (-1,), (), None

    def __init__(self, target: StateTabular, rules: Sequence[Rule]) -> None:
        self.name, self.rules, self.levels, self.contexts = "the-heads", rules, len(rules), target.contexts
        self.vocabulary_size = target.vocabulary_size

    def allocate(self, capacity: int) -> None:
        self.capacity, self.text = capacity, ()

    def begin(self, states: Tensor, length: int) -> None:
        self.text = self._text(states, length)

    def propose(self, states: Tensor, root: Tensor, prefix: Prefix) -> Tensor:
        text = self._text(states, int(prefix.length))
        assert text[: len(self.text)] == self.text, "the text grows"
        assert len(text) - len(self.text) <= self.levels + 1
        assert len(text) < self.capacity
        assert root.shape == (1,)
        self.text = text
        return torch.stack([torch.tensor(rule(text)) for rule in self.rules])

    def _text(self, states: Tensor, length: int) -> Context:
        assert states.shape[1:] == (1, 2)
        found = [self.contexts.context(state[0]) for state in states[:length]]
        assert all(of_target for _, of_target in found)
        assert all(one == longer[:-1] for (one, _), (longer, _) in pairwise(found))
        return found[-1][0]
