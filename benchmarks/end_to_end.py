"""Plans run end to end in groups, prompt by prompt in turn, and how fast each is beside the first: for `benchmarks.audit` and `benchmarks.budgets`.

Every group has the first plan too, so that a machine that drifts favours none. A group that is done is kept in a journal.
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from rich.table import Table

from treeopt.profiles.intervals import Interval
from treespec.data.prompts import PromptSet
from treespec.decoding.engine import Engine
from treespec.decoding.loop import Request, StepRecord, decode_autoregressive, decode_speculative
from treespec.decoding.plans import Plan
from treespec.decoding.timing import now
from treespec.evaluation import figures
from treespec.files.journal import Journal
from treespec.models.pairs import Pair

ALONE = "autoregressive"
GROUP = 14
"""Plans of a group, beside the first one and autoregressive decoding: an engine keeps 16 captured steps."""
_WARM_UP = 8
"""Steps that a plan takes before it is timed: its step is captured, and its kernels compiled, before the first of them."""

Measured = dict[str, list[list[float]]]
"""For each name, and each prompt: tokens without the first, steps, and median seconds over the rounds."""


@dataclass(frozen=True)
class EndToEnd:
    """The figures of all plans by name, those of autoregressive decoding beside the first group, and the first plan's seconds per token in every group."""

    figures: Mapping[str, dict[str, Any]]
    alone: dict[str, Any]
    drift: list[float]


def run_all(pair: Pair, plans: Mapping[str, Plan], prompts: PromptSet, gen_len: int, rounds: int, journal: Journal) -> EndToEnd:
    """Run every plan and return the figures of all of them beside the first one's. Autoregressive decoding runs in the first group alone."""
    started = time.perf_counter()
    (first, plan), *others = plans.items()
    found: dict[str, dict[str, Any]] = {}
    drift = []
    for number, group in enumerate(groups_of(others)):
        beside: dict[str, Plan | None] = {first: plan, **dict(group), **({} if number else {ALONE: None})}
        runs = journal.piece(str(number), lambda beside=beside: run_group(pair, beside, prompts, gen_len, rounds))  # type: ignore[misc]
        for name, own in runs.items():
            found.setdefault(name, measured(own, runs[first]))
        drift.append(measured(runs[first], runs[first])["seconds_per_token"])
        say(f"{len(found) - 1} of {len(plans)} plans, {time.perf_counter() - started:.0f} s")
    alone = found.pop(ALONE)
    return EndToEnd(found, alone, drift)


def groups_of(others: Sequence[tuple[str, Plan]]) -> list[Sequence[tuple[str, Plan]]]:
    """Return the plans beside the first one in groups; without any, one that is empty."""
    return [others[at : at + GROUP] for at in range(0, max(1, len(others)), GROUP)]


def run_group(pair: Pair, plans: Mapping[str, Plan | None], prompts: PromptSet, gen_len: int, rounds: int) -> Measured:
    """Decode every prompt with every plan, in an order that rotates; all take some steps of the first prompt before, as a warm-up.

    The warm-up begins with the plan of most candidates: a cache that grew later would have the steps before it captured anew.
    """
    engine = Engine(pair.target, pair.draft, say) if pair.target.device.type == "cuda" else None
    names = list(plans)
    for name in sorted(names, key=lambda name: -_candidates(plans[name])):
        list(islice(_steps(pair, plans[name], prompts.prompts[0].ids, gen_len, engine), 1 + _WARM_UP))
    found: Measured = {name: [] for name in names}
    for place, prompt in enumerate(prompts):
        samples: dict[str, list[tuple[int, int, float]]] = {name: [] for name in names}
        for turn in range(rounds):
            start = (place + turn) % len(names)
            for name in [*names[start:], *names[:start]]:
                samples[name].append(_timed(pair, plans[name], prompt.ids, gen_len, engine))
        for name, several in samples.items():
            tokens, steps, _ = several[0]
            found[name].append([tokens, steps, statistics.median(seconds for _, _, seconds in several)])
    return found


def _candidates(plan: Plan | None) -> int:
    return 1 if plan is None else plan.candidates


def _steps(pair: Pair, plan: Plan | None, ids: tuple[int, ...], gen_len: int, engine: Engine | None) -> Iterator[StepRecord]:
    request = Request(ids, gen_len, pair.eos_token_ids)
    if plan is None:
        return decode_autoregressive(pair.target, request, engine=engine)
    return decode_speculative(pair.target, pair.draft, plan, request, engine=engine)


def _timed(pair: Pair, plan: Plan | None, ids: tuple[int, ...], gen_len: int, engine: Engine | None) -> tuple[int, int, float]:
    """Decode one text and return its tokens without the first, its steps and its seconds without the prompt pass."""
    records = _steps(pair, plan, ids, gen_len, engine)
    next(records)
    started = now(pair.target.device)
    steps = list(records)
    return sum(len(step.tokens) for step in steps), len(steps), now(pair.target.device) - started


def measured(own: Sequence[Sequence[float]], first: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Return the figures of a plan from its (tokens, steps, seconds) for every prompt, and its speed over that of the first one beside it.

    The latter is `over_picked`, for the first is what the profiles picked.
    """
    columns = dict(zip(("tokens", "steps", "seconds"), np.array(own, dtype=np.float64).T, strict=True))
    beside = dict(zip(("picked_tokens", "picked_steps", "picked_seconds"), np.array(first, dtype=np.float64).T, strict=True))

    def over_picked(sums: figures.Sums) -> Any:
        return figures.ratio(figures.ratio(sums["picked_seconds"], sums["picked_tokens"]), figures.seconds_per_token(sums))

    values: dict[str, float | Interval | None] = {}
    wanted = [(name, getattr(figures, name), columns) for name in ("tokens_per_step", "seconds_per_step", "seconds_per_token")]
    for name, figure, known in [*wanted, ("over_picked", over_picked, columns | beside)]:
        values |= {name: figures.figure_of(known, figure), f"{name}_interval_95": figures.interval_of(known, figure)}
    return values


def table_of(
    title: str, columns: Sequence[str], rows: Sequence[Mapping[str, Any]], cells: Callable[[Mapping[str, Any]], Sequence[str]]
) -> Table:
    """Return plans as a printable table, the fastest first; a last column has their speed over that of the first plan."""
    table = Table(title=f"{title} end to end, the fastest first; x first: tokens per second over those of the picked one in the same group")
    for place, column in enumerate((*columns, "x first")):
        table.add_column(column, justify="right" if place else "left")
    for row in sorted(rows, key=lambda row: -row["measured"]["over_picked"]):
        found = row["measured"]
        ends = found["over_picked_interval_95"]
        table.add_row(*cells(row), f"{found['over_picked']:.3f}" + ("" if ends is None else f" [{ends[0]:.3f}, {ends[1]:.3f}]"))
    return table


def figure(value: float | None, form: str) -> str:
    """Return a figure in a form, or a dash for one that is not known.

    >>> figure(0.1234, "+.1%"), figure(None, ".3f")
    ('+12.3%', '-')
    """
    return "-" if value is None else format(value, form)


def say(line: str) -> None:
    """Tell the progress on stderr."""
    print(line, file=sys.stderr, flush=True)
