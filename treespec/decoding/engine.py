"""Running step after step: eagerly, with each read before the next, or captured in one CUDA graph and read one step later."""

import logging
from collections import OrderedDict, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor

from treespec.decoding.capture import capturing, is_refused_capture
from treespec.decoding.heads import Draft
from treespec.decoding.plans import Plan
from treespec.decoding.protocol import CapturableModel, SlotModel, WatchfulModel
from treespec.decoding.step import Step, StepSpec, checked
from treespec.decoding.step_rule import StepRule
from treespec.decoding.timing import CapturedTimer, Timer
from treespec.errors import CapacityError
from treespec.kernels.device import on
from treespec.kernels.outcome import ReportLayout
from treespec.trees.placement import Prefix

Parts = tuple[tuple[str, float], ...]

_LOG = logging.getLogger(__name__)

_MOST_KEPT = 16
"""An engine keeps at most this many captured steps; with more, it drops the one whose last use is the oldest."""
_WARM_UPS = 2
_AMPLE = 1 << 30
_BLOCK = 256
"""The caches of several processes grow to a multiple of so many slots."""


class Stepper(Protocol):
    """Runs the steps of one text. Rule: steps are launched first and read later, in order; at most `ahead` + 1 may be unread."""

    ahead: int
    """Number of further steps that may be launched before the oldest has been read."""
    step: Step

    @property
    def generator(self) -> torch.Generator | None:
        """Return the random stream of the text as the launched steps leave it, for other steps that go on with the text."""

    def begin(self, last: Tensor, length: int, generator: torch.Generator | None) -> None:
        """Start a text that `step.begin` has read.

        `last` int64 [2]: the tokens at positions `length - 1` and `length`; the caches hold those below `length`.
        """

    def launch(self, room: int) -> None:
        """Start the next step, for which `room` slots are left."""

    def read(self, length: int) -> tuple[list[int], list[int], Parts]:
        """Return (committed tokens, accepted ranks, timed parts) of the oldest unread step, after `length` tokens. Raises ModelError."""


class EagerSteps:
    """Steps that are sequences of calls; each is read before the next begins."""

    ahead = 0

    def __init__(self, step: Step) -> None:
        self.step = step

    @property
    def generator(self) -> torch.Generator | None:
        """See `Stepper`."""
        return self._generator

    def begin(self, last: Tensor, length: int, generator: torch.Generator | None) -> None:
        """See `Stepper`."""
        self._last, self._prefix, self._generator = last, Prefix.of(length, last.device), generator

    def launch(self, room: int) -> None:
        """See `Stepper`. If there is less room than the tree has nodes, the tree is cut."""
        with on(self._last.device):
            self._outcome = self.step.advance(self._last, self._prefix, room, self._generator)

    def read(self, length: int) -> tuple[list[int], list[int], Parts]:
        """See `Stepper`."""
        report = checked(self._outcome.read(), length)
        self._last, self._prefix = self._outcome.last, Prefix(self._outcome.length, length + len(report.tokens))
        return report.tokens, report.ranks, tuple(self.step.timer.parts())


@dataclass(frozen=True)
class CacheBudget:
    """The cache slots that decoding needs."""

    slots: int
    """Slots for prompt, generated tokens and one tree."""
    drafted: int = 0
    """Additional slots that the draft needs."""
    depth: int = 0
    """Depth of the tree."""
    size: int = 1
    """Nodes of the tree."""

    @classmethod
    def of(cls, slots: int, plan: Plan | None) -> "CacheBudget":
        """Return the budget for a text of `slots` slots, and for the nodes that the plan drafts at its end."""
        return cls(slots) if plan is None else cls(slots, plan.candidates, plan.depth, plan.size)

    def allocate(self, target: SlotModel, draft: Draft | None, *, captured: bool) -> None:
        """Allocate both caches. Raises CapacityError.

        If steps are captured, more is needed: their trees are never cut, and a step that is launched ahead may start after the last token
        that counts.
        """
        slots = self.slots + (2 * (self.depth + 1) + self.size if captured else 0)
        divided = isinstance(target, WatchfulModel) and target.divided
        _allocate(target, slots, captured=captured, divided=divided)
        if draft is not None and self.drafted:
            _allocate(draft, slots + self.drafted, captured=captured, divided=divided)


