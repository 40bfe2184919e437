"""Measure how the solvers' time and memory grow: `python -m benchmarks.growth [--out FILE]`.

It needs no GPU and takes some minutes, most of them for the largest tables of the dynamic programme. The size, the depth bound and the number of ranks grow one
by one, the other two being as large as in `LARGEST`. Vectors are p[k] = 0.6 / (k + 1)^2, in this order for best-first, and shuffled for the dynamic
programme, which has no use for their order. Seconds are those of the processor, in one thread, so that other work on the machine does not count.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.optimizer import peak_mib
from treeopt.optimizer import best_first, dynamic_program
from treeopt.optimizer.frontier import Frontier, Rows
from treespec.files.provenance import Provenance
from treespec.files.writing import write_json

LARGEST = (8192, 64, 64)
"""Sizes 1..8192, depth bounds 1..64 (edges), 64 ranks."""
STEPS = {"size": (512, 1024, 2048, 4096, 8192), "depth": (8, 16, 32, 64), "ranks": (8, 16, 32, 64)}
LONG = 0.5
"""Seconds from which on a table is timed once; others are medians of five."""


def growth(largest: tuple[int, int, int] = LARGEST, steps: dict[str, tuple[int, ...]] | None = None) -> list[dict[str, Any]]:
    """Return the seconds and the peak memory of each solver on growing tables, with the exponents of that growth.

    An exponent is the slope of the least-squares line through the logarithms. The last of the `steps` of each limit is that of `largest`. Both solvers are
    first held against one another on the falling vector.
    """
    falling = 0.6 / np.arange(1, largest[2] + 1) ** 2
    ours, theirs = (solve(falling[None], 256, 16, len(falling)).values for solve in (best_first.solve, dynamic_program.solve))
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)
    shuffled = np.random.default_rng(0).permutation(falling)
    solvers: list[tuple[str, Callable[[Rows, int, int, int], Frontier], Rows]] = [
        ("best-first", best_first.solve, falling),
        ("dynamic programme", dynamic_program.solve, shuffled),
    ]
    found = []
    for name, solve, chances in solvers:
        known: dict[tuple[int, ...], tuple[float, float]] = {}
        for axis, (what, values) in enumerate((steps or STEPS).items()):
            points = []
            for value in values:
                limits = (*largest[:axis], value, *largest[axis + 1 :])
                if limits not in known:
                    run = partial(solve, chances[None, : limits[2]], *limits)
                    took = seconds_of(run)
                    known[limits] = took if took > LONG else statistics.median(seconds_of(run) for _ in range(5)), peak_mib(run)
                    print(f"{name}, {limits}: {known[limits][0]:.3f} s", file=sys.stderr, flush=True)
                points.append({what: value, "seconds": known[limits][0], "peak_mib": known[limits][1]})
            exponents = {key: slope(values, [point[key] for point in points]) for key in ("seconds", "peak_mib")}
            found.append({"solver": name, "grows": what, "points": points, "exponents": exponents})
    return found


def seconds_of(run: Callable[[], object]) -> float:
    """Return the processor's seconds of a run."""
    began = time.process_time()
    run()
    return time.process_time() - began


def slope(values: Sequence[float], figures: Sequence[float]) -> float:
    """Return the slope of the least-squares line through the logarithms.

    >>> round(slope((1, 2, 4), (3, 12, 48)), 6)
    2.0
    """
    return float(np.polyfit(np.log(values), np.log(figures), 1)[0])


def main() -> None:
    """Run everything, print a line for each solver and limit, and write it as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the results to this JSON file")
    arguments = parser.parse_args()
    rows = growth()
    for row in rows:
        points = ", ".join(f"{point[row['grows']]}: {point['seconds']:.3f} s, {point['peak_mib']:.0f} MiB" for point in row["points"])
        exponents = row["exponents"]
        print(
            f"{row['solver']} by {row['grows']}, exponents {exponents['seconds']:.2f} (s) and {exponents['peak_mib']:.2f} (MiB): {points}"
        )
    if arguments.out is not None:
        known = {"largest": list(LARGEST), "load_average": list(os.getloadavg()), "provenance": Provenance.collect().to_json()}
        write_json(arguments.out, {"schema": "treeopt.benchmark.growth", "version": 1, "results": rows, **known})


if __name__ == "__main__":
    main()
