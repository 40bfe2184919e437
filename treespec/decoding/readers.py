"""Readers: how drafters have a draft read the nodes of a tree, level by level, and what the draft keeps of a step.

A `ModelReader` reads by the passes of a model. Those of heads are in `heads`.
"""

from typing import Protocol

from torch import Tensor

from treespec.decoding.proposal import Proposal
from treespec.decoding.protocol import SlotModel
from treespec.kernels.outcome import Outcome
from treespec.trees.placement import Placement, Prefix


class Drafted(Protocol):
    """The tree that is being drafted."""

    def above(self, level: int) -> Tensor:
        """Return which node of the level above is the parent of each node at a `level` from 1 on, int64 [width]."""


class DraftReader(Protocol):
    """Reads the nodes of trees for a drafter. The levels of a tree are read in order, the root first; the last is not read."""

    choices: int
    """Number of tokens that can be drafted, which are not always the first ones."""

    def begin(self, prompt: Tensor, pixels: Tensor | None) -> None:
        """Read a new text, which the target has read already: its tokens int64 [length] and its pictures."""

    def read(self, tokens: Tensor, place: Placement, tree: Drafted, level: int) -> Tensor:
        """Read the nodes at a level and return logits of their children, of which the last rows are those of the nodes.

        `tokens` int64 [q] and `place` are those of the nodes; at the root, of the last committed token before it and the root. No host
        synchronisation.
        """

    def keep(self, prefix: Prefix, proposal: Proposal, outcome: Outcome) -> None:
        """Keep what was accepted of a proposal after `prefix`; see `Outcome`. No host synchronisation."""


class ModelReader:
    """Reads by the passes of a model, one per level.

    It reads both tokens at the root, because the first may have been accepted as a leaf of the last tree. The draft never read that leaf, so
    its key and value would be missing.
    """

    def __init__(self, draft: SlotModel) -> None:
        self.draft, self.choices = draft, draft.vocabulary_size

    def begin(self, prompt: Tensor, pixels: Tensor | None) -> None:
        """See `DraftReader.begin`."""
        self.draft.prefill(prompt, pixels)

    def read(self, tokens: Tensor, place: Placement, tree: Drafted, level: int) -> Tensor:
        """See `DraftReader.read`."""
        return self.draft.forward(tokens, place)

    def keep(self, prefix: Prefix, proposal: Proposal, outcome: Outcome) -> None:
        """See `DraftReader.keep`. Keys and values of the accepted path move to the slots after the root's."""
        slots = outcome.path if proposal.offsets is None else proposal.offsets[outcome.path]
        self.draft.move(prefix, slots[1:], 1)
