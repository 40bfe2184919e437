"""Compare offloaded decoding with its limit: the bytes of the target's layers over the bandwidth from host to device.

`python -m benchmarks.offload --out FILE` needs one CUDA GPU with 40 GB, 60 GB of host memory and no network. The target is the embedded one
with the cost of Llama-2-13B (fp16; 40 layers, 12.7 billion weights in them), and its layers are in host memory. The draft is the embedded
one with the cost of llama-68m. The tree is the exact one of its size for an acceptance profile of the small pair, taken in the same run;
the large pair gives the small pair's answers. Every prompt is decoded autoregressively and with the tree, in turn: first with all weights
on the GPU, then offloaded, by the same modules, so outputs must be equal. accelerate's `cpu_offload` streams the same weights in between.
Bandwidth is that of copying 1 GiB of pinned memory, the best of several copies. `--smoke` runs everything on the CPU, in small.
"""

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import cpu_offload
from accelerate.hooks import remove_hook_from_module
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer, LlamaForCausalLM

from benchmarks.decoding import treeopt_seconds
from benchmarks.inflate import SHAPES, Shape, inflated
from treeopt.optimizer.search import OptimizationResult, optimize
from treeopt.profiling.acceptance import profile_acceptance
from treeopt.profiling.settings import AcceptanceSettings
from treespec.data.prompts import PromptSet, load_prompts
from treespec.decoding.engine import Engine
from treespec.decoding.loop import Request, decode_autoregressive, decode_speculative
from treespec.decoding.timing import now, timer_for
from treespec.embedded import DRAFT_FOLDER, TARGET_FOLDER
from treespec.files.writing import write_json
from treespec.models.offload import host_memory
from treespec.models.offload.streaming import offload, streamed_bytes
from treespec.models.pairs import Pair, load_pair
from treespec.models.tree_model import TreeModel
from treespec.trees.tree import SpeculationTree

PROMPT_LEN = 128
GOALS = {"x bound, autoregressive": 1.25, "x bound, tree": 1.25, "speed-up / tokens per step": 0.9}


@dataclass(frozen=True)
class Case:
    """The settings of one run."""

    device: torch.device
    dtype: torch.dtype
    target: Shape
    draft: Shape
    size: int
    depth: int
    prompts: int
    gen_len: int
    copied: int
    """Bytes of the copy that the bandwidth is measured with."""


def note(message: str) -> None:
    """Print a message with the time, as progress."""
    print(f"{time.strftime('%H:%M:%S')} {message}", file=sys.stderr, flush=True)


def copy_bandwidth(device: torch.device, count: int) -> float:
    """Return the bytes per second of copying `count` bytes of pinned host memory to the device, the best of several copies."""
    host, there = host_memory.block(count), torch.empty(count, dtype=torch.uint8, device=device)
    host.fill_(1)
    if device.type == "cuda":
        host_memory.pin(host)
    seconds = []
    for _ in range(8):
        started = now(device)
        there.copy_(host, non_blocking=True)
        seconds.append(now(device) - started)
    if device.type == "cuda":
        host_memory.unpin(host)
    return count / min(seconds)


def chosen_tree(case: Case) -> tuple[OptimizationResult, PromptSet, list[float]]:
    """Return (the exact tree of the small pair's profile, prompts that the profile has not seen, the chance of each rank)."""
    small = load_pair("embedded-target", "embedded-draft", device=str(case.device))
    profiled = load_prompts("stdlib", small.tokenizer, num_prompts=32 if case.size > 100 else 4, prompt_len=PROMPT_LEN)
    prompts = load_prompts("stdlib", small.tokenizer, num_prompts=case.prompts, prompt_len=PROMPT_LEN, start=profiled.end)
    acceptance = profile_acceptance(small, profiled, AcceptanceSettings(gen_len=96 if case.size > 100 else 16, batch_size=32))
    return optimize(acceptance, size=case.size, depth=case.depth), prompts, list(acceptance.rank_probability)


