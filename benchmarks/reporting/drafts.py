"""Results of `benchmarks.drafts`: kinds of drafts for one target, and the levels of a large EAGLE-3 head."""

from collections.abc import Mapping
from typing import Any

from benchmarks.reporting.markdown import counted, device, interval, origin, paragraph, parts, table
from benchmarks.reporting.run import Data, Kind, Run
from benchmarks.reporting.verdicts import Check, Goal, Slower, speedup, told, verdict
from treespec.errors import counted as plain_counted

GOAL = Goal(0.25, "ms")
"""What the slowest of the measured levels may take. Reading the weights takes 0.175 ms on an H200."""
HEAD = "an EAGLE-3 head with random weights"
SHORT = (
    "on",
    "draft",
    "temperature",
    "first choice",
    "tree, rule",
    "tokens per step",
    "ms per level",
    "tokens/s",
    "x autoregressive decoding",
)
"""The head of the table of docs/drafts.md."""


def _level_milliseconds(data: Data) -> dict[int, float]:
    """Return milliseconds by the nodes of a level, in rising order."""
    return {nodes: 1e3 * seconds for nodes, seconds in sorted((int(key), value) for key, value in data["draft_seconds"].items())}


def _level_checks(data: Data) -> list[Check]:
    found = _level_milliseconds(data)
    nodes = max(found, key=lambda key: found[key])
    return [Check(f"slowest level of the head, {plain_counted(nodes, 'node')}", found[nodes], GOAL, 3)]


def _levels(run: Run) -> str:
    data, found = run.data, _level_milliseconds(run.data)
    (check,) = _level_checks(data)
    slowest = max(found, key=lambda key: found[key])
    rows = [
        [str(nodes), check.figure if nodes == slowest else f"{taken:.3f}", verdict([check]) if nodes == slowest else ""]
        for nodes, taken in found.items()
    ]
    known = {**data["provenance"], "models": {**data["provenance"]["models"], "draft": HEAD}}
    return parts(
        origin(known, run.command, run.file),
        paragraph(
            f"The head is for a target of width {data['width']:,}. Its weights, `lm_head` included, have {data['weight_bytes'] / 1e9:.2f} GB.",
            "What a level costs does not depend on what is proposed. Each row is a level of so many nodes, that of one node being the root's, which",
            "alone makes features of the target's states. The columns give the milliseconds of drafting it, children included, and of the slowest",
            "whether it meets the goal.",
        ),
        table(("nodes", "ms", "goal"), rows, left=1),
    )


def _level_headlines(data: Data) -> list[str]:
    found = list(_level_milliseconds(data).values())
    return [f"a level takes {min(found):.3f} to {max(found):.3f} ms"]


LEVELS = Kind(
    title=lambda data: f"Levels of a large EAGLE-3 head on {device(data['provenance'])}",
    body=_levels,
    headlines=_level_headlines,
    checks=_level_checks,
)
"""What a file of `benchmarks.drafts --levels` says."""


def _name(row: dict[str, Any]) -> str:
    return f"{row['draft']}, temperature {row['temperature']:g}, `{row['rule']}`"


def _slower(data: Data) -> list[Slower]:
    rows = [row for row in data["rows"] if row["speedup"] < 1]
    return [
        Slower(f"{_name(row)} ({row['size']}, {row['depth']})", row["speedup"], "autoregressive decoding", row["intervals_95"]["speedup"])
        for row in rows
    ]


def _drafts(run: Run) -> str:
    data = run.data
    rows = [
        [
            row["draft"],
            f"{row['temperature']:g}",
            f"`{row['rule']}`",
            f"({row['size']}, {row['depth']})",
            f"{row['first_choice']:.3f}",
            interval(row["tokens_per_step"], row["intervals_95"]["tokens_per_step"]),
            f"{row['expected_tokens_per_step']:.2f}",
            f"{1e3 * min(row['draft_seconds'].values()):.3f}",
            f"{row['tokens_per_second']:.1f}",
            speedup(row["speedup"], row["intervals_95"]["speedup"]),
            str(row["lossless"]),
        ]
        for row in data["rows"]
    ]
    columns = (
        "draft",
        "temperature",
        "rule",
        "tree",
        "first choice",
        "tokens per step",
        "predicted",
        "level, ms",
        "tokens/s",
        "x",
        "outputs",
    )
    return parts(
        origin(data["provenance"], run.command, run.file),
        paragraph(
            f"Each draft was profiled on {counted(data['profiled_prompts'], 'prompt')}, and the fastest tree by its profiles decoded",
            f"{counted(data['prompts'], 'other prompt')}, {counted(data['gen_len'], 'token')} each, in turn with autoregressive decoding.",
            "Each row is a draft at a temperature. The columns give the rule and the tree of these profiles, how often the draft's first choice is",
            "the target's, the tokens per step as measured and as predicted, the milliseconds of its fastest level, the tokens per second, the speed-up, and",
            "what is known of the outputs beside the autoregressive ones.",
        ),
        table(columns, rows, left=4),
        told(_slower(data)),
    )


def short_rows(files: Mapping[str, Data]) -> list[list[str]]:
    """Return the table of docs/drafts.md: every draft at every temperature, from the files by name."""
    return [
        [
            device(files[file]["provenance"]),
            row["draft"],
            f"{row['temperature']:g}",
            f"{row['first_choice']:.3f}",
            f"({row['size']}, {row['depth']}), `{row['rule']}`",
            interval(row["tokens_per_step"], row["intervals_95"]["tokens_per_step"]),
            f"{1e3 * min(row['draft_seconds'].values()):.2f}",
            f"{row['tokens_per_second']:.0f}",
            interval(row["speedup"], row["intervals_95"]["speedup"]),
        ]
        for file in ("drafts-h200.json", "drafts-cpu.json")
        if file in files
        for row in files[file]["rows"]
    ]


def _headlines(data: Data) -> list[str]:
    found = []
    for temperature in dict.fromkeys(row["temperature"] for row in data["rows"]):
        best = max((row for row in data["rows"] if row["temperature"] == temperature), key=lambda row: float(row["speedup"]))
        found.append(f"temperature {temperature:g}: {best['draft']}, {best['speedup']:.2f} x autoregressive decoding")
    return found


DRAFTS = Kind(
    title=lambda data: f"Kinds of drafts on {device(data['provenance'])}",
    body=_drafts,
    headlines=_headlines,
    slower=_slower,
    prompts=lambda data: int(data["prompts"]),
)
"""What a file of `benchmarks.drafts` says of whole drafts, with or without `--inflate`."""
