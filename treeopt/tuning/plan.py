"""The plan of a tuning run before a weight is read: prompts, sizes, and roughly how long it takes and how much memory it needs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import torch

from treeopt.profiles.samples import BURST
from treeopt.profiling.bench import Cell, cells_of, steps_of_burst
from treeopt.profiling.grid import Grid
from treeopt.tuning.settings import PILOT_PROMPTS, PILOT_REPETITIONS, TuneSettings, names
from treespec.data.prompts import PromptSet
from treespec.errors import SettingsError, counted
from treespec.models.devices import find
from treespec.models.drafts import DraftInfo
from treespec.models.heads.info import HeadInfo
from treespec.models.info import MixedInfo, ModelInfo
from treespec.tables import Drawing, Drawn, Table, figures

_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4}

_CAPTURED_LAYER_SECONDS, _CAPTURE_SECONDS = 2e-5, 0.3
"""Time of a captured layer beside its weights: on an H200, where a token of 32 layers takes 3.58 ms and reading them 2.92. Time to capture a step whose
kernels are compiled: a guess, as a latency profile of the same models took 21 s there, which is more than its steps take."""

_CHOSEN = 0.5
"""Share of the sizes and widths that have to be timed where they are found by bisection."""

_START_SECONDS = 6.0
_READ_BYTES = 5e8
"""Seconds until work begins, and bytes of weights read per second, as they are on a usual disk."""

_GROW_SECONDS, _PAGE_SECONDS = 0.3, 3.0
"""Seconds to grow the tree of a candidate, and to draw the page, which is when matplotlib is loaded."""

_STEP_DEPTH, _STEP_TOKENS, _STEP_SIZE = 4, 2.5, 16
"""A typical tree, before any is known."""


@dataclass(frozen=True)
class ModelSize:
    """The size of a model: its weights and, per token in the cache, `cached`, both in numbers; its layers."""

    weights: int
    layers: int
    cached: int

    @classmethod
    def of(cls, info: DraftInfo) -> "ModelSize | None":
        """Return the size of a model whose weights are safetensors on this machine; None for others, which do not tell it before they are read.

        A draft without weights has none. A head is taken as one layer, whose keys and values are next to nothing beside the target's.
        """
        if not info.has_weights:
            return cls(0, 0, 0)
        if isinstance(info, HeadInfo):
            return cls(info.parameters, 1, 0)
        model = info.model if isinstance(info, MixedInfo) else info
        files = model.files if isinstance(model, ModelInfo) else None
        if files is None or files.contents is None or files.contents.weights.tensors is None:
            return None
        config = files.config.get_text_config(decoder=True)
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        weights = sum(math.prod(tensor.shape) for tensor in files.contents.weights.tensors.values())
        return cls(weights, config.num_hidden_layers, 2 * config.num_hidden_layers * heads * width)


@dataclass(frozen=True)
class Speed:
    """The speed of a device: bytes and operations per second, the seconds of a layer beside its weights, and those to capture a step (0: none is)."""

    bytes_per_second: float
    flops: float
    layer_seconds: float
    capture_seconds: float = 0.0

    @classmethod
    def of(cls, device: str) -> "Speed":
        """Measure a copy and a product of matrices and, where steps are not captured, a small layer. It takes some tenths of a second.

        Raises ModelError for a device that is not there.
        """
        find(device)
        number = torch.float32 if device == "cpu" else torch.float16
        side, rows = (1024, 64) if device == "cpu" else (4096, 4096)  # a CPU multiplies fewer rows at a lower rate
        numbers = torch.zeros(1 << 24, dtype=number, device=device)
        left, square = (torch.zeros(count, side, dtype=number, device=device) for count in (rows, side))
        copied = _fastest(device, lambda: numbers.clone())
        product = _fastest(device, lambda: left @ square)
        captured = device.startswith("cuda")
        known = (_CAPTURED_LAYER_SECONDS, _CAPTURE_SECONDS) if captured else (_small_layer_seconds(device), 0.0)
        return cls(2 * numbers.nbytes / copied, 2 * rows * side**2 / product, *known)

    def seconds(self, size: ModelSize, width: int, tokens: int) -> float:
        """Return the time of a pass of so many tokens; `width` is the number of bytes of a weight."""
        return max(size.weights * width / self.bytes_per_second, 2 * size.weights * tokens / self.flops) + size.layers * self.layer_seconds


@dataclass(frozen=True)
class Plan(Drawn):
    """The plan of a run. `seconds` by stage and `memory_bytes` are rough, and None where the weights are not here or do not tell their size."""

    candidates: tuple[str, ...]
    profile_prompts: int
    choose_prompts: int
    evaluate_prompts: int
    longest: int
    gen_len: int
    context: int
    sizes: tuple[int, ...]
    widths: tuple[int, ...]
    repetitions: int
    seconds: Mapping[str, float] | None
    memory_bytes: int | None
    needed_seconds: float | None
    """Fewest seconds that a budget of minutes may have."""
    minutes: float | None = None

    def require_minutes(self) -> None:
        """Raise SettingsError for a budget that is too short for anything."""
        if self.minutes is None or self.needed_seconds is None or 60 * self.minutes >= self.needed_seconds:
            return
        profiled, several = counted(min(PILOT_PROMPTS, self.profile_prompts), "prompt"), len(self.candidates) > 1
        each = f" for each of {len(self.candidates)} candidates" if several else ""
        raise SettingsError(
            f"`minutes` {self.minutes:g} is too short for anything: loading, profiling {profiled}{each}, the latencies and the evaluation of "
            f"the first of {counted(self.evaluate_prompts, 'prompt')} need about {self.needed_seconds / 60:.2g}; "
            f"pass `minutes` {math.ceil(self.needed_seconds / 6) / 10:g} or more"
        )

    def summary(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "candidates": list(self.candidates),
            "prompts": {"profile": self.profile_prompts, "choose": self.choose_prompts, "evaluate": self.evaluate_prompts},
            "longest_prompt": self.longest,
            "gen_len": self.gen_len,
            "context": self.context,
            "sizes": list(self.sizes),
            "widths": list(self.widths),
            "repetitions": self.repetitions,
            "seconds": None if self.seconds is None else dict(self.seconds),
            "minutes": None if self.seconds is None else sum(self.seconds.values()) / 60,
            "minutes_given": self.minutes,
            "minutes_needed": None if self.needed_seconds is None else self.needed_seconds / 60,
            "memory_bytes": self.memory_bytes,
        }

    def drawing(self) -> Drawing:
        """Return the plan as people are shown it."""
        known = self.seconds or {}
        whole = sum(known.values())
        rows = [
            ("candidates", "; ".join(self.candidates)),
            ("prompts to profile, to choose on, to evaluate", f"{self.profile_prompts}, {self.choose_prompts}, {self.evaluate_prompts}"),
            ("tokens of the longest prompt, and behind it", f"{self.longest}, {self.gen_len}"),
            ("context of the latencies", f"{self.context}"),
            ("tree sizes that may be timed", ",".join(map(str, self.sizes))),
            ("draft level widths that may be timed", ",".join(map(str, self.widths))),
            ("samples of each", f"{self.repetitions}"),
            ("memory", "unknown before the weights are here" if self.memory_bytes is None else f"about {self.memory_bytes / 1e9:.2g} GB"),
        ]
        stages = Table(
            "estimated time", ("stage", "seconds"), [(stage, f"{seconds:.0f}") for stage, seconds in known.items()], left=("stage",)
        )
        budget = "" if self.minutes is None else f"; the budget is {self.minutes:g} min, which prompts and repetitions are fitted to"
        told = (
            "the time is unknown before the weights are here"
            if not known
            else f"about {whole / 60:.1f} min in all, give or take half{budget}"
        )
        return Drawing([figures("plan", rows), *([stages] if known else []), told])


def plan_of(
    target: ModelInfo, drafts: Sequence[DraftInfo], parts: Sequence[PromptSet | None], settings: TuneSettings, *, device: str, dtype: str
) -> Plan:
    """Return the plan of a run on prompts to choose on, to profile and to evaluate. A copy on the device is timed, but no weight is read."""
    choose, profile, evaluate = parts
    assert profile is not None and evaluate is not None
    longest = max(len(prompt.ids) for some in parts if some is not None for prompt in some)
    latency = settings.latency(longest)
    vocabulary = min(model.vocabulary_size for model in (target, *drafts))
    kind = device.partition(":")[0]
    grid = Grid.of(latency, kind, vocabulary)
    candidates = settings.candidates(len(drafts))
    plan = Plan(
        tuple(names(candidates, [draft.name for draft in drafts])),
        len(profile),
        0 if choose is None else len(choose),
        len(evaluate),
        longest,
        settings.gen_len,
        latency.contexts[0],
        grid.sizes,
        next(iter(grid.widths.values())),
        settings.repetitions,
        None,
        None,
        None,
        settings.minutes,
    )
    whole, small = ModelSize.of(target), [ModelSize.of(draft) for draft in drafts]
    known = [size for size in small if size is not None]
    if whole is None or len(known) < len(small):
        return plan
    width = _BYTES.get(dtype, 4 if device == "cpu" else 2)
    cells = cells_of(latency, grid, vocabulary)
    estimate = _Estimate(plan, whole, known, width, Speed.of(device), settings, cells, kind)
    fewest = replace(
        plan, profile_prompts=min(PILOT_PROMPTS, len(profile)), choose_prompts=0, evaluate_prompts=1, repetitions=PILOT_REPETITIONS
    )
    needed = sum(_Estimate(fewest, whole, known, width, estimate.speed, settings, cells, kind).stages().values())
    return replace(plan, seconds=estimate.stages(), memory_bytes=estimate.memory(), needed_seconds=needed)


@dataclass(frozen=True)
class _Estimate:
    plan: Plan
    target: ModelSize
    drafts: Sequence[ModelSize]
    width: int
    speed: Speed
    settings: TuneSettings
    cells: Sequence[Cell]
    device: str
    """The type of the device."""

    def stages(self) -> dict[str, float]:
        """Return the seconds of each stage."""
        plan = self.plan
        loaded = (self.target.weights + sum(draft.weights for draft in self.drafts)) * self.width
        found = {
            "load": _START_SECONDS + loaded / _READ_BYTES,
            "profile acceptance": self._texts(plan.profile_prompts),
            "profile latency": self._latency(),
            "grow": _GROW_SECONDS * len(plan.candidates),
            "choose": self._texts(plan.choose_prompts) if plan.choose_prompts else 0.0,
            "evaluate": self._evaluation(),
            "page": _PAGE_SECONDS,
        }
        return {stage: seconds for stage, seconds in found.items() if seconds}

    def memory(self) -> int:
        """Return the bytes of the weights, the caches of a batch and a block of logits."""
        slots = (self.settings.batch_size or 16) * (self.plan.longest + self.plan.gen_len)
        models = [self.target, *self.drafts]
        return (
            sum(size.weights for size in models) * self.width
            + slots * (self.target.cached + max(d.cached for d in self.drafts)) * self.width
        )

    def _texts(self, prompts: int) -> float:
        """Return the seconds of profiling all candidates on so many prompts: the target writes, and the draft reads."""
        plan, batch = self.plan, self.settings.batch_size or 16
        one = 0.0
        each = {(candidate.draft, candidate.profile_name): candidate for candidate in self.settings.candidates(len(self.drafts))}
        for candidate in each.values():
            batches, read = math.ceil(prompts / batch), prompts * (plan.longest + plan.gen_len)
            one += batches * plan.gen_len * self._pass(self.target, batch) + self._pass(self.drafts[candidate.draft - 1], read)
            if candidate.sampled:
                one += self._pass(self.target, read) + prompts * plan.gen_len * self.settings.draws * 1e-4
        return one

    def _latency(self) -> float:
        """Return the seconds of the latencies: of most grids about half has to be timed, and all whole steps."""
        captured = self.speed.capture_seconds
        steps = math.ceil(self.plan.repetitions / BURST) * steps_of_burst(self.device)
        found = 0.0
        for cell in self.cells:
            given = cell.whole or (self.settings.sizes is not None and self.settings.widths is not None)
            for draft in self.drafts:
                found += (1.0 if given else _CHOSEN) * (captured + steps * self._step_of(cell, draft))
        return found

    def _step_of(self, cell: Cell, draft: ModelSize) -> float:
        """Return the seconds of the passes of a cell's step."""
        plan = cell.spec.plan
        if plan is None:
            return self._pass(self.target, 1)
        return self._pass(self.target, plan.size) + plan.depth * self._pass(draft, plan.candidates // plan.depth)

    def _evaluation(self) -> float:
        """Return the seconds of decoding the prompts both ways."""
        plan, draft = self.plan, max(self.drafts, key=lambda size: size.weights)
        tokens = plan.evaluate_prompts * plan.gen_len
        return tokens * (self._pass(self.target, 1) + self._step(draft, _STEP_DEPTH) / _STEP_TOKENS)

    def _step(self, draft: ModelSize, depth: int) -> float:
        return self._pass(self.target, _STEP_SIZE) + depth * self._pass(draft, _STEP_DEPTH)

    def _pass(self, size: ModelSize, tokens: int) -> float:
        return self.speed.seconds(size, self.width, tokens)


def _small_layer_seconds(device: str) -> float:
    """Return the seconds of a layer whose weights are next to nothing, which differ between machines by several times."""
    from transformers import LlamaConfig, LlamaModel  # slow to import

    layers = 4
    tokens: dict[str, Any] = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    config = LlamaConfig(vocab_size=2, hidden_size=64, intermediate_size=64, num_hidden_layers=layers, num_attention_heads=1, **tokens)
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        model, token = LlamaModel(config).to(device), torch.zeros(1, 1, dtype=torch.long, device=device)  # type: ignore[arg-type]
        return _fastest(device, lambda: model(input_ids=token, use_cache=False)) / layers


def _fastest(device: str, work: Any) -> float:
    """Return the least seconds of three runs, after one that is not counted."""
    found = []
    for _ in range(4):
        started = perf_counter()
        work()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        found.append(perf_counter() - started)
    return max(min(found[1:]), 1e-9)
