"""Measure the speed of replay: `python -m benchmarks.replay [--out FILE]`.

It needs no GPU and takes some seconds. The trace has 200 texts of 128 tokens, whose ranks are drawn from the published vector of
`benchmarks.optimizer`; how long a replay takes does not depend on them. Times are medians of repeated runs in one process. Every replay is first
checked against a walk through the tree, token by token.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.optimizer import MONOTONE, NONE_ACCEPTED, RANK_PROBABILITY
from treeopt.optimizer import best_first
from treeopt.optimizer.replay import replay
from treeopt.profiles.ratio import Estimate
from treeopt.profiles.trace import Trace, read_trace
from treeopt.profiles.traced_text import TracedText
from treespec.errors import TreeoptError
from treespec.files.provenance import Provenance
from treespec.files.writing import write_json
from treespec.trees.tree import SpeculationTree

TEXTS, TOKENS, VOCABULARY = 200, 128, 32_000
SIZES = (16, 64, 256, 1024)
GOALS = {"read": 0.1, 256: 0.005}
"""Seconds that reading the trace, and replaying a tree of so many nodes, may take at most."""


def main() -> None:
    """Run everything, print the table, and write it as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the results to this JSON file")
    parser.add_argument("--repetitions", type=int, default=25, help="runs per median (default 25)")
    arguments = parser.parse_args()
    rows = measured(arguments.repetitions)
    for row in rows:
        goal = "" if row["goal"] is None else f"  goal: at most {1e3 * row['goal']:g} ms"
        print(f"{row['what']:<40} {1e3 * row['seconds']:>8.3f} ms{goal}")
    if arguments.out is not None:
        trace = {"texts": TEXTS, "tokens": TOKENS, "bytes_per_position": rows[0]["bytes"] / (TEXTS * (TOKENS - 1))}
        known = {"trace": trace, "load_average": list(os.getloadavg()), "provenance": Provenance.collect().to_json()}
        write_json(arguments.out, {"schema": "treeopt.benchmark.replay", "version": 1, "results": rows, **known})


def measured(repetitions: int) -> list[dict[str, Any]]:
    """Return the times of reading the trace and of replaying each tree. Raises TreeoptError for a replay that the slow walk contradicts."""
    frontier = best_first.solve(MONOTONE, max(SIZES), 32, len(RANK_PROBABILITY))
    trees = {f"the best tree of {size} nodes": frontier.tree(size, frontier.max_depth) for size in SIZES}
    trees |= {"a chain of 255": SpeculationTree.chain(255), "a root with 255 children": SpeculationTree.k_chains(255, 1)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        drawn().write(path)
        trace, size = read_trace(path), path.stat().st_size
        rows = [
            {
                "what": "reading the trace",
                "seconds": median(lambda: read_trace(path).ranks, repetitions),
                "goal": GOALS["read"],
                "bytes": size,
            }
        ]
    for name, tree in trees.items():
        found = replay(tree, trace)
        if found.accepted != tuple(walk(tree, column.tolist()) for column in trace.ranks.T):
            raise TreeoptError(f"the replay of {name} is not that of a walk through the tree")
        seconds = median(partial(tokens_per_step, tree, trace), repetitions)
        facts = {"size": tree.size, "depth": tree.depth, "tokens_per_step": found.tokens_per_step and found.tokens_per_step.mean}
        rows.append({"what": f"replaying {name}", "seconds": seconds, "goal": GOALS.get(tree.size), **facts})
    return rows


def tokens_per_step(tree: SpeculationTree, trace: Trace) -> Estimate | None:
    """Return what is timed: a replay, with its figure and the error."""
    return replay(tree, trace).tokens_per_step


def drawn() -> Trace:
    """Return a trace of ranks that are drawn from the published vector."""
    draws = np.random.default_rng(0)
    count = TEXTS * (TOKENS - 1)
    chances = np.array([*RANK_PROBABILITY, NONE_ACCEPTED])
    rank = draws.choice(len(chances), count, p=chances / chances.sum()).astype(np.uint32)
    top = -draws.random(count, dtype=np.float32)
    texts = tuple(TracedText(i, f"{i:016x}", 128, TOKENS, False, 1920, 1920) for i in range(TEXTS))
    return Trace(texts, rank, np.where(rank == 0, top, top - 1).astype(np.float32), top, TOKENS, VOCABULARY, 0.0, 1.0)


def walk(tree: SpeculationTree, ranks: list[int]) -> tuple[int, ...]:
    """Return the accepted tokens of every step on a text, by going down the tree."""
    accepted, node, depth = [], 0, 0
    for rank in ranks:
        children = tree.children[node]
        if rank < len(children):
            node, depth = children[rank], depth + 1
        else:
            accepted.append(depth)
            node = depth = 0
    return (*accepted, depth) if node else tuple(accepted)


def median(run: Callable[[], object], repetitions: int) -> float:
    """Return the median seconds of a run, after one that does not count."""
    run()
    found = []
    for _ in range(repetitions):
        began = time.perf_counter()
        run()
        found.append(time.perf_counter() - began)
    return statistics.median(found)


if __name__ == "__main__":
    main()
