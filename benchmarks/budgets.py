"""Hold the budget of dynamic trees that the profiles choose against a grid of budgets, all of them run end to end.

`python -m benchmarks.budgets --small --out FILE` takes the embedded pair on the CPU; `--inflate` gives it the cost of Llama-2-7B and llama-68m (fp16, a GPU is
needed). The first `--profiled` prompts are profiled, and on the first `--counted` of them the steps of dynamic trees are counted. The budget is chosen as
`treeopt grow --dynamic` does. It runs beside the others on the next `--prompts` prompts, greedily and in groups: prompt by prompt, all budgets of a group in
turn for `--rounds` rounds, each group with the chosen one. A group that is done is kept beside FILE, and so are the profiles: the same command goes on where
it was stopped.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.decoding import pair_for
from benchmarks.end_to_end import figure, run_all, say, table_of
from treeopt.budget_making import MadeBudget, make_budget
from treeopt.exports.budgets import best_budget
from treeopt.optimizer.search import acceptance_rows
from treeopt.profiles.acceptance import AcceptanceProfile, read_acceptance
from treeopt.profiles.budget_grid import BudgetGrid
from treeopt.profiles.latency import LatencyProfile, read_latency
from treeopt.profiles.latency_model import LatencyModel
from treeopt.profiling.acceptance import profile_acceptance
from treeopt.profiling.latency import profile_latency
from treeopt.profiling.settings import AcceptanceSettings, LatencySettings
from treespec.data.prompts import PromptSet, load_prompts
from treespec.decoding.plans import DynamicBudget
from treespec.errors import ProfileError
from treespec.files.fingerprint import fingerprint
from treespec.files.journal import Journal
from treespec.files.writing import write_json
from treespec.models.pairs import Pair

PROMPT_LEN = 128
CHOSEN, GUESSED = "the chosen budget", "by chances of ranks"
COMMON = {
    "SGLang, its default": (8, 5, 4),
    "SGLang, its default chain": (4, 3, 1),
    "EAGLE-3, its default": (60, 7, 10),
}
"""Size, depth and width of budgets that people use."""
SIZES, DEPTHS, WIDTHS = (8, 16, 32, 64, 96), (3, 5, 8), (4, 8, 16)
"""The grid: each size with each depth and width that it can have."""
DEEPER = ((32, 10, 8), (64, 10, 16))
"""Budgets that are deeper than those whose steps are counted."""
TIMED_SIZES, TIMED_WIDTHS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 65, 80, 96, 128), (1, 2, 4, 8, 12, 16, 24, 32)


@dataclass(frozen=True)
class Candidate:
    """A budget of the comparison, and what it is called."""

    name: str
    budget: DynamicBudget


def candidates(chosen: DynamicBudget, guessed: DynamicBudget | None, largest: int) -> list[Candidate]:
    """Return all budgets of at most `largest` nodes, each once, the chosen one first; `guessed` is the one that chances by rank choose."""
    grid = [(size, depth, width) for depth in DEPTHS for width in WIDTHS for size in SIZES if depth < size <= 1 + depth * width]
    named = [(name, DynamicBudget(*limits)) for name, limits in COMMON.items()]
    plain = [DynamicBudget(*limits) for limits in (*grid, *DEEPER)]
    others = [*([] if guessed is None else [(GUESSED, guessed)]), *named, *((shown(budget), budget) for budget in plain)]
    found: dict[DynamicBudget, str] = {chosen: CHOSEN}
    for name, budget in others:
        if budget.size <= largest:
            found.setdefault(budget, name)
    return [Candidate(name, budget) for budget, name in found.items()]


def shown(budget: DynamicBudget) -> str:
    """Return size, depth and width.

    >>> shown(DynamicBudget(16, 4, 8))
    '(16, 4, 8)'
    """
    return str(astuple(budget))


def predictions(budget: DynamicBudget, acceptance: AcceptanceProfile, model: LatencyModel) -> dict[str, Any]:
    """Return what the profiles predict of a budget; None for what was neither counted nor timed."""
    assert acceptance.dynamic is not None
    try:
        tokens = acceptance.dynamic.tokens_per_step(budget)
    except ProfileError:  # of another width, deeper or larger than what was counted
        tokens = None
    try:
        seconds = model.dynamic_seconds(**budget.describe())
    except ProfileError:  # larger or wider than what was timed
        seconds = None
    return {
        "tokens_per_step": None if tokens is None else tokens.mean,
        "tokens_interval_95": None if tokens is None or tokens.interval_95 is None else list(tokens.interval_95),
        "seconds_per_step": seconds,
        "seconds_per_token": None if tokens is None or seconds is None else seconds / tokens.mean,
    }


def row_of(one: Candidate, told: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything that is known of a budget: itself, what was predicted, what was measured, and the errors of the former."""
    wanted = ("tokens_per_step", "seconds_per_step", "seconds_per_token")
    errors = {name: None if told[name] is None else told[name] / found[name] - 1 for name in wanted}
    return {"name": one.name, **one.budget.describe(), "predicted": dict(told), "measured": dict(found), "errors": errors}


@dataclass(frozen=True)
class Profiles:
    """The profiles: chances of ranks of all profiled prompts, counted steps of some of them, and times."""

    ranks: AcceptanceProfile
    counted: AcceptanceProfile
    latency: LatencyProfile


