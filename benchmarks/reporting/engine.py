"""Results of `benchmarks.engine`: whole decoders side by side, then single passes and steps beside the time of reading the weights."""

import re
from collections.abc import Sequence
from typing import Any

from benchmarks.reporting.markdown import device, link, origin, paragraph, parts, table
from benchmarks.reporting.run import Data, Kind, Run
from benchmarks.reporting.side_by_side import Predicted, Systems, headline, prompts_of, side_by_side, slower_systems
from benchmarks.reporting.verdicts import Check, Goal, verdict

STEP = "step, "
"""How the name of a row of a whole step begins."""

HOW_TO_READ = {
    "Single passes": paragraph(
        "Each row is one [captured](glossary.md#captured) pass behind 192 tokens of context, or behind those that it names. The columns give its",
        "median milliseconds, its [floor](glossary.md#floor), how many floors it took, and the goal that was set. The floor is the bytes of the",
        "weights that the pass multiplies and of the K/V rows that it reads, over the bandwidth of reading 4 GB at once. A pass without a floor has its",
        "goal in milliseconds. A draft level includes the top-k; everything else in a step is acceptance and the moving of K/V rows. The rows of",
        "Llama-3.1-8B and Qwen3-8B are target passes of models of these shapes, with random weights.",
    ),
    "Whole steps": paragraph(
        "Each row is one captured step of a whole tree. The columns give its median milliseconds, what the latency profile predicted, the error of",
        "that prediction, the milliseconds of its parts, which were timed in steps of their own, and the goal that was set.",
    ),
    "Start and memory": paragraph(
        "The columns give the seconds from loaded models to the first tokens of a tree of 64 nodes, with compiling and capturing; the seconds of",
        "the latency profile; and the GPU memory of the weights, of the K/V caches, and what was allocated above both at most.",
    ),
}
"""How to read the tables that only these files have, by title."""


def systems_of(data: Data) -> Systems:
    """Return the decoders of a file."""
    (chosen,) = [name for name in data["systems"] if name.startswith("chosen tree")]
    predicted = Predicted(data["chosen"]["expected"], data["chosen"]["speedup"])
    return Systems(data["systems"], "autoregressive", chosen, system_name, predicted)


def system_name(name: str) -> str:
    """Return what a table calls a decoder of treeopt, from its name in the file.

    >>> system_name("chosen tree (64, 9)")
    'treeopt, the tree it chose, 64 nodes, depth 9'
    """
    if chosen := re.fullmatch(r"chosen tree \((\d+), (\d+)\)", name):
        return f"treeopt, the tree it chose, {chosen[1]} nodes, depth {chosen[2]}"
    if exact := re.fullmatch(r"tree of (\d+) nodes, depth (\d+)", name):
        return f"treeopt, the best tree of {exact[1]} nodes, depth {exact[2]}"
    return f"treeopt, {name}"


def checks_of(data: Data) -> list[Check]:
    """Return the figures that have a goal: in milliseconds where the goal says so, else in floors."""
    return [check for row in data["rows"] for check in _checks(row)]


def _checks(row: dict[str, Any]) -> list[Check]:
    if not row["goal"]:
        return []
    shown, _, unit = row["goal"].partition(" ")
    if unit:
        return [Check(row["what"], row["milliseconds"], Goal(float(shown), unit, shown=shown), 3)]
    return [Check(row["what"], row["milliseconds"] / row["floor_ms"], Goal(float(shown), "x floor", shown=shown))]


def _figure(checks: Sequence[Check], unit: str, without: str) -> str:
    """Return the figure that has a goal in this unit, or the figure without one."""
    return next((check.figure for check in checks if check.goal.unit == unit), without)


def _passes(data: Data) -> str:
    rows = []
    for row in data["rows"]:
        if row["what"].startswith(STEP):
            continue
        floor, checks = row["floor_ms"], _checks(row)
        rows.append(
            [
                row["what"],
                _figure(checks, "ms", f"{row['milliseconds']:.3f}"),
                "" if floor is None else f"{floor:.3f}",
                "" if floor is None else _figure(checks, "x floor", f"{row['milliseconds'] / floor:.2f}"),
                verdict(checks),
            ]
        )
    says = paragraph(f"{link('Single passes')}, with a bandwidth of {data['bandwidth'] / 1e12:.2f} TB/s.")
    return parts(says, table(("captured pass", "ms", "floor, ms", "x floor", "goal"), rows))


def _steps(data: Data) -> str:
    checks = {row["what"]: _checks(row) for row in data["rows"]}
    rows = []
    for label, step in data["steps"].items():
        own = checks.get(STEP + label, [])
        rows.append(
            [
                label,
                _figure(own, "ms", f"{1e3 * step['seconds']:.3f}"),
                f"{1e3 * step['predicted_seconds']:.3f}",
                f"{100 * step['error']:+.1f} %",
                *(f"{1e3 * step['parts'][part]:.3f}" for part in ("drafting", "target", "acceptance", "cache")),
                verdict(own),
            ]
        )
    columns = ("tree", "ms", "predicted ms", "error", "drafting", "target", "acceptance", "K/V rows", "goal")
    return parts(f"{link('Whole steps')}.", table(columns, rows))


def _once(data: Data) -> str:
    memory = data["memory_bytes"]
    above = memory["peak"] - memory["weights"] - memory["kv"]
    row = [
        f"{data['ready_seconds']:.1f}",
        f"{data['profile_seconds']:.1f}",
        *(f"{count / 1e9:.2f}" for count in (memory["weights"], memory["kv"], above)),
    ]
    columns = ("ready, s", "latency profile, s", "weights, GB", "K/V, GB", "above both, GB")
    return parts(f"{link('Start and memory')}.", table(columns, [row], left=0))


def _body(run: Run) -> str:
    data = run.data
    return parts(
        origin(data["provenance"], run.command, run.file),
        side_by_side(run, systems_of(data)),
        _passes(data),
        _steps(data),
        _once(data),
    )


ENGINE = Kind(
    title=lambda data: f"The engine on {device(data['provenance'])}",
    body=_body,
    headlines=lambda data: [headline(systems_of(data))],
    checks=checks_of,
    slower=lambda data: slower_systems(systems_of(data)),
    prompts=prompts_of(systems_of),
)
"""What a file of `benchmarks.engine` says."""
