"""The table of results in the README: the main figures of the engine, one at a temperature, and one offloaded."""

import re
from collections.abc import Mapping
from typing import Any

from benchmarks.reporting.engine import systems_of
from benchmarks.reporting.run import Data
from benchmarks.reporting.sampling import name_of
from benchmarks.reporting.side_by_side import ASSISTED, GENERATE

COLUMNS = ("system", "tokens/s", "x transformers `generate`", "x autoregressive", "tokens per step")
PREDICTED = ("x autoregressive", "tokens per step")
TEMPERATURE = 0.6


HEAD = (*COLUMNS, *(f"predicted by the profiles: {column}" for column in PREDICTED))


def rows_of(files: Mapping[str, Data]) -> list[list[str]]:
    """Return the rows of the table from the files of results, by name."""
    return [*_greedy(files["engine.json"]), _sampled(files), _offloaded(files["offload-gpu.json"])]


def _greedy(data: Data) -> list[list[str]]:
    systems = systems_of(data)
    size, depth = re.findall(r"\d+", systems.chosen)
    names = {
        GENERATE: "transformers `generate`",
        ASSISTED: "transformers assisted generation, same draft",
        systems.autoregressive: "treeopt, autoregressive",
        systems.chosen: f"treeopt, the tree it chose ({size} nodes, depth {depth})",
    }
    steps = dict.fromkeys((GENERATE, systems.autoregressive), "1")
    tree = systems.found[systems.chosen]
    steps[systems.chosen] = f"{tree['tokens'] / tree['steps']:.2f}"
    promised = {systems.chosen: [f"{systems.predicted.speedup:.2f}", f"{systems.predicted.tokens_per_step:.2f}"]}
    return [
        [
            called,
            f"{systems[name]:.1f}",
            f"{systems[name] / systems[GENERATE]:.2f}",
            f"{systems[name] / systems[systems.autoregressive]:.2f}",
            steps.get(name, "-"),
            *promised.get(name, ["-", "-"]),
        ]
        for name, called in names.items()
    ]


def _sampled(files: Mapping[str, Data]) -> list[str]:
    """Return the fastest way to speculate at a temperature above 0, by the last run on a GPU that has it."""
    runs = [
        data
        for name, data in files.items()
        if name.startswith("sampling-gpu") and any(row["temperature"] == TEMPERATURE for row in data["rows"])
    ]
    data = max(runs, key=lambda run: str(run["provenance"]["utc"]))
    row: dict[str, Any] = min((row for row in data["rows"] if row["temperature"] == TEMPERATURE), key=lambda row: row["seconds_per_token"])
    gpu, usual = data["provenance"]["gpu"], files["engine.json"]["provenance"]["gpu"]
    beside = f"{len(row['tokens_and_steps'])} prompts" + ("" if gpu == usual else f", {gpu}")
    expected = row["expected_tokens_per_step"]
    return [
        f"treeopt, {name_of(row)} ({beside})",
        f"{1 / row['seconds_per_token']:.1f}",
        "-",
        f"{row['speedup']:.2f}",
        f"{row['tokens_per_step']:.2f}",
        "-",
        "-" if expected is None else f"{expected:.2f}",
    ]


def _offloaded(data: Data) -> list[str]:
    tree, slow = data["tree"], data["systems"]["autoregressive"]
    found = data["systems"]["tree"]
    rate = found["tokens"] / found["seconds"]
    return [
        f"treeopt, offloaded tree ({tree['size']} nodes, depth {tree['depth']})",
        f"{rate:.1f}",
        "-",
        f"{rate * slow['seconds'] / slow['tokens']:.2f} (both offloaded)",
        f"{found['tokens'] / found['steps']:.2f}",
        "-",
        f"{tree['expected_tokens_per_step']:.2f}",
    ]
