"""Compare every drafting rule and verifier at every temperature, side by side in one run on one pair.

`python -m benchmarks.sampling --out FILE` takes the embedded pair on the CPU; `--inflate` gives it the cost of Llama-2-7B and
llama-68m (fp16, a GPU is needed). For each temperature, every rule is profiled, gets the best tree for its own profile,
and decodes every prompt in turn with the others, in an order that rotates from prompt to prompt. Dynamic trees get the
budget of the best `topk` tree; at temperature 0, also fixed budgets. Results are written after each temperature.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.decoding import pair_for, treeopt_seconds
from benchmarks.visited import VisitedAcceptance, visited_acceptance
from treeopt.optimizer.search import optimize
from treeopt.profiles.acceptance import AcceptanceProfile
from treeopt.profiles.latency import LatencyProfile
from treeopt.profiling.acceptance import profile_acceptance
from treeopt.profiling.chances import sampled_chances
from treeopt.profiling.latency import profile_latency
from treeopt.profiling.settings import AcceptanceSettings, LatencySettings
from treespec.data.prompts import PromptSet, load_prompts
from treespec.decoding.drafting import Drafting
from treespec.decoding.engine import Engine
from treespec.decoding.loop import Request, decode_autoregressive, decode_speculative
from treespec.decoding.plans import DynamicBudget, Plan
from treespec.decoding.rules import RULES, Sampling
from treespec.decoding.sampling import distribution, prompt_generator
from treespec.decoding.timing import now
from treespec.evaluation.report import EvaluationReport
from treespec.evaluation.results import PromptResult
from treespec.files.writing import write_json
from treespec.models.pairs import Pair
from treespec.trees.tree import SpeculationTree

BUDGETS = ((32, 8), (64, 8), (64, 12))
PROMPT_LEN = 128


@dataclass(frozen=True)
class System:
    """One way of decoding."""

    plan: Plan
    drafting: Drafting
    expected: float | None
    """Tokens per step that the profile promises; None if it promises nothing."""

    @property
    def name(self) -> str:
        """Return its name in the table."""
        shape = "static" if self.plan.drafter == SpeculationTree.drafter else self.plan.drafter
        return f"{self.drafting.rule} {shape} ({self.plan.size}, {self.plan.depth}) {self.drafting.verifier}"


def systems_for(profiles: dict[str, AcceptanceProfile], latency: LatencyProfile, budgets: Sequence[tuple[int, int]]) -> list[System]:
    """Return the systems: the best static tree of each rule with each of its verifiers, the dynamic twin, and fixed budgets both ways."""
    found: list[System] = []
    for rule, profile in profiles.items():
        best = optimize(profile, latency=latency)
        found.append(System(best.tree, Drafting(rule), best.expected_tokens_per_step))
        if RULES[rule].sampled:
            found.append(System(best.tree, Drafting(rule, verifier="traversal"), None))
        elif best.tree.size > 1:
            found.append(System(DynamicBudget.of(best.tree.size, best.tree.depth), Drafting(), None))
    for size, depth in budgets:
        fixed = optimize(profiles["topk"], size=size, depth=depth)
        found += [
            System(fixed.tree, Drafting(), fixed.expected_tokens_per_step),
            System(DynamicBudget.of(size, depth), Drafting(), None),
        ]
    return found


def decode_all(
    pair: Pair, prompts: PromptSet, systems: list[System], sampling: Sampling, gen_len: int, seed: int
) -> list[EvaluationReport]:
    """Decode every prompt with every system and autoregressively, in turn."""
    target, draft, device = pair.target, pair.draft, pair.target.device
    results: list[list[PromptResult]] = [[] for _ in systems]
    engine = Engine(target, draft, lambda reason: print(reason, file=sys.stderr)) if device.type == "cuda" else None
    for index, prompt in enumerate(prompts):
        request = Request(prompt.ids, gen_len, pair.eos_token_ids, sampling)
        outputs: dict[int, tuple[list[int], float, int]] = {}
        ranks: dict[int, tuple[tuple[int, ...], ...]] = {}
        order = list(range(-1, len(systems)))
        turn = index % len(order)
        for which in [*order, *order] if index == 0 else order[turn:] + order[:turn]:  # the first prompt's first round warms up
            stream = prompt_generator(seed, index, device)
            if which < 0:
                outputs[which] = treeopt_seconds(decode_autoregressive(target, request, stream, engine=engine), device)
                continue
            system = systems[which]
            records = decode_speculative(target, draft, system.plan, request, stream, drafting=system.drafting, engine=engine)
            first = next(records)
            started = now(device)
            steps = list(records)
            seconds = now(device) - started
            tokens = [*first.tokens, *(token for step in steps for token in step.tokens)]
            outputs[which], ranks[which] = (tokens, seconds, len(steps)), tuple(step.accepted or () for step in steps)
        base_tokens, base_seconds, _ = outputs.pop(-1)
        for which, (tokens, seconds, count) in outputs.items():
            results[which].append(
                PromptResult(
                    row=prompt.row,
                    name=prompt.name,
                    tokens=len(tokens),
                    steps=count,
                    seconds=seconds,
                    baseline_tokens=len(base_tokens),
                    baseline_seconds=base_seconds,
                    accepted_ranks=ranks[which],
                    output=tuple(tokens),
                )
            )
            if sampling.greedy and tokens != base_tokens:
                print(f"{systems[which].name}: output of prompt {prompt.row} differs from autoregressive decoding", file=sys.stderr)
        print(f"T {sampling.temperature:g}: {index + 1}/{len(prompts)} prompts", file=sys.stderr, flush=True)
    return [
        EvaluationReport(
            mode=system.plan.drafter,
            results=tuple(rows),
            temperature=sampling.temperature,
            tree={"size": system.plan.size, "depth": system.plan.depth},
        )
        for system, rows in zip(systems, results, strict=True)
    ]


def profiling_seconds(device: str, prompts: int, positions: int, vocabulary: int, ranks: int, draws: int) -> dict[str, float]:
    """Return the seconds of profiling `swor` and `swr` without the forward passes, on random logits in the profiler's blocks."""
    block = 16
    generator = torch.Generator(device).manual_seed(0)
    streams = [torch.Generator(device).manual_seed(i) for i in range(block)]
    found = {}
    for rule in ("swor", "swr"):
        seconds = 0.0
        for number in range(-1, -(-prompts // block)):
            target, draft = (3 * torch.randn(block, positions, vocabulary, device=device, generator=generator).half() for _ in range(2))
            started = now(torch.device(device))
            p = torch.stack([distribution(row, Sampling(0.6, 0.9)) for row in target])
            q = distribution(draft, Sampling(0.6))
            sampled_chances(p, q, ranks, draws, streams, replacement=rule == "swr").sum(1).tolist()
            seconds += (now(torch.device(device)) - started) if number >= 0 else 0.0  # the first block warms up
        found[rule] = seconds
    return found


def row_of(system: System, report: EvaluationReport, visited: VisitedAcceptance | None, temperature: float) -> dict[str, Any]:
    """Return one line of the table, as data."""
    return {
        "temperature": temperature,
        "system": system.name,
        "drafting": asdict(system.drafting),
        "plan": system.plan.describe(),
        "size": system.plan.size,
        "depth": system.plan.depth,
        "tokens_per_step": report.tokens_per_step,
        "expected_tokens_per_step": system.expected,
        "seconds_per_token": report.seconds_per_token,
        "baseline_seconds_per_token": report.baseline_seconds_per_token,
        "speedup": report.speedup,
        "intervals_95": report.intervals,
        "observed_acceptance": [asdict(found) for found in report.observed],
        "visited": None if visited is None else asdict(visited),
        "tokens_and_steps": [[r.tokens - 1, r.steps] for r in report.results],
    }


def table_of(rows: list[dict[str, Any]], title: str) -> Table:
    """Return the lines as a printable table."""
    table = Table(title=title)
    for column in ("T", "system", "tokens/step", "promised", "ms/token", "speed-up", "p (visited)", "first choice visited / everywhere"):
        table.add_column(column, justify="left" if column == "system" else "right")
    for row in rows:
        low, high = row["intervals_95"]["tokens_per_step"]
        slow, fast = row["intervals_95"]["speedup"]
        seen = row["visited"]
        table.add_row(
            f"{row['temperature']:g}",
            row["system"],
            f"{row['tokens_per_step']:.3f} [{low:.2f}, {high:.2f}]",
            "-" if row["expected_tokens_per_step"] is None else f"{row['expected_tokens_per_step']:.3f}",
            f"{1e3 * row['seconds_per_token']:.2f}",
            f"{row['speedup']:.2f} [{slow:.2f}, {fast:.2f}]",
            "-" if seen is None else f"{seen['p_value']:.3f}",
            "-" if seen is None else f"{seen['observed'][0] / seen['visits']:.3f} / {seen['everywhere'][0]:.3f}",
        )
    return table


@torch.inference_mode()
def main() -> None:
    """Profile, optimise, decode, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inflate", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--profile-prompts", type=int, default=32)
    parser.add_argument("--gen-len", type=int, default=128)
    parser.add_argument("--repetitions", type=int, default=8)
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 1.0, 0.6, 0.2])
    parser.add_argument("--no-budgets", dest="budgets", action="store_false", help="leave the fixed budgets at temperature 0 out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    started = time.perf_counter()
    pair = pair_for(arguments)
    profiled = load_prompts("stdlib", pair.tokenizer, num_prompts=arguments.profile_prompts, prompt_len=PROMPT_LEN)
    prompts = load_prompts("stdlib", pair.tokenizer, num_prompts=arguments.prompts, prompt_len=PROMPT_LEN, start=profiled.end)
    context, rules = (PROMPT_LEN + arguments.gen_len // 2,), tuple(map(Drafting, RULES))
    samplings = tuple(map(Sampling, arguments.temperatures))
    cells = LatencySettings(contexts=context, repetitions=arguments.repetitions, samplings=samplings, draftings=rules)
    latency = profile_latency(pair, cells)
    rows: list[dict[str, Any]] = []
    figures: dict[str, Any] = {"rows": rows, "provenance": pair.provenance(dataset=prompts.label)}
    if torch.device(arguments.device).type == "cuda":
        size = {"prompts": 200, "positions": 128, "vocabulary": 32_000, "ranks": 32, "draws": 8}
        figures["profiling_seconds"] = size | profiling_seconds(arguments.device, **size)
        print(f"profiling beyond the forward passes: {figures['profiling_seconds']}", file=sys.stderr, flush=True)
    console = Console(width=160)
    for temperature in arguments.temperatures:
        profiles: dict[str, AcceptanceProfile] = {}
        settings = {
            rule: AcceptanceSettings(Sampling(temperature), Drafting(rule), gen_len=arguments.gen_len, batch_size=32, seed=arguments.seed)
            for rule in RULES
        }
        for rule in RULES:
            profiles[rule] = profile_acceptance(pair, profiled, settings[rule])
        systems = systems_for(profiles, latency, BUDGETS if arguments.budgets and temperature == 0 else ())
        reports = decode_all(pair, prompts, systems, Sampling(temperature), arguments.gen_len, arguments.seed)
        for system, report in zip(systems, reports, strict=True):
            fits = system.plan.drafter == SpeculationTree.drafter and system.plan.size > 1 and system.drafting.verifier == "sequential"
            chosen = settings[system.drafting.rule]
            visited = visited_acceptance(pair, system.plan, prompts, report.results, chosen) if fits else None  # type: ignore[arg-type]
            rows.append(row_of(system, report, visited, temperature))
        if arguments.out:
            write_json(arguments.out, figures | {"seconds": time.perf_counter() - started})
    title = f"{len(prompts)} prompts of {PROMPT_LEN} + {arguments.gen_len} tokens, {pair.target.name}, {pair.target.device}, {pair.target.dtype}"
    console.print(table_of(rows, title))


if __name__ == "__main__":
    main()
