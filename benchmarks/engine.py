"""Measure how close the engine comes to the hardware: compare captured steps with the time that the memory needs, and with other decoders.

`python -m benchmarks.engine --out FILE` needs a CUDA GPU and no network. The pair is the embedded one with the cost of Llama-2-7B and
llama-68m (fp16); models with grouped K/V heads (`--no-gqa` leaves them out) have random weights. The floor of a pass is the bytes of the
weights it multiplies (and of the K/V rows it attends to) over the bandwidth of reading 4 GB at once, measured in the same run.
"""

import argparse
import gc
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.decoding import pair_for, transformers_seconds, treeopt_seconds
from benchmarks.passes import GQA, Row, flat, gqa_rows, pass_seconds, read_bandwidth, weight_bytes
from treeopt.optimizer.search import optimize
from treeopt.profiling.acceptance import profile_acceptance
from treeopt.profiling.latency import profile_latency
from treeopt.profiling.settings import AcceptanceSettings, LatencySettings
from treespec.data.prompts import PromptSet, load_prompts
from treespec.decoding.engine import CapturedSteps, Engine
from treespec.decoding.loop import Request, decode_autoregressive, decode_speculative
from treespec.decoding.step import StepSpec
from treespec.decoding.timing import CapturedTimer
from treespec.evaluation.ties import closeness
from treespec.files.writing import write_json
from treespec.models.pairs import Pair
from treespec.models.tree_model import TreeModel
from treespec.trees.tree import SpeculationTree

PROMPT_LEN = 128
CONTEXT = 192


def step_parts(pair: Pair, tree: SpeculationTree, text: torch.Tensor, context: int) -> tuple[dict[str, float], float]:
    """Return (median seconds of each part of a captured step, seconds of the whole step without timed parts)."""
    room = context + 3 * tree.size + 64
    for model in (pair.target, pair.draft):
        model.allocate(room)
    timed = CapturedSteps(StepSpec(tree).build(pair.target, pair.draft, CapturedTimer()), pair.target.device)
    plain = CapturedSteps(StepSpec(tree).build(pair.target, pair.draft), pair.target.device)
    for model in (pair.target, pair.draft):
        assert isinstance(model, TreeModel)
        model.prefill(text[:context])
    samples: list[dict[str, float]] = []
    wholes = []
    for _ in range(12):
        timed.begin(text[context - 1 : context + 1], context, None)
        timed.launch(1)
        found: dict[str, float] = {}
        for name, seconds in timed.read(context)[2]:
            found[name] = found.get(name, 0.0) + seconds
        samples.append(found)
        plain.begin(text[context - 1 : context + 1], context, None)
        wholes.append(plain.seconds(4))
    return {name: statistics.median(s[name] for s in samples[2:]) for name in samples[0]}, statistics.median(wholes[2:])


def ready_seconds(pair: Pair) -> float:
    """Return the seconds from loaded models to the first tokens of a tree of 64 nodes, if nothing was compiled or captured before."""
    started = time.perf_counter()
    request = Request(tuple(range(5, 5 + PROMPT_LEN)), 9)
    list(decode_speculative(pair.target, pair.draft, SpeculationTree.k_chains(9, 7), request, engine=Engine(pair.target, pair.draft)))
    torch.cuda.synchronize()
    return time.perf_counter() - started


