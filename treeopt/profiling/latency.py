"""Measure the latency profile of a pair by running real decoding steps and reading their parts."""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from treeopt.profiles.latency import LatencyProfile, LatencySample
from treeopt.profiling.settings import LatencySettings
from treespec.decoding.engine import CacheBudget, CapturedSteps, EagerSteps, Engine, Stepper
from treespec.decoding.step import StepSpec
from treespec.decoding.timing import now, timer_for
from treespec.errors import CapacityError, ProfileError
from treespec.files.fields import list_of_length, seconds
from treespec.files.fingerprint import fingerprint
from treespec.files.journal import Journal
from treespec.models.pairs import Pair, PairInfo
from treespec.trees.tree import SpeculationTree

Progress = Callable[[str, int, int], None]
Sample = tuple[float, float, float, float]
"""Seconds of one step: draft level 0, draft level 1 (0 without one), target, the rest."""
Cell = tuple[int, SpeculationTree, int | None]
"""Context, tree, and the draft level width that its second level measures; the width is None if the target's size is measured."""

_BURST = 4
_WARM_UP = 2
_IN_A_ROW = 2
_AMPLE = 1 << 30


@torch.inference_mode()
def profile_latency(
    pair: Pair,
    settings: LatencySettings,
    *,
    journal: Path | None = None,
    progress: Progress = lambda what, done, total: None,
    notice: Callable[[str], None] | None = None,
) -> LatencyProfile:
    """Measure the seconds of the target pass per tree size and context, of a draft level per width and context, and of the rest.

    Every sample is a part of whole steps on the code path that evaluation runs. They are captured on CUDA; `notice` is told once if that is
    impossible. Size 1 is an autoregressive step, other sizes are a root with its children, and widths are the second level of as many
    chains. Width 1 is the root's level, which reads two tokens. The time of a step outside the model passes is its overhead. Cells take
    turns in short bursts, so that drift of the machine's speed hits all alike and every step finds caches as warm as in decoding.
    Finished rounds survive an interruption in `journal`, which the caller discards once the profile is saved. Raises CapacityError,
    ModelError, ProfileError.
    """
    require_fit(pair, settings)
    settings = settings.on(pair.target.device.type, pair.vocabulary_size)
    cells = _cells(settings)
    bench = _Bench(pair, cells, settings, notice)
    bursts = -(-settings.repetitions // _BURST)
    rounds: list[list[list[Sample]]] = []

    def read(key: str, value: Any) -> list[list[list[float]]]:
        return [
            [[seconds(s) for s in list_of_length(4, sample)] for sample in list_of_length(_BURST, cell)]
            for cell in list_of_length(len(cells), value)
        ]

    with Journal(journal, _fingerprint(pair, settings), read) as log:
        for number in range(bursts):
            rounds.append(log.piece(str(number), partial(_round, bench, cells)))
            progress("profiling latency", number + 1, bursts)
    return _profile(pair, settings, cells, rounds)


def require_fit(pair: Pair | PairInfo, settings: LatencySettings) -> None:
    """Raise ProfileError or CapacityError for settings at which these models, which need not be loaded, cannot be timed."""
    vocabulary = pair.vocabulary_size
    for name, values, limit in (("sizes", settings.sizes, vocabulary + 1), ("widths", settings.widths, vocabulary)):
        if values is not None and max(values) > limit:
            raise ProfileError(
                f"`{name}` {max(values)} is more than {limit}: a root has at most as many children as the vocabulary has tokens, {vocabulary}; "
                f"pass `{name}` of at most {limit}"
            )
    for role, model in pair.models.items():
        most = model.max_positions
        if most is not None and max(settings.contexts) + 2 > most:
            raise CapacityError(
                f"context {max(settings.contexts)} needs {max(settings.contexts) + 2} positions, but the {role} model has {most}"
                f"{model.rope_note}; pass smaller `contexts`"
            )


def _cells(settings: LatencySettings) -> list[Cell]:
    cells: list[Cell] = []
    for context in sorted(set(settings.contexts)):
        cells += [
            (context, SpeculationTree.from_branches([[size - 1]] if size > 1 else []), None) for size in sorted(set(settings.sizes or ()))
        ]
        cells += [(context, SpeculationTree.k_chains(width, 2), width) for width in sorted(set(settings.widths or ()))]
    return cells


class _Bench:
    """The steps of every cell over one random text."""

    def __init__(self, pair: Pair, cells: list[Cell], settings: LatencySettings, notice: Callable[[str], None] | None) -> None:
        self.pair, self.device = pair, pair.target.device
        vocabulary = pair.vocabulary_size
        text = torch.randint(0, vocabulary, (max(settings.contexts) + 1,), generator=torch.Generator().manual_seed(settings.seed))
        self.text = text.to(self.device)
        size = max(tree.size for _, tree, _ in cells)
        budget = CacheBudget(max(settings.contexts) + size + 2 * (_WARM_UP + _BURST), size, 2, size)
        engine = Engine(pair.target, pair.draft, notice) if self.device.type == "cuda" else None
        budget.allocate(pair.target, pair.draft, captured=engine is not None and engine.eager() is None)
        self.steps: dict[SpeculationTree, Stepper] = {}
        for tree in dict.fromkeys(tree for _, tree, _ in cells):
            spec, timer = StepSpec(tree if tree.size > 1 else None), timer_for(self.device)
            steps = EagerSteps(spec.build(pair.target, pair.draft, timer)) if engine is None else engine.steps(spec, budget, timer)
            self.steps[tree] = steps
        for model in pair.models.values():  # after capturing, which writes into the caches
            model.prefill(self.text[:-1])

    def burst(self, context: int, tree: SpeculationTree) -> list[Sample]:
        """Run steps that follow one another as in decoding, and return their seconds without those of the first, which warm up."""
        steps = self.steps[tree]
        found = []
        for _ in range(_WARM_UP + _BURST):
            steps.begin(self.text[context - 1 : context + 1], context, None)
            started = now(self.device)
            steps.launch(_AMPLE)
            parts = steps.read(context)[2]
            whole = now(self.device) - started
            if isinstance(steps, CapturedSteps):  # the host runs ahead in decoding, so what it takes alone is no part of a step
                whole = steps.seconds(_IN_A_ROW)
            drafts = [seconds for name, seconds in parts if name == "drafting"] + [0.0, 0.0]
            target = sum(seconds for name, seconds in parts if name == "target")
            found.append((drafts[0], drafts[1], target, max(0.0, whole - sum(drafts) - target)))
        return found[_WARM_UP:]


def _round(bench: _Bench, cells: list[Cell]) -> list[list[Sample]]:
    """Run a burst of every cell."""
    return [bench.burst(context, tree) for context, tree, _ in cells]


def _profile(pair: Pair, settings: LatencySettings, cells: list[Cell], rounds: list[list[list[Sample]]]) -> LatencyProfile:
    target: list[LatencySample] = []
    draft: list[LatencySample] = []
    overhead: list[float] = []
    alone: list[float] = []
    for index, (context, tree, width) in enumerate(cells):
        first, second, passes, rest = zip(*(sample for found in rounds for sample in found[index]), strict=True)
        if width is None:
            target.append(LatencySample(nodes=tree.size, context=context, seconds=passes))
        else:
            draft.append(LatencySample(nodes=width, context=context, seconds=first if width == 1 else second))
        (overhead if tree.size > 1 else alone).extend(rest)
    return LatencyProfile(
        target=tuple(target),
        draft=tuple(draft),
        overhead_seconds=tuple(overhead or alone),
        autoregressive_overhead_seconds=tuple(alone),
        provenance=pair.provenance(seed=settings.seed),
    )


def _fingerprint(pair: Pair, settings: LatencySettings) -> str:
    return fingerprint(pair.describe(), asdict(settings), str(pair.target.device), str(pair.target.dtype))
