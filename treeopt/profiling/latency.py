"""Measure the latency profile of a pair by running real decoding steps and reading their parts."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from treeopt.profiles.latency import LatencyProfile
from treeopt.profiles.rule_latency import RuleLatency, StepSample
from treeopt.profiles.samples import BURST, LatencySample
from treeopt.profiling.bench import AMPLE, BEYOND, Bench, Cell, Sample, cells_of, median_pass, size_cell, width_cell
from treeopt.profiling.grid import Grid, search
from treeopt.profiling.settings import LatencySettings
from treeopt.profiling.shapes import DEEPEST
from treespec.decoding.plans import DynamicBudget
from treespec.decoding.step_rule import GREEDY, StepRule
from treespec.errors import CapacityError, ProfileError
from treespec.files.fields import list_of_length, listed, natural, seconds
from treespec.files.fingerprint import fingerprint
from treespec.files.journal import Journal
from treespec.files.load import note_crowding, threads
from treespec.models.drafts import Draft
from treespec.models.heads.bound import BoundHead
from treespec.models.pairs import Pair, PairInfo
from treespec.trees.tree import SpeculationTree

Progress = Callable[[str, int, int], None]

_GRID = "grid"


@torch.inference_mode()
def profile_latency(
    pair: Pair,
    settings: LatencySettings,
    *,
    journal: Path | None = None,
    progress: Progress = lambda what, done, total: None,
    notice: Callable[[str], None] | None = None,
) -> LatencyProfile:
    """Measure the seconds of the target pass per tree size and context, of a draft level per width and context, and of the rest, per rule.

    Every sample is a part of whole steps on the code path that evaluation runs. They are captured on CUDA; `notice` is told once if that is
    impossible, and on a CPU if torch has more threads than there are idle cores. Sizes and widths that the settings leave open are found by
    bisection at the longest context (`grid.needed`). Size 1 is an autoregressive step, other sizes are a root with its children, and widths are
    the second level of as many chains. Width 1 is the root's level, which reads two tokens; to a head it is another matter than a level of one node
    below, so that one is timed beside it. The time of a step outside the model passes is its
    overhead. Of every rule, whole steps of some typical trees are timed too, to which `Rest` is fitted. Cells take turns in short bursts, so that
    drift of the machine's speed hits all alike and every step finds caches as warm as in decoding. Finished rounds survive an interruption in
    `journal`, which the caller discards once the profile is saved. Raises CapacityError, ModelError, ProfileError.
    """
    require_fit(pair, settings)
    note_crowding(pair.target.device.type, notice)
    vocabulary = pair.vocabulary_size
    whole = Grid.of(settings, pair.target.device.type, vocabulary, root=isinstance(pair.draft, BoundHead))
    positions = min((model.max_positions for model in pair.models.values() if model.max_positions is not None), default=AMPLE)
    limits = positions, _deepest(pair.draft)
    whole = whole.within(limits[1])
    bench = Bench(pair, cells_of(settings, whole, vocabulary, *limits), settings, notice)
    bursts = -(-settings.repetitions // BURST)
    rounds: list[list[list[Sample]]] = []
    explored: dict[Cell, list[Sample]] = {}
    cells: list[Cell] = []

    def begin(sizes: Sequence[int], *widths: Sequence[int]) -> None:
        grid = Grid(tuple(sizes), dict(zip(whole.widths, map(tuple, widths), strict=True)))
        cells[:] = cells_of(settings, grid, vocabulary, *limits)

    def read(key: str, value: Any) -> Any:
        if key == _GRID:  # before all rounds, which mean nothing without it
            found = [[natural(number) for number in listed(some)] for some in list_of_length(1 + len(whole.widths), value)]
            begin(*found)
            return found
        return [
            [[seconds(s) for s in list_of_length(4, sample)] for sample in list_of_length(BURST, cell)]
            for cell in list_of_length(len(cells), value)
        ]

    begin(whole.sizes, *whole.widths.values())
    work = _fingerprint(pair, settings)
    with Journal(pair.own(journal, work), work, read) as log:
        if settings.sizes is None or settings.widths is None:
            begin(*log.piece(_GRID, partial(_explore, bench, settings, whole, explored, progress)))
        for number in range(bursts):
            rounds.append(log.piece(str(number), partial(_round, bench, cells, {} if number else explored)))
            progress("profiling latency", number + 1, bursts)
    return pair.agreed(_profile(pair, settings, cells, rounds))


def _deepest(draft: Draft) -> int:
    """Return the largest depth of the typical trees of a draft. Raises ProfileError for a head of one level."""
    most = draft.parallel_levels if isinstance(draft, BoundHead) else None
    if most == 1:
        raise ProfileError(
            f"{draft.name} proposes 1 level, but draft levels are timed with trees of 2 levels; take a head that proposes 2 or more"
        )
    return DEEPEST if most is None else min(most, DEEPEST)


def require_fit(pair: Pair | PairInfo, settings: LatencySettings) -> None:
    """Raise ProfileError or CapacityError for settings at which these models, which need not be loaded, cannot be timed."""
    vocabulary = pair.vocabulary_size
    for name, values, limit in (("sizes", settings.sizes, vocabulary + 1), ("widths", settings.widths, vocabulary)):
        if values is not None and max(values) > limit:
            raise ProfileError(
                f"`{name}` {max(values)} is more than {limit}: a root has at most as many children as the vocabulary has tokens, {vocabulary}; "
                f"pass `{name}` of at most {limit}"
            )
    if settings.sizes is not None and max(settings.sizes) < 2 and len(settings.rules) > 1:
        raise ProfileError(
            f"`sizes` is {max(settings.sizes)}, but steps of ({list(settings.rules)[1].name}) are timed with trees; pass `sizes` of 2 or more too"
        )
    needed = max(settings.contexts) + (2 if len(settings.rules) == 1 else BEYOND)
    for role, model in pair.models.items():
        most = model.max_positions
        if most is not None and needed > most:
            raise CapacityError(
                f"context {max(settings.contexts)} needs {needed} positions, but the {role} model has {most}"
                f"{model.rope_note}; pass smaller `contexts`"
            )


def _explore(
    bench: Bench, settings: LatencySettings, whole: Grid, explored: dict[Cell, list[Sample]], progress: Progress
) -> list[list[int]]:
    """Return the sizes and the widths of a grid to measure, and keep the bursts that found them in `explored`."""
    context = max(settings.contexts)
    most = len(whole.sizes) + sum(map(len, whole.widths.values()))

    def time(cells: dict[int, Cell]) -> dict[int, float]:
        bench.prepare(list(cells.values()))
        for cell in cells.values():
            if cell not in explored:
                explored[cell] = bench.burst(cell)
                progress("choosing what to time", len(explored), most)
        below = isinstance(bench.pair.draft, BoundHead)
        return bench.pair.agreed({nodes: median_pass(cell, explored[cell], below=below) for nodes, cell in cells.items()})

    found = search(
        settings,
        whole,
        lambda sizes: time({size: size_cell(context, size) for size in sizes}),
        lambda rule, widths: time({width: width_cell(context, rule, settings, width) for width in widths}),
    )
    return [list(found.sizes), *map(list, found.widths.values())]


def _round(bench: Bench, cells: list[Cell], explored: dict[Cell, list[Sample]]) -> list[list[Sample]]:
    """Run a burst of every cell that was not explored just before."""
    bench.prepare(cells)
    return [explored[cell] if cell in explored else bench.burst(cell) for cell in cells]


class _Raw:
    """The samples of every cell, by what they measure."""

    def __init__(self, cells: list[Cell], rounds: list[list[list[Sample]]]) -> None:
        self._cells = [(cell, [sample for found in rounds for sample in found[place]]) for place, cell in enumerate(cells)]

    def targets(self) -> tuple[LatencySample, ...]:
        """Return the target passes of stars."""
        stars = [(cell, samples) for cell, samples in self._cells if cell.rule == GREEDY and cell.width is None and not cell.whole]
        return tuple(
            LatencySample(1 if cell.spec.plan is None else cell.spec.plan.size, cell.context, tuple(s[2] for s in samples))
            for cell, samples in stars
        )

    def levels(self, rule: StepRule, *, root: bool = False) -> tuple[LatencySample, ...]:
        """Return the draft levels of a rule by width, or the root's levels. Of trees, width 1 is the root's, which reads two tokens."""
        first = root or rule.mode == SpeculationTree.drafter
        return tuple(
            LatencySample(cell.width, cell.context, tuple(s[0 if root or (first and cell.width == 1) else 1] for s in samples))
            for cell, samples in self._cells
            if cell.rule == rule and cell.width is not None
        )

    def below(self, rule: StepRule) -> tuple[LatencySample, ...]:
        """Return the draft levels of one node below the root of trees."""
        return tuple(
            LatencySample(1, cell.context, tuple(s[1] for s in samples))
            for cell, samples in self._cells
            if cell.rule == rule and cell.width == 1 and rule.mode == SpeculationTree.drafter
        )

    def rests(self, rule: StepRule, *, alone: bool) -> tuple[float, ...]:
        """Return the rest of every step of a rule whose parts were timed, with a tree or, `alone`, without."""
        return tuple(
            s[3]
            for cell, samples in self._cells
            if cell.rule == rule and not cell.whole and (cell.spec.plan is None) == alone
            for s in samples
        )

    def steps(self, rule: StepRule) -> tuple[StepSample, ...]:
        """Return the whole steps of a rule."""
        return tuple(
            StepSample(cell.spec.plan, cell.context, tuple(s[3] for s in samples))  # type: ignore[arg-type]
            for cell, samples in self._cells
            if cell.rule == rule and cell.whole
        )


def _profile(pair: Pair, settings: LatencySettings, cells: list[Cell], rounds: list[list[list[Sample]]]) -> LatencyProfile:
    raw = _Raw(cells, rounds)
    alone = raw.rests(GREEDY, alone=True)
    return LatencyProfile(
        target=raw.targets(),
        draft=raw.levels(GREEDY),
        overhead_seconds=raw.rests(GREEDY, alone=False) or alone,
        autoregressive_overhead_seconds=alone,
        rules=tuple(_of_rule(raw, rule, head=isinstance(pair.draft, BoundHead)) for rule in settings.rules),
        provenance=pair.provenance(seed=settings.seed),
    )


def _of_rule(raw: _Raw, rule: StepRule, *, head: bool) -> RuleLatency:
    """Return the times of a rule, without those that are the profile's own; with a `head`, those of one node below the root too."""
    dynamic = rule.mode == DynamicBudget.drafter
    return RuleLatency(
        rule,
        draft=() if rule.levels == GREEDY.levels else raw.levels(rule.levels),
        root=raw.levels(rule.levels, root=True) if dynamic else (),
        autoregressive_overhead_seconds=() if rule.alone == GREEDY.alone else raw.rests(rule.alone, alone=True),
        steps=raw.steps(rule),
        below=raw.below(rule.levels) if head else (),
    )


def _fingerprint(pair: Pair, settings: LatencySettings) -> str:
    own = threads() if pair.target.device.type == "cpu" else None  # times with other ones are other times
    return fingerprint(pair.describe(), asdict(settings), pair.place, str(pair.target.dtype), own)
