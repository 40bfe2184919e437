"""Measure the ways to call treeopt side by side in one run: `evaluate`, `treeopt.generate`, and `tree_generate` inside transformers' `generate`.

`python -m benchmarks.calls --out FILE` takes the embedded pair on the CPU; `--inflate` gives it the cost of Llama-2-7B and llama-68m
(fp16, a GPU is needed). All ways decode every prompt in turn, greedily and with the same tree, in an order that rotates from prompt to
prompt; then all decode without a tree, beside `generate` of transformers with a static, compiled cache. Times are from the first token of a
text to its last, so prompt passes are outside.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import treeopt
from benchmarks.decoding import pair_for, treeopt_seconds
from treespec.data.prompts import Prompt
from treespec.decoding.engine import Engine
from treespec.decoding.loop import Request, decode_autoregressive, decode_speculative
from treespec.decoding.timing import now
from treespec.files.writing import write_json
from treespec.integrations.transformers import tree_generate
from treespec.models.pairs import Pair
from treespec.models.tree_model import TreeModel
from treespec.trees.tree import SpeculationTree

Way = Callable[[Prompt], tuple[list[int], float]]
"""A way to decode a prompt: it returns (generated tokens, seconds from the first one to the last)."""


class Clock:
    """A streamer that notes when the first token came, and when the text ended."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.puts, self.started, self.ended = device, 0, 0.0, 0.0

    def put(self, tokens: torch.Tensor) -> None:
        """Note the time of the first tokens behind the prompt."""
        self.puts += 1
        if self.puts == 2:
            self.started = now(self.device)

    def end(self) -> None:
        """Note the time of the end."""
        self.ended = now(self.device)


def ways(pair: Pair, tree: SpeculationTree, gen_len: int) -> dict[str, Way]:
    """Return the ways by name; those of `transformers` are not treeopt's."""
    target, draft = pair.target, pair.draft
    engine = Engine(target, draft, lambda reason: print(reason, file=sys.stderr)) if target.device.type == "cuda" else None

    def evaluating(prompt: Prompt, plan: SpeculationTree | None) -> tuple[list[int], float]:
        request = Request(prompt.ids, gen_len, pair.eos_token_ids)
        if plan is None:
            return treeopt_seconds(decode_autoregressive(target, request, engine=engine), target.device)[:2]
        return treeopt_seconds(decode_speculative(target, draft, plan, request, engine=engine), target.device)[:2]

    def generating(prompt: Prompt, plan: SpeculationTree | None) -> tuple[list[int], float]:
        written = treeopt.generate(pair, prompt.ids, plan=plan, max_new_tokens=gen_len)
        return list(written.ids), written.seconds

    def inside(prompt: Prompt, name: str, **options: Any) -> tuple[list[int], float]:
        ids = torch.tensor([prompt.ids], device=target.device)
        clock = Clock(target.device)
        module: Any = target.module
        known = {"attention_mask": torch.ones_like(ids), "max_new_tokens": gen_len, "do_sample": False, "pad_token_id": 0, name: clock}
        with torch.no_grad():
            found = module.generate(ids, **known, **options)
        return found[0, len(prompt.ids) :].tolist(), clock.ended - clock.started

    assert isinstance(draft, TreeModel)
    with_tree = {"custom_generate": tree_generate, "draft": draft.module, "plan": tree}
    return {
        "evaluate": lambda prompt: evaluating(prompt, tree),
        "treeopt.generate": lambda prompt: generating(prompt, tree),
        "tree_generate": lambda prompt: inside(prompt, "tree_streamer", **with_tree),
        "evaluate, no tree": lambda prompt: evaluating(prompt, None),
        "treeopt.generate, no tree": lambda prompt: generating(prompt, None),
        "tree_generate, no tree": lambda prompt: inside(prompt, "tree_streamer", custom_generate=tree_generate),
        "transformers, static cache, compiled": lambda prompt: inside(prompt, "streamer", cache_implementation="static"),
    }


def main() -> None:
    """Decode, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inflate", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--gen-len", type=int, default=128)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    pair = pair_for(arguments)
    prompts = treeopt.load_prompts("stdlib", pair, num_prompts=arguments.prompts, prompt_len=128, start=32)
    acceptance = treeopt.profile_acceptance(pair, treeopt.load_prompts("stdlib", pair, num_prompts=16, prompt_len=128), gen_len=64)
    tree = treeopt.grow(acceptance, size=64, depth=8).tree
    systems = ways(pair, tree, arguments.gen_len)
    names = list(systems)
    totals: dict[str, dict[str, Any]] = {name: {"tokens": 0, "seconds": 0.0, "identical": 0} for name in names}
    for index, prompt in enumerate(prompts):
        for name in names if index == 0 else ():
            systems[name](prompt)  # warms up
        turn = index % len(names)
        outputs = {}
        for name in names[turn:] + names[:turn]:
            outputs[name], seconds = systems[name](prompt)
            totals[name]["seconds"] += seconds
            totals[name]["tokens"] += len(outputs[name]) - 1
        for name in names:
            totals[name]["identical"] += outputs[name] == outputs["evaluate, no tree"]
        print(f"{index + 1}/{len(prompts)} prompts", file=sys.stderr, flush=True)
    for total in totals.values():
        total["tokens_per_second"] = total["tokens"] / total["seconds"]
    table = Table(title=f"{len(prompts)} prompts of 128 + {arguments.gen_len} tokens, greedy, tree of {tree.size} nodes, {pair!r}")
    for column in ("call", "tokens/s", "x evaluate", "identical"):
        table.add_column(column, justify="left" if column == "call" else "right")
    for name, total in totals.items():
        base = totals["evaluate" if name in names[:3] else "evaluate, no tree"]
        ratio = total["tokens_per_second"] / base["tokens_per_second"]
        table.add_row(name, f"{total['tokens_per_second']:.1f}", f"{ratio:.3f}", f"{total['identical']}/{len(prompts)}")
    Console(width=140).print(table)
    if arguments.out:
        write_json(
            arguments.out,
            {
                "calls": totals,
                "tree": {"size": tree.size, "depth": tree.depth},
                "gen_len": arguments.gen_len,
                "provenance": pair.provenance(dataset=prompts.label),
            },
        )


if __name__ == "__main__":
    main()
