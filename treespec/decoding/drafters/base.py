"""The protocol of drafters, which give a `Proposal` per step. `ModelDrafter` is the base of drafters that have a draft model or a head."""

from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor

from treespec.decoding.drafting import Drafting
from treespec.decoding.heads import Draft, reader_of
from treespec.decoding.plans import Plan, require_draft
from treespec.decoding.proposal import Proposal
from treespec.decoding.rules import Sampling
from treespec.decoding.timing import Timer
from treespec.kernels.outcome import Outcome
from treespec.trees.placement import Prefix


@dataclass(frozen=True)
class DrafterSetup:
    """The models and settings that a drafter is made with."""

    draft: Draft | None
    """The draft model or head, if there is one."""
    device: torch.device
    """The device of the target's tokens."""
    vocabulary: int
    """Number of the first tokens that may be proposed."""
    sampling: Sampling
    """The target's sampling."""
    drafting: Drafting


class Drafter(Protocol):
    """Proposes a tree of tokens below `vocabulary` at every step."""

    vocabulary: int

    def begin(self, prompt: Tensor, pixels: Tensor | None) -> None:
        """Read a new text, which the target has read: its tokens int64 [length] and its pictures [pictures, 3, height, width]."""

    def propose(self, last: Tensor, prefix: Prefix, room: int, generator: torch.Generator | None, timer: Timer) -> Proposal:
        """Return a tree below the committed tokens `last` int64 [2] at positions `length - 1` and `length`; the second is its root.

        If there is less `room` than the tree has nodes, the tree is cut. Marks `drafting` after each level.
        """

    def keep(self, prefix: Prefix, proposal: Proposal, outcome: Outcome) -> None:
        """Keep the part of the proposal after `prefix` that was accepted; see `Outcome`. No host synchronisation."""


class ModelDrafter:
    """A drafter with a draft model or a head, whose reader reads the tree level by level: 0 .. depth - 1. The last level's nodes are not read.

    Raises SettingsError, ModelError for a plan that the rule, the vocabulary or the draft does not allow.
    """

    def __init__(self, setup: DrafterSetup, plan: Plan) -> None:
        self.draft = cast(Draft, require_draft(setup.draft))  # mypy takes what is common to the types of a union
        self.vocabulary = setup.vocabulary
        self.reader = reader_of(self.draft, plan.depth)
        setup.drafting.require(plan, min(self.vocabulary, self.reader.choices))

    def begin(self, prompt: Tensor, pixels: Tensor | None) -> None:
        """See `Drafter.begin`."""
        self.reader.begin(prompt, pixels)

    def keep(self, prefix: Prefix, proposal: Proposal, outcome: Outcome) -> None:
        """See `Drafter.keep`."""
        self.reader.keep(prefix, proposal, outcome)
