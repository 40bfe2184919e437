"""Audit what treeopt predicts and picks: trees run end to end, beside replay and beside predictions from other prompts.

`python -m benchmarks.audit --small --out FILE` takes the embedded pair on the CPU; `--inflate` gives it the cost of Llama-2-7B and llama-68m (fp16, a GPU is
needed). The first `--profiled` prompts are profiled and traced, the next `--prompts` are traced and decoded, greedily, with the tree that the profiles pick,
the best trees of many sizes and depths, chains, k-ary trees and published growmaps. They run in groups: prompt by prompt, all trees of a group in turn for
`--rounds` rounds, each group with the picked tree, and the first with autoregressive decoding. A group that is done is kept beside FILE, and so are the
profiles: the same command goes on where it was stopped. `docs/predicting.md` says what is audited.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.audit_figures import candidates, joined, row_of, splits
from benchmarks.decoding import pair_for
from benchmarks.end_to_end import figure, run_all, say, table_of
from treeopt.profiles.acceptance import AcceptanceProfile, read_acceptance
from treeopt.profiles.latency import LatencyProfile, read_latency
from treeopt.profiles.trace import Trace, read_trace
from treeopt.profiling.acceptance import trace_acceptance
from treeopt.profiling.latency import profile_latency
from treeopt.profiling.settings import AcceptanceSettings, LatencySettings
from treespec.data.prompts import PromptSet, load_prompts
from treespec.files.fingerprint import fingerprint
from treespec.files.journal import Journal
from treespec.files.writing import write_json
from treespec.models.pairs import Pair

PROMPT_LEN = 128


def profiles(
    pair: Pair, tuning: PromptSet, held_out: PromptSet, options: argparse.Namespace, base: Path | None
) -> tuple[AcceptanceProfile, LatencyProfile, Trace, Trace]:
    """Return the profiles, and the traces of both halves; with `base`, they are kept beside it, and those that lie there are taken."""
    names = [
        None if base is None else base.with_suffix(f".{what}.json") for what in ("acceptance", "latency", "profiled-trace", "decoded-trace")
    ]
    files = [name for name in names if name is not None]
    if files and all(file.exists() for file in files):
        say(f"the profiles beside {base} are taken; delete them to profile again")
        return read_acceptance(files[0]), read_latency(files[1]), read_trace(files[2]), read_trace(files[3])
    settings = AcceptanceSettings(gen_len=options.gen_len)
    acceptance, first = trace_acceptance(pair, tuning, settings)
    _, second = trace_acceptance(pair, held_out, settings)
    sizes = tuple(size for size in (1, 2, 4, 8, 16, 32, 64) if size <= options.largest) if options.small else None
    widths = None if sizes is None else sizes[:-1]
    times = LatencySettings(sizes, widths, contexts=(PROMPT_LEN + options.gen_len // 2,))
    latency = profile_latency(pair, times, notice=say)
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
    key = fingerprint(
        acceptance.to_json(), latency.to_json(), [one.tree.parents for one in known], held_out.fingerprint, options.gen_len, options.rounds
    )
    plans = {one.name: one.tree for one in known}
    with Journal(None if out is None else out.with_suffix(".journal"), key) as journal:
        ran = run_all(pair, plans, held_out, options.gen_len, options.rounds, journal)
    rows = [row_of(one, acceptance, latency, context, first, second, ran.figures[one.name]) for one in known]
    audited = [one for one in known if one.audited]
    found = splits([one.tree for one in audited], joined(first, second), len(acceptance.rank_probability), options.splits)
    for one, split in zip(audited, found, strict=True):
        next(row for row in rows if row["name"] == one.name)["splits"] = split
    return {
        "schema": "treeopt.benchmark.audit",
        "version": 1,
        "rows": rows,
        "autoregressive": ran.alone | {"predicted_seconds": latency.at_context(context).autoregressive_seconds()},
        "picked_seconds_per_token": ran.drift,
        "settings": {name: getattr(options, name) for name in ("profiled", "prompts", "gen_len", "rounds", "largest", "choices", "splits")},
        "context": context,
        "unstable": latency.warning,
        "seconds": time.perf_counter() - started,
        "provenance": pair.provenance(dataset=prompts.label),
    }


def cells_of(row: Mapping[str, Any]) -> list[str]:
    """Return the cells of a tree."""
    told, found, split = row["predicted"], row["measured"], row.get("splits")
    return [
        *(row["name"], str(row["size"]), str(row["depth"]), f"{found['tokens_per_step']:.3f}", f"{row['replay_error']:+.2%}"),
        *(
            figure(told["tokens_per_step"], ".3f"),
            f"{1e3 * found['seconds_per_token']:.3f}",
            figure(row["seconds_per_token_error"], "+.1%"),
        ),
        "" if split is None else f"{split['held'] / split['splits']:.0%}",
    ]


def main() -> None:
    """Profile, decode with every tree, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--inflate", action="store_true")
    which.add_argument("--small", action="store_true")
    parser.add_argument("--profiled", type=int, default=100, help="prompts that are profiled (default 100)")
    parser.add_argument("--prompts", type=int, default=16, help="prompts that are decoded (default 16)")
    parser.add_argument("--gen-len", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=1, help="times that each prompt is decoded with each tree (default 1)")
    parser.add_argument("--largest", type=int, help="largest tree (default: 512 on a GPU, 64 on a CPU)")
    parser.add_argument("--choices", type=int, default=40, help="best trees of a size and a depth, at most (default 40)")
    parser.add_argument("--splits", type=int, default=200, help="random halves of the prompts (default 200)")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    options.device = "cuda" if options.inflate else "cpu"
    options.largest = options.largest or (512 if options.inflate else 64)
    pair = pair_for(options)
    prompts = load_prompts("stdlib", pair.tokenizer, num_prompts=options.profiled + options.prompts, prompt_len=PROMPT_LEN)
    figures = audit(pair, prompts, options)
    columns = ("tree", "size", "depth", "tokens/step", "replay", "predicted", "ms/token", "predicted", "splits held")
    Console(width=160).print(table_of("trees", columns, figures["rows"], cells_of))
    print(json.dumps(figures["autoregressive"]), file=sys.stderr)
    if options.out is not None:
        write_json(options.out, figures)
        for part in (".journal", ".acceptance.json", ".latency.json", ".profiled-trace.json", ".decoded-trace.json"):
            options.out.with_suffix(part).unlink(missing_ok=True)


if __name__ == "__main__":
    main()