def _allocate(model: Draft, slots: int, *, captured: bool, divided: bool) -> None:
    """Allocate a cache; where captured steps have a smaller one, twice as many slots, because a larger cache has all steps captured anew.

    Beside a target that is `divided`, the caches of all processes must have as many slots, whatever memory each has left: then some more.
    """
    if captured and isinstance(model, CapturableModel) and 0 < model.capacity < slots:
        if divided:
            slots = -(-slots // _BLOCK) * _BLOCK
        else:
            with suppress(CapacityError):  # there may be memory for what is needed
                model.allocate(2 * slots)
    model.allocate(slots)


@dataclass
class _Reading:
    """A report that is being copied to the host."""

    report: Tensor
    arrived: Any


class CapturedSteps:
    """One step as one CUDA graph, replayed for every length: tokens, length and random state are on the device.

    Rules: build it before prefilling, because building runs the step a few times and overwrites the first slots of the caches. Do not
    make new caches afterwards. A timer that measures the parts must be a `CapturedTimer`.

    Raises the error that the step raises if it cannot be captured.
    """

    def __init__(self, step: Step, device: torch.device, pool: Any = None) -> None:
        self.step = step
        self._timed = isinstance(step.timer, CapturedTimer)
        self.ahead = 0 if self._timed else 1
        self._state = torch.tensor([0, 0, 1], device=device)
        self._last, self._length = self._state[:2], self._state[2:]
        self._generator = torch.Generator(device)
        with on(device):
            self._graph = torch.cuda.CUDAGraph()
            self._graph.register_generator_state(self._generator)
            self._report, self._host = self._capture(pool)
        self._under_way: deque[_Reading] = deque()
        self._turn = 0

    @property
    def generator(self) -> torch.Generator | None:
        """See `Stepper`."""
        return self._generator

    @torch.inference_mode()
    def _capture(self, pool: Any) -> tuple[Tensor, list[tuple[Tensor, Any]]]:
        prefix = Prefix(self._length)
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):  # compiles kernels and makes workspaces
                self.step.advance(self._last, prefix, _AMPLE, self._generator)
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        with capturing(self._graph, _capture_stream(self._state.device), pool):
            outcome = self.step.advance(self._last, prefix, _AMPLE, self._generator)
            self._state.copy_(outcome.state)
        host = [(torch.empty_like(outcome.report, device="cpu", pin_memory=True), torch.cuda.Event()) for _ in range(self.ahead + 1)]  # type: ignore[no-untyped-call]
        return outcome.report, host

    @torch.inference_mode()
    def begin(self, last: Tensor, length: int, generator: torch.Generator | None) -> None:
        """See `Stepper`. The random stream continues from the state of `generator`."""
        self._under_way.clear()
        with on(self._state.device):
            self._last.copy_(last)
            self._length.fill_(length)
        if generator is not None:
            self._generator.manual_seed(generator.initial_seed())
            self._generator.set_offset(generator.get_offset())

    @torch.inference_mode()
    def launch(self, room: int) -> None:
        """See `Stepper`. The tree is never cut: the caches have more slots than `room`."""
        host, arrived = self._host[self._turn]
        self._turn = (self._turn + 1) % len(self._host)
        with on(self._state.device):
            self._graph.replay()
            host.copy_(self._report, non_blocking=True)
            arrived.record()
        self._under_way.append(_Reading(host, arrived))

    def read(self, length: int) -> tuple[list[int], list[int], Parts]:
        """See `Stepper`. A step with a timer is read before the next is launched, so the timed parts are those of this step."""
        reading = self._under_way.popleft()
        reading.arrived.synchronize()
        report = checked(ReportLayout.of_size(reading.report.shape[0]).read(reading.report.tolist()), length)
        return report.tokens, report.ranks, tuple(self.step.timer.parts()) if self._timed else ()

    @torch.inference_mode()
    def seconds(self, count: int) -> float:
        """Return the mean seconds per step over `count` consecutive replays, which continue the text. None of them is read."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        with on(self._state.device):
            self._graph.replay()  # keeps the device busy while the host launches those that count
            start.record()
            for _ in range(count):
                self._graph.replay()
            end.record()
            end.synchronize()
        return float(start.elapsed_time(end)) / 1e3 / count


@cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream on which a device's steps are captured. Torch's default one belongs to the device of the first capture."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


_Key = tuple[StepSpec, bool]
"""The specification of a step, and whether its parts are timed."""


class Engine:
    """Captures the steps of one target (and its draft, a model or a head), and keeps them as long as their caches stay and they are used often enough.

    A step that CUDA refuses to capture runs eagerly from then on; every other error of building it is raised. `notice` is called
    once, with the reason, if steps run eagerly, and once for every rule (`StepRule`) whose steps are refused; every refusal is logged.
    """

    def __init__(self, target: SlotModel, draft: Draft | None = None, notice: Callable[[str], None] | None = None) -> None:
        self.target, self.draft, self._notice = target, draft, notice
        self._models: list[Draft] = [target] if draft is None else [target, draft]
        self._kept: OrderedDict[_Key, CapturedSteps] = OrderedDict()
        self._refused: dict[_Key, str] = {}
        self._told: set[StepRule | None] = set()
        self._pool: Any = None
        self._caches: tuple[int, ...] = ()

    def eager(self) -> str | None:
        """Return why steps run eagerly: a model's passes cannot be captured, or a step was refused. None if all were captured."""
        return self._without_kernels() or next(iter(self._refused.values()), None)

    def steps(self, spec: StepSpec, budget: CacheBudget, timer: Timer | None) -> Stepper:
        """Allocate the caches for `budget` and return steps as `spec` describes them; `timer` None: without timed parts.

        A captured step is kept under its `spec` and has its own timer, because captured marks need it. Raises CapacityError, and the
        errors of `StepSpec.build`.
        """
        key = spec, timer is not None
        captured = self._without_kernels() is None and key not in self._refused
        budget.allocate(self.target, self.draft, captured=captured)
        if captured and self._without_kernels() is None:  # a cache may bring a reason
            steps = self._captured(key)
            if steps is not None:
                return steps
        kernels = self._without_kernels()
        if kernels is not None:
            self._tell(kernels, None)
        else:
            self._tell(self._refused[key], spec.rule)
        return EagerSteps(spec.build(self.target, self.draft, timer))

    def _without_kernels(self) -> str | None:
        return next(filter(None, map(_eager_reason, self._models)), None)

    def _captured(self, key: _Key) -> CapturedSteps | None:
        """Return the captured steps of `key`, captured now or before; None if CUDA refuses to capture them."""
        caches = tuple(model.generation for model in self._models if isinstance(model, CapturableModel))
        if caches != self._caches:
            self._kept.clear()
            self._caches, self._pool = caches, torch.cuda.graph_pool_handle()
        spec, timed = key
        try:
            if key not in self._kept:
                step = spec.build(self.target, self.draft, CapturedTimer() if timed else None)
                self._kept[key] = CapturedSteps(step, self.target.device, self._pool)
        except torch.OutOfMemoryError as error:
            raise CapacityError(
                f"no memory on {self.target.device} to capture a step; use a smaller tree or a shorter `max_length`"
            ) from error
        except RuntimeError as error:
            if not is_refused_capture(error):
                raise
            names = " and ".join(map(_name, self._models))
            why = str(error).splitlines()[0]
            self._refused[key] = f"{names} run eagerly ({spec.rule.name}): a step cannot be captured ({why})"
            _LOG.warning("%s", self._refused[key])
            return None
        self._kept.move_to_end(key)
        if len(self._kept) > _MOST_KEPT:
            self._kept.popitem(last=False)
        return self._kept[key]

    def _tell(self, why: str, rule: StepRule | None) -> None:
        """Say once why steps of a rule run eagerly; None: those of all rules."""
        if self._notice is not None and rule not in self._told:
            self._told.add(rule)
            self._notice(why)


def _eager_reason(model: Draft) -> str | None:
    """Return why the passes of a model cannot be captured; None if they can."""
    why = model.eager_reason if isinstance(model, CapturableModel) else "it is no CapturableModel"
    return f"{_name(model)} runs eagerly: {why}" if why else None


def _name(model: Draft) -> str:
    return model.name if isinstance(model, CapturableModel) else type(model).__name__
