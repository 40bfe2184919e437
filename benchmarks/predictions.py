"""Compare predicted with measured seconds per step, for every rule and verifier, on trees that were not profiled.

`python -m benchmarks.predictions --out FILE` takes the embedded pair on the CPU; `--inflate` gives it the cost of Llama-2-7B and llama-68m
(fp16, a GPU is needed), `--small` takes a random pair of 30 and 3 layers x 576. All rules are profiled in one call, and each of them decodes
whole texts with six other trees (budgets, for dynamic trees), all in turn, for several rounds; the seconds per step are medians over the
rounds. Prompt passes are outside all times. On a GPU the decoding follows the profile; on a CPU, whose speed drifts, a round of decoding follows every
round of the profile, and `--cpu-time` counts the process's own time, for a machine with other work. `--rules` picks rules by parts of their names.
"""

import argparse
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.decoding import pair_for
from benchmarks.small_pair import small_pair
from treeopt.optimizer import best_first
from treeopt.profiles.latency import LatencyProfile
from treeopt.profiling.latency import profile_latency
from treeopt.profiling.settings import LatencySettings
from treespec.data.prompts import load_prompts
from treespec.decoding.drafting import Drafting
from treespec.decoding.engine import Engine
from treespec.decoding.loop import Request, decode_autoregressive, decode_speculative
from treespec.decoding.plans import DynamicBudget, Plan
from treespec.decoding.rules import Sampling
from treespec.decoding.sampling import prompt_generator
from treespec.decoding.step_rule import GREEDY, StepRule
from treespec.decoding.timing import now
from treespec.files.writing import write_json
from treespec.models.pairs import Pair
from treespec.trees.tree import SpeculationTree

PROMPT_LEN = 128
SAMPLINGS = (Sampling(), Sampling(0.6), Sampling(0.6, 0.9))
DRAFTINGS = (Drafting(), Drafting("swor"), Drafting("swor", verifier="traversal"), Drafting("swr"))
SIZES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128)
WIDTHS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64)
UNSEEN = ((8, 4, 0.5, 0.4), (24, 3, 0.3, 0.7), (32, 8, 0.7, 0.3), (48, 5, 0.45, 0.5), (64, 6, 0.5, 0.45), (128, 9, 0.65, 0.4))
"""Size, depth, and the acceptance row p[k] = first * decay^k of the trees. None is profiled."""
BUDGETS = ((8, 3, 4), (16, 4, 8), (32, 4, 12), (48, 6, 16), (64, 7, 14), (96, 8, 24))
"""Size, depth and level width of the budgets. None is profiled."""


@dataclass(frozen=True)
class System:
    """A rule with a plan, or an autoregressive decoding (None)."""

    rule: StepRule
    plan: Plan | None
    sampling: Sampling
    drafting: Drafting


def systems_for(settings: LatencySettings, largest: int) -> list[System]:
    """Return every rule with every tree of at most `largest` nodes that was not profiled."""
    trees = [tree_of(*shape) for shape in UNSEEN if shape[0] <= largest]
    budgets = [DynamicBudget(*limits) for limits in BUDGETS if limits[0] <= largest]
    found: list[System] = []
    for rule, (sampling, drafting) in settings.rules.items():
        plans: list[Plan] = list(budgets if rule.mode == DynamicBudget.drafter else trees)
        if all(system.rule.alone != rule.alone or system.plan is not None for system in found):  # one autoregressive decoding for each
            found.append(System(rule, None, sampling, drafting))
        found += [System(rule, plan, sampling, drafting) for plan in plans]
    return found


def tree_of(size: int, depth: int, first: float, decay: float) -> SpeculationTree:
    """Return the best tree for an acceptance row."""
    return best_first.solve(np.array([[first * decay**rank for rank in range(16)]]), size, depth, 16).tree(size, depth)


def predicted(profile: LatencyProfile, system: System) -> float:
    """Return the predicted seconds of a step."""
    model = profile.at_context(None, system.rule)
    if system.plan is None:
        return model.autoregressive_seconds()
    if isinstance(system.plan, DynamicBudget):
        return model.dynamic_seconds(system.plan.size, system.plan.depth, system.plan.width)
    assert isinstance(system.plan, SpeculationTree)
    return model.step_seconds(system.plan)


def step_seconds(pair: Pair, system: System, request: Request, engine: Engine | None) -> float:
    """Decode one text and return its seconds per step, those of the prompt pass left out."""
    device = pair.target.device
    stream = prompt_generator(0, 0, device)
    if system.plan is None:
        records = decode_autoregressive(pair.target, request, stream, engine=engine)
    else:
        records = decode_speculative(pair.target, pair.draft, system.plan, request, stream, drafting=system.drafting, engine=engine)
    next(records)
    started = now(device)
    steps = sum(1 for _ in records)
    return (now(device) - started) / max(1, steps)


