"""The cells of a latency profile, and the bench that runs their steps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from treeopt.profiling.settings import BURST, LatencySettings, dynamic_widths_of
from treeopt.profiling.shapes import DEEPEST, level_budget, level_of, star, typical_budgets, typical_trees
from treespec.decoding.engine import CacheBudget, CapturedSteps, EagerSteps, Engine, Parts, Stepper
from treespec.decoding.plans import DynamicBudget
from treespec.decoding.step import StepSpec
from treespec.decoding.step_rule import GREEDY, StepRule
from treespec.decoding.timing import now, timer_for
from treespec.models.pairs import Pair

Sample = tuple[float, float, float, float]
"""Seconds of one step: its first draft level, its last one (both 0 if nothing is drafted or parts are not timed), target, and the rest."""

_WARM_UP = 2
_IN_A_ROW = 2
_AMPLE = 1 << 30

BEYOND = (2 + _IN_A_ROW) * (DEEPEST + 1)
"""Positions that steps of typical trees take behind the context, at most."""


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


def cells_of(settings: LatencySettings, device: str, vocabulary: int) -> list[Cell]:
    """Return the cells of settings whose sizes and widths are known.

    Tree sizes are measured with `topk` at temperature 0, because target passes take the same time under all rules. Draft levels are measured
    once for all rules that draft alike, autoregressive steps once for all whose target chooses alike.
    """
    sizes, widths = sorted(set(settings.sizes or ())), sorted(set(settings.widths or ()))
    dynamic_widths = dynamic_widths_of(widths, device, vocabulary)
    cells: list[Cell] = []
    for context in sorted(set(settings.contexts)):
        cells += [Cell(context, StepSpec(star(size) if size > 1 else None), GREEDY) for size in sizes]
        cells += [Cell(context, StepSpec(level_of(width, sampled=False)), GREEDY, width) for width in widths]
        seen, alone = {GREEDY.levels}, {GREEDY.alone}
        for rule, (sampling, drafting) in settings.rules.items():
            if rule == GREEDY:
                continue
            if rule.alone not in alone:
                alone.add(rule.alone)
                cells.append(Cell(context, StepSpec(None, sampling), rule.alone))
            dynamic = rule.mode == DynamicBudget.drafter
            if rule.levels not in seen:
                seen.add(rule.levels)
                for width in dynamic_widths if dynamic else widths:
                    plan = level_budget(width) if dynamic else level_of(width, sampled=True)
                    cells.append(Cell(context, StepSpec(plan, sampling, drafting), rule.levels, width))
            plans = typical_budgets(sizes, dynamic_widths) if dynamic else typical_trees(sizes, max(widths), vocabulary)
            cells += [Cell(context, StepSpec(plan, sampling, drafting), rule, whole=True) for plan in plans]
    return cells


class Bench:
    """The steps of every cell over one random text."""

    def __init__(self, pair: Pair, cells: Sequence[Cell], settings: LatencySettings, notice: Callable[[str], None] | None) -> None:
        self.pair, self.device = pair, pair.target.device
        vocabulary = pair.vocabulary_size
        text = torch.randint(0, vocabulary, (max(settings.contexts) + 1,), generator=torch.Generator().manual_seed(settings.seed))
        self.text = text.to(self.device)
        self.generator = torch.Generator(self.device).manual_seed(settings.seed)
        budget = _budget(cells, max(settings.contexts))
        engine = Engine(pair.target, pair.draft, notice) if self.device.type == "cuda" else None
        budget.allocate(pair.target, pair.draft, captured=engine is not None and engine.eager() is None)
        self.steps: dict[tuple[StepSpec, bool], Stepper] = {}
        for spec, whole in dict.fromkeys((cell.spec, cell.whole) for cell in cells):
            timer = None if whole else timer_for(self.device)
            steps = EagerSteps(spec.build(pair.target, pair.draft, timer)) if engine is None else engine.steps(spec, budget, timer)
            self.steps[spec, whole] = steps
        for model in pair.models.values():  # after capturing, which writes into the caches
            model.prefill(self.text[:-1])

    def burst(self, cell: Cell) -> list[Sample]:
        """Run steps that follow one another as in decoding, and return their seconds without those of the first, which warm up."""
        steps, context = self.steps[cell.spec, cell.whole], cell.context
        found = []
        for _ in range(_WARM_UP + BURST):
            steps.begin(self.text[context - 1 : context + 1], context, self.generator)
            whole, parts = self._step(steps, context, timed=not cell.whole)
            drafts = [seconds for name, seconds in parts if name == "drafting"] or [0.0]
            target = sum(seconds for name, seconds in parts if name == "target")
            first, last = (drafts[0], drafts[-1]) if len(drafts) > 1 else (drafts[0], 0.0)
            found.append((first, last, target, max(0.0, whole - sum(drafts) - target)))
        return found[_WARM_UP:]

    def _step(self, steps: Stepper, context: int, *, timed: bool) -> tuple[float, Parts]:
        """Run a step, with its timed parts; return its seconds and theirs. In decoding the host runs ahead of captured steps, so it is left out."""
        captured = isinstance(steps, CapturedSteps)
        whole = 0.0
        parts: Parts = ()
        if timed or not captured:
            started = now(self.device)
            steps.launch(_AMPLE)
            parts = steps.read(context)[2]
            whole = now(self.device) - started
        return (steps.seconds(_IN_A_ROW) if isinstance(steps, CapturedSteps) else whole), parts


def _budget(cells: Sequence[Cell], context: int) -> CacheBudget:
    """Return the cache slots that every cell's steps need: they go on with the text for a few steps, which accept what they draft at most."""
    plans = [cell.spec.plan for cell in cells if cell.spec.plan is not None]
    depth = max((plan.depth for plan in plans), default=0)
    size, drafted = max((plan.size for plan in plans), default=1), max((plan.candidates for plan in plans), default=1)
    return CacheBudget(context + size + (2 + _IN_A_ROW) * (depth + 1), drafted, depth, size)
