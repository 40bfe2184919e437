"""BoundHead: a head with the target that it is loaded for, as a draft that decodes, is profiled and is named in records."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor, nn

from treespec.decoding.protocol import LevelHead, ParallelHead, ScoringHead
from treespec.errors import CapacityError, ModelError
from treespec.models.heads.draft import HeadDraft
from treespec.models.heads.target import states_along
from treespec.models.locating import weights_digest
from treespec.models.tree_model import TreeModel

_MOST_LEVELS = 8
"""Levels that a head which proposes level by level is scored at, at most: deeper ones are taken to be like the last."""


class BoundHead(HeadDraft):
    """A head bound to its target. See `HeadDraft` for decoding and `treespec.models.drafts.Draft` for the rest.

    It can read as many positions as its target, since it goes by the target's states. Raises ModelError as `HeadDraft` does.
    """

    target: TreeModel

    def __init__(self, head: LevelHead | ParallelHead, target: TreeModel) -> None:
        super().__init__(head, target)
        self._module = cast(nn.Module, head)
        self.eager_reason = target.eager_reason
        self.dtype = target.dtype
        self.max_positions, self.rope_note = target.max_positions, target.rope_note
        ids = head.target_ids
        known = range(self.vocabulary_size) if ids is None else frozenset(ids.tolist())
        self.unknown = tuple(token for token in range(self.vocabulary_size) if token not in known)
        self.notes = head.notes
        self._digest = weights_digest(head.name)

    @property
    def parallel_levels(self) -> int | None:
        """Return the number of levels that it proposes at once; None if it proposes level by level, as many as are wanted."""
        return None if isinstance(self.head, LevelHead) else self.head.levels

    @property
    def scored_levels(self) -> int:
        """Return the number of levels below a root that it is scored at: all that it proposes at once, or 8 if it proposes level by level."""
        return self.parallel_levels or _MOST_LEVELS

    def describe(self) -> dict[str, Any]:
        """See `Draft.describe`."""
        parameters = sum(parameter.numel() for parameter in self._module.parameters())
        return {
            "name": self.name,
            "kind": self.head.kind,
            "weights": self._digest,
            "parameters": parameters,
            "states": list(self.head.state_layers),
            "dtype": str(self.dtype).removeprefix("torch."),
        }

    def identity(self) -> dict[str, Any]:
        """See `Draft.identity`."""
        return {"kind": self.head.kind, "weights": self._digest or self.name}

    def release(self) -> None:
        """See `Draft.release`: nothing was changed in the head."""

    def positions_of(self, prompt: Sequence[int]) -> int:
        """Return the number of positions that a prompt takes."""
        return self.target.positions_of(prompt)

    @torch.inference_mode()
    def score(self, ids: Tensor, keep_from: int = 0, pixels: Tensor | None = None) -> Tensor:
        """Return what the first level proposes, [batch, length - keep_from, vocabulary]. See `ScoringModel.score`.

        The target reads the texts too. Raises CapacityError for `keep_from` 0, as there is no state before the first token, and ModelError
        for pictures.
        """
        if keep_from < 1:
            raise CapacityError(
                f"{self.name} proposes nothing after the first token of a text, which has no state before it; score later ones"
            )
        if pixels is not None:
            raise ModelError(f"{self.name} is a head, which reads no pictures; take a draft that does, or prompts without pictures")
        return next(self.levels(ids, 1))[:, keep_from - 1 :]

    @torch.inference_mode()
    def levels(self, ids: Tensor, count: int | None = None) -> Iterator[Tensor]:
        """Read texts int64 [batch, length] and yield logits level by level, [batch, length - d, vocabulary] for level d. See `ScoringHead.score`.

        There are `count` levels; None: `scored_levels`, but no more than the texts have.
        """
        most = self.scored_levels
        states = states_along(self.target.module, ids, self.head.state_layers)
        scoring = cast(ScoringHead, self.head)
        wanted = min(count or most, most, ids.shape[1] - 1)
        for logits in islice(scoring.score(ids, states, wanted), wanted):
            yield self.spread(logits.flatten(0, 1)).view(*logits.shape[:2], -1)[..., : self.target.vocabulary_size]
