"""The two decoders, autoregressive and speculative. Both yield a StepRecord per target pass."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from treespec.checks import require_whole
from treespec.decoding.drafting import Drafting
from treespec.decoding.engine import CacheBudget, EagerSteps, Engine, Stepper
from treespec.decoding.heads import Draft
from treespec.decoding.plans import Plan
from treespec.decoding.protocol import SlotModel, WatchfulModel
from treespec.decoding.rules import Sampling
from treespec.decoding.sampling import choose, finite, require_finite
from treespec.decoding.step import StepSpec
from treespec.decoding.timing import Timer
from treespec.errors import CapacityError, counted


@dataclass(frozen=True)
class Request:
    """A prompt to decode, and the conditions for stopping.

    At most `gen_len` tokens are generated, fewer only after one of `eos_token_ids`. `capacity` bounds the cache slots of
    prompt, generated tokens and tree together (None: as many as are needed); decoding stops at the last slot.
    """

    prompt: tuple[int, ...]
    gen_len: int
    eos_token_ids: frozenset[int] = frozenset()
    sampling: Sampling = field(default_factory=Sampling)
    capacity: int | None = None
    pixels: torch.Tensor | None = field(default=None, compare=False, repr=False)
    """Pictures of the prompt, [pictures, 3, height, width]; the prompt contains their tokens."""
    drafted: int | None = None
    """The number of first tokens, the prompt's included, that the draft can read (None: all). Nothing is drafted behind them."""

    def __post_init__(self) -> None:
        if not self.prompt:
            raise CapacityError("the prompt is empty, but decoding needs at least 1 token; give a longer prompt")
        require_whole(1, gen_len=self.gen_len)
        if self.capacity is not None and self.capacity < len(self.prompt):
            raise CapacityError(
                f"the prompt has {counted(len(self.prompt), 'token')}, but the cache has {counted(self.capacity, 'slot')}; raise `max_length`"
            )

    def slots(self, tree_size: int) -> int:
        """Return the number of cache slots to allocate for trees of this size."""
        needed = len(self.prompt) + self.gen_len + tree_size
        return needed if self.capacity is None else min(needed, self.capacity)


@dataclass(frozen=True)
class StepRecord:
    """The record of one target pass: that of the prompt (`accepted` is None, one token) or that of one step."""

    tokens: tuple[int, ...]
    """Committed tokens, cut at EOS and at `gen_len`."""
    accepted: tuple[int, ...] | None
    """Ranks on the way from the root to the last accepted node, one per accepted token, before any cut."""
    parts: tuple[tuple[str, float], ...] = ()
    """The timer's measurements: (part, seconds)."""
    alone: bool = False
    """Whether this is a step of the target alone in a text where the draft could read no further."""


def decode_autoregressive(
    target: SlotModel,
    request: Request,
    generator: torch.Generator | None = None,
    timer: Timer | None = None,
    engine: Engine | None = None,
) -> Iterator[StepRecord]:
    """Decode with the target alone, one token per pass, with the same cache and the same sampling as with a tree.

    `engine` keeps captured steps from prompt to prompt; without an engine, steps run eagerly. Raises CapacityError, ModelError.
    """
    slots = request.slots(1)
    return decode(_stepper(engine, StepSpec(None, request.sampling), target, None, slots, timer), request, slots, generator)


def decode_speculative(
    target: SlotModel,
    draft: Draft | None,
    plan: Plan,
    request: Request,
    generator: torch.Generator | None = None,
    timer: Timer | None = None,
    drafting: Drafting = Drafting(),
    engine: Engine | None = None,
) -> Iterator[StepRecord]:
    """Decode with trees: produce the target's own output in fewer passes. This is lossless for every rule at any temperature.

    `draft` is None for a plan whose drafter has no model. For `drafting` see `Drafting`, for `engine` see
    `decode_autoregressive`. Behind the tokens that the draft can read (`Request.drafted`), the target goes on alone.
    Raises CapacityError, ModelError, SettingsError.
    """
    slots = request.slots(plan.size)
    spec, alone = StepSpec(plan, request.sampling, drafting), StepSpec(None, request.sampling)
    if request.drafted is not None and len(request.prompt) >= request.drafted:
        spec.build(target, draft)  # raises what a shorter prompt would
        return _alone(decode(_stepper(engine, alone, target, None, slots, timer), request, slots, generator))
    steps = _stepper(engine, spec, target, draft, slots, timer)
    last = len(request.prompt) + request.gen_len - 2  # the tokens before the last root there can be
    short = request.drafted is not None and last + max(1, plan.depth) > request.drafted
    return decode(steps, request, slots, generator, _stepper(engine, alone, target, None, slots, timer) if short else None, plan.depth)


