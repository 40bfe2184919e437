"""One step of decoding, speculative or autoregressive: what decoding repeats and what the latency profile times.

Positions: with `length` tokens in the cache, the root (the last committed token) has position `length`, and tree node i
goes to slot `length + i`. After acceptance the path's K/V rows move down to slots `length + 1 ..`.
"""

from typing import Protocol

import torch
from torch import Tensor

from treespec.acceptance import Accepted, accept, last_matching, verify
from treespec.drafting import Drafter, Drafting, Proposal, StaticDrafter, tree_mask
from treespec.dynamic_tree import DynamicBudget, DynamicDrafter
from treespec.errors import ModelError
from treespec.models.protocol import SlotModel
from treespec.sampling import Sampling, choose, distribution, race
from treespec.timing import NoTimer, Timer
from treespec.tree import SpeculationTree
from treespec.tree_tensors import StaticTensors

Plan = SpeculationTree | DynamicBudget
"""The tree to draft at every step: one that stays, or the budget of one that follows the text."""


class Step(Protocol):
    """Commits at least one token."""

    timer: Timer
    vocabulary: int

    def run(self, last: Tensor, length: int, room: int, generator: torch.Generator | None) -> tuple[list[int], list[int]]:
        """(committed tokens, ranks on the way from the root to the last accepted node).

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
        self.timer.mark("target")
        choice = choose(logits, self.sampling, generator)
        token, sound = torch.cat([choice, finite(logits)[None]]).tolist()
        require_finite(sound, length)
        self.timer.mark("acceptance")
        return [token], []


class SpeculativeStep:
    """Draft a tree, verify it in one target pass, accept, commit. Parts: drafting (per level), target, acceptance, cache.

    The host decides nothing on the way and reads once, at the end.

    `plan` is a tree that stays the same, or the budget of one that is grown anew at every step. Raises ModelError for a plan
    that the vocabulary or the drafting rule does not allow.
    """

    def __init__(
        self,
        target: SlotModel,
        draft: SlotModel,
        plan: Plan,
        sampling: Sampling,
        timer: Timer | None = None,
        drafting: Drafting = Drafting(),
    ) -> None:
        self.target, self.draft, self.sampling, self.drafting = target, draft, sampling, drafting
        self.timer: Timer = timer or NoTimer()
        self.vocabulary = min(target.vocabulary_size, draft.vocabulary_size)
        self.drafter: Drafter
        if isinstance(plan, SpeculationTree):
            self.drafter = StaticDrafter(draft, plan, self.vocabulary, sampling, drafting)
        elif drafting.rule == "topk":
            self.drafter = DynamicDrafter(draft, plan, self.vocabulary)
        else:
            raise ModelError(f"dynamic trees take the draft's most likely tokens, so they cannot be drafted by {drafting.rule}; use topk")

    def run(self, last: Tensor, length: int, room: int, generator: torch.Generator | None) -> tuple[list[int], list[int]]:
        """See `Step`. With less room than the tree has nodes, it is cut."""
        self.timer.begin()
        proposal = self.drafter.propose(last, length, room, generator, self.timer)
        tree = proposal.tree
        slots = torch.arange(length, length + tree.size, device=last.device)
        mask = tree_mask(tree.ancestors, length)
        logits = self.target.forward(proposal.tokens, tree.depths + length, slots, mask)[:, : self.vocabulary]
        self.timer.mark("target")
        accepted = self._accept(proposal, logits, generator)
        self.timer.mark("acceptance")
        rows = accepted.path if proposal.rows is None else proposal.rows[accepted.path]
        places = torch.arange(length + 1, length + 1 + tree.depth, device=last.device)  # those behind the last one are written again
        self.target.move(accepted.path[1:] + length, places)
        self.draft.move(rows[1:] + length, places)
        self.timer.mark("cache")
        health = torch.stack([accepted.count, finite(logits[accepted.path]), proposal.sound])
        *read, count, sound, drafted = torch.cat([accepted.emitted, tree.ranks[accepted.path], health]).tolist()
        require_finite(sound, length)
        require_finite(drafted, length, "draft")
        emitted, ranks = read[: tree.depth + 1], read[tree.depth + 1 :]
        return emitted[: count + 1], ranks[1 : count + 1]

    def _accept(self, proposal: Proposal, logits: Tensor, generator: torch.Generator | None) -> Accepted:
        tokens, tree = proposal.tokens, proposal.tree
        if proposal.q is None:
            choices = choose(logits, self.sampling, generator)
            last = last_matching(tokens, choices, tree)
            return accept(tokens, last, choices.index_select(0, last[None])[0], tree)
        if not isinstance(tree, StaticTensors):
            raise ModelError("only trees known beforehand can be sampled")
        p = distribution(logits, self.sampling)
        verdict = verify(tokens, p, proposal.q, tree, replacement=self.drafting.rule == "swr", verifier=self.drafting.verifier)
        last = verdict.last(torch.rand(tree.size, dtype=torch.float64, device=tokens.device, generator=generator))
        return accept(tokens, last, race(verdict.rest(last), generator).argmax(), tree)


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
