"""Results of `benchmarks.rules`: a captured step of every drafting rule and verifier beside the greedy step of the same tree."""

import re
from typing import Any

from benchmarks.reporting.markdown import counted, device, link, origin, paragraph, parts, table
from benchmarks.reporting.run import Data, Kind, Run
from benchmarks.reporting.verdicts import Check, Goal, verdict

Steps = dict[str, dict[str, Any]]
"""The steps of one pair by name."""

PAIRS = {"7B and 68M": "the shapes of Llama-2-7B and llama-68m", "30 layers x 576": "30 layers x 576, and 3 for the draft"}
BEYOND = {
    ("7B and 68M", "swor (64, 7) sequential"): Goal(0.15, "ms"),
    ("7B and 68M", "swr (64, 7)"): Goal(0.15, "ms"),
    ("7B and 68M", "swor (64, 7) traversal"): Goal(0.25, "ms"),
    ("7B and 68M", "dynamic (64, 8)"): Goal(0.20, "ms", shown="0.20"),
    ("30 layers x 576", "swor (16, 2) sequential"): Goal(0.10, "ms", shown="0.10"),
}
"""The goals that were set for what a step takes beyond its greedy static twin."""
WHOLE = {("30 layers x 576", "dynamic (64, 6)"): Goal(1.1, "ms")}
"""The goals that were set for whole steps."""
TITLE = "Steps of every rule"
HOW_TO_READ = {
    TITLE: paragraph(
        "Each row is one captured step behind 192 tokens of context, without timed parts; all of them ran in turn. Children of `swor` and `swr` are",
        "sampled and verified at temperature 0.6, sequentially unless the row says otherwise; rows without a temperature are greedy. The trees are the best of",
        "their size and depth for one typical row of acceptance. The columns give the milliseconds of a step, the median of the turns; what it takes beyond",
        "the greedy step of the best static tree of that size and depth, or beyond a greedy token where there is no tree; the same two",
        'of the commit that stands under "before", where there is one, measured in the same call on the same machine; and the goal that was set.',
    ),
}
"""How to read the table that only these files have."""


def step_name(name: str) -> str:
    """Return what a table calls a step.

    >>> step_name("swor (64, 7) sequential, top-p 0.9"), step_name("dynamic (64, 8)"), step_name("topk (64, 7), T 0.6")
    ('`swor` (64, 7), sequential, top-p 0.9', 'dynamic tree (64, 8)', '`topk` (64, 7), temperature 0.6')
    """
    found = re.sub(r"^(topk|swor|swr)\b", r"`\1`", name).replace(" T ", " temperature ").replace("dynamic", "dynamic tree")
    return re.sub(r"\) (\w)", r"), \1", found)


def beyond(steps: Steps, name: str) -> float | None:
    """Return the milliseconds that a step takes beyond its twin; None for a greedy step, and where either was not measured."""
    twin = steps[name]["twin"] if name in steps else name
    return None if name == twin or twin not in steps else float(steps[name]["ms"] - steps[twin]["ms"])


def before_of(data: Data, pair: str) -> Steps:
    """Return the steps of the commit before; none if the file has no such commit."""
    return dict(data["before"]["pairs"].get(pair, {})) if "before" in data else {}


def checks_of(data: Data) -> list[Check]:
    """Return all figures that have a goal."""
    found = []
    for pair, steps in data["pairs"].items():
        for name in steps:
            more = beyond(steps, name)
            if (pair, name) in BEYOND and more is not None:
                found.append(Check(f"{step_name(name)} beyond its greedy twin, {pair}", more, BEYOND[pair, name], 3))
            if (pair, name) in WHOLE:
                found.append(Check(f"{step_name(name)}, {pair}", steps[name]["ms"], WHOLE[pair, name], 3))
    return found


def _cells(pair: str, steps: Steps, before: Steps, name: str) -> list[str]:
    ms, more = steps[name]["ms"], beyond(steps, name)
    whole = [Check(name, ms, WHOLE[pair, name], 3)] if (pair, name) in WHOLE else []
    apart = [Check(name, more, BEYOND[pair, name], 3)] if more is not None and (pair, name) in BEYOND else []
    cells = [step_name(name), whole[0].figure if whole else f"{ms:.3f}"]
    if before:
        cells.append(f"{before[name]['ms']:.3f}" if name in before else "")
    cells.append(apart[0].figure if apart else _signed(more))
    if before:
        cells.append(_signed(beyond(before, name)))
    return [*cells, verdict([*whole, *apart])]


def _signed(more: float | None) -> str:
    return "" if more is None else f"{more:.3f}"


def _table(data: Data, pair: str) -> str:
    steps, before = data["pairs"][pair], before_of(data, pair)
    columns = ("step", "ms", "before, ms", "beyond, ms", "before: beyond, ms", "goal") if before else ("step", "ms", "beyond, ms", "goal")
    return parts(
        paragraph(f"{link(TITLE)}, {PAIRS.get(pair, pair)}, {counted(data['turns'], 'turn')}."),
        table(columns, [_cells(pair, steps, before, name) for name in steps]),
    )


def _before(data: Data) -> str:
    if "before" not in data:
        return ""
    provenance = data["before"]["provenance"]
    commit = (provenance["git_commit"] or "unknown").removesuffix("+")[:10]
    return paragraph(f"The figures before are those of commit `{commit}`, on {device(provenance)} with driver {provenance['driver']}.")


def _body(run: Run) -> str:
    data = run.data
    return parts(origin(data["provenance"], run.command, run.file), _before(data), *(_table(data, pair) for pair in data["pairs"]))


def _range(steps: Steps, names: list[str]) -> str:
    found = sorted(more for name in names if (more := beyond(steps, name)) is not None)
    return "" if not found else f"{found[0]:.3f} ms" if len(found) == 1 else f"{found[0]:.3f} to {found[-1]:.3f} ms"


def _headlines(data: Data) -> list[str]:
    """Return, per pair, what sampled and dynamic steps take beyond their twins."""
    found = []
    for pair, steps in data["pairs"].items():
        kinds = {
            "sampled children": [name for name in steps if name.startswith(("swor", "swr")) and "top-p" not in name],
            "dynamic tree": [name for name in steps if name.startswith("dynamic")],
        }
        for kind, names in kinds.items():
            if more := _range(steps, names):
                then = _range(before_of(data, pair), names)
                found.append(f"{pair}, {kind}: {more} beyond the greedy step of the static tree{f' (before: {then})' if then else ''}")
    return found


RULES = Kind(
    title=lambda data: f"Steps of every rule on {device(data['provenance'])}",
    body=_body,
    headlines=_headlines,
    checks=checks_of,
)
"""What a file of `benchmarks.rules` says."""
