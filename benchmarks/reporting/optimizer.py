"""Results of `benchmarks.optimizer`: the seconds and the memory of each solver."""

import re
from typing import Any

from benchmarks.reporting.markdown import counted, paragraph, parts, table
from benchmarks.reporting.run import Data, Kind, Run
from benchmarks.reporting.verdicts import Check, Goal, verdict

NAMES = {
    "best-first, monotone p[k]": "best-first, vector that does not increase",
    "dp, p[k] as published": "dynamic programme, published vector as measured",
    "dp, p[k] shuffled": "dynamic programme, vector shuffled",
    "dp, p[k] increasing: no exchange cut": "dynamic programme, vector that increases",
    "dp, p[depth][rank], 32 rows": "dynamic programme, p[depth][rank], 32 rows",
    "the same with max over branches kept": "Sequoia's recurrence, Python floats, maxima over branches kept",
    "treeopt --help": "`treeopt --help`",
    "treeopt generate, sizes 1..128": "`treeopt grow`, sizes to 128",
    "of which: python -c 'import torch'": "of which `import torch`",
}
CASES = {
    "sizes 1..1024 x depths 1..32 x 32 ranks": "all sizes to 1,024 and depths to 32, 32 ranks",
    "(64, 10, 32)": "sizes to 64, 10 levels, 32 ranks",
}


SPEEDUPS = {"torch_scalars": "x torch scalars", "python_floats": "x Python floats", "python_floats_kept_maxima": "x maxima kept"}
"""The columns of speed-ups over Sequoia's recurrence, by their keys in the file."""
UNITS = {"s": "seconds", "MiB": "peak_mib"}
"""The key of the figure that a goal of this unit is for."""


def checks_of(data: Data) -> list[Check]:
    """Return the figures that have a goal."""
    return [check for row in data["results"] for check in _checks(row)]


def _checks(row: dict[str, Any]) -> list[Check]:
    """Return the figures of a row that have a goal, from goals such as "<= 2 s, 500 MiB" and ">= 1000x / >= 100x"."""
    name = f"{_name(row)}, {CASES.get(row['case'], row['case'])}"
    if row["target"].startswith(">="):
        limits = [float(limit) for limit in re.findall(r">= (\d+)x", row["target"])]
        return [
            Check(f"{name}, beside Sequoia's recurrence", row["speedups"][key], Goal(limit, SPEEDUPS[key], at_most=False), 0)
            for key, limit in zip(SPEEDUPS, limits, strict=False)
        ]
    found = re.findall(r"([\d.]+) (s|MiB)", row["target"])
    digits = {"s": len(seconds(row["seconds"]).partition(".")[2]), "MiB": 0}
    return [Check(name, row[UNITS[unit]], Goal(float(limit), unit), digits[unit]) for limit, unit in found]


def _name(row: dict[str, Any]) -> str:
    return NAMES.get(row["what"], str(row["what"]))


def _body(run: Run) -> str:
    machine = run.data["machine"]
    rows = []
    for row in run.data["results"]:
        checks = _checks(row)
        figures = {check.goal.unit: check.figure for check in checks}
        rows.append(
            [
                CASES.get(row["case"], row["case"]),
                _name(row),
                figures.get("s", seconds(row["seconds"])),
                "" if row["peak_mib"] is None else figures.get("MiB", f"{row['peak_mib']:.0f}"),
                *(figures.get(column, f"{row['speedups'][key]:,.0f}") if "speedups" in row else "" for key, column in SPEEDUPS.items()),
                verdict(checks),
            ]
        )
    columns = ("case", "solver or command", "seconds", "MiB", *SPEEDUPS.values(), "goal")
    return parts(
        paragraph(
            f"Measured on a CPU ({machine['cpu']}, {counted(machine['cores'], 'core')}) by `{run.command}`, with Python {machine['python']} and",
            f"numpy {machine['numpy']}. The file records no date; it is `benchmarks/results/{run.file}`.",
        ),
        paragraph(
            "Each row is a solver on one set of limits, or a whole command. The columns give its median seconds, the memory that one run allocates at",
            "most, how many times as fast it is as Sequoia's recurrence written in three ways (on torch scalars, on plain Python floats, and on",
            "these with the maxima over branches kept), and the goal that was set.",
        ),
        table(columns, rows, left=2),
    )


def seconds(value: float) -> str:
    """Return seconds with as many digits as a time of that length needs.

    >>> [seconds(value) for value in (0.0013841, 0.0227, 0.0898, 1.9197)]
    ['0.0014', '0.023', '0.090', '1.92']
    """
    return f"{value:.2f}" if value >= 0.1 else f"{value:.3f}" if value >= 0.01 else f"{value:.4f}"


def _headlines(data: Data) -> list[str]:
    (whole,) = [row for row in data["results"] if row["what"] == "dp, p[k] as published" and row["case"].startswith("sizes")]
    return [f"{_name(whole)}, {CASES[whole['case']]}: {seconds(whole['seconds'])} s"]


OPTIMIZER = Kind(title=lambda data: "The optimizer", body=_body, headlines=_headlines, checks=checks_of)
"""What a file of `benchmarks.optimizer` says."""
