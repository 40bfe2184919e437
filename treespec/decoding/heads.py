"""Heads as drafts: how drafters have a head that is bound to its target read the nodes of a tree.

Heads have the target's states instead of a text that they read themselves. A `LevelReader` reads by a pass for each level, a `ParallelReader` by
one computation for all levels.
"""

import torch
from torch import Tensor

from treespec.decoding.proposal import Proposal
from treespec.decoding.protocol import HeadLevel, LevelHead, ParallelHead, SlotModel, StateDraft
from treespec.decoding.readers import Drafted, DraftReader, ModelReader
from treespec.errors import ModelError, counted
from treespec.kernels.outcome import Outcome
from treespec.trees.placement import Layout, Placement, Prefix

_CHUNK = 512
"""Number of tokens of a prompt that a head reads in one pass."""


class LevelReader:
    """Reads by a `LevelHead`, whose keys and values lie in slots of its own.

    At the root it reads the last depth + 1 committed tokens with the target's states: as many as the last step can have committed. So nothing
    that was drafted has to be moved, and each step reads the same number of tokens; what is read again comes out as before. Near the beginning
    of a text there are fewer tokens, and the rows that are left over repeat the root in slots behind it, which nothing reads before the
    drafted nodes are written there. Deeper levels are read with the features of their parents.

    """

    def __init__(self, draft: StateDraft, head: LevelHead, depth: int) -> None:
        self.draft, self.head, self.depth, self.choices = draft, head, depth, head.vocabulary_size
        device = draft.device
        self._rows = torch.arange(depth + 1, device=device)
        self._behind = self._rows + 1
        self._last_two = torch.tensor([-1, 0], device=device)
        self._layout = Layout.fixed(self._rows, self._rows, self._rows <= self._rows[:, None])
        self._none = self._rows[:0]
        self._features = torch.empty(0, device=device)

    @torch.inference_mode()
    def begin(self, prompt: Tensor, pixels: Tensor | None) -> None:
        """See `DraftReader.begin`. Raises ModelError for a text with pictures."""
        _require_text(self.head, pixels)
        length = prompt.shape[0]
        self.draft.tokens[:length].copy_(prompt)
        for start in range(1, length, _CHUNK):
            stop = min(start + _CHUNK, length)
            features = self.head.features(self.draft.target.states[start - 1 : stop - 1])
            self.head.forward(prompt[start:stop], features, Placement.causal(start, stop - start, prompt.device), self._none)

    @torch.inference_mode()
    def read(self, tokens: Tensor, place: Placement, tree: Drafted, level: int) -> Tensor:
        """See `DraftReader.read`."""
        if level == 0:
            found = self._read_committed(tokens, place.prefix)
        else:
            found = self.head.forward(tokens, self._features.index_select(0, tree.above(level)), place)
        self._features = found.features
        return self.draft.spread(found.logits)

    @torch.inference_mode()
    def keep(self, prefix: Prefix, proposal: Proposal, outcome: Outcome) -> None:
        """See `DraftReader.keep`. The head keeps nothing; the tokens that were committed go to the table."""
        tokens = outcome.tokens
        self.draft.tokens.index_copy_(0, prefix.length + self._behind[: tokens.shape[0]], tokens)

    def _read_committed(self, last: Tensor, prefix: Prefix) -> HeadLevel:
        """Read the last committed tokens, of which `last` int64 [2] are the last two, and return what is proposed below the root."""
        length = prefix.length
        self.draft.tokens.index_copy_(0, length + self._last_two, last)
        start = (length - self.depth).clamp_min(1)
        at = torch.minimum(start + self._rows, length)
        features = self.head.features(self.draft.target.states.index_select(0, at - 1))
        before = Prefix(start, None if prefix.known is None else max(prefix.known - self.depth, 1))
        return self.head.forward(self.draft.tokens.index_select(0, at), features, self._layout.behind(before), length - start)


class ParallelReader:
    """Reads by a `ParallelHead`: one computation at the root, whose logits of a level are those of all nodes above that level.

    So trees are made of the product of the levels' distributions (DDTree, arXiv 2604.12989).
    """

    def __init__(self, draft: StateDraft, head: ParallelHead, depth: int) -> None:
        if depth > head.levels:
            raise ModelError(
                f"{head.name} proposes {counted(head.levels, 'level')}, but the tree has a depth of {depth}; take one of depth {head.levels} or less"
            )
        self.draft, self.head, self.choices = draft, head, head.vocabulary_size
        self._levels = torch.empty(0, device=draft.device)

    @torch.inference_mode()
    def begin(self, prompt: Tensor, pixels: Tensor | None) -> None:
        """See `DraftReader.begin`. Raises ModelError for a text with pictures."""
        _require_text(self.head, pixels)
        self.head.begin(self.draft.target.states, prompt.shape[0])

    @torch.inference_mode()
    def read(self, tokens: Tensor, place: Placement, tree: Drafted, level: int) -> Tensor:
        """See `DraftReader.read`."""
        if level == 0:
            self._levels = self.draft.spread(self.head.propose(self.draft.target.states, tokens[-1:], place.prefix))
            return self._levels[:1]
        return self._levels[level].expand(tokens.shape[0], -1)

    def keep(self, prefix: Prefix, proposal: Proposal, outcome: Outcome) -> None:
        """See `DraftReader.keep`. There is nothing to keep: the head reads what was committed at the next root."""


def _require_text(head: LevelHead | ParallelHead, pixels: Tensor | None) -> None:
    """Raise ModelError for a text with pictures."""
    if pixels is not None:
        raise ModelError(f"{head.name} is a head, which reads no pictures; take a draft that does, or prompts without pictures")


Draft = SlotModel | StateDraft
"""The type of what proposes: a model of its own, or a head."""


def reader_of(draft: Draft, depth: int) -> DraftReader:
    """Return the reader of a draft for trees of up to `depth` levels below the root. Raises ModelError if it proposes fewer."""
    if not isinstance(draft, StateDraft):
        return ModelReader(draft)
    if isinstance(draft.head, LevelHead):
        return LevelReader(draft, draft.head, depth)
    return ParallelReader(draft, draft.head, depth)
