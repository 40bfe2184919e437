"""Steps in a row: eagerly, each read before the next, or captured in one CUDA graph and read one step behind."""

import logging
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor

from treespec.decoding.plans import Plan
from treespec.decoding.protocol import CapturableModel, SlotModel
from treespec.decoding.step import Step, StepSpec, checked
from treespec.decoding.timing import CapturedTimer, Timer
from treespec.errors import CapacityError
from treespec.kernels.device import on
from treespec.kernels.outcome import ReportLayout
from treespec.trees.placement import Prefix

Parts = tuple[tuple[str, float], ...]

_LOG = logging.getLogger(__name__)

_MOST_KEPT = 16
"""Captured steps that an engine keeps; of more, the one that was used longest ago is given up."""
_WARM_UPS = 2
_AMPLE = 1 << 30


class Stepper(Protocol):
    """Runs steps of one text. Steps are launched first and read later, in order; at most `ahead` + 1 may be under way."""

    ahead: int
    """Steps that may be launched before the one before them has been read."""
    step: Step

    def begin(self, last: Tensor, length: int, generator: torch.Generator | None) -> None:
        """Start on a text that `step.begin` has read.

        `last` int64 [2]: the tokens at positions `length - 1` and `length`; the caches hold those below `length`.
        """

    def launch(self, room: int) -> None:
        """Start the next step; `room` slots are left for it."""

    def read(self, length: int) -> tuple[list[int], list[int], Parts]:
        """(committed tokens, accepted ranks, timed parts) of the oldest step not yet read, behind `length` tokens. Raises ModelError."""


class EagerSteps:
    """Each step is a sequence of calls, and is read before the next begins."""

    ahead = 0

    def __init__(self, step: Step) -> None:
        self.step = step

    def begin(self, last: Tensor, length: int, generator: torch.Generator | None) -> None:
        """See `Stepper`."""
        self._last, self._prefix, self._generator = last, Prefix.of(length, last.device), generator

    def launch(self, room: int) -> None:
        """See `Stepper`. With less room than the tree has nodes, it is cut."""
        with on(self._last.device):
            self._outcome = self.step.advance(self._last, self._prefix, room, self._generator)

    def read(self, length: int) -> tuple[list[int], list[int], Parts]:
        """See `Stepper`."""
        report = checked(self._outcome.read(), length)
        self._last, self._prefix = self._outcome.last, Prefix(self._outcome.length, length + len(report.tokens))
        return report.tokens, report.ranks, tuple(self.step.timer.parts())


@dataclass(frozen=True)
class CacheBudget:
    """Cache slots that decoding needs."""

    slots: int
    """For prompt, generated tokens and one tree."""
    drafted: int = 0
    """Slots that the draft needs besides."""
    depth: int = 0
    """Of the tree, and its nodes."""
    size: int = 1

    @classmethod
    def of(cls, slots: int, plan: Plan | None) -> "CacheBudget":
        """Return the room for a text of so many slots, with what is drafted at its end."""
        return cls(slots) if plan is None else cls(slots, plan.candidates, plan.depth, plan.size)

    def allocate(self, target: SlotModel, draft: SlotModel | None, *, captured: bool) -> None:
        """Make it. Captured trees are never cut, and a step that is launched ahead may start behind the last token that counts."""
        slots = self.slots + (2 * (self.depth + 1) + self.size if captured else 0)
        target.allocate(slots)
        if draft is not None and self.drafted:
            draft.allocate(slots + self.drafted)


@dataclass
class _Reading:
    """A report on its way to the host."""

    report: Tensor
    arrived: Any


