"""Audit what treeopt predicts and picks: trees run end to end, beside replay and beside predictions from other prompts.

`python -m benchmarks.audit --small --out FILE` takes the embedded pair on the CPU; `--inflate` gives it the cost of Llama-2-7B and llama-68m (fp16, a GPU is
needed). The first `--profiled` prompts are profiled and traced, the next `--prompts` are traced and decoded, greedily, with the tree that the profiles pick,
the best trees of many sizes and depths, chains, k-ary trees and published growmaps. They run in groups: prompt by prompt, all trees of a group in turn for
`--rounds` rounds, each group with the picked tree and with autoregressive decoding. A group that is done is kept beside FILE, and so are the profiles: the
same command goes on where it was stopped. `docs/predicting.md` says what is audited.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.audit_figures import ALONE, PICKED, Candidate, candidates, joined, measured, row_of, splits
from benchmarks.decoding import pair_for
from treeopt.profiles.acceptance import AcceptanceProfile, read_acceptance
from treeopt.profiles.latency import LatencyProfile, read_latency
from treeopt.profiles.trace import Trace, read_trace
from treeopt.profiling.acceptance import trace_acceptance
from treeopt.profiling.latency import profile_latency
from treeopt.profiling.settings import AcceptanceSettings, LatencySettings
from treespec.data.prompts import PromptSet, load_prompts
from treespec.decoding.engine import Engine
from treespec.decoding.loop import Request, decode_autoregressive, decode_speculative
from treespec.decoding.plans import Plan
from treespec.decoding.timing import now
from treespec.files.fingerprint import fingerprint
from treespec.files.journal import Journal
from treespec.files.writing import write_json
from treespec.models.pairs import Pair
from treespec.trees.tree import SpeculationTree

PROMPT_LEN = 128
GROUP = 12
"""Trees of a group, beside the picked one and autoregressive decoding: an engine keeps 16 captured steps."""
Measured = dict[str, list[list[float]]]
"""For each name, and each prompt: tokens without the first, steps, and median seconds over the rounds."""


def decode(pair: Pair, tree: Plan | None, ids: tuple[int, ...], gen_len: int, engine: Engine | None) -> tuple[int, int, float]:
    """Decode one text and return its tokens without the first, its steps and its seconds without the prompt pass."""
    request = Request(ids, gen_len, pair.eos_token_ids)
    if tree is None:
        records = decode_autoregressive(pair.target, request, engine=engine)
    else:
        records = decode_speculative(pair.target, pair.draft, tree, request, engine=engine)
    next(records)
    started = now(pair.target.device)
    steps = list(records)
    return sum(len(step.tokens) for step in steps), len(steps), now(pair.target.device) - started


def run_group(pair: Pair, trees: Mapping[str, Plan | None], prompts: PromptSet, gen_len: int, rounds: int) -> Measured:
    """Decode every prompt with every tree, in an order that rotates; the first prompt is decoded once more before, as a warm-up.

    The warm-up begins with the tree of most candidates: a cache that grew later would have the steps before it captured anew.
    """
    engine = Engine(pair.target, pair.draft, _say) if pair.target.device.type == "cuda" else None
    names = list(trees)
    for name in sorted(names, key=lambda name: -_candidates(trees[name])):
        decode(pair, trees[name], prompts.prompts[0].ids, gen_len, engine)
    found: Measured = {name: [] for name in names}
    for place, prompt in enumerate(prompts):
        samples: dict[str, list[tuple[int, int, float]]] = {name: [] for name in names}
        for turn in range(rounds):
            start = (place + turn) % len(names)
            for name in [*names[start:], *names[:start]]:
                samples[name].append(decode(pair, trees[name], prompt.ids, gen_len, engine))
        for name, several in samples.items():
            tokens, steps, _ = several[0]
            found[name].append([tokens, steps, statistics.median(seconds for _, _, seconds in several)])
    return found


def _candidates(plan: Plan | None) -> int:
    return 1 if plan is None else plan.candidates


def groups_of(known: Sequence[Candidate]) -> list[list[Candidate]]:
    """Return the trees beside the picked one, which is the first, in groups."""
    others = known[1:]
    return [list(others[at : at + GROUP]) for at in range(0, len(others), GROUP)]


def profiles(
    pair: Pair, tuning: PromptSet, held_out: PromptSet, options: argparse.Namespace, base: Path | None
) -> tuple[AcceptanceProfile, LatencyProfile, Trace, Trace]:
    """Return the profiles, and the traces of both halves; with `base`, they are kept beside it, and those that lie there are taken."""
    names = [
        None if base is None else base.with_suffix(f".{what}.json") for what in ("acceptance", "latency", "profiled-trace", "decoded-trace")
    ]
    files = [name for name in names if name is not None]
    if files and all(file.exists() for file in files):
        _say(f"the profiles beside {base} are taken; delete them to profile again")
        return read_acceptance(files[0]), read_latency(files[1]), read_trace(files[2]), read_trace(files[3])
    settings = AcceptanceSettings(gen_len=options.gen_len)
    acceptance, first = trace_acceptance(pair, tuning, settings)
    _, second = trace_acceptance(pair, held_out, settings)
    sizes = tuple(size for size in (1, 2, 4, 8, 16, 32, 64) if size <= options.largest) if options.small else None
    widths = None if sizes is None else sizes[:-1]
    times = LatencySettings(sizes, widths, contexts=(PROMPT_LEN + options.gen_len // 2,))
    latency = profile_latency(pair, times, notice=_say)
    if files:
        acceptance.write(files[0])
        latency.write(files[1])
        first.write(files[2])
        second.write(files[3])
    return acceptance, latency, first, second


@torch.inference_mode()
def audit(pair: Pair, prompts: PromptSet, options: argparse.Namespace) -> dict[str, Any]:
    """Run everything that is not done yet and return all figures."""
    started = time.perf_counter()
    tuning, held_out = prompts.split(options.profiled)
    out: Path | None = options.out
    acceptance, latency, first, second = profiles(pair, tuning, held_out, options, out)
    context = latency.contexts[0]
    known = candidates(acceptance, latency, context, options.largest, options.choices)
    rounds, groups = options.rounds, groups_of(known)
    key = fingerprint(
        acceptance.to_json(), latency.to_json(), [one.tree.parents for one in known], held_out.fingerprint, options.gen_len, rounds
    )
    rows: list[dict[str, Any]] = []
    picked: list[float] = []
    alone: dict[str, Any] = {}
    with Journal(None if out is None else out.with_suffix(".journal"), key) as journal:
        for number, group in enumerate(groups):
            trees: dict[str, SpeculationTree | None] = {ALONE: None, PICKED: known[0].tree, **{one.name: one.tree for one in group}}
            runs = journal.piece(str(number), lambda trees=trees: run_group(pair, trees, held_out, options.gen_len, rounds))  # type: ignore[misc]
            for one in ([known[0]] if not number else []) + group:
                figures = measured(runs[one.name], runs[PICKED])
                rows.append(row_of(one, acceptance, latency, context, second, figures))
            if not number:
                alone = measured(runs[ALONE], runs[PICKED])
            picked.append(measured(runs[PICKED], runs[PICKED])["seconds_per_token"])
            _say(f"{len(rows)} of {len(known)} trees, {time.perf_counter() - started:.0f} s")
    audited = [one for one in known if one.audited]
    found = splits([one.tree for one in audited], joined(first, second), len(acceptance.rank_probability), options.splits)
    for one, split in zip(audited, found, strict=True):
        next(row for row in rows if row["name"] == one.name)["splits"] = split
    return {
        "schema": "treeopt.benchmark.audit",
        "version": 1,
        "rows": rows,
        "autoregressive": alone | {"predicted_seconds": latency.at_context(context).autoregressive_seconds()},
        "picked_seconds_per_token": picked,
        "settings": {name: getattr(options, name) for name in ("profiled", "prompts", "gen_len", "rounds", "largest", "choices", "splits")},
        "context": context,
        "unstable": latency.warning,
        "seconds": time.perf_counter() - started,
        "provenance": pair.provenance(dataset=prompts.label),
    }


def table_of(rows: list[dict[str, Any]]) -> Table:
    """Return the trees as a printable table, the fastest first."""
    table = Table(title="trees end to end, the fastest first; x picked: tokens per second over those of the picked tree in the same group")
    for column in ("tree", "size", "depth", "tokens/step", "replay", "predicted", "ms/token", "predicted", "x picked", "splits held"):
        table.add_column(column, justify="left" if column == "tree" else "right")
    for row in sorted(rows, key=lambda row: -row["measured"]["over_picked"]):
        told, found, split = row["predicted"], row["measured"], row.get("splits")
        ends = found["over_picked_interval_95"]
        table.add_row(
            *(row["name"], str(row["size"]), str(row["depth"]), f"{found['tokens_per_step']:.3f}", f"{row['replay_error']:+.2%}"),
            "-" if told["tokens_per_step"] is None else f"{told['tokens_per_step']:.3f}",
            f"{1e3 * found['seconds_per_token']:.3f}",
            "-" if row["seconds_per_token_error"] is None else f"{row['seconds_per_token_error']:+.1%}",
            f"{found['over_picked']:.3f}" + ("" if ends is None else f" [{ends[0]:.3f}, {ends[1]:.3f}]"),
            "" if split is None else f"{split['held'] / split['splits']:.0%}",
        )
    return table


def main() -> None:
    """Profile, decode with every tree, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--inflate", action="store_true")
    which.add_argument("--small", action="store_true")
    parser.add_argument("--profiled", type=int, default=100, help="prompts that are profiled (default 100)")
    parser.add_argument("--prompts", type=int, default=16, help="prompts that are decoded (default 16)")
    parser.add_argument("--gen-len", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=2, help="times that each prompt is decoded with each tree (default 2)")
    parser.add_argument("--largest", type=int, help="largest tree (default: 512 on a GPU, 64 on a CPU)")
    parser.add_argument("--choices", type=int, default=44, help="best trees of a size and a depth, at most (default 44)")
    parser.add_argument("--splits", type=int, default=200, help="random halves of the prompts (default 200)")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    options.device = "cuda" if options.inflate else "cpu"
    options.largest = options.largest or (512 if options.inflate else 64)
    pair = pair_for(options)
    prompts = load_prompts("stdlib", pair.tokenizer, num_prompts=options.profiled + options.prompts, prompt_len=PROMPT_LEN)
    figures = audit(pair, prompts, options)
    Console(width=160).print(table_of(figures["rows"]))
    print(json.dumps(figures["autoregressive"]), file=sys.stderr)
    if options.out is not None:
        write_json(options.out, figures)
        for part in (".journal", ".acceptance.json", ".latency.json", ".profiled-trace.json", ".decoded-trace.json"):
            options.out.with_suffix(part).unlink(missing_ok=True)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
