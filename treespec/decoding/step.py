"""One step of decoding, speculative or autoregressive: what decoding repeats and what the latency profile times.

Positions: with `length` tokens in the cache, the root (the last committed token) has position `length`, and tree node i
goes to slot `length + i`. After acceptance the path's K/V rows move down to slots `length + 1 ..`.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from treespec.decoding.acceptance import verify
from treespec.decoding.drafting import Drafter, Drafting, Proposal, StaticDrafter
from treespec.decoding.dynamic_tree import DynamicBudget, DynamicDrafter
from treespec.decoding.protocol import SlotModel
from treespec.decoding.sampling import Sampling, choose, distribution, race
from treespec.decoding.timing import NoTimer, Timer
from treespec.errors import ModelError
from treespec.kernels import dispatch
from treespec.kernels.plain import Settled, accept, settle
from treespec.trees.placement import Prefix
from treespec.trees.tensors import StaticTensors
from treespec.trees.tree import SpeculationTree

Plan = SpeculationTree | DynamicBudget
"""The tree to draft at every step: one that stays, or the budget of one that follows the text."""


@dataclass(frozen=True)
class Advance:
    """The outcome of a step on the device: nothing has been read by the host yet. See `plain.Settled`."""

    report: Tensor
    state: Tensor

    @property
    def last(self) -> Tensor:
        """int64 [2]; the last two committed tokens."""
        return self.state[:2]

    @property
    def prefix(self) -> Tensor:
        """int64 [1]; how many tokens the caches hold now."""
        return self.state[2:]

    def read(self, length: int) -> tuple[list[int], list[int]]:
        """See `read_report`; waits for the device."""
        return read_report(self.report.tolist(), length)


def read_report(report: list[int], length: int) -> tuple[list[int], list[int]]:
    """(committed tokens, ranks on the way from the root to the last accepted node) of a step behind `length` tokens.

    Raises ModelError when logits were not finite.
    """
    *read, count, sound, drafted = report
    require_finite(sound, length)
    require_finite(drafted, length, "draft")
    half = len(read) // 2
    return read[: count + 1], read[half + 1 : half + count + 1]


class Step(Protocol):
    """Commits at least one token."""

    timer: Timer
    vocabulary: int

    def advance(self, last: Tensor, prefix: Prefix, room: int, generator: torch.Generator | None) -> Advance:
        """One step, without waiting for the device.

        `last` int64 [2]: the tokens at positions `length - 1` and `length` (the root); the caches hold the prefix; `room` >= 1 is
        how many slots are left.
        """


class AutoregressiveStep:
    """The target alone: one token in, one token out. Parts: target, acceptance."""

    def __init__(self, target: SlotModel, sampling: Sampling, timer: Timer | None = None, vocabulary: int | None = None) -> None:
        self.target, self.sampling = target, sampling
        self.timer: Timer = timer or NoTimer()
        self.vocabulary = vocabulary or target.vocabulary_size
        self._root = StaticTensors.on(SpeculationTree((-1,)), target.device)

    def advance(self, last: Tensor, prefix: Prefix, room: int, generator: torch.Generator | None) -> Advance:
        """See `Step`."""
        self.timer.begin()
        logits = self.target.forward(last[1:], self._root.layout().behind(prefix))[:, : self.vocabulary]
        self.timer.mark("target")
        choice, largest = choose_checked(logits, self.sampling, generator)
        settled = dispatch.finish_step(last[1:], choice, self._root, largest, largest[:0], prefix.length)
        self.timer.mark("acceptance")
        return Advance(settled.report, settled.state)


class SpeculativeStep:
    """Draft a tree, verify it in one target pass, accept, commit. Parts: drafting (per level), target, acceptance, cache.

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

    def advance(self, last: Tensor, prefix: Prefix, room: int, generator: torch.Generator | None) -> Advance:
        """See `Step`. With less room than the tree has nodes, it is cut."""
        self.timer.begin()
        proposal = self.drafter.propose(last, prefix, room, generator, self.timer)
        logits = self.target.forward(proposal.tokens, proposal.tree.layout().behind(prefix))[:, : self.vocabulary]
        self.timer.mark("target")
        settled = self._settle(proposal, logits, prefix.length, generator)
        self.timer.mark("acceptance")
        rows = settled.path if proposal.rows is None else proposal.rows[settled.path]
        self.target.move(prefix, settled.path[1:], 1)  # those behind the last accepted one are written again
        self.draft.move(prefix, rows[1:], 1)
        self.timer.mark("cache")
        return Advance(settled.report, settled.state)

    def _settle(self, proposal: Proposal, logits: Tensor, length: Tensor, generator: torch.Generator | None) -> Settled:
        """Verify the proposal by the target's logits."""
        tokens, tree = proposal.tokens, proposal.tree
        if proposal.q is None:
            choices, largest = choose_checked(logits, self.sampling, generator)
            return dispatch.finish_step(tokens, choices, tree, largest, proposal.largest, length)
        if not isinstance(tree, StaticTensors):
            raise ModelError("only trees known beforehand can be sampled")
        p = distribution(logits, self.sampling)
        verdict = verify(tokens, p, proposal.q, tree, replacement=self.drafting.rule == "swr", verifier=self.drafting.verifier)
        last = verdict.last(torch.rand(tree.size, dtype=torch.float64, device=tokens.device, generator=generator))
        accepted = accept(tokens, last, race(verdict.rest(last), generator).argmax(), tree)
        return settle(accepted, tokens, tree, logits.amax(-1), proposal.largest, length)


def choose_checked(logits: Tensor, sampling: Sampling, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """(One token per row, int64 [rows]; its largest logit [rows]) of logits [rows, vocabulary]."""
    if sampling.greedy:
        largest, tokens = dispatch.top_tokens(logits, 1)
        return tokens[:, 0], largest[:, 0]
    return choose(logits, sampling, generator), logits.amax(-1)


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
