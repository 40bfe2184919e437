"""Running a tree beside autoregressive decoding, prompt by prompt, in one process."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from treespec.data.prompts import Prompt, PromptSet
from treespec.data.tokens import unreadable
from treespec.decoding.engine import Engine
from treespec.decoding.loop import Request, StepRecord, decode_autoregressive, decode_speculative
from treespec.decoding.plans import Plan
from treespec.decoding.protocol import SlotModel
from treespec.decoding.sampling import distribution, prompt_generator
from treespec.decoding.scoring import score
from treespec.decoding.timing import Timer, now, timer_for
from treespec.errors import CapacityError, ModelError, SettingsError, counted
from treespec.evaluation.predicted import Prediction
from treespec.evaluation.report import EvaluationReport
from treespec.evaluation.results import ChainResult, Mismatch, PromptResult
from treespec.evaluation.settings import EvaluationSettings
from treespec.evaluation.ties import closeness
from treespec.files.fingerprint import fingerprint
from treespec.files.load import note_crowding, threads
from treespec.files.processes import ALONE, Processes
from treespec.files.spreading import spread
from treespec.models.generation import shown
from treespec.models.pairs import Target, TargetInfo
from treespec.models.positions import readable, require_room
from treespec.models.processed import ProcessedModel
from treespec.models.processors import as_generate, asked_for
from treespec.models.tree_model import TreeModel
from treespec.text.characters import Characters
from treespec.trees.tree import SpeculationTree

Progress = Callable[[str, int, int], None]
"""A function that is told the progress: (name of the work, done, total)."""

Way = Callable[[], Iterator[StepRecord]]
"""A function that begins to decode a prompt."""

_WARM_UP = 8
"""Steps that each way takes before the first prompt is timed."""

_SAMPLE_TOKENS = 512
"""Most tokens of a sample text that a report keeps."""

_COLD = 0.05
"""Highest temperature at which it is looked up whether a single token is left: there, logits must be 5 apart for float32 to leave one."""

_NARROW = 0.05
"""Largest top-p at which the same is looked up at any temperature."""


def evaluate(
    pair: Target,
    plan: Plan | None,
    prompts: PromptSet,
    settings: EvaluationSettings,
    *,
    against: Sequence[SpeculationTree] = (),
    predicted: Prediction | None = None,
    journal: Path | None = None,
    processes: Processes = ALONE,
    progress: Progress = lambda what, done, total: None,
    notice: Callable[[str], None] | None = None,
) -> EvaluationReport:
    """Decode every prompt with the planned tree, with the chains `against` it, and autoregressively, interleaved. Plan None: autoregressively only.

    Which of them comes first changes from prompt to prompt. Each takes a few steps beforehand, as a warm-up. With `journal`,
    finished prompts survive an interruption and are not decoded again; the caller discards it when the report is saved. On
    CUDA, steps of both are captured; `notice` is called once if they cannot be, or if the target's generation config asks for logits
    processors, with which both run eagerly. It is also called if torch has more threads on a CPU than there are idle cores.
    Several `processes`, which all call this with models of their own, share the prompts, and all get the report. Each decodes a prompt in all ways, so
    ratios hold; times are those of one process, and several on one CPU slow one another down.
    Raises CapacityError if prompt, generated tokens and tree do not fit, ModelError for non-finite logits, ProcessesError.
    """
    for prompt in prompts.prompts:
        for one in (plan, *against):
            check_fits(pair, one, prompt.ids, settings)
    if plan is None and against:
        raise SettingsError("`against` holds a tree against chains, and there is no tree; pass a plan, or drop `against`")
    note_crowding(pair.target.device.type, notice)
    run = _Run(pair, plan, settings, notice, against)
    work = _fingerprint(pair, plan, prompts, settings, against)
    found = spread(
        [str(index) for index in range(len(prompts))],
        lambda key, on_unit: run.prompt(prompts.prompts[int(key)], int(key)),
        journal=pair.own(journal, work),
        fingerprint=work,
        read=lambda key, value: PromptResult.from_json(value),
        keep=asdict,
        processes=processes,
        progress=partial(progress, "evaluating"),
    )
    return EvaluationReport(
        mode="baseline" if plan is None else plan.drafter,
        results=tuple(found.values()),
        temperature=settings.sampling.temperature,
        predicted=predicted or Prediction(),
        tree=_describe(plan),
        prompts=prompts.describe(),
        settings={**settings.to_json(), "engine": run.describe()},
        provenance=pair.provenance(
            temperature=settings.sampling.temperature,
            top_p=settings.sampling.top_p,
            dataset=prompts.label,
            seed=settings.seed,
            processes=processes.place.size,
        ),
    )


def check_fits(pair: Target | TargetInfo, plan: Plan | None, prompt: Sequence[int], settings: EvaluationSettings) -> None:
    """Raise CapacityError if a prompt, the generated tokens and the tree do not fit; the message says what would fit.

    Raises ModelError for unknown tokens and for a tree that needs more tokens than the vocabulary has. Allocates nothing.
    """
    if plan is not None:
        settings.drafting.require(plan, pair.vocabulary_size)
    prompt_len = len(prompt)
    size, depth = (plan.size, plan.depth) if plan else (1, 0)
    needed = prompt_len + settings.gen_len + size
    if settings.max_length is not None and needed > settings.max_length:
        if plan is None:
            raise CapacityError(
                f"`max_length` {settings.max_length} is too short for {prompt_len} prompt and {counted(settings.gen_len, 'generated token')}; "
                f"pass `max_length` {needed} or more"
            )
        raise CapacityError(
            f"the tree has {counted(size, 'node')} (depth {depth}), but `max_length` {settings.max_length} leaves room for "
            f"{max(0, settings.max_length - prompt_len - settings.gen_len)} after {prompt_len} prompt and {counted(settings.gen_len, 'generated token')}; "
            f"pass `max_length` {needed} or more, or a smaller tree"
        )
    if reason := unreadable(prompt, pair.target.vocabulary_size):
        raise ModelError(f"a prompt for the target has {reason}")
    require_room(pair.target, prompt, settings.gen_len)


class _Run:
    """Decodes single prompts in all ways and times them."""

    def __init__(
        self,
        pair: Target,
        plan: Plan | None,
        settings: EvaluationSettings,
        notice: Callable[[str], None] | None,
        against: Sequence[SpeculationTree] = (),
    ) -> None:
        self.pair = pair if plan else pair.alone()
        self.plan, self.against, self.settings, self.sampling = plan, tuple(against), settings, settings.sampling
        self.device = pair.target.device
        self._warm = False
        self.draft = self.pair.models.get("draft")
        self.eager_reason = _processing(pair, settings)
        if self.eager_reason and notice is not None:
            notice(self.eager_reason)
        self.engine = Engine(pair.target, self.draft, notice) if self.device.type == "cuda" and not self.eager_reason else None

    def request(self, prompt: Prompt) -> Request:
        """Return the request to decode a prompt, within the positions of the models."""
        ids, settings = prompt.ids, self.settings
        limits = [limit for limit in (readable(self.pair.target, ids), settings.max_length) if limit is not None]
        drafted = None if self.draft is None else readable(self.draft, ids)
        eos, pixels = self.pair.eos_token_ids, self.pair.pixels(prompt)
        return Request(ids, settings.gen_len, eos, self.sampling, min(limits, default=None), pixels, drafted)

    def describe(self) -> str:
        """Return how steps run: "captured", "eager", or the reason why they are eager."""
        return self.eager_reason or "eager" if self.engine is None else self.engine.eager() or "captured"

    @torch.inference_mode()
    def prompt(self, prompt: Prompt, index: int) -> PromptResult:
        """Decode one prompt in all ways: the tree comes first at index 0, and the way before it at each next one.

        Before the very first prompt, each way takes some steps of it as a warm-up: its step is captured, and its kernels compiled, before the
        first of them.
        """
        request, target = self.request(prompt), self._target(prompt)
        ways = self._ways(target, request, index)
        if not self._warm:
            self._warm = True
            for way in (*ways[1:], ways[0]):  # trees first, which make the caches as large as they will be
                list(islice(way(), 1 + _WARM_UP))
        return self._decode_all(prompt, index, request, target, ways)

    def _ways(self, target: SlotModel, request: Request, index: int) -> list[Way]:
        """Return the ways to decode a prompt: autoregressively, with the plan, and with the chains."""
        ways: list[Way] = [lambda: self._baseline(target, request, index)]
        if (plan := self.plan) is not None:
            ways.append(lambda: self._tree(target, request, index, plan, self._timer()))
        return [*ways, *(partial(self._tree, target, request, index, chain) for chain in self.against)]

    def _decode_all(
        self, prompt: Prompt, index: int, request: Request, target: TreeModel | ProcessedModel, ways: Sequence[Way]
    ) -> PromptResult:
        done = {}
        for turn in range(len(ways)):
            way = (turn + 1 - index) % len(ways)
            done[way] = _timed(ways[way](), self.device)
        base_tokens, _, base_seconds, base_prompt_seconds = done[0]
        tokens, steps, seconds, prompt_seconds = done.get(1, done[0])
        determined = self.plan is not None and self._is_determined(target, request, base_tokens)
        parts: dict[str, float] = {}
        for name, value in (part for step in steps for part in step.parts):
            parts[name] = parts.get(name, 0.0) + value
        chains = []
        for way, chain in enumerate(self.against, 2):
            own, taken, took, _ = done[way]
            mismatch = self._mismatch(target, request, own, base_tokens) if determined else None
            chains.append(ChainResult(chain.depth, len(own), len(taken), took, mismatch))
        return PromptResult(
            row=prompt.row,
            name=prompt.name,
            tokens=len(tokens),
            steps=len(steps),
            seconds=seconds,
            baseline_tokens=len(base_tokens),
            baseline_seconds=base_seconds,
            accepted_ranks=tuple(s.accepted or () for s in steps if not s.alone),
            mismatch=self._mismatch(target, request, tokens, base_tokens) if determined else None,
            undrafted=sum(s.alone for s in steps),
            prompt_seconds=prompt_seconds,
            baseline_prompt_seconds=base_prompt_seconds,
            determined=determined,
            category=prompt.category,
            output=tuple(tokens) if self.settings.save_tokens else (),
            parts=parts,
            pieces=self._pieces(request, tokens) if self.plan is not None and index < self.settings.sample_texts else (),
            chains=tuple(chains),
        )

    def _pieces(self, request: Request, tokens: list[int]) -> tuple[str, ...]:
        """Return the texts of the first tokens; none without a tokenizer. A character of several tokens belongs to the last of them."""
        if self.pair.tokenizer is None:
            return ()
        characters = Characters(self.pair.tokenizer, request.prompt)
        shown = tokens[:_SAMPLE_TOKENS]
        pieces = [characters.push(token) for token in shown]
        return (*pieces[:-1], pieces[-1] + characters.end()) if pieces else ()

    def _target(self, prompt: Prompt) -> TreeModel | ProcessedModel:
        """Return the target to decode a prompt with: its logits are those that `generate` chooses from."""
        return as_generate(self.pair.target, prompt.ids, self.settings.gen_len) if self.eager_reason else self.pair.target

    def _timer(self) -> Timer | None:
        return timer_for(self.device) if self.settings.breakdown else None

    def _baseline(self, target: SlotModel, request: Request, index: int) -> Iterator[StepRecord]:
        generator = prompt_generator(self.settings.seed, index, self.device)
        timer = None if self.plan else self._timer()
        return decode_autoregressive(target, request, generator, timer, self.engine)

    def _tree(self, target: SlotModel, request: Request, index: int, plan: Plan, timer: Timer | None = None) -> Iterator[StepRecord]:
        generator = prompt_generator(self.settings.seed, index, self.device)
        return decode_speculative(target, self.draft, plan, request, generator, timer, self.settings.drafting, self.engine)

    def _is_determined(self, target: SlotModel, request: Request, tokens: list[int]) -> bool:
        """Return whether every one of these tokens is the only one that the sampling leaves a probability, so that no draw can change them."""
        if self.sampling.greedy or (self.sampling.temperature > _COLD and self.sampling.top_p > _NARROW):
            return self.sampling.greedy
        text = torch.tensor([[*request.prompt, *tokens[:-1]]], device=self.device)
        logits = score(target, text, len(request.prompt) - 1, request.pixels)[0]
        return bool((distribution(logits, self.sampling).amax(-1) == 1).all())

    def _mismatch(self, target: TreeModel | ProcessedModel, request: Request, tokens: list[int], baseline: list[int]) -> Mismatch | None:
        if tokens == baseline:
            return None
        position = next((i for i, (a, b) in enumerate(zip(tokens, baseline, strict=False)) if a != b), min(len(tokens), len(baseline)))
        ours, theirs = (found[position] if position < len(found) else None for found in (tokens, baseline))
        context = [*request.prompt, *baseline[:position]]
        process = {"process": target.process} if isinstance(target, ProcessedModel) else {}
        found = closeness(self.pair.target, context, [ours, theirs], request.pixels, **process)
        return Mismatch(position, ours, theirs, **asdict(found))


def _processing(pair: Target, settings: EvaluationSettings) -> str:
    """Return the sentence about the processors that the target's generation config asks for; empty if none is applied."""
    asked = asked_for(pair.target) if settings.processors else {}
    if not asked:
        return ""
    named = ", ".join(f"{key} {shown(value)}" for key, value in asked.items())
    return f"{pair.target.name} runs eagerly: logits processors of its generation config run path by path ({named})"


def _describe(plan: Plan | None) -> dict[str, Any] | None:
    return None if plan is None else plan.describe()


def _timed(records: Iterator[StepRecord], device: torch.device) -> tuple[list[int], list[StepRecord], float, float]:
    """Run a decoding and return (tokens, steps, seconds of the steps, seconds before them).

    The latter are those of the prompt passes, the draft's included, and of the choice of the first token. To make caches and to capture steps
    is done before and not timed.
    """
    began = now(device)
    first = next(records)
    started = now(device)
    steps = list(records)
    seconds = now(device) - started
    return [*first.tokens, *(token for step in steps for token in step.tokens)], steps, seconds, started - began


def _fingerprint(
    pair: Target, plan: Plan | None, prompts: PromptSet, settings: EvaluationSettings, against: Sequence[SpeculationTree]
) -> str:
    own = threads() if pair.target.device.type == "cpu" else None  # times with other ones are other times
    where = pair.place, str(pair.target.dtype), own
    beside = [chain.depth for chain in against]
    return fingerprint(
        pair.describe(),
        _describe(plan),
        prompts.fingerprint,
        asdict(settings),
        *where,
        _processing(pair, settings),
        *([beside] if beside else []),
    )
