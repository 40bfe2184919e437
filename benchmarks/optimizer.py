"""Measure the speed of the optimizer: `python -m benchmarks.optimizer [--out FILE]`.

It needs no GPU and takes about half a minute, most of it for Sequoia's recurrence.

Times are medians of repeated runs in one process (whole commands: of fresh processes); memory is the peak that one
further run allocates. Sequoia's recurrence is written here twice, from its definition: on torch scalars, as Sequoia's own
search does it, and on plain Python floats. Every timed result is first checked against another implementation.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from treeopt.optimizer import best_first, dynamic_program
from treeopt.optimizer.frontier import Frontier, Rows
from treeopt.profiles.acceptance import AcceptanceProfile
from treeopt.profiles.latency import LatencyProfile
from treeopt.profiles.samples import LatencySample
from treespec.files.provenance import cpu_name
from treespec.files.writing import write_json

# JackFram/llama-68m for Llama-2-7B, C4, greedy; L40-class latencies of both: published by
# AnthonyHuo/An-Empirical-Study-on-Tree-based-Speculative-Decoding
# fmt: off
RANK_PROBABILITY = (
    0.73246, 0.085874, 0.037976, 0.021108, 0.012809, 0.010283, 0.00884, 0.0067653, 0.0041494, 0.004871, 0.003969, 0.0024355, 0.0033375,
    0.0029767, 0.0019845, 0.0027061, 0.0018943, 0.00099224, 0.0017139, 0.00054122, 0.0023453, 0.00099224, 0.0012629, 0.0015335,
    0.0014433, 0.0011727, 0.00063143, 0.0010824, 0.00099224, 0.00090204, 0.00036082, 0.0011727,
)
NONE_ACCEPTED = 0.038427
TARGET_SECONDS = {1: 0.0253891, 2: 0.0267916, 4: 0.0281511, 8: 0.0270777, 16: 0.0268194, 32: 0.0275833, 64: 0.0272538, 128: 0.0294885}
DRAFT_SECONDS = {1: 0.00028056, 2: 0.00024142, 4: 0.00023922, 8: 0.00024904, 16: 0.00027014, 32: 0.00031361, 64: 0.00033226, 128: 0.0004222}
# fmt: on

RAW: Rows = np.array([RANK_PROBABILITY])
MONOTONE: Rows = -np.sort(-RAW)
BY_DEPTH: Rows = np.concatenate([RAW * 0.99**depth for depth in range(32)])
WHOLE = (1024, 32, 32)
"""Sizes 1..1024, depth bounds 1..32 (edges), 32 ranks."""
SMALL = (64, 10, 32)
"""64 nodes, 10 levels (9 edges), 32 ranks: the limits of Sequoia's own search."""


