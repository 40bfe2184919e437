"""Results of `benchmarks.engine`: whole decoders side by side, then single passes and steps beside the time of reading the weights."""

import re
from typing import Any

from benchmarks.reporting.markdown import device, origin, paragraph, section, table
from benchmarks.reporting.side_by_side import side_by_side


def engine(data: dict[str, Any], command: str, file: str) -> str:
    """Return the section of one file of `benchmarks.engine`."""
    return section(
        f"The engine on {device(data['provenance'])}",
        origin(data["provenance"], command, file),
        paragraph(
            "The models are the embedded pair with the cost of Llama-2-7B and llama-68m; the shapes of Llama-3.1-8B and Qwen3-8B have",
            "random weights.",
        ),
        side_by_side(data["systems"], "autoregressive", system_name),
        _passes(data),
        _steps(data),
        _once(data),
    )


def system_name(name: str) -> str:
    """Return what a table calls a decoder of treeopt, from its name in the file.

    >>> system_name("chosen tree (64, 9)")
    'treeopt, the tree it chose, 64 nodes, depth 9'
    """
    if chosen := re.fullmatch(r"chosen tree \((\d+), (\d+)\)", name):
        return f"treeopt, the tree it chose, {chosen[1]} nodes, depth {chosen[2]}"
    if exact := re.fullmatch(r"tree of (\d+) nodes, depth (\d+)", name):
        return f"treeopt, the exact tree of {exact[1]} nodes, depth {exact[2]}"
    return f"treeopt, {name}"


def _passes(data: dict[str, Any]) -> str:
    rows = []
    for row in data["rows"]:
        if row["what"].startswith("step, "):
            continue
        floor = row["floor_ms"]
        rows.append(
            [
                row["what"],
                f"{row['milliseconds']:.3f}",
                "" if floor is None else f"{floor:.3f}",
                "" if floor is None else f"{row['milliseconds'] / floor:.2f}",
                goal(row["goal"]),
            ]
        )
    says = paragraph(
        "Each row is one captured pass behind 192 tokens of context, or behind those that it names: the columns give its median milliseconds,",
        "its floor (the bytes of the weights that it multiplies and of the K/V rows that it reads, over the bandwidth of reading 4 GB at once,",
        f"here {data['bandwidth'] / 1e12:.2f} TB/s), how many floors it took, and the goal that was set. A draft level includes the top-k;",
        "everything else in a step is acceptance and the moving of K/V rows.",
    )
    return f"{says}\n\n{table(('captured pass', 'ms', 'floor, ms', 'x floor', 'goal'), rows)}"


def goal(text: str) -> str:
    """Return the goal with its unit: milliseconds as they are, else floors."""
    return text if not text or text.endswith("ms") else f"{text} x floor"


def _steps(data: dict[str, Any]) -> str:
    goals = {row["what"]: row["goal"] for row in data["rows"]}
    rows = [
        [
            label,
            f"{1e3 * step['seconds']:.3f}",
            f"{1e3 * step['predicted_seconds']:.3f}",
            f"{100 * step['error']:+.1f} %",
            *(f"{1e3 * step['parts'][part]:.3f}" for part in ("drafting", "target", "acceptance", "cache")),
            goal(goals.get(f"step, {label}", "")),
        ]
        for label, step in data["steps"].items()
    ]
    columns = ("tree", "ms", "predicted ms", "error", "drafting", "target", "acceptance", "K/V rows", "goal")
    says = paragraph(
        "Each row is one captured step of a whole tree: the columns give its median milliseconds, what the latency profile predicted, the error",
        "of that prediction, and the milliseconds of its parts, which were timed in steps of their own.",
    )
    return f"{says}\n\n{table(columns, rows)}"


def _once(data: dict[str, Any]) -> str:
    memory = data["memory_bytes"]
    above = memory["peak"] - memory["weights"] - memory["kv"]
    row = [
        f"{data['ready_seconds']:.1f}",
        f"{data['profile_seconds']:.1f}",
        *(f"{count / 1e9:.2f}" for count in (memory["weights"], memory["kv"], above)),
    ]
    columns = ("ready, s", "latency profile, s", "weights, GB", "K/V, GB", "above both, GB")
    says = paragraph(
        "The columns give the seconds from loaded models to the first tokens of a tree of 64 nodes, with compiling and capturing; the seconds of",
        "the latency profile; and the GPU memory of the weights, of the K/V caches, and what was allocated above both at most.",
    )
    return f"{says}\n\n{table(columns, [row], left=0)}"
