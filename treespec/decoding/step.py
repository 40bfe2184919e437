"""One step of decoding, speculative or autoregressive. Decoding repeats it, and the latency profile times it.

Positions: with `length` tokens in the cache, the root (the last committed token) has position `length`, and tree node i
has slot `length + i`. After acceptance, the path's keys and values move to slots `length + 1 ..`.
"""

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from treespec.decoding.drafters import DRAFTERS
from treespec.decoding.drafters.base import Drafter, DrafterSetup
from treespec.decoding.drafting import Drafting
from treespec.decoding.heads import Draft
from treespec.decoding.plans import Plan
from treespec.decoding.protocol import SlotModel
from treespec.decoding.rules import Sampling
from treespec.decoding.sampling import choose_checked, require_finite
from treespec.decoding.step_rule import StepRule
from treespec.decoding.timing import NoTimer, Timer
from treespec.decoding.verifiers import VERIFIERS
from treespec.decoding.verifiers.base import Verifier
from treespec.errors import SettingsError
from treespec.kernels import dispatch
from treespec.kernels.outcome import Outcome, StepReport
from treespec.trees.placement import Prefix
from treespec.trees.tensors import StaticTensors
from treespec.trees.tree import SpeculationTree


class Step(Protocol):
    """One step of decoding; it commits at least one token."""

    target: SlotModel
    timer: Timer

    def begin(self, prompt: Tensor, pixels: Tensor | None) -> Tensor:
        """Read a new text, int64 [length] with its pictures, and return the target's logits [vocabulary] after it."""

    def advance(self, last: Tensor, prefix: Prefix, room: int, generator: torch.Generator | None) -> Outcome:
        """Take one step, without waiting for the device.

        `last` int64 [2]: the tokens at positions `length - 1` and `length` (the root); the caches hold the prefix; `room` >= 1 is
        the number of slots that are left.
        """


class AutoregressiveStep:
    """A step of the target alone, which reads one token and commits one. Its parts are target and acceptance."""

    def __init__(self, target: SlotModel, sampling: Sampling, timer: Timer | None = None) -> None:
        self.target, self.sampling = target, sampling
        self.timer: Timer = timer or NoTimer()
        self._root = StaticTensors.on(SpeculationTree((-1,)), target.device)

    def begin(self, prompt: Tensor, pixels: Tensor | None) -> Tensor:
        """See `Step.begin`."""
        return self.target.prefill(prompt, pixels)

    def advance(self, last: Tensor, prefix: Prefix, room: int, generator: torch.Generator | None) -> Outcome:
        """See `Step.advance`."""
        self.timer.begin()
        logits = self.target.forward(last[1:], self._root.layout().behind(prefix))
        self.timer.mark("target")
        choice, largest = choose_checked(logits, self.sampling, generator)
        outcome = dispatch.finish_step(last[1:], choice, self._root, largest, largest[:0], prefix.length)
        self.timer.mark("acceptance")
        return outcome


class SpeculativeStep:
    """A step that drafts a tree, verifies it in one target pass, accepts and commits.

    Its parts are drafting (per level), target, acceptance and cache.
    """

    def __init__(self, target: SlotModel, drafter: Drafter, verifier: Verifier, sampling: Sampling, timer: Timer | None = None) -> None:
        self.target, self.drafter, self.verifier, self.sampling = target, drafter, verifier, sampling
        self.timer: Timer = timer or NoTimer()

    def begin(self, prompt: Tensor, pixels: Tensor | None) -> Tensor:
        """See `Step.begin`."""
        logits = self.target.prefill(prompt, pixels)
        self.drafter.begin(prompt, pixels)  # afterwards, because heads read the target's states
        return logits

    def advance(self, last: Tensor, prefix: Prefix, room: int, generator: torch.Generator | None) -> Outcome:
        """See `Step.advance`. If there is less room than the tree has nodes, the tree is cut."""
        self.timer.begin()
        proposal = self.drafter.propose(last, prefix, room, generator, self.timer)
        logits = self.target.forward(proposal.tokens, proposal.tree.layout().behind(prefix))
        self.timer.mark("target")
        outcome = self.verifier.verify(proposal, logits, self.sampling, prefix.length, generator)
        self.timer.mark("acceptance")
        self.target.move(prefix, outcome.path[1:], 1)  # those behind the last accepted one are written again
        self.drafter.keep(prefix, proposal, outcome)
        self.timer.mark("cache")
        return outcome


@dataclass(frozen=True)
class StepSpec:
    """Everything that distinguishes one step of a pair from another, as plain data that can be hashed."""

    plan: Plan | None
    """The plan to draft by; None for an autoregressive step."""
    sampling: Sampling = field(default_factory=Sampling)
    drafting: Drafting = Drafting()

    def __post_init__(self) -> None:
        if self.plan is None:
            return
        if isinstance(self.plan, type) or not hasattr(self.plan, "drafter"):
            what = "the class" if isinstance(self.plan, type) else "a"
            name = getattr(self.plan, "__name__", type(self.plan).__name__)
            raise SettingsError(
                f"`plan` is {what} {name}, but it must be a growmap, its file or its name, a SpeculationTree, a DynamicBudget, or a plan of your own"
            )
        if type(self.plan).__hash__ is None:
            raise SettingsError(f"a plan must be hashable, but {type(self.plan).__name__} is not; make it a frozen dataclass")
        if getattr(self.plan, "drafter", None) not in DRAFTERS:
            raise SettingsError(
                f"{self.plan!r:.80} is no plan whose drafter is one of {', '.join(DRAFTERS)}; enter its drafter into DRAFTERS first"
            )

    @property
    def rule(self) -> StepRule:
        """Return the rule of the step; without a plan, it is that of the target alone."""
        if self.plan is None:
            return StepRule.of(self.sampling).alone
        return StepRule.of(self.sampling, self.drafting, self.plan.drafter)

    def build(self, target: SlotModel, draft: Draft | None = None, timer: Timer | None = None) -> Step:
        """Build the step. Raises SettingsError, ModelError for a plan that the vocabulary, the drafting or a missing draft rules out."""
        if self.plan is None:
            return AutoregressiveStep(target, self.sampling, timer)
        vocabulary = min(model.vocabulary_size for model in (target, draft) if model is not None)
        setup = DrafterSetup(draft, target.device, vocabulary, self.sampling, self.drafting)
        drafter = DRAFTERS[self.plan.drafter](self.plan, setup)
        return SpeculativeStep(target, drafter, VERIFIERS[self.drafting.verifier].make(), self.sampling, timer)


def checked(report: StepReport, length: int) -> StepReport:
    """Return the report of a step after `length` tokens. Raises ModelError if its logits were not finite."""
    require_finite(int(report.target_sound), length)
    require_finite(int(report.draft_sound), length, "draft")
    return report