class Decoding:
    """Decodes with every system in turn, and keeps the seconds per step of every round."""

    def __init__(self, pair: Pair, systems: list[System], gen_len: int) -> None:
        self.pair, self.systems, self.gen_len = pair, systems, gen_len
        (self.prompt,) = load_prompts("stdlib", pair.tokenizer, num_prompts=1, prompt_len=PROMPT_LEN, start=40)
        self.seconds: list[list[float]] = [[] for _ in systems]

    def round(self, part: range | None = None, engine: Engine | None = None, *, warm_up: bool = False) -> None:
        """Decode once with each system, or with a part of them."""
        for which in range(len(self.systems)) if part is None else part:
            request = Request(self.prompt.ids, self.gen_len, frozenset(), self.systems[which].sampling)
            seconds = step_seconds(self.pair, self.systems[which], request, engine)
            if not warm_up:
                self.seconds[which].append(seconds)

    def rounds(self, count: int) -> None:
        """Decode for several rounds on a GPU, by groups whose captured steps an engine keeps."""
        group = 14
        for first in range(0, len(self.systems), group):
            part = range(first, min(first + group, len(self.systems)))
            engine = Engine(self.pair.target, self.pair.draft, lambda reason: print(reason, file=sys.stderr))
            for number in range(-1, count):
                self.round(part, engine, warm_up=number < 0)
            print(f"{part.stop}/{len(self.systems)} plans", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class ChosenSettings(LatencySettings):
    """Settings that leave out the rules whose names have none of some words."""

    words: tuple[str, ...] = ()

    @property
    def rules(self) -> dict[StepRule, tuple[Sampling, Drafting]]:
        """See `LatencySettings.rules`."""
        return {
            rule: how
            for rule, how in super().rules.items()
            if rule == GREEDY or not self.words or any(word in rule.name for word in self.words)
        }


@torch.inference_mode()
def main() -> None:
    """Profile all rules, decode with unseen trees, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inflate", action="store_true")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--gen-len", type=int, help="tokens of a text (default: 192 on a GPU, where a last step may be launched in vain, 64 on a CPU)"
    )
    parser.add_argument("--rounds", type=int, default=4, help="rounds of decoding on a GPU; a CPU decodes a round per 4 repetitions")
    parser.add_argument("--repetitions", type=int, help="samples of each point (default: 8 on a GPU, 24 on a CPU)")
    parser.add_argument("--rules", nargs="+", default=[], help="words of which a rule's name must have one; all rules without")
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--largest", type=int, help="largest tree (default: 128 on a GPU, 64 on a CPU)")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.cpu_time:
        time.perf_counter = time.process_time
    arguments.gen_len = arguments.gen_len or (64 if arguments.device == "cpu" else 192)
    started = time.perf_counter()
    dtype = torch.float32 if arguments.device == "cpu" else torch.float16
    pair = small_pair(arguments.device, dtype) if arguments.small else pair_for(arguments)
    on_cpu = arguments.device == "cpu"
    largest = arguments.largest or (64 if on_cpu else 128)
    sizes, widths = (tuple(n for n in known if n <= largest) for known in (SIZES, WIDTHS))
    context, repetitions = (PROMPT_LEN + arguments.gen_len // 2,), arguments.repetitions or (24 if on_cpu else 8)
    asked: dict[str, Any] = {"samplings": SAMPLINGS, "draftings": DRAFTINGS, "dynamic": True, "words": tuple(arguments.rules)}
    settings = ChosenSettings(sizes, widths, context, repetitions, **asked)
    systems = systems_for(settings, largest)
    decoding = Decoding(pair, systems, arguments.gen_len)

    def progress(what: str, done: int, total: int) -> None:
        print(f"{what}: {done}/{total}, {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
        if on_cpu:
            decoding.round()

    profile = profile_latency(pair, settings, progress=progress, notice=lambda reason: print(reason, file=sys.stderr))
    profiled = time.perf_counter() - started
    if not on_cpu:
        decoding.rounds(arguments.rounds)
    rows: list[dict[str, Any]] = []
    for system, seconds in zip(systems, decoding.seconds, strict=True):
        told, took = predicted(profile, system), statistics.median(seconds)
        plan = None if system.plan is None else system.plan.describe()
        shape = {"size": 1, "depth": 0} if system.plan is None else {"size": system.plan.size, "depth": system.plan.depth}
        rows.append(
            {"rule": system.rule.to_json(), "name": system.rule.name, "plan": plan, **shape}
            | {"predicted_seconds": told, "measured_seconds": took, "samples": seconds, "error": told / took - 1}
        )
    Console(width=150).print(table_of(rows, f"{pair.target.name}, {pair.target.device}, {pair.target.dtype}"))
    figures = {
        "rows": rows,
        "rests": {rule.name: str(profile.at_context(None, rule).rest) for rule in profile.held},
        "worst": max(abs(row["error"]) for row in rows),
        "seconds": {"profile": profiled, "all": time.perf_counter() - started},
        "provenance": pair.provenance(),
    }
    if arguments.out:
        write_json(arguments.out, figures)
        profile.write(arguments.out.with_suffix(".latency.json"))
    print(f"worst error {figures['worst']:.1%}, {figures['seconds']}", file=sys.stderr)


def table_of(rows: list[dict[str, Any]], title: str) -> Table:
    """Return the lines as a printable table."""
    table = Table(title=title)
    for column in ("rule", "size", "depth", "predicted ms", "measured ms", "error"):
        table.add_column(column, justify="left" if column == "rule" else "right")
    for row in rows:
        told, took = 1e3 * row["predicted_seconds"], 1e3 * row["measured_seconds"]
        table.add_row(row["name"], str(row["size"]), str(row["depth"]), f"{told:.3f}", f"{took:.3f}", f"{row['error']:+.1%}")
    return table


if __name__ == "__main__":
    main()