def _alone(records: Iterator[StepRecord]) -> Iterator[StepRecord]:
    """Mark the steps of the target alone as such."""
    return (record if record.accepted is None else replace(record, alone=True) for record in records)


def decode(
    steps: Stepper, request: Request, slots: int, generator: torch.Generator | None, alone: Stepper | None = None, depth: int = 0
) -> Iterator[StepRecord]:
    """Run the prompt pass, then steps until EOS, `gen_len` tokens or the last of the caches' `slots`.

    Steps of a tree of `depth` edges end with the tokens that the draft can read; from there on those of `alone` are run.
    """
    device = steps.step.target.device
    logits = steps.step.begin(torch.tensor(request.prompt, device=device), request.pixels)[None]
    require_finite(int(finite(logits)), len(request.prompt) - 1)
    first = int(choose(logits, request.sampling, generator))
    watching = target if isinstance(target := steps.step.target, WatchfulModel) else None
    if watching is not None:
        watching.committed((*request.prompt, first))
    yield StepRecord(tokens=(first,), accepted=None)
    length, generated, launched, read = len(request.prompt), 1, 0, 0
    ended = first in request.eos_token_ids
    last = request.prompt[-1], first
    steps.begin(torch.tensor(last, device=device), length, generator)
    readable = request.drafted if alone is not None and request.drafted is not None else slots + 1
    while not ended and generated < request.gen_len and length < slots:
        if alone is not None and steps is not alone and launched == read and length >= readable:
            generator, steps, launched, read = steps.generator, alone, 0, 0
            steps.begin(torch.tensor(last, device=device), length, generator)
        drafts = steps is not alone
        room = min(slots, readable + 1) - length if drafts and length + depth > readable else slots - length
        while launched == read or (
            launched <= read + steps.ahead
            and _goes_on(min(request.gen_len - generated, slots - length), launched - read, depth if drafts else 0)
            and not (drafts and length >= readable)
        ):
            steps.launch(room)
            launched += 1
        tokens, accepted, parts = steps.read(length)
        read += 1
        kept = clip(tokens, min(request.gen_len - generated, slots - length), request.eos_token_ids)
        ended = kept[-1] in request.eos_token_ids
        generated += len(kept)
        length += len(tokens)
        last = (tokens[-2] if len(tokens) > 1 else last[1]), tokens[-1]
        if watching is not None:
            watching.committed(tokens, last=ended or generated >= request.gen_len or length >= slots)
        yield StepRecord(tuple(kept), tuple(accepted), parts, alone=not drafts)


def _stepper(engine: Engine | None, spec: StepSpec, target: SlotModel, draft: Draft | None, slots: int, timer: Timer | None) -> Stepper:
    """Return captured or eager steps, with caches of `slots` slots allocated. Nothing is prefilled yet."""
    budget = CacheBudget.of(slots, spec.plan)
    if engine is not None:
        return engine.steps(spec, budget, timer)
    budget.allocate(target, draft, captured=False)
    return EagerSteps(spec.build(target, draft, timer))


def _goes_on(wanted: int, unread: int, depth: int) -> bool:
    """Return whether another step is needed even if all unread ones accept whole paths of `depth` edges.

    A needless step costs its whole time; to wait for a step to be read costs what the host takes to launch the next.
    """
    return unread * (depth + 1) < wanted


def clip(tokens: Sequence[int], room: int, eos_token_ids: frozenset[int]) -> list[int]:
    """Return the tokens up to the first EOS (which is kept), at most `room` of them."""
    kept = list(tokens[:room])
    for index, token in enumerate(kept):
        if token in eos_token_ids:
            return kept[: index + 1]
    return kept
