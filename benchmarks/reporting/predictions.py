"""Results of `benchmarks.predictions`: predicted and measured seconds per step for every rule, with trees that were not profiled."""

import statistics
from typing import Any

from benchmarks.reporting.markdown import counted, device, link, origin, paragraph, parts, table
from benchmarks.reporting.run import Data, Kind, Run
from benchmarks.reporting.verdicts import Check, Goal, verdict

Row = dict[str, Any]

GOAL = Goal(5, "%")
"""The goal that was set for the errors of predicted seconds per step."""
TITLE = "Predicted and measured steps"
HOW_TO_READ = {
    TITLE: paragraph(
        "Each row is the [rule of a step](glossary.md#rule-of-a-step). One latency profile held all rules, and each rule decoded whole texts with trees,",
        "or with budgets of dynamic trees, that were not profiled. The columns give, for each size and depth, the milliseconds per step of these",
        "decodings, the median over rounds, and in brackets the error of the predicted milliseconds; then the largest error without its sign, and the goal",
        "that was set. (1, 0) is autoregressive decoding.",
    ),
}
"""How to read the tables that only these files have."""


def shape(row: Row) -> str:
    """Return the size and depth of what a row decoded with."""
    return f"({row['size']}, {row['depth']})"


def by_rule(rows: list[Row]) -> dict[str, list[Row]]:
    """Return the rows of each rule by its name, in the order of the file."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["name"], []).append(row)
    return found


def check_of(rule: str, rows: list[Row]) -> Check:
    """Return the largest error of a rule beside the goal."""
    return Check(f"largest error of predicted steps, {rule}", 100 * max(abs(row["error"]) for row in rows), GOAL, 1)


def _table(rows: list[Row], what: str) -> str:
    if not rows:
        return ""
    rules = by_rule(rows)
    shapes = list(dict.fromkeys(shape(row) for row in sorted(rows, key=lambda row: (row["size"], row["depth"]))))
    cells = []
    for rule, own in rules.items():
        found = {shape(row): f"{1e3 * row['measured_seconds']:.3f} ({100 * row['error']:+.1f} %)" for row in own}
        check = check_of(rule, own)
        cells.append([rule, *(found.get(one, "") for one in shapes), check.figure, verdict([check])])
    return parts(paragraph(f"{link(TITLE)}, {what}."), table(("rule", *shapes, "largest error, %", "goal"), cells))


def is_dynamic(row: Row) -> bool:
    """Return whether a row has dynamic trees."""
    return bool(row["rule"]["mode"] == "dynamic")


def _body(run: Run) -> str:
    data = run.data
    rows, seconds = data["rows"], data["seconds"]
    rules = counted(len(by_rule(rows)), "rule")
    return parts(
        origin(data["provenance"], run.command, run.file),
        _table([row for row in rows if not is_dynamic(row)], f"static trees. The profile of {rules} took {seconds['profile']:.0f} s"),
        _table([row for row in rows if is_dynamic(row)], "dynamic trees"),
    )


def _headlines(data: Data) -> list[str]:
    worst = max(data["rows"], key=lambda row: float(abs(row["error"])))
    middle = 100 * statistics.median(abs(row["error"]) for row in data["rows"])
    return [
        f"{counted(len(data['rows']), 'plan')} of {counted(len(by_rule(data['rows'])), 'rule')}: predicted seconds per step are off by {middle:.1f} % in the"
        f" median, and at most by {100 * abs(worst['error']):.1f} % ({worst['name']}, {shape(worst)})"
    ]


PREDICTIONS = Kind(
    title=lambda data: f"Predicted steps of {data['provenance']['models']['target']} on {device(data['provenance'])}",
    body=_body,
    headlines=_headlines,
    checks=lambda data: [check_of(rule, rows) for rule, rows in by_rule(data["rows"]).items()],
)
"""What a file of `benchmarks.predictions` says."""