def profiles(pair: Pair, prompts: PromptSet, options: argparse.Namespace, seconds: dict[str, float]) -> Profiles:
    """Measure what is not there yet, and say in `seconds` how long each took; with `out`, the profiles are kept beside it."""
    settings, grid = AcceptanceSettings(gen_len=options.gen_len), BudgetGrid(max_size=options.largest)
    some = prompts if options.counted == len(prompts) else prompts.split(options.counted)[0]
    sizes, widths = (tuple(size for size in known if size <= options.largest) for known in (TIMED_SIZES, TIMED_WIDTHS))
    times = LatencySettings(sizes, widths, contexts=(PROMPT_LEN + options.gen_len // 2,), dynamic=True)
    work: dict[str, tuple[Any, Any]] = {
        "ranks": (read_acceptance, lambda: profile_acceptance(pair, prompts, settings)),
        "counted": (read_acceptance, lambda: profile_acceptance(pair, some, settings, dynamic=grid)),
        "latency": (read_latency, lambda: profile_latency(pair, times, notice=say)),
    }
    found: dict[str, Any] = {}
    for name, (read, measure) in work.items():
        file = None if options.out is None else options.out.with_suffix(f".{name}.json")
        if file is not None and file.exists():
            say(f"{file} is taken; delete it to measure anew")
            found[name] = read(file)
            continue
        started = time.perf_counter()
        found[name] = measure()
        seconds[name] = time.perf_counter() - started
        say(f"{name}: {seconds[name]:.0f} s")
        if file is not None:
            found[name].write(file)
    return Profiles(**found)


@torch.inference_mode()
def compare(pair: Pair, prompts: PromptSet, options: argparse.Namespace) -> dict[str, Any]:
    """Run everything that is not done yet and return all figures."""
    seconds: dict[str, float] = {}
    tuning, held_out = prompts.split(options.profiled)
    known = profiles(pair, tuning, options, seconds)
    made: MadeBudget = make_budget(known.counted, known.latency, max_size=options.largest)
    model = known.latency.at_context(None, made.choice.rule)
    guess = best_budget(acceptance_rows(known.ranks), model)
    guessed = None if guess is None else DynamicBudget(guess.size, guess.depth, guess.width)
    all_of_them = candidates(made.chosen.plan, guessed, options.largest)
    say(f"chosen of {made.choice.compared} budgets: {shown(made.chosen.plan)}; by chances of ranks: {guessed}")
    key = fingerprint(
        known.counted.to_json(),
        known.latency.to_json(),
        [shown(one.budget) for one in all_of_them],
        held_out.fingerprint,
        *(options.gen_len, options.rounds),
    )
    out: Path | None = options.out
    began = time.perf_counter()
    plans = {one.name: one.budget for one in all_of_them}
    with Journal(None if out is None else out.with_suffix(".journal"), key) as journal:
        ran = run_all(pair, plans, held_out, options.gen_len, options.rounds, journal)
    rows = [row_of(one, predictions(one.budget, known.counted, model), ran.figures[one.name]) for one in all_of_them]
    seconds["decoding"] = time.perf_counter() - began
    return {
        "schema": "treeopt.benchmark.budgets",
        "version": 1,
        "rows": rows,
        "autoregressive": ran.alone | {"predicted_seconds": model.autoregressive_seconds()},
        "choice": made.summary(),
        "notes": list(made.notes),
        "chosen_seconds_per_token": ran.drift,
        "settings": {name: getattr(options, name) for name in ("profiled", "counted", "prompts", "gen_len", "rounds", "largest")},
        "context": made.choice.context,
        "unstable": known.latency.warning,
        "seconds": seconds,
        "provenance": pair.provenance(dataset=held_out.label),
    }


def cells_of(row: Mapping[str, Any]) -> list[str]:
    """Return the cells of a budget."""
    told, found = row["predicted"], row["measured"]
    seconds = told["seconds_per_step"]
    return [
        *(row["name"], str(row["size"]), str(row["depth"]), str(row["width"])),
        *(f"{found['tokens_per_step']:.3f}", figure(told["tokens_per_step"], ".3f")),
        *(f"{1e3 * found['seconds_per_step']:.3f}", figure(None if seconds is None else 1e3 * seconds, ".3f")),
        f"{1e3 * found['seconds_per_token']:.3f}",
    ]


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options, with the defaults of the device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--inflate", action="store_true")
    which.add_argument("--small", action="store_true")
    parser.add_argument("--profiled", type=int, default=100, help="prompts whose chances of ranks are profiled (default 100)")
    parser.add_argument(
        "--counted", type=int, default=16, help="of these, prompts on which steps of dynamic trees are counted (default 16)"
    )
    parser.add_argument("--prompts", type=int, default=12, help="prompts that are decoded (default 12)")
    parser.add_argument("--gen-len", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=1, help="times that each prompt is decoded with each budget (default 1)")
    parser.add_argument("--largest", type=int, help="largest budget (default: 128 on a GPU, 64 on a CPU)")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(words)
    if not 1 <= options.counted <= options.profiled:
        parser.error(f"--counted is {options.counted}, but it must be from 1 to --profiled, which is {options.profiled}")
    options.device = "cuda" if options.inflate else "cpu"
    options.largest = options.largest or (128 if options.inflate else 64)
    return options


def main() -> None:
    """Profile, choose, decode with every budget, print a table, write JSON."""
    options = parse()
    pair = pair_for(options)
    prompts = load_prompts("stdlib", pair.tokenizer, num_prompts=options.profiled + options.prompts, prompt_len=PROMPT_LEN)
    figures = compare(pair, prompts, options)
    columns = ("budget", "size", "depth", "width", "tokens/step", "predicted", "ms/step", "predicted", "ms/token")
    Console(width=160).print(table_of("budgets", columns, figures["rows"], cells_of))
    if options.out is not None:
        write_json(options.out, figures)
        for part in (".journal", ".ranks.json", ".counted.json", ".latency.json"):
            options.out.with_suffix(part).unlink(missing_ok=True)


if __name__ == "__main__":
    main()
