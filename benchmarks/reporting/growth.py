"""Results of `benchmarks.growth`: how the solvers' time and memory grow with the size, the depth bound and the ranks."""

from typing import Any

from benchmarks.reporting.markdown import counted, day, details, device, paragraph, parts, table
from benchmarks.reporting.optimizer import seconds
from benchmarks.reporting.run import Data, Kind, Run

LIMITS = {"size": "nodes", "depth": "levels", "ranks": "ranks"}


def _body(run: Run) -> str:
    known, largest = run.data["provenance"], run.data["largest"]
    rows = []
    for row in run.data["results"]:
        exponents = row["exponents"]
        shown = [f"{point[row['grows']]:,}: {seconds(point['seconds'])} s, {point['peak_mib']:.1f} MiB" for point in row["points"]]
        rows.append([row["solver"], LIMITS[row["grows"]], f"{exponents['seconds']:.2f}", f"{exponents['peak_mib']:.2f}", "; ".join(shown)])
    return parts(
        paragraph(
            f"Measured on {device(known)} ({details(known)}) on {day(known)} by `{run.command}`, with Python {known['python']}, ",
            f"torch {known['torch']}. The load average was {run.data['load_average'][0]:.1f}. The file is `benchmarks/results/{run.file}`.",
        ),
        paragraph(
            f"Each row is a solver and the limit that grows, while the others stay at {largest[0]:,} nodes, {largest[1]} levels and {largest[2]} ranks.",
            "The columns give the exponents with which the seconds and the memory grow, as the slope of a line through the logarithms, then every table",
            "with the processor's seconds and the memory that it allocates at most. The vector is p[k] = 0.6 / (k + 1)^2, whose trees gain nothing from",
            "some point on by going deeper. The dynamic programme notices this and goes no further, so the exponents by levels hold for such vectors alone.",
        ),
        table(("solver", "what grows", "exponent, seconds", "exponent, memory", "tables"), rows, left=2),
    )


def _last(data: Data, solver: str) -> dict[str, Any]:
    return next(row for row in data["results"] if row["solver"] == solver and row["grows"] == "size")


def _headlines(data: Data) -> list[str]:
    found = []
    for solver in dict.fromkeys(row["solver"] for row in data["results"]):
        point = _last(data, solver)["points"][-1]
        found.append(f"{solver}: {counted(point['size'], 'node')} in {seconds(point['seconds'])} s and {point['peak_mib']:.0f} MiB")
    return found


GROWTH = Kind(title=lambda data: "How the solvers grow", body=_body, headlines=_headlines)
"""What a file of `benchmarks.growth` says."""
