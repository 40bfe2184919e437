"""Measure decoding end to end, side by side in one run: transformers' `generate`, its assisted generation, treeopt without and with a tree.

`python -m benchmarks.decoding --out FILE` takes the embedded pair on the CPU; `--inflate` gives it the cost of Llama-2-7B
and llama-68m (fp16, a GPU is needed). The growmap comes from profiles taken in the same run on other prompts. All four
decode every prompt in turn, greedily, in an order that rotates from prompt to prompt; prompt passes are outside treeopt's
times, and inside those of transformers.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.inflate import inflated_pair
from treeopt.optimizer.search import optimize
from treeopt.profiling.acceptance import profile_acceptance
from treeopt.profiling.latency import profile_latency
from treeopt.profiling.settings import AcceptanceSettings, LatencySettings
from treespec.data.prompts import load_prompts
from treespec.decoding.engine import Engine
from treespec.decoding.loop import Request, StepRecord, decode_autoregressive, decode_speculative
from treespec.decoding.timing import now
from treespec.files.writing import write_json
from treespec.models.pairs import Pair, load_pair
from treespec.models.tree_model import TreeModel


def pair_for(arguments: argparse.Namespace) -> Pair:
    """Return the embedded pair, inflated or as it is."""
    if not arguments.inflate:
        return load_pair("embedded-target", "embedded-draft", device=arguments.device)
    big = inflated_pair(device=arguments.device, dtype=torch.float16)
    target, draft = TreeModel(big.target, name="inflated-llama-2-7b"), TreeModel(big.draft, name="inflated-llama-68m")
    return Pair(target, big.tokenizer, target.eos_token_ids, draft=draft)


def transformers_seconds(pair: Pair, prompt: tuple[int, ...], gen_len: int, assisted: bool) -> tuple[list[int], float]:
    """Return (generated tokens, seconds) of `generate`, with the draft as its assistant or without."""
    ids = torch.tensor([prompt], device=pair.target.device)
    assert isinstance(pair.draft, TreeModel)
    helper: dict[str, Any] = {"assistant_model": pair.draft.module} if assisted else {}
    started = now(pair.target.device)
    output: Any = pair.target.module.generate(  # type: ignore[operator]
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=gen_len, do_sample=False, pad_token_id=0, **helper
    )
    return output[0, len(prompt) :].tolist(), now(pair.target.device) - started


def treeopt_seconds(records: Any, device: torch.device) -> tuple[list[int], float, int]:
    """Return (generated tokens, seconds after the prompt pass, steps) of a decoding."""
    first: StepRecord = next(records)
    started = now(device)
    steps: list[StepRecord] = list(records)
    seconds = now(device) - started
    return [*first.tokens, *(t for s in steps for t in s.tokens)], seconds, len(steps)


@torch.inference_mode()
def main() -> None:
    """Profile, optimise, decode, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inflate", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--gen-len", type=int, default=128)
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    pair = pair_for(arguments)
    profiled = load_prompts("stdlib", pair.tokenizer, num_prompts=32, prompt_len=128)
    prompts = load_prompts("stdlib", pair.tokenizer, num_prompts=arguments.prompts, prompt_len=128, start=profiled.end)
    acceptance = profile_acceptance(pair, profiled, AcceptanceSettings(gen_len=arguments.gen_len, batch_size=32))
    cells = LatencySettings(contexts=(128 + arguments.gen_len // 2,), repetitions=arguments.repetitions)
    chosen = optimize(acceptance, latency=profile_latency(pair, cells))
    target, draft, tree = pair.target, pair.draft, chosen.tree

    engine = Engine(target, draft, lambda reason: print(reason, file=sys.stderr)) if target.device.type == "cuda" else None

    def tree_decoding(request: Request) -> tuple[list[int], float, int]:
        if tree.size == 1:
            return treeopt_seconds(decode_autoregressive(target, request, engine=engine), target.device)
        records = decode_speculative(target, draft, tree, request, engine=engine)
        return treeopt_seconds(records, target.device)

    systems: dict[str, Callable[[Request], tuple[list[int], float, int]]] = {
        "transformers generate": lambda r: (*transformers_seconds(pair, r.prompt, r.gen_len, False), r.gen_len),
        "transformers assisted": lambda r: (*transformers_seconds(pair, r.prompt, r.gen_len, True), r.gen_len),
        "treeopt autoregressive": lambda r: treeopt_seconds(decode_autoregressive(target, r, engine=engine), target.device),
        "treeopt tree": tree_decoding,
    }
    totals = {name: {"tokens": 0, "seconds": 0.0, "steps": 0, "identical": 0} for name in systems}
    names = list(systems)
    started = time.perf_counter()
    for index, prompt in enumerate(prompts):
        request = Request(prompt.ids, arguments.gen_len, pair.eos_token_ids)
        if index == 0:
            for name in names:  # warm-up
                systems[name](request)
        outputs: dict[str, list[int]] = {}
        for name in names[index % 4 :] + names[: index % 4]:
            outputs[name], seconds, steps = systems[name](request)
            totals[name]["seconds"] += seconds
            totals[name]["steps"] += steps
            totals[name]["tokens"] += len(outputs[name]) - name.startswith("treeopt")
        for name in names:
            totals[name]["identical"] += outputs[name] == outputs["transformers generate"]
        print(f"{index + 1}/{len(prompts)} prompts, {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    rate = {name: t["tokens"] / t["seconds"] for name, t in totals.items()}
    table = Table(
        title=f"{len(prompts)} prompts of 128 + {arguments.gen_len} tokens, greedy, {target.name} and {draft.name}, {target.device}, {target.dtype}"
    )
    for column in ("system", "tokens/s", "ms/token", "x generate", "x our autoregressive", "tokens/step", "identical to generate"):
        table.add_column(column, justify="left" if column == "system" else "right")
    for name, total in totals.items():
        per_step = f"{total['tokens'] / total['steps']:.3f}" if name.startswith("treeopt") else "-"
        table.add_row(
            name,
            f"{rate[name]:.1f}",
            f"{1e3 / rate[name]:.3f}",
            f"{rate[name] / rate['transformers generate']:.2f}",
            f"{rate[name] / rate['treeopt autoregressive']:.2f}",
            per_step,
            f"{total['identical']}/{len(prompts)}",
        )
    Console(width=140).print(table)
    predicted = {
        "tokens_per_step": chosen.expected_tokens_per_step,
        "seconds_per_step": chosen.predicted_seconds_per_step,
        "speedup": chosen.predicted_speedup,
    }
    figures = {
        "systems": {name: {**total, "tokens_per_second": rate[name]} for name, total in totals.items()},
        "tree": {"size": tree.size, "depth": tree.depth, "parents": list(tree.parents)},
        "predicted": predicted,
        "rank_probability": list(acceptance.rank_probability),
        "provenance": pair.provenance(dataset=prompts.label),
    }
    if arguments.out:
        write_json(arguments.out, figures)
    else:
        print(json.dumps(figures["predicted"]))


if __name__ == "__main__":
    main()
