"""The protocol of drafters, which give a `Proposal` per step. `ModelDrafter` is the base of drafters that have a draft model."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from treespec.decoding.drafting import Drafting
from treespec.decoding.plans import require_draft
from treespec.decoding.proposal import Proposal
from treespec.decoding.protocol import SlotModel
from treespec.decoding.rules import Sampling
from treespec.decoding.timing import Timer
from treespec.kernels.outcome import Outcome
from treespec.trees.placement import Prefix


@dataclass(frozen=True)
class DrafterSetup:
    """The models and settings that a drafter is made with."""

    draft: SlotModel | None
    """The draft model, if there is one."""
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
        """Read a new text: its tokens int64 [length] and its pictures [pictures, 3, height, width]."""

    def propose(self, last: Tensor, prefix: Prefix, room: int, generator: torch.Generator | None, timer: Timer) -> Proposal:
        """Return a tree below the committed tokens `last` int64 [2] at positions `length - 1` and `length`; the second is its root.

        If there is less `room` than the tree has nodes, the tree is cut. Marks `drafting` after each level.
        """

    def keep(self, prefix: Prefix, proposal: Proposal, outcome: Outcome) -> None:
        """Keep the part of the proposal after `prefix` that was accepted; see `Outcome`. No host synchronisation."""


class ModelDrafter:
    """A drafter with a draft model, which reads the tree level by level.

    It reads both tokens of `last`, because the first may have been accepted as a leaf of the last tree. The draft never read that leaf, so
    its key and value would be missing. There is one pass per level 0 .. depth - 1; the last level's nodes are not read.
    """

    def __init__(self, setup: DrafterSetup) -> None:
        self.draft, self.vocabulary = require_draft(setup.draft), setup.vocabulary

    def begin(self, prompt: Tensor, pixels: Tensor | None) -> None:
        """See `Drafter.begin`."""
        self.draft.prefill(prompt, pixels)

    def keep(self, prefix: Prefix, proposal: Proposal, outcome: Outcome) -> None:
        """See `Drafter.keep`. Keys and values of the accepted path move to the slots after the root's."""
        slots = outcome.path if proposal.offsets is None else proposal.offsets[outcome.path]
        self.draft.move(prefix, slots[1:], 1)