def decode_all(pair: Pair, trees: dict[str, SpeculationTree], prompts: PromptSet, gen_len: int) -> dict[str, dict[str, Any]]:
    """Decode every prompt by transformers and by the engine, in turn; compare with `generate`, with the logit gap where outputs differ."""
    target, draft = pair.target, pair.draft
    engine = Engine(target, draft, notice=lambda reason: print(reason, file=sys.stderr))
    systems: dict[str, Any] = {
        "transformers generate": lambda r: (*transformers_seconds(pair, r.prompt, r.gen_len, False), r.gen_len),
        "transformers assisted": lambda r: (*transformers_seconds(pair, r.prompt, r.gen_len, True), r.gen_len),
        "autoregressive": lambda r: treeopt_seconds(decode_autoregressive(target, r, engine=engine), target.device),
    }
    for label, tree in trees.items():
        systems[label] = lambda r, tree=tree: treeopt_seconds(decode_speculative(target, draft, tree, r, engine=engine), target.device)
    totals: dict[str, dict[str, Any]] = {
        name: {"tokens": 0, "seconds": 0.0, "steps": 0, "identical": 0, "partings": []} for name in systems
    }
    for index, prompt in enumerate(prompts):
        request = Request(prompt.ids, gen_len, pair.eos_token_ids)
        names = list(systems)
        for name in reversed(names) if index == 0 else ():  # warms up, the largest cache first
            systems[name](request)
        outputs = {}
        turn = index % len(names)
        for name in names[turn:] + names[:turn]:
            outputs[name], seconds, steps = systems[name](request)
            totals[name]["seconds"] += seconds
            totals[name]["steps"] += steps
            totals[name]["tokens"] += len(outputs[name]) - (not name.startswith("transformers"))
        wanted = outputs["transformers generate"]
        for name in names:
            totals[name]["identical"] += outputs[name] == wanted
            if outputs[name] != wanted:
                at = next((i for i, (a, b) in enumerate(zip(outputs[name], wanted, strict=False)) if a != b), len(wanted))
                totals[name]["partings"].append([at, closeness(target, [*prompt.ids, *wanted[:at]], []).logit_gap])
        print(f"{index + 1}/{len(prompts)} prompts", file=sys.stderr, flush=True)
    for total in totals.values():
        total["tokens_per_second"] = total["tokens"] / total["seconds"]
    return totals


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--gen-len", type=int, default=128)
    parser.add_argument("--repetitions", type=int, default=12)
    parser.add_argument("--no-gqa", dest="gqa", action="store_false")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    arguments.inflate, arguments.device = True, "cuda"
    console = Console(width=150)
    with torch.inference_mode():
        figures = run(arguments, console)
    if arguments.out:
        write_json(arguments.out, figures)