def main() -> None:
    """Run everything, print the table, and write it as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the results to this JSON file")
    parser.add_argument("--repetitions", type=int, default=9, help="runs per median (default 9)")
    arguments = parser.parse_args()
    rows = [*whole_frontiers(arguments.repetitions), *beside_sequoia(arguments.repetitions), *whole_commands()]
    for line in table(rows):
        print(line)
    if arguments.out is not None:
        machine = {
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
            "load_average": list(os.getloadavg()),
            "python": platform.python_version(),
            "numpy": np.__version__,
        }
        write_json(arguments.out, {"schema": "treeopt.benchmark.optimizer", "version": 1, "machine": machine, "results": rows})


# -- what is measured -----------------------------------------------------------------------------------------------------


def whole_frontiers(repetitions: int) -> list[dict[str, Any]]:
    """Time the frontier of WHOLE by each solver, on published vectors and on the orders that are hardest for the cuts."""
    check = np.isfinite(best_first.solve(MONOTONE, *WHOLE).values)
    np.testing.assert_allclose(
        best_first.solve(MONOTONE, *WHOLE).values[check], dynamic_program.solve(MONOTONE, *WHOLE).values[check], rtol=1e-12
    )
    shuffled = np.random.default_rng(0).permutation(RAW[0])[None]
    cases: list[tuple[str, Callable[[], Frontier], float | None, float | None]] = [
        ("best-first, monotone p[k]", lambda: best_first.solve(MONOTONE, *WHOLE), 0.05, None),
        ("dp, p[k] as published", lambda: dynamic_program.solve(RAW, *WHOLE), 2.0, 500.0),
        ("dp, p[k] shuffled", lambda: dynamic_program.solve(shuffled, *WHOLE), 2.0, 500.0),
        ("dp, p[k] increasing: no exchange cut", lambda: dynamic_program.solve(MONOTONE[:, ::-1], *WHOLE), 2.0, 500.0),
        ("dp, p[depth][rank], 32 rows", lambda: dynamic_program.solve(BY_DEPTH, *WHOLE), None, None),
    ]
    results = []
    for name, run, seconds_target, mib_target in cases:
        seconds = _median(run, min(3, repetitions) if seconds_target is None else repetitions)
        peak = peak_mib(run)
        results.append(
            _result("sizes 1..1024 x depths 1..32 x 32 ranks", name, seconds, seconds_target, peak_mib=peak, mib_target=mib_target)
        )
    return results


def beside_sequoia(repetitions: int) -> list[dict[str, Any]]:
    """Time one table by Sequoia's recurrence, written in two ways, and by both solvers. Speed-ups are over each of the two ways."""
    size, levels, ranks = SMALL
    plain_of_raw, as_it_is = _once(lambda: recurrence_on_floats(RAW[0].tolist(), size, levels))
    _, kind = _once(lambda: recurrence_on_floats(RAW[0].tolist(), size, levels, keep_maxima=True))
    torch_of_raw, on_torch = _once(lambda: recurrence_on_torch_scalars(RAW[0].tolist(), size, levels))
    by_dp = dynamic_program.solve(RAW, size, levels - 1, ranks)
    np.testing.assert_allclose([plain_of_raw, torch_of_raw], by_dp.value(size, levels - 1), rtol=1e-5)  # torch's are float32
    case = f"({size}, {levels}, {ranks})"
    results = [
        _result(case, "Sequoia's recurrence, torch scalars", on_torch, None),
        _result(case, "Sequoia's recurrence, Python floats", as_it_is, None),
        _result(case, "the same with max over branches kept", kind, None),
    ]
    for name, run in (
        ("dp, p[k] as published", lambda: dynamic_program.solve(RAW, size, levels - 1, ranks)),
        ("best-first, monotone p[k]", lambda: best_first.solve(MONOTONE, size, levels - 1, ranks)),
    ):
        seconds = _median(run, repetitions * 5)
        speedups = {"torch_scalars": on_torch / seconds, "python_floats": as_it_is / seconds, "python_floats_kept_maxima": kind / seconds}
        met = speedups["torch_scalars"] >= 1000 and speedups["python_floats"] >= 100
        results.append(_result(case, name, seconds, None, met=met, speedups=speedups, target=">= 1000x / >= 100x"))
    return results


def whole_commands() -> list[dict[str, Any]]:
    """Time `treeopt --help` and `treeopt generate` as whole processes."""
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: str(Path(folder) / name) for name in ("acceptance.json", "latency.json", "tree.pt")}
        AcceptanceProfile("topk", 0.0, 1.0, RANK_PROBABILITY, NONE_ACCEPTED, (), 11086, 200).write(paths["acceptance.json"])
        LatencyProfile(
            tuple(LatencySample(size, 384, (seconds,)) for size, seconds in TARGET_SECONDS.items()),
            tuple(LatencySample(width, 384, (seconds,)) for width, seconds in DRAFT_SECONDS.items()),
            (0.0,),
        ).write(paths["latency.json"])
        generate = ["generate", "--acceptance", paths["acceptance.json"], "--latency", paths["latency.json"], "-o", paths["tree.pt"]]
        return [
            _result("whole process", "treeopt --help", _median(lambda: _process("-m", "treeopt", "--help"), 5), 0.3),
            _result("whole process", "treeopt generate, sizes 1..128", _median(lambda: _process("-m", "treeopt", *generate), 5), 3.0),
            _result("whole process", "of which: python -c 'import torch'", _median(lambda: _process("-c", "import torch"), 5), None),
        ]


