"""Measure what a step of each drafting rule and verifier takes beyond a greedy one, on trees of the same shape.

`python -m benchmarks.rules --out FILE` needs a CUDA GPU and no network. Two pairs: the embedded one with the cost of Llama-2-7B and llama-68m,
and a small one of random weights (30 layers x 576 with 9 query and 3 K/V heads, vocabulary 49,152; a draft of 3 such layers). Every system is a
captured step; they run in turn, and each figure is the median of the turns. `--pairs`, `--top-p` and `--parts` narrow or widen the run.

`--before FILE` puts the figures of another commit beside these: a file that this benchmark wrote in a checkout of that commit, in the same call on
the same machine (a commit without this benchmark takes this file and `small_pair.py`).
"""

import argparse
import json
import re
import statistics
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.decoding import pair_for
from benchmarks.small_pair import small_pair
from treeopt.optimizer.search import optimize
from treeopt.profiles.acceptance import AcceptanceProfile
from treespec.decoding.drafting import Drafting
from treespec.decoding.engine import CacheBudget, CapturedSteps, Engine
from treespec.decoding.plans import DynamicBudget
from treespec.decoding.rules import Sampling
from treespec.decoding.sampling import prompt_generator
from treespec.decoding.step import StepSpec
from treespec.decoding.timing import CapturedTimer
from treespec.errors import SettingsError
from treespec.files.writing import write_json
from treespec.models.drafts import Draft
from treespec.models.tree_model import TreeModel
from treespec.trees.tree import SpeculationTree

CONTEXT = 192
IN_A_ROW = 12
ROW = (0.62, *(0.2 / rank**1.6 for rank in range(2, 33)))
"""Chances by rank that the trees are the best ones for: a typical row, so that the trees do not depend on a measurement."""
SHAPES = {"7B and 68M": ((64, 7), (64, 8)), "30 layers x 576": ((16, 2), (64, 6))}
"""Per pair, the static tree of the sampled rules, and the size and depth of the dynamic tree and its static twin."""
TWIN = re.compile(r"(?:topk|swor|swr|dynamic) (?P<shape>\(\d+, \d+\)).*")
ALONE = "autoregressive"


def exact_tree(size: int, depth: int) -> SpeculationTree:
    """Return the best tree of a size and depth for the typical row."""
    chances: dict[str, Any] = {"rank_probability": ROW, "none_accepted": 1 - sum(ROW), "standard_error": (), "positions": 1, "prompts": 1}
    return optimize(AcceptanceProfile(drafting="topk", temperature=0.0, top_p=1.0, **chances), size=size, depth=depth).tree


def systems_of(pair: str, top_p: float) -> dict[str, StepSpec]:
    """Return the steps to time by name: each sampled rule beside the greedy one, and a dynamic tree beside its static twin."""
    (size, depth), (wide, deep) = SHAPES[pair]
    tree, twin, warm = exact_tree(size, depth), exact_tree(wide, deep), Sampling(0.6)
    found = {
        "autoregressive": StepSpec(None),
        "autoregressive, T 0.6": StepSpec(None, warm),
        f"topk ({size}, {depth})": StepSpec(tree),
        f"topk ({size}, {depth}), T 0.6": StepSpec(tree, warm),
        f"swor ({size}, {depth}) sequential": StepSpec(tree, warm, Drafting("swor")),
        f"swor ({size}, {depth}) traversal": StepSpec(tree, warm, Drafting("swor", verifier="traversal")),
        f"swr ({size}, {depth})": StepSpec(tree, warm, Drafting("swr")),
        f"swr ({size}, {depth}) traversal": StepSpec(tree, warm, Drafting("swr", verifier="traversal")),
        f"topk ({wide}, {deep})": StepSpec(twin),
        f"dynamic ({wide}, {deep})": StepSpec(DynamicBudget.of(wide, deep, 14 if deep == 8 else None)),
    }
    if top_p < 1:
        cold = Sampling(0.6, top_p)
        found |= {
            f"topk ({size}, {depth}), top-p {top_p:g}": StepSpec(tree, cold),
            f"swor ({size}, {depth}) sequential, top-p {top_p:g}": StepSpec(tree, cold, Drafting("swor")),
        }
    return found


def twin_of(name: str) -> str:
    """Return the name of the greedy step that a step is compared with: that of the same static size and depth, or without a tree.

    >>> twin_of("swor (64, 7) sequential, top-p 0.9"), twin_of("dynamic (64, 8)"), twin_of("autoregressive, T 0.6")
    ('topk (64, 7)', 'topk (64, 8)', 'autoregressive')
    """
    found = TWIN.fullmatch(name)
    return ALONE if found is None else f"topk {found['shape']}"


