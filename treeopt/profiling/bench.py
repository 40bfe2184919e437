"""The cells of a latency profile, and the bench that runs their steps."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from treeopt.profiles.samples import BURST
from treeopt.profiling.grid import Grid
from treeopt.profiling.settings import LatencySettings
from treeopt.profiling.shapes import DEEPEST, level_budget, level_of, star, typical_budgets, typical_trees
from treespec.decoding.engine import CacheBudget, CapturedSteps, EagerSteps, Engine, Parts, Stepper
from treespec.decoding.plans import DynamicBudget
from treespec.decoding.step import SpeculativeStep, StepSpec
from treespec.decoding.step_rule import GREEDY, StepRule
from treespec.decoding.timing import now, timer_for
from treespec.models.pairs import Pair
from treespec.trees.tree import SpeculationTree

Sample = tuple[float, float, float, float]
"""Seconds of one step: its first draft level, its last one (both 0 if nothing is drafted or parts are not timed), target, and the rest."""

_WARM_UP = {"cpu": 1}
"""Steps of a burst that are not timed: 2 unless the device has a number of its own. On a CPU the first is 5 % slower than those that follow it."""
_IN_A_ROW = 3
AMPLE = 1 << 30
"""Positions, or slots, of which there are always enough."""

BEYOND = (1 + _IN_A_ROW) * (DEEPEST + 1)
"""Positions that steps of typical trees take behind the context, at most."""
_PROMPT = 128
"""Most tokens of the prompt pass before a burst of whole steps."""


@dataclass(frozen=True)
class Cell:
    """A step to run after `context` tokens, and what it measures for a rule."""

    context: int
    spec: StepSpec
    rule: StepRule
    width: int | None = None
    """The draft level width that its last drafted level measures; None if it measures something else."""
    whole: bool = False
    """Whether whole steps are timed without their parts, as they run in decoding."""


def steps_of_burst(device: str) -> int:
    """Return how many steps a burst takes on a type of device: those that warm up, those of its samples and, captured, those in a row."""
    return _WARM_UP.get(device, 2) + BURST + (_IN_A_ROW if device == "cuda" else 0)


def size_cell(context: int, size: int) -> Cell:
    """Return the cell that measures the target pass of a size. It takes the same time under all rules."""
    return Cell(context, StepSpec(star(size) if size > 1 else None), GREEDY)


def width_cell(context: int, rule: StepRule, settings: LatencySettings, width: int) -> Cell:
    """Return the cell that measures a draft level of a width, for all rules that draft as this one."""
    sampling, drafting = next(known for other, known in settings.rules.items() if other.levels == rule.levels)
    if rule.mode == DynamicBudget.drafter:
        return Cell(context, StepSpec(level_budget(width), sampling, drafting), rule.levels, width)
    return Cell(context, StepSpec(level_of(width, sampled=rule.levels != GREEDY.levels), sampling, drafting), rule.levels, width)


def cells_of(settings: LatencySettings, grid: Grid, vocabulary: int, positions: int = AMPLE, deepest: int = DEEPEST) -> list[Cell]:
    """Return the cells of settings at the sizes and widths of a grid.

    Draft levels are measured once for all rules that draft alike, autoregressive steps once for all whose target chooses alike. Whole steps are
    of trees for whose steps the models' `positions` suffice, of a depth of `deepest` at most.
    """
    cells: list[Cell] = []
    for context in sorted(set(settings.contexts)):
        cells += [size_cell(context, size) for size in grid.sizes]
        for levels, widths in grid.widths.items():
            cells += [width_cell(context, levels, settings, width) for width in widths]
        alone = {GREEDY.alone}
        for rule, (sampling, drafting) in settings.rules.items():
            if rule.alone not in alone:
                alone.add(rule.alone)
                cells.append(Cell(context, StepSpec(None, sampling), rule.alone))
            dynamic, widths = rule.mode == DynamicBudget.drafter, grid.widths[rule.levels]
            most = max(widths)
            plans = typical_budgets(grid.sizes, widths, deepest) if dynamic else typical_trees(grid.sizes, most, vocabulary, deepest)
            fitting = [plan for plan in plans if context + (1 + _IN_A_ROW) * (plan.depth + 1) <= positions]
            cells += [Cell(context, StepSpec(plan, sampling, drafting), rule, whole=True) for plan in fitting]
    return cells


class Bench:
    """The steps of cells over one random text."""

    def __init__(self, pair: Pair, cells: Sequence[Cell], settings: LatencySettings, notice: Callable[[str], None] | None) -> None:
        """Make room for the steps of all `cells`. Their steps are made by `prepare`."""
        self.pair, self.device = pair, pair.target.device
        self._warm_up = _WARM_UP.get(self.device.type, 2)
        vocabulary = pair.vocabulary_size
        text = torch.randint(0, vocabulary, (max(settings.contexts) + 1,), generator=torch.Generator().manual_seed(settings.seed))
        self.text = text.to(self.device)
        self.generator = torch.Generator(self.device).manual_seed(settings.seed)
        self._budget = _budget(cells, max(settings.contexts))
        self._engine = Engine(pair.target, pair.draft, notice) if self.device.type == "cuda" else None
        self._budget.allocate(pair.target, pair.draft, captured=self._engine is not None and self._engine.eager() is None)
        self.steps: dict[tuple[StepSpec, bool], Stepper] = {}

    def prepare(self, cells: Sequence[Cell]) -> None:
        """Make the steps of cells that have none yet."""
        new = [key for key in dict.fromkeys((cell.spec, cell.whole) for cell in cells) if key not in self.steps]
        for spec, whole in new:
            timer, engine = None if whole else timer_for(self.device), self._engine
            self.steps[spec, whole] = (
                EagerSteps(spec.build(self.pair.target, self.pair.draft, timer))
                if engine is None
                else engine.steps(spec, self._budget, timer)
            )
        if new:  # after capturing, which writes into the caches; a step that drafts reads the text into both
            steps = max(self.steps.values(), key=lambda steps: isinstance(steps.step, SpeculativeStep))
            steps.step.begin(self.text[:-1], None)

    def burst(self, cell: Cell) -> list[Sample]:
        """Run steps that follow one another as in decoding, and return their seconds without those of the first, which warm up."""
        steps = self.steps[cell.spec, cell.whole]
        if isinstance(steps, CapturedSteps):
            return self._captured(steps, cell)
        found = []
        for _ in range(self._warm_up + BURST):
            self._begin(steps, cell)
            started = now(self.device)
            steps.launch(AMPLE)
            parts = steps.read(cell.context)[2]
            found.append(_sample(parts, now(self.device) - started))
        return found[self._warm_up :]

    def _captured(self, steps: CapturedSteps, cell: Cell) -> list[Sample]:
        """Do the same with captured steps. In decoding the host runs ahead of them, so whole steps are timed on the device, in a row."""
        if cell.whole:
            # As decoding begins. Behind bursts of wide passes, the same steps of small models take up to 7 % longer (benchmarks/log/sampling.md).
            steps.step.begin(self.text[: min(cell.context, _PROMPT)], None)
            wholes = []
            for _ in range(BURST):
                self._begin(steps, cell)
                wholes.append(steps.seconds(_IN_A_ROW))
            return [_sample((), whole) for whole in wholes]
        parts = []
        for _ in range(self._warm_up + BURST):
            self._begin(steps, cell)
            steps.launch(AMPLE)
            parts.append(steps.read(cell.context)[2])
        self._begin(steps, cell)
        whole = steps.seconds(_IN_A_ROW)
        return [_sample(found, whole) for found in parts[self._warm_up :]]

    def _begin(self, steps: Stepper, cell: Cell) -> None:
        steps.begin(self.text[cell.context - 1 : cell.context + 1], cell.context, self.generator)


def _sample(parts: Parts, whole: float) -> Sample:
    """Return the sample of a step that took `whole` seconds and had these timed parts."""
    drafts = [seconds for name, seconds in parts if name == "drafting"] or [0.0]
    target = sum(seconds for name, seconds in parts if name == "target")
    first, last = (drafts[0], drafts[-1]) if len(drafts) > 1 else (drafts[0], 0.0)
    return first, last, target, max(0.0, whole - sum(drafts) - target)


def median_pass(cell: Cell, samples: Sequence[Sample], *, below: bool = False) -> float:
    """Return the median seconds of the pass that a cell measures: a target pass, or its last draft level.

    Of trees, width 1 is the root's level, or with `below` one below it, as all other widths are.
    """
    root = cell.width == 1 and cell.rule.mode == SpeculationTree.drafter and not below
    place = 2 if cell.width is None else 0 if root else 1
    return statistics.median(sample[place] for sample in samples)


def _budget(cells: Sequence[Cell], context: int) -> CacheBudget:
    """Return the cache slots that every cell's steps need: they go on with the text for a few steps, which accept what they draft at most."""
    plans = [cell.spec.plan for cell in cells if cell.spec.plan is not None]
    depth = max((plan.depth for plan in plans), default=0)
    size, drafted = max((plan.size for plan in plans), default=1), max((plan.candidates for plan in plans), default=1)
    return CacheBudget(context + size + (1 + _IN_A_ROW) * (depth + 1), drafted, depth, size)