def decode_all(pair: Pair, tree: SpeculationTree, prompts: PromptSet, gen_len: int) -> dict[str, dict[str, Any]]:
    """Decode every prompt both ways, in turn; return seconds, tokens, steps and outputs of each way."""
    target, draft = pair.target, pair.draft
    engine = Engine(target, draft, notice=note)
    systems: dict[str, Callable[[Request], Any]] = {
        "autoregressive": lambda request: decode_autoregressive(target, request, engine=engine),
        "tree": lambda request: decode_speculative(target, draft, tree, request, engine=engine),
    }
    totals: dict[str, dict[str, Any]] = {name: {"tokens": 0, "seconds": 0.0, "steps": 0, "outputs": []} for name in systems}
    for name in ("tree", "autoregressive"):  # warms up, the larger cache first
        list(systems[name](Request(prompts.prompts[0].ids, 3)))
    for index, prompt in enumerate(prompts):
        for name in list(systems)[:: 1 if index % 2 == 0 else -1]:
            tokens, seconds, steps = treeopt_seconds(systems[name](Request(prompt.ids, gen_len)), target.device)
            total = totals[name]
            total["tokens"] += len(tokens) - 1
            total["seconds"] += seconds
            total["steps"] += steps
            total["outputs"].append(tokens)
            note(f"prompt {index + 1}/{len(prompts)}, {name}: {len(tokens)} tokens, {1e3 * seconds / steps:.1f} ms per step")
    for total in totals.values():
        total["seconds_per_step"] = total["seconds"] / total["steps"]
        total["tokens_per_step"] = total["tokens"] / total["steps"]
    return totals


def step_parts(pair: Pair, tree: SpeculationTree, prompts: PromptSet) -> dict[str, float]:
    """Return the median seconds of each part of a tree's step, each timed separately."""
    request, timer = Request(prompts.prompts[0].ids, 24), timer_for(pair.target.device)
    samples: list[dict[str, float]] = []
    for record in decode_speculative(pair.target, pair.draft, tree, request, timer=timer):
        found: dict[str, float] = {}
        for name, seconds in record.parts:
            found[name] = found.get(name, 0.0) + seconds
        samples += [found] if found else []
    return {name: statistics.median(sample[name] for sample in samples[1:] or samples) for name in samples[0]}


@torch.inference_mode()
def pass_seconds(module: LlamaForCausalLM, device: torch.device) -> float:
    """Return the seconds of a plain pass over one token, the better of two after a warm-up."""
    token = torch.ones(1, 1, dtype=torch.int64, device=device)
    seconds = []
    for _ in range(3):
        started = now(device)
        module(input_ids=token, use_cache=False)
        seconds.append(now(device) - started)
    return min(seconds[1:])


def run(case: Case) -> dict[str, Any]:
    """Run all measurements and return them as data."""
    device, cuda = case.device, case.device.type == "cuda"
    bandwidth = copy_bandwidth(device, case.copied)
    note(f"{bandwidth / 1e9:.2f} GB/s from pinned host memory")
    chosen, prompts, ranks = chosen_tree(case)
    tree = chosen.tree
    note(f"tree of {tree.size} nodes, depth {tree.depth}: {chosen.expected_tokens_per_step:.3f} tokens per step expected")
    module = inflated(TARGET_FOLDER, case.target, device, case.dtype, seed=0)
    draft = TreeModel(inflated(DRAFT_FOLDER, case.draft, device, case.dtype, seed=1), name="inflated-draft")
    tokenizer = AutoTokenizer.from_pretrained(TARGET_FOLDER)
    resident = TreeModel(module, name="inflated-target", kernels=False)  # by the same operations as when it is offloaded
    on_device = decode_all(Pair(resident, tokenizer, frozenset(), draft=draft), tree, prompts, case.gen_len)
    del resident
    note("weights to host memory")
    module.to("cpu")  # type: ignore[arg-type]
    gc.collect()
    naive: Any = cpu_offload(module, device)
    naive_seconds = pass_seconds(naive, device)
    remove_hook_from_module(naive, recurse=True)
    note(f"accelerate.cpu_offload: {naive_seconds:.3f} s per pass over one token")
    if cuda:
        torch.cuda.empty_cache()
    started = time.perf_counter()
    offload(module, device, name="inflated-target")
    pinned_seconds = time.perf_counter() - started
    ours_seconds = pass_seconds(module, device)
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    target = TreeModel(module, name="inflated-target")
    pair = Pair(target, tokenizer, frozenset(), draft=draft)
    streamed = streamed_bytes(module)
    note(f"{streamed / 1e9:.2f} GB of layers in pinned blocks after {pinned_seconds:.1f} s")
    totals = decode_all(pair, tree, prompts, case.gen_len)
    layers = list(module.model.layers)
    memory = {
        "two_layers": 2 * max(sum(p.nbytes for p in layer.parameters()) for layer in layers),
        "rest_of_target": sum(p.nbytes for p in module.parameters()) - streamed,
        "draft": sum(p.nbytes for p in draft.module.parameters()),
        "kv": target.cache_bytes + draft.cache_bytes,
        "peak": torch.cuda.max_memory_allocated() if cuda else 0,
    }
    parts = step_parts(pair, tree, prompts)
    bound = streamed / bandwidth
    alone, steps = totals["autoregressive"], totals["tree"]
    speedup = (alone["seconds"] / alone["tokens"]) / (steps["seconds"] / steps["tokens"])
    figures = {
        "x bound, autoregressive": alone["seconds_per_step"] / bound,
        "x bound, tree": steps["seconds_per_step"] / bound,
        "speed-up / tokens per step": speedup / steps["tokens_per_step"],
    }
    return {
        "bandwidth": bandwidth,
        "streamed_bytes": streamed,
        "bound_seconds": bound,
        "figures": figures,
        "goals": GOALS,
        "speedup": speedup,
        "systems": totals,
        "on_device": on_device,
        "equal_outputs": {
            "tree and autoregressive": steps["outputs"] == alone["outputs"],
            "offloaded and on the device": all(totals[name]["outputs"] == on_device[name]["outputs"] for name in totals),
        },
        "parts": parts,
        "pass_seconds": {"accelerate": naive_seconds, "treeopt": ours_seconds},
        "pinning_seconds": pinned_seconds,
        "memory_bytes": memory,
        "tree": {
            "size": tree.size,
            "depth": tree.depth,
            "parents": list(tree.parents),
            "expected_tokens_per_step": chosen.expected_tokens_per_step,
        },
        "rank_probability": ranks,
        "prompts": len(prompts),
        "gen_len": case.gen_len,
        "provenance": pair.provenance(dataset=prompts.label),
    }