class CapturedSteps:
    """One step as one CUDA graph, replayed for every length: tokens, length and random state live on the device.

    Building it runs the step a few times on whatever the caches hold and overwrites their first slots: build before prefilling. The
    caches must not be allocated anew afterwards. A timer that is to see the parts must be a `CapturedTimer`.

    Raises whatever the step raises when it cannot be captured.
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
        with torch.cuda.graph(self._graph, pool=pool, stream=_capture_stream(self._state.device)):
            outcome = self.step.advance(self._last, prefix, _AMPLE, self._generator)
            self._state.copy_(outcome.state)
        host = [(torch.empty_like(outcome.report, device="cpu", pin_memory=True), torch.cuda.Event()) for _ in range(self.ahead + 1)]  # type: ignore[no-untyped-call]
        return outcome.report, host

    @torch.inference_mode()
    def begin(self, last: Tensor, length: int, generator: torch.Generator | None) -> None:
        """See `Stepper`. The random stream goes on where `generator` stands."""
        self._under_way.clear()
        with on(self._state.device):
            self._last.copy_(last)
            self._length.fill_(length)
        if generator is not None:
            self._generator.manual_seed(generator.initial_seed())
            self._generator.set_offset(generator.get_offset())

    @torch.inference_mode()
    def launch(self, room: int) -> None:
        """See `Stepper`. The tree is never cut: there are more slots than `room`."""
        host, arrived = self._host[self._turn]
        self._turn = (self._turn + 1) % len(self._host)
        with on(self._state.device):
            self._graph.replay()
            host.copy_(self._report, non_blocking=True)
            arrived.record()
        self._under_way.append(_Reading(host, arrived))

    def read(self, length: int) -> tuple[list[int], list[int], Parts]:
        """See `Stepper`. A step with a timer is read before the next is launched, so that the parts are its own."""
        reading = self._under_way.popleft()
        reading.arrived.synchronize()
        report = checked(ReportLayout.of_size(reading.report.shape[0]).read(reading.report.tolist()), length)
        return report.tokens, report.ranks, tuple(self.step.timer.parts()) if self._timed else ()

    @torch.inference_mode()
    def seconds(self, count: int) -> float:
        """Of one step, the mean over `count` in a row that go on where the last one ended; none of them is read."""
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
    """Return the stream on which a device's steps are captured: torch's own one is on the device of the process's first capture."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


_Key = tuple[StepSpec, bool]
"""A step, and whether its parts are timed."""


class Engine:
    """Captured steps of one target (and its draft), kept while their caches stay and while they are used now and then.

    A step that CUDA refuses to capture runs eagerly from then on; every other error of building it is raised. `notice` is told once
    when steps run eagerly, and why; the log always is.
    """

    def __init__(self, target: SlotModel, draft: SlotModel | None = None, notice: Callable[[str], None] | None = None) -> None:
        self.target, self.draft, self._notice = target, draft, notice
        self._models = [target] if draft is None else [target, draft]
        self._kept: OrderedDict[_Key, CapturedSteps] = OrderedDict()
        self._refused: dict[_Key, str] = {}
        self._pool: Any = None
        self._caches: tuple[int, ...] = ()

    def eager(self) -> str | None:
        """Return why steps run eagerly: no pass of a model can be captured, or a step was refused; None where all were captured."""
        return self._without_kernels() or next(iter(self._refused.values()), None)

    def steps(self, spec: StepSpec, budget: CacheBudget, timer: Timer | None) -> Stepper:
        """Return steps of that kind, with `room` in the caches; `timer` None: without parts. Raises CapacityError and what `StepSpec.build` raises.

        A captured step is found again by its `spec`. It has a timer of its own, as captured marks need one.
        """
        key = spec, timer is not None
        captured = self._without_kernels() is None and key not in self._refused
        budget.allocate(self.target, self.draft, captured=captured)
        if captured:
            steps = self._captured(key)
            if steps is not None:
                return steps
        self._tell(self._without_kernels() or self._refused[key])
        return EagerSteps(spec.build(self.target, self.draft, timer))

    def _without_kernels(self) -> str | None:
        return next(filter(None, map(_eager_reason, self._models)), None)

    def _captured(self, key: _Key) -> CapturedSteps | None:
        """Return the captured steps of `key`, captured now or before; None where CUDA refuses to capture them."""
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
            self._refused[key] = f"{names} run eagerly: a step cannot be captured ({str(error).splitlines()[0]})"
            _LOG.warning("%s", self._refused[key])
            return None
        self._kept.move_to_end(key)
        if len(self._kept) > _MOST_KEPT:
            self._kept.popitem(last=False)
        return self._kept[key]

    def _tell(self, why: str) -> None:
        if self._notice is not None:
            self._notice(why)
            self._notice = None


def _eager_reason(model: SlotModel) -> str | None:
    """Return why the passes of a model cannot be captured; None where they can."""
    why = model.eager_reason if isinstance(model, CapturableModel) else "it is no CapturableModel"
    return f"{_name(model)} runs eagerly: {why}" if why else None


def _name(model: SlotModel) -> str:
    return model.name if isinstance(model, CapturableModel) else type(model).__name__


def is_refused_capture(error: RuntimeError) -> bool:
    """Return whether CUDA or PyTorch refused an operation because a stream was capturing; all other errors are bugs.

    Both say so in words ("operation not permitted when stream is capturing", "... during CUDA graph capture"): there is no class for it.
    """
    return "captur" in str(error).lower()
