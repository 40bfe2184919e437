"""Measure which acceptance model finds the better tree: `python -m benchmarks.acceptance_models [--trace FILE] [--out FILE]`.

It needs no GPU and takes some three minutes, most of them for the trace of the embedded pair on the standard library's source text.
`treeopt.optimizer.selection` scores the models on prompts held out, for trees of several sizes, on the first 64 prompts and on all. Last, the same
choice is made for sources in which depth tells nothing, to count how often noise alone is taken for more.
"""

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from treeopt.optimizer.fitting import BY_RANK, Search
from treeopt.optimizer.frontier import expected_tokens
from treeopt.optimizer.search import acceptance_rows, optimize
from treeopt.optimizer.selection import Selection, select
from treeopt.profiles.trace import Trace, read_trace
from treeopt.profiles.traced_text import TracedText
from treespec.files.provenance import Provenance
from treespec.files.writing import write_json
from treespec.trees.tree import SpeculationTree

TREES = ((8, 4), (16, 8), (32, 10), (64, 12), (128, 14), (256, 16))
"""Sizes and largest depths."""
FEW = 64
RANKS = 32
EVEN = (0.6, 0.15, 0.08, 0.04, 0.02)
"""Chances of a source whose ranks are drawn one by one."""
SOURCES, TEXTS, TOKENS = 200, 20, 40
"""Such sources, their texts, and the tokens of each."""


def main() -> None:
    """Run everything, print the rows, and write them as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", type=Path, help="take this trace, and make none")
    parser.add_argument("--out", type=Path, help="write the results to this JSON file")
    arguments = parser.parse_args()
    trace = traced() if arguments.trace is None else read_trace(arguments.trace)
    rows = [measured(part, *tree) for part in (trace.of_texts(range(min(FEW, len(trace.texts)))), trace) for tree in TREES]
    for row in rows:
        figures = [f"{one['model']} {one['held_out_tokens_per_step']['mean']:.3f} ({one['lead']['mean']:.4f} x)" for one in row["models"]]
        print(f"{row['prompts']} prompts, {row['size']} nodes: {', '.join(figures)}; {row['chosen']} in {row['seconds']:.1f} s")
    taken = mistaken()
    print(f"{taken} of {SOURCES} sources without depth were taken for richer ones")
    if arguments.out is not None:
        even = {"sources": SOURCES, "texts": TEXTS, "tokens": TOKENS, "taken": taken}
        known = {"models": trace.provenance.get("models"), "dataset": trace.prompt_set.get("dataset"), "gen_len": trace.gen_len}
        provenance = Provenance.collect().to_json()
        write_json(
            arguments.out,
            {
                "schema": "treeopt.benchmark.acceptance_models",
                "version": 1,
                "results": rows,
                "even": even,
                **known,
                "provenance": provenance,
            },
        )


def traced() -> Trace:
    """Return the trace of the embedded pair on all rows of the standard library."""
    import treeopt

    pair = treeopt.load_pair("embedded-target", "embedded-draft")
    prompts = treeopt.load_prompts("stdlib", pair, num_prompts=512)
    with tempfile.TemporaryDirectory() as folder:
        treeopt.profile_acceptance(pair, prompts, trace=Path(folder) / "trace.json")
        return read_trace(Path(folder) / "trace.json")


def measured(trace: Trace, size: int, depth: int) -> dict[str, Any]:
    """Return the scores of the models for trees of one size, and what each model's chances promise."""
    before = time.perf_counter()
    found = chosen(trace, size, depth)
    seconds = time.perf_counter() - before
    data = found.to_json()
    for one, candidate in zip(data["models"], found.candidates, strict=True):
        one["promised_tokens_per_step"] = expected_tokens(candidate.fit.tree, acceptance_rows(candidate.fit.profile))
    return {"size": size, "depth": depth, "positions": trace.positions, "seconds": seconds, **data}


def chosen(trace: Trace, size: int, depth: int, ranks: int = RANKS) -> Selection:
    """Return the models for trees of one size, scored by tokens per step."""
    return select(trace, Search(partial(optimize, size=size, depth=depth), one_step, (), ranks, ranks), timed=False)


def one_step(tree: SpeculationTree) -> float:
    """Return the cost of a step where all cost the same."""
    return 1.0


def mistaken() -> int:
    """Return for how many sources without depth a model by depth, or by replay, was taken."""
    chances = [*EVEN, 1 - sum(EVEN)]
    found = 0
    for seed in range(SOURCES):
        rank = np.random.default_rng(seed).choice(len(chances), TEXTS * TOKENS, p=chances).astype(np.uint32)
        top = np.full(len(rank), -0.5, dtype=np.float32)
        texts = tuple(TracedText(text, str(text), 1, TOKENS + 1, eos=False) for text in range(TEXTS))
        trace = Trace(texts, rank, np.where(rank == 0, top, -4.0).astype(np.float32), top, TOKENS + 1, 100, 0.0, 1.0)
        found += chosen(trace, 12, 4, len(EVEN)).chosen.model != BY_RANK
    return found


if __name__ == "__main__":
    main()