def run(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Run all measurements and return them as data."""
    device = torch.device("cuda", torch.cuda.current_device())
    bandwidth = read_bandwidth(device)
    torch.cuda.empty_cache()
    pair = pair_for(arguments)
    resident = torch.cuda.memory_allocated()
    ready = ready_seconds(pair)
    floor = weight_bytes(pair.target.module) / bandwidth
    profiled = load_prompts("stdlib", pair.tokenizer, num_prompts=32, prompt_len=PROMPT_LEN)
    prompts = load_prompts("stdlib", pair.tokenizer, num_prompts=arguments.prompts, prompt_len=PROMPT_LEN, start=profiled.end)
    acceptance = profile_acceptance(pair, profiled, AcceptanceSettings(gen_len=arguments.gen_len, batch_size=32))
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    latency = profile_latency(pair, LatencySettings(contexts=(CONTEXT,), repetitions=arguments.repetitions))
    profile_seconds = time.perf_counter() - started
    model = latency.at_context(CONTEXT)
    exact = optimize(acceptance, size=64, depth=8).tree
    chosen = optimize(acceptance, latency=latency)
    unseen = {
        f"{size} nodes, depth {depth}": optimize(acceptance, size=size, depth=depth).tree
        for size, depth in ((64, 8), (40, 5), (100, 6), (180, 7))
    }
    text = torch.tensor([*prompts.prompts[0].ids, *prompts.prompts[0].ids], device=device)
    steps: dict[str, Any] = {}
    for label, tree in unseen.items():
        parts, whole = step_parts(pair, tree, text, CONTEXT)
        predicted = model.step_seconds(tree)
        steps[label] = {
            "widths": tree.level_widths,
            "parts": parts,
            "seconds": whole,
            "predicted_seconds": predicted,
            "error": predicted / whole - 1,
        }
    alone = CapturedSteps(StepSpec(None).build(pair.target), device)
    pair.target.prefill(text[:CONTEXT])
    alone.begin(text[CONTEXT - 1 : CONTEXT + 1], CONTEXT, None)
    token = statistics.median(alone.seconds(8) for _ in range(6))
    first = steps["64 nodes, depth 8"]
    rest = sum(first["parts"].get(name, 0.0) for name in ("acceptance", "cache"))
    rows = [
        Row("autoregressive token", 1e3 * token, 1e3 * floor, "1.30"),
        Row("target pass, 64 nodes", 1e3 * model.target_seconds(64), 1e3 * floor, "1.35"),
        Row("target pass, 128 nodes", 1e3 * model.target_seconds(128), 1e3 * floor),
        Row("target pass, 256 nodes", 1e3 * model.target_seconds(256), 1e3 * floor, "2.0"),
        Row("target pass, 512 nodes", 1e3 * model.target_seconds(512), 1e3 * floor),
        Row("target pass, 1,024 nodes", 1e3 * pass_seconds(pair.target, flat(1024), CONTEXT), 1e3 * floor),
        Row("draft level, 1 node", 1e3 * model.draft_seconds(1), goal="0.15 ms"),
        Row("draft level, 64 nodes", 1e3 * model.draft_seconds(64), goal="0.15 ms"),
        Row("everything else in a step", 1e3 * rest, goal="0.15 ms", note="acceptance and cache"),
        *(
            Row(
                f"step, {label}",
                1e3 * s["seconds"],
                goal="5.7 ms" if label == "64 nodes, depth 8" else "",
                note=f"predicted {s['error']:+.1%}",
            )
            for label, s in steps.items()
        ),
    ]
    trees = {"tree of 64 nodes, depth 8": exact, f"chosen tree ({chosen.tree.size}, {chosen.tree.depth})": chosen.tree}
    totals = decode_all(pair, trees, prompts, arguments.gen_len)
    assert isinstance(pair.draft, TreeModel)
    kv = pair.target.cache_bytes + pair.draft.cache_bytes
    memory = {"weights": resident, "kv": kv, "peak_reserved": torch.cuda.max_memory_reserved(), "peak": torch.cuda.max_memory_allocated()}
    if arguments.gqa:
        rows += [row for name, config in GQA.items() for row in gqa_rows(name, config, bandwidth, device)]
    show(console, rows, totals, bandwidth, memory, len(prompts), arguments.gen_len)
    console.print(
        f"ready for the first token of a tree of 64 nodes {ready:.1f} s after loading, everything compiled and captured in between"
    )
    return {
        "bandwidth": bandwidth,
        "rows": [vars(row) for row in rows],
        "steps": steps,
        "systems": totals,
        "chosen": {"parents": list(chosen.tree.parents), "expected": chosen.expected_tokens_per_step, "speedup": chosen.predicted_speedup},
        "memory_bytes": memory,
        "ready_seconds": ready,
        "profile_seconds": profile_seconds,
        "latency": latency.to_json(),
        "rank_probability": list(acceptance.rank_probability),
        "provenance": pair.provenance(dataset=prompts.label),
    }


def show(
    console: Console,
    rows: list[Row],
    totals: dict[str, dict[str, Any]],
    bandwidth: float,
    memory: dict[str, int],
    prompts: int,
    gen_len: int,
) -> None:
    """Print both tables."""
    table = Table(title=f"captured passes and steps; the memory reads {bandwidth / 1e12:.2f} TB/s")
    for column in ("what", "ms", "floor, ms", "x floor", "goal", ""):
        table.add_column(column, justify="left" if column in ("what", "") else "right")
    for row in rows:
        known = row.floor_ms is not None
        table.add_row(
            row.what,
            f"{row.milliseconds:.3f}",
            f"{row.floor_ms:.3f}" if known else "",
            f"{row.milliseconds / row.floor_ms:.2f}" if row.floor_ms else "",
            row.goal,
            row.note,
        )
    console.print(table)
    base = totals["transformers generate"]["tokens_per_second"]
    alone = totals["autoregressive"]["tokens_per_second"]
    table = Table(title=f"{prompts} prompts of {PROMPT_LEN} + {gen_len} tokens, greedy")
    for column in (
        "system",
        "tokens/s",
        "x generate",
        "x autoregressive",
        "tokens/step",
        "ms/step",
        "as generate",
        "largest gap",
    ):
        table.add_column(column, justify="left" if column == "system" else "right")
    for name, total in totals.items():
        ours = not name.startswith("transformers")
        table.add_row(
            name,
            f"{total['tokens_per_second']:.1f}",
            f"{total['tokens_per_second'] / base:.2f}",
            f"{total['tokens_per_second'] / alone:.2f}",
            f"{total['tokens'] / total['steps']:.3f}" if ours else "",
            f"{1e3 * total['seconds'] / total['steps']:.3f}" if ours else "",
            f"{total['identical']}/{prompts}",
            f"{max((gap for _, gap in total['partings']), default=0.0):.4f}",
        )
    console.print(table)
    above = memory["peak"] - memory["weights"] - memory["kv"]
    console.print(
        f"memory: weights {memory['weights'] / 1e9:.2f} GB, K/V {memory['kv'] / 1e9:.2f} GB, at most {above / 1e9:.2f} GB above both"
    )


if __name__ == "__main__":
    main()