def show(console: Console, data: dict[str, Any]) -> None:
    """Print the tables."""
    bound = data["bound_seconds"]
    table = Table(
        title=f"{data['streamed_bytes'] / 1e9:.2f} GB per pass at {data['bandwidth'] / 1e9:.2f} GB/s: {1e3 * bound:.1f} ms; "
        f"{data['prompts']} prompts of {PROMPT_LEN} + {data['gen_len']} tokens, greedy"
    )
    for column in ("step", "ms", "x bound", "tokens/step", "tokens/s", "ms with all weights on the device"):
        table.add_column(column, justify="left" if column == "step" else "right")
    for name, label in (
        ("autoregressive", "autoregressive"),
        ("tree", f"tree of {data['tree']['size']} nodes, depth {data['tree']['depth']}"),
    ):
        total, there = data["systems"][name], data["on_device"][name]
        table.add_row(
            label,
            f"{1e3 * total['seconds_per_step']:.1f}",
            f"{total['seconds_per_step'] / bound:.3f}",
            f"{total['tokens_per_step']:.3f}",
            f"{total['tokens'] / total['seconds']:.2f}",
            f"{1e3 * there['seconds_per_step']:.1f}",
        )
    console.print(table)
    figures = data["figures"]
    console.print(
        f"speed-up {data['speedup']:.2f} x over offloaded autoregressive decoding: {figures['speed-up / tokens per step']:.3f} x tokens per step "
        f"(goal {GOALS['speed-up / tokens per step']}); steps {figures['x bound, autoregressive']:.3f} and {figures['x bound, tree']:.3f} x the bound "
        f"(goal {GOALS['x bound, tree']})"
    )
    console.print("parts of a tree's step, ms: " + ", ".join(f"{name} {1e3 * seconds:.2f}" for name, seconds in data["parts"].items()))
    naive, ours = data["pass_seconds"]["accelerate"], data["pass_seconds"]["treeopt"]
    console.print(
        f"a plain pass over one token: {1e3 * naive:.1f} ms by accelerate.cpu_offload ({naive / bound:.2f} x the bound), "
        f"{1e3 * ours:.1f} ms here ({ours / bound:.2f} x)"
    )
    console.print("device memory, GB: " + ", ".join(f"{name} {count / 1e9:.3f}" for name, count in data["memory_bytes"].items()))
    console.print("equal outputs: " + ", ".join(f"{name} {'yes' if equal else 'NO'}" for name, equal in data["equal_outputs"].items()))


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--depth", type=int, default=16)
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--gen-len", type=int, default=32)
    parser.add_argument("--smoke", action="store_true", help="tiny shapes on the CPU")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.smoke:
        shapes = Shape(384, 13, 3, 512), Shape(256, 2, 4, 512)
        case = Case(torch.device("cpu"), torch.float32, *shapes, size=24, depth=4, prompts=1, gen_len=12, copied=1 << 26)
    elif torch.cuda.is_available():
        shapes, limits = (SHAPES["llama-2-13b"], SHAPES["llama-68m"]), vars(arguments)
        case = Case(
            torch.device("cuda", torch.cuda.current_device()),
            torch.float16,
            *shapes,
            **{name: limits[name] for name in ("size", "depth", "prompts", "gen_len")},
            copied=1 << 30,
        )
    else:
        raise SystemExit("error: there is no CUDA GPU here; pass --smoke for a small run on the CPU")
    data = run(case)
    show(Console(width=150), data)
    if arguments.out:
        write_json(arguments.out, data)


if __name__ == "__main__":
    main()