def recurrence_on_floats(ranks: list[float], max_size: int, levels: int, *, keep_maxima: bool = False) -> float:
    """Compute T[n, l, b] = max over m of T[n - m, l, b - 1] + p_b * max over j of T[m, l - 1, j], scalar by scalar.

    `keep_maxima` looks the inner maximum up instead of taking it again for every m, which Sequoia does not do.
    """
    nothing = float("-inf")
    table = [[[nothing] * (len(ranks) + 1) for _ in range(levels + 1)] for _ in range(max_size + 1)]
    maxima = [[nothing] * (levels + 1) for _ in range(max_size + 1)]
    for level in range(1, levels + 1):
        table[1][level][0] = maxima[1][level] = 1.0
    for size in range(2, max_size + 1):
        for level in range(2, levels + 1):
            for branches, p in enumerate(ranks, start=1):
                best = nothing
                for child in range(1, size):
                    below = maxima[child][level - 1] if keep_maxima else max(table[child][level - 1])
                    value = table[size - child][level][branches - 1] + p * below
                    if value > best:
                        best = value
                table[size][level][branches] = best
            maxima[size][level] = max(table[size][level])
    return maxima[max_size][levels]


def recurrence_on_torch_scalars(ranks: list[float], max_size: int, levels: int) -> float:
    """Compute the recurrence on one torch tensor, indexed and compared element by element."""
    import torch

    p = torch.tensor([0.0, *ranks])
    table = torch.full((max_size + 1, levels + 1, len(ranks) + 1), -torch.inf)
    table[1, 1:, 0] = 1.0
    for size in range(2, max_size + 1):
        for level in range(2, levels + 1):
            for branches in range(1, len(ranks) + 1):
                best = torch.tensor(-torch.inf)
                for child in range(1, size):
                    value = table[size - child][level][branches - 1] + p[branches] * table[child][level - 1].max()
                    if value > best:
                        best = value
                table[size][level][branches] = best
    return float(table[max_size, levels].max())


# -- measuring and showing ------------------------------------------------------------------------------------------------


def table(results: list[dict[str, Any]]) -> list[str]:
    """Return the results as lines of a table."""
    lines = [f"{'case':<40} {'what':<38} {'seconds':>9} {'MiB':>6} {'target':<20} {'speed-up (torch / Python / kept maxima)'}"]
    for row in results:
        speedups = " / ".join(f"{value:,.0f}x" for value in row.get("speedups", {}).values())
        peak = "" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}"
        met = {True: " met", False: " MISSED", None: ""}[row["met"]]
        lines.append(f"{row['case']:<40} {row['what']:<38} {row['seconds']:>9.5f} {peak:>6} {row['target'] + met:<20} {speedups}".rstrip())
    return lines


def _result(
    case: str,
    what: str,
    seconds: float,
    seconds_target: float | None,
    *,
    peak_mib: float | None = None,
    mib_target: float | None = None,
    met: bool | None = None,
    target: str = "",
    speedups: dict[str, float] | None = None,
) -> dict[str, Any]:
    if seconds_target is not None:
        met = seconds <= seconds_target and (mib_target is None or (peak_mib is not None and peak_mib <= mib_target))
        target = f"<= {seconds_target:g} s" + ("" if mib_target is None else f", {mib_target:g} MiB")
    row = {"case": case, "what": what, "seconds": seconds, "peak_mib": peak_mib, "target": target, "met": met}
    return row if speedups is None else row | {"speedups": speedups}


def _median(run: Callable[[], object], repetitions: int) -> float:
    run()
    return statistics.median(_once(run)[1] for _ in range(repetitions))


def _once(run: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = run()
    return result, time.perf_counter() - start


def peak_mib(run: Callable[[], object]) -> float:
    """Return the most memory that a run has allocated at a time, in MiB."""
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()


def _process(*arguments: str) -> None:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"python {' '.join(arguments)} failed:\n{done.stderr}")


if __name__ == "__main__":
    main()
