"""Run the loop of the embedded pair alone and beside busy processes, and hold the answers against one another.

`python -m benchmarks.noise --out FILE` profiles the acceptance once, which no load changes. Then it runs `profile latency`, `grow` and `evaluate` alone,
and again with `--busy` processes that only count, for each of `--threads`. The machine must do nothing else in the first half. Of each run it prints
the tree, the predicted speed-up with its interval, the speed-up that the times of the idle machine give the same tree, the measured one, and whether
the answer holds: whether the interval has the idle machine's speed-up, or the commands said that they cannot tell.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from treeopt.profiles.latency import read_latency
from treespec.files.provenance import Provenance
from treespec.files.writing import write_json
from treespec.trees.growmap import read_growmap

ROOT = Path(__file__).parents[1]
PAIR = ("--target", "embedded-target", "--draft", "embedded-draft", "--device", "cpu")
DATA = ("--dataset", "stdlib", "--gen-len", "128")
CONTEXT = 192
UNTOLD = ("cannot tell", "cannot be told")


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """Keep so many processes busy during this block."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def command(folder: Path, *words: str) -> tuple[dict[str, Any], list[str]]:
    """Run a command of treeopt, and return its JSON and the lines on stderr that say something about its figures. Raises SystemExit if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "treeopt", *words, "--format", "json"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"error: {words[0]} failed\n{done.stderr[-2000:]}")
    said = [line for line in done.stderr.splitlines() if any(sign in line for sign in ("unstable", "cannot", "busy", "noisy", "speed"))]
    return json.loads(done.stdout), said


def loop(folder: Path, threads: int, prompts: int) -> dict[str, Any]:
    """Run the loop in a folder that has the acceptance profile, and return its answer."""
    started, own = time.perf_counter(), ("--threads", str(threads))
    times, unstable = command(folder, "profile", "latency", *PAIR, *own, "--context", str(CONTEXT), "-o", "latency.json")
    grown, untold = command(folder, "grow", "--acceptance", "acceptance.json", "--latency", "latency.json", "-o", "tree.pt")
    run = ("evaluate", *PAIR, *own, *DATA, "--num-prompts", str(prompts), "--growmap", "tree.pt", "-o", "report.json")
    measured, doubts = command(folder, *run)
    return {
        "threads": threads,
        "size": grown["size"],
        "depth": grown["depth"],
        "predicted_speedup": grown["predicted_speedup"],
        "interval_95": grown["intervals_95"].get("predicted_speedup"),
        "measured_speedup": measured["speedup"],
        "measured_interval_95": measured["intervals_95"]["speedup"],
        "predicted": measured["predicted"],
        "tokens_per_step": measured["tokens_per_step"],
        "seconds_per_step": measured["measured_seconds_per_step"],
        "autoregressive_seconds": measured["baseline"]["seconds_per_token"],
        "points_unstable": times["warning"],
        "said": [*unstable, *untold, *doubts, *measured["notes"]],
        "load_average": json.loads((folder / "report.json").read_text())["provenance"]["load_average"],
        "seconds": time.perf_counter() - started,
    }


def compare(found: dict[str, Any], folder: Path, idle: Path) -> None:
    """Add the speed-up that the times of the idle machine give the tree of a run, and whether the run's answer holds there."""
    tree, model = read_growmap(folder / "tree.pt").tree, read_latency(idle / "latency.json").at_context(CONTEXT)
    tokens = found["predicted"]["tokens_per_step"] or 1.0
    found["idle_speedup"] = tokens * model.autoregressive_seconds() / model.step_seconds(tree)
    ends = found["interval_95"]
    found["held"] = ends is not None and ends[0] <= found["idle_speedup"] <= ends[1]
    found["untold"] = any(words in line for line in found["said"] for words in UNTOLD)


def table_of(runs: list[dict[str, Any]]) -> Table:
    """Return the answers of all runs as a printable table."""
    table = Table(title="speed-ups: predicted, of the same tree on the idle machine, and measured, with 95 % intervals")
    for head in ("busy", "threads", "load", "tree", "predicted", "idle", "measured", "s"):
        table.add_column(head, justify="right")
    table.add_column("answer")
    for run in runs:
        shown = [
            f"{run[key]:.2f} [{run[ends][0]:.2f}, {run[ends][1]:.2f}]" for key, ends in (("measured_speedup", "measured_interval_95"),)
        ]
        ends = run["interval_95"]
        predicted = f"{run['predicted_speedup']:.2f}" + ("" if ends is None else f" [{ends[0]:.2f}, {ends[1]:.2f}]")
        answer = " and ".join([*(["holds"] if run["held"] else []), *(["cannot tell"] if run["untold"] else [])]) or "WRONG"
        cells = (
            run["busy"],
            run["threads"],
            run["load_average"],
            f"({run['size']}, {run['depth']})",
            predicted,
            f"{run['idle_speedup']:.2f}",
        )
        table.add_row(*map(str, cells), *shown, f"{run['seconds']:.0f}", answer)
    return table


def main() -> None:
    """Measure, print a table and what was said, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--busy", type=int, default=2, help="busy processes beside the second half (default 2)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="threads of torch (default 1)")
    parser.add_argument("--prompts", type=int, default=8, help="prompts to evaluate (default 8)")
    parser.add_argument("--rounds", type=int, default=1, help="rounds of the second half (default 1)")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        first = Path(work) / "acceptance"
        first.mkdir()
        command(first, "profile", "acceptance", *PAIR, "--threads", "1", *DATA, "--num-prompts", "64", "-o", "acceptance.json")
        runs: list[dict[str, Any]] = []
        for processes in [0] + [options.busy] * options.rounds:
            for threads in options.threads:
                folder, idle = Path(work) / f"{len(runs)}", Path(work) / f"{options.threads.index(threads)}"
                folder.mkdir()
                (folder / "acceptance.json").write_text((first / "acceptance.json").read_text())
                with busy(processes):
                    found = loop(folder, threads, options.prompts)
                compare(found, folder, idle)
                runs.append({"busy": processes, **found})
                print(f"{processes} busy, {threads} threads: {found['seconds']:.0f} s", file=sys.stderr, flush=True)
                if options.out:
                    record = Provenance.collect(models={"target": PAIR[1], "draft": PAIR[3]}).to_json()
                    write_json(options.out, {"context": CONTEXT, "prompts": options.prompts, "runs": runs, "provenance": record})
    console = Console(width=150)
    console.print(table_of(runs))
    for run in runs:
        for line in run["said"]:
            console.print(f"{run['busy']} busy, {run['threads']} threads: {line}", soft_wrap=True)


if __name__ == "__main__":
    main()
