"""One step of decoding, speculative or autoregressive: what decoding repeats and what the latency profile times.

Positions: with `length` tokens in the cache, the root (the last committed token) has position `length`, and tree node i
goes to slot `length + i`. After acceptance the path's K/V rows move down to slots `length + 1 ..`.
"""

from typing import Protocol

import torch
from torch import Tensor

from treespec.acceptance import accept_matching
from treespec.drafting import draft_topk, tree_mask
from treespec.errors import ModelError
from treespec.models.protocol import SlotModel
from treespec.sampling import Sampling, choose
from treespec.timing import NoTimer, Timer
from treespec.tree import SpeculationTree
from treespec.tree_tensors import TreeTensors


class Step(Protocol):
    """Commits at least one token."""

    timer: Timer
    vocabulary: int

    def run(self, last: Tensor, length: int, room: int, generator: torch.Generator | None) -> tuple[list[int], list[int]]:
        """(committed tokens, accepted node ids).

        `last` int64 [2]: the tokens at positions `length - 1` and `length` (the root); the caches hold all positions
        below `length`; `room` >= 1 is how many slots are left. Raises ModelError when logits are not finite.
        """


class AutoregressiveStep:
    """The target alone: one token in, one token out. Parts: target, acceptance."""

    def __init__(self, target: SlotModel, sampling: Sampling, timer: Timer | None = None, vocabulary: int | None = None) -> None:
        self.target, self.sampling = target, sampling
        self.timer: Timer = timer or NoTimer()
        self.vocabulary = vocabulary or target.vocabulary_size

    def run(self, last: Tensor, length: int, room: int, generator: torch.Generator | None) -> tuple[list[int], list[int]]:
        """See `Step`."""
        self.timer.begin()
        place = torch.arange(length, length + 1, device=last.device)
        mask = torch.ones(1, length + 1, dtype=torch.bool, device=last.device)
        logits = self.target.forward(last[1:], place, place, mask)[:, : self.vocabulary]
        choice = choose(logits, self.sampling, generator)
        self.timer.mark("target")
        token, sound = torch.cat([choice, finite(logits)[None]]).tolist()
        require_finite(sound, length)
        self.timer.mark("acceptance")
        return [token], []


class SpeculativeStep:
    """Draft a fixed tree, verify it in one target pass, accept, commit. Parts: draft (per level), target, acceptance, cache."""

    def __init__(self, target: SlotModel, draft: SlotModel, tree: SpeculationTree, sampling: Sampling, timer: Timer | None = None) -> None:
        self.target, self.draft, self.tree, self.sampling = target, draft, tree, sampling
        self.timer: Timer = timer or NoTimer()
        self.vocabulary = min(target.vocabulary_size, draft.vocabulary_size)
        if tree.max_branch > self.vocabulary:
            raise ModelError(
                f"the tree has a node with {tree.max_branch} children, but the vocabulary has {self.vocabulary} tokens; use a narrower tree"
            )
        self._tensors = {tree.size: TreeTensors.on(tree, target.device)}

    def run(self, last: Tensor, length: int, room: int, generator: torch.Generator | None) -> tuple[list[int], list[int]]:
        """See `Step`. With less room than the tree has nodes, its first `room` nodes are used."""
        self.timer.begin()
        tensors = self._cut_to(room)
        size = tensors.tree.size
        tokens, ranked = draft_topk(self.draft, tensors, last, length, self.vocabulary, self.timer)
        slots = torch.arange(length, length + size, device=last.device)
        logits = self.target.forward(tokens, tensors.depths + length, slots, tree_mask(tensors, length, 0, size))[:, : self.vocabulary]
        choices = choose(logits, self.sampling, generator)
        self.timer.mark("target")
        accepted = accept_matching(tokens, choices, tensors)
        health = torch.stack([accepted.count, finite(logits[accepted.path]), ranked])
        *read, count, sound, ranked_sound = torch.cat([accepted.emitted, accepted.path, health]).tolist()
        require_finite(sound, length)
        require_finite(ranked_sound, length, "draft")
        longest = tensors.tree.depth + 1
        emitted, path = read[: count + 1], read[longest + 1 : longest + 1 + count]
        self.timer.mark("acceptance")
        self._commit(path, length)
        self.timer.mark("cache")
        return emitted, path

    def _cut_to(self, room: int) -> TreeTensors:
        size = min(self.tree.size, room)
        if size not in self._tensors:
            self._tensors[size] = TreeTensors.on(self.tree.truncated(size), self.target.device)
        return self._tensors[size]

    def _commit(self, path: list[int], length: int) -> None:
        """Move the accepted nodes' rows behind the root's; rows that lie right already stay."""
        stray = next((i for i, node in enumerate(path) if node != i + 1), len(path))
        if stray == len(path):
            return
        source = torch.tensor(path[stray:], device=self.target.device) + length
        destination = torch.arange(length + 1 + stray, length + 1 + len(path), device=self.target.device)
        self.target.move(source, destination)
        self.draft.move(source, destination)


def finite(logits: Tensor) -> Tensor:
    """int64 []: 1 when every row's largest logit is finite, which NaN and +inf never are. [rows, vocabulary]."""
    return logits.amax(-1).isfinite().all().to(torch.int64)


def require_finite(sound: int, position: int | None = None, role: str = "target") -> None:
    """Raise ModelError when `finite` said 0, naming the position of the step where it is known."""
    if not sound:
        place = "" if position is None else f" at position {position}"
        raise ModelError(
            f"the {role}'s logits are not finite{place} (NaN or infinite); "
            "the weights are damaged or overflow in this precision: try --dtype float32 or bfloat16"
        )