@torch.inference_mode()
def measure(target: TreeModel, draft: Draft, systems: dict[str, StepSpec], turns: int, parts: bool) -> dict[str, dict[str, Any]]:
    """Return, per system, the median milliseconds of a step, those of every turn, the name of its twin, and the medians of its parts if wanted."""
    engine = Engine(target, draft, lambda reason: print(reason, file=sys.stderr))
    deepest = max(spec.plan.depth if spec.plan else 0 for spec in systems.values())
    largest = max(spec.plan.candidates if spec.plan else 1 for spec in systems.values())
    budget = CacheBudget(CONTEXT + (IN_A_ROW + 2) * (deepest + 1) + largest, largest, deepest, largest)
    text = torch.randint(0, 1000, (CONTEXT + 1,), generator=torch.Generator().manual_seed(0)).to(target.device)
    steps: dict[str, Any] = {name: engine.steps(spec, budget, None) for name, spec in systems.items()}
    timed = {name: engine.steps(spec, budget, CapturedTimer()) for name, spec in systems.items()} if parts else {}
    for model in (target, draft):
        assert isinstance(model, TreeModel)
        model.prefill(text[:-1])
    generator = prompt_generator(0, 0, target.device)
    found: dict[str, list[float]] = {name: [] for name in systems}
    pieces: dict[str, list[dict[str, float]]] = {name: [] for name in timed}
    for turn in range(turns + 1):
        names = list(systems)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            if not isinstance(steps[name], CapturedSteps):
                continue
            steps[name].begin(text[-2:], CONTEXT, generator)
            found[name].append(1e3 * steps[name].seconds(IN_A_ROW))
            if name in timed:
                timed[name].begin(text[-2:], CONTEXT, generator)
                timed[name].launch(1)
                read: dict[str, float] = {}
                for part, seconds in timed[name].read(CONTEXT)[2]:
                    read[part] = read.get(part, 0.0) + 1e3 * seconds
                pieces[name].append(read)
    return {
        name: {"ms": statistics.median(found[name][1:]), "turns": found[name][1:], "twin": twin_of(name)}
        | ({"parts": {part: statistics.median(p[part] for p in pieces[name][1:]) for part in pieces[name][0]}} if name in timed else {})
        for name in systems
        if found[name]
    }


def table_of(name: str, found: dict[str, dict[str, Any]], before: dict[str, dict[str, Any]]) -> Table:
    """Return the figures of one pair as a printable table."""
    table = Table(title=f"{name}, {CONTEXT} tokens of context")
    for column in ("step", "ms", "before, ms", "beyond its greedy static twin, ms", "parts, ms"):
        table.add_column(column, justify="left" if column in ("step", "parts, ms") else "right")
    for system, row in found.items():
        twin = found.get(row["twin"])  # none where its steps cannot be captured
        beyond = "" if twin is None else f"{row['ms'] - twin['ms']:+.3f}"
        shown = ", ".join(f"{part} {ms:.3f}" for part, ms in row.get("parts", {}).items())
        table.add_row(system, f"{row['ms']:.3f}", f"{before[system]['ms']:.3f}" if system in before else "", beyond, shown)
    return table


def earlier(path: Path) -> dict[str, Any]:
    """Return the figures of a file that this benchmark wrote, without what it was compared with itself. Raises SettingsError for another file."""
    found = json.loads(path.read_text())
    if not isinstance(found, dict) or not {"pairs", "provenance"} <= found.keys():
        raise SettingsError(f"{path} has no `pairs` and `provenance`; pass a file that `python -m benchmarks.rules` wrote")
    return {"pairs": found["pairs"], "provenance": found["provenance"]}


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--top-p", type=float, default=0.9)
    parser.add_argument("--parts", action="store_true", help="also time the parts of a step")
    parser.add_argument("--before", type=Path, metavar="FILE", help="figures of another commit, to stand beside these")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    before = earlier(arguments.before) if arguments.before else None
    device, console = "cuda", Console(width=150)
    pairs: dict[str, dict[str, Any]] = {}
    models: dict[str, str] = {}
    for name in arguments.pairs:
        pair = pair_for(Namespace(inflate=True, device=device)) if name == "7B and 68M" else small_pair(device, torch.float16)
        pairs[name] = measure(pair.target, pair.draft, systems_of(name, arguments.top_p), arguments.turns, arguments.parts)
        provenance = pair.provenance()
        models |= {f"{role}, {name}": model for role, model in provenance["models"].items()}
        console.print(table_of(name, pairs[name], before["pairs"].get(name, {}) if before else {}))
        del pair
        torch.cuda.empty_cache()
        if arguments.out:
            figures = {"context": CONTEXT, "turns": arguments.turns, "pairs": pairs, "provenance": provenance | {"models": models}}
            write_json(arguments.out, figures | ({} if before is None else {"before": before}))


if __name__ == "__main__":
    main()
