"""Results of `benchmarks.optimizer`: the seconds and the memory of each solver."""

from typing import Any

from benchmarks.reporting.markdown import paragraph, section, table

NAMES = {
    "best-first, monotone p[k]": "best-first, vector that does not increase",
    "dp, p[k] as published": "dynamic programme, published vector as measured",
    "dp, p[k] shuffled": "dynamic programme, vector shuffled",
    "dp, p[k] increasing: no exchange cut": "dynamic programme, vector that increases",
    "dp, p[depth][rank], 32 rows": "dynamic programme, p[depth][rank], 32 rows",
    "the same with max over branches kept": "Sequoia's recurrence, Python floats, maxima over branches kept",
    "treeopt --help": "`treeopt --help`",
    "treeopt generate, sizes 1..128": "`treeopt generate`, sizes to 128",
    "of which: python -c 'import torch'": "of which `import torch`",
}
CASES = {
    "sizes 1..1024 x depths 1..32 x 32 ranks": "all sizes to 1,024 and depths to 32, 32 ranks",
    "(64, 10, 32)": "sizes to 64, 10 levels, 32 ranks",
}


def optimizer(data: dict[str, Any], command: str, file: str) -> str:
    """Return the section of one file of `benchmarks.optimizer`, which records the machine but no date."""
    machine = data["machine"]
    rows = [
        [
            CASES.get(row["case"], row["case"]),
            NAMES.get(row["what"], row["what"]),
            seconds(row["seconds"]),
            "" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}",
            *(f"{row['speedups'][key]:,.0f}" if "speedups" in row else "" for key in ("torch_scalars", "python_floats")),
            row["target"],
        ]
        for row in data["results"]
    ]
    columns = ("case", "solver or command", "seconds", "MiB", "x torch scalars", "x Python floats", "goal")
    return section(
        "The optimizer",
        paragraph(
            f"Measured on a CPU ({machine['cpu']}, {machine['cores']} cores) by `{command}`, with Python {machine['python']} and numpy {machine['numpy']}.",
            f"The file records no date; it is `benchmarks/results/{file}`.",
        ),
        paragraph(
            "Each row is a solver on one set of limits, or a whole command: the columns give its median seconds, the memory that one run allocates at",
            "most, how many times as fast it is as Sequoia's recurrence on torch scalars and on plain Python floats, and the goal that was set.",
        ),
        table(columns, rows, left=2),
    )


def seconds(value: float) -> str:
    """Return seconds with as many digits as a time of that length needs.

    >>> [seconds(value) for value in (0.0013841, 0.0227, 0.0898, 1.9197)]
    ['0.0014', '0.023', '0.090', '1.92']
    """
    return f"{value:.2f}" if value >= 0.1 else f"{value:.3f}" if value >= 0.01 else f"{value:.4f}"
