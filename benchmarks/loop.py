"""Time the whole loop as its users wait for it: each command as a process of its own, and all of it in one process.

`python -m benchmarks.loop --folder DIR --out FILE` takes the pair in DIR/target and DIR/draft; where there is none, the embedded pair, inflated to
Llama-2-7B and llama-68m in fp16, is written there first (a GPU is needed). `--small` takes the embedded pair itself, on the CPU. Times are those of a clock
on the wall from the start of a process to its end, so they hold imports, loading and writing. Python's cache of bytecode is filled beforehand. On a GPU
everything runs twice: with Triton's cache empty, and with what the first time left in it; every command has a cache of its own. `--profile` adds
where the seconds of each command go, by module, from a run of its own.
"""

import argparse
import json
import os
import pstats
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from treespec.files.provenance import Provenance
from treespec.files.writing import write_json

ROOT = Path(__file__).parents[1]
PROFILED, EVALUATED, GEN_LEN, CONTEXT = 200, 12, 128, 192
IN_ONE = 100
"""Prompts whose acceptance is profiled where all runs in one process, as in `tune`."""
COMMANDS = ("profile acceptance", "profile latency", "grow", "evaluate", "in one process", "tune")


def arguments_of(command: str, pair: list[str], out: Path) -> list[str]:
    """Return what follows `python` for a command of the loop. Later ones read what earlier ones wrote to `out`."""
    data = ["--dataset", "stdlib", "--gen-len", str(GEN_LEN)]
    options = {
        "profile acceptance": [*pair, *data, "--num-prompts", str(PROFILED), "-o", str(out / "acceptance.json")],
        "profile latency": [*pair, "--context", str(CONTEXT), "-o", str(out / "latency.json")],
        "grow": ["--acceptance", str(out / "acceptance.json"), "--latency", str(out / "latency.json"), "-o", str(out / "tree.pt")],
        "evaluate": [
            *(*pair, *data, "--growmap", str(out / "tree.pt"), "--num-prompts", str(EVALUATED), "--start", str(PROFILED)),
            *("-o", str(out / "report.json")),
        ],
        "tune": [*pair, *data, "--num-prompts", str(IN_ONE), "-o", str(out / "tuned")],
    }
    if command == "in one process":
        return ["-m", "benchmarks.loop", "--here", *pair]
    return ["-m", "treeopt", *command.split(), *options[command]]


def run_here(options: argparse.Namespace) -> None:
    """Run the loop in this process, and print the seconds of its stages as JSON."""
    started = time.perf_counter()
    stages: dict[str, float] = {}

    def done(stage: str) -> None:
        stages[stage] = time.perf_counter() - started - sum(stages.values())

    import transformers  # noqa: F401  (so that its seconds are not those of loading)

    import treeopt
    import treespec.models.pairs  # noqa: F401

    done("imports")
    pair = treeopt.load_pair(options.target, options.draft, device=options.device, dtype=options.dtype)
    done("loading")
    prompts = treeopt.load_prompts("stdlib", pair, num_prompts=IN_ONE + EVALUATED)
    tuning, held_out = prompts.split(IN_ONE)
    done("prompts")
    acceptance = treeopt.profile_acceptance(pair, tuning, gen_len=GEN_LEN)
    done("profile acceptance")
    latency = treeopt.profile_latency(pair, contexts=[CONTEXT])
    done("profile latency")
    growmap = treeopt.grow(acceptance, latency)
    done("grow")
    report = treeopt.evaluate(pair, growmap, held_out, gen_len=GEN_LEN)
    done("evaluate")
    print(json.dumps({"stages": stages, "speedup": report.speedup, "lossless": report.lossless}))


def surroundings(cache: Path) -> dict[str, str]:
    """Return the environment of the commands: this one's, with a cache of compiled kernels, and with Python's own cache of bytecode."""
    known = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return known | {"TRITON_CACHE_DIR": str(cache), "PYTHONPYCACHEPREFIX": str(cache.parent / "bytecode")}


def timed(command: str, pair: list[str], out: Path, cache: Path) -> dict[str, Any]:
    """Run a command and return its seconds, and what it said of itself. Raises SystemExit if it fails."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments_of(command, pair, out)],
        cwd=ROOT,
        env=surroundings(cache),
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"error: {command} failed\n{done.stderr[-4000:]}")
    found: dict[str, Any] = {"seconds": seconds}
    if command == "in one process":
        found |= json.loads(done.stdout.strip().splitlines()[-1])
    return found


def where(command: str, pair: list[str], out: Path, cache: Path) -> list[dict[str, Any]]:
    """Return the functions in which a command spends most of its time, from a run under Python's profiler."""
    file = out / "profile"
    called = [sys.executable, "-m", "cProfile", "-o", str(file), *arguments_of(command, pair, out)]
    subprocess.run(called, cwd=ROOT, env=surroundings(cache), capture_output=True, check=True)
    rows: list[dict[str, Any]] = []
    for (path, _, name), (_, calls, own, whole, _) in pstats.Stats(str(file)).stats.items():  # type: ignore[attr-defined]
        rows.append({"function": f"{'/'.join(Path(path).parts[-2:])}:{name}", "calls": calls, "own": own, "whole": whole})
    by_own = sorted(rows, key=lambda row: -row["own"])[:15]
    ours = [row for row in rows if row["function"].split("/")[0] in ("cli", "profiling", "evaluation", "decoding", "models", "optimizer")]
    return [*by_own, *sorted(ours, key=lambda row: -row["whole"])[:25]]


def table_of(runs: dict[str, dict[str, dict[str, Any]]]) -> Table:
    """Return the seconds of every command as a printable table."""
    table = Table(title="seconds of whole commands")
    table.add_column("command")
    for state in runs:
        table.add_column(state, justify="right")
    for command in COMMANDS:
        found = [runs[state].get(command) for state in runs]
        table.add_row(command, *("" if row is None else f"{row['seconds']:.1f}" for row in found))
    for stage in next(iter(runs.values())).get("in one process", {}).get("stages", {}):
        table.add_row(f"  {stage}", *(f"{runs[state]['in one process']['stages'][stage]:.1f}" for state in runs))
    return table


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the inflated pair lies, or is to be written")
    parser.add_argument("--small", action="store_true", help="the embedded pair on the CPU")
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    for name in ("--target", "--draft", "--device", "--dtype"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        run_here(options)
        return
    if options.small == bool(options.folder):
        parser.error("pass either --folder or --small")
    if not options.small and not torch.cuda.is_available():
        parser.error("no GPU here; pass --small")
    with tempfile.TemporaryDirectory() as work:
        measure(options, Path(work))


def measure(options: argparse.Namespace, work: Path) -> None:
    """Run everything, and print and write what was seen."""
    if options.small:
        pair = ["--target", "embedded-target", "--draft", "embedded-draft", "--device", "cpu", "--dtype", "float32"]
    else:
        if not (options.folder / "draft" / "config.json").exists():
            subprocess.run([sys.executable, "-m", "benchmarks.inflate", "--out", str(options.folder)], cwd=ROOT, check=True)
        pair = [
            "--target",
            str(options.folder / "target"),
            "--draft",
            str(options.folder / "draft"),
            "--device",
            "cuda",
            "--dtype",
            "float16",
        ]
    out = work / "files"
    out.mkdir()
    caches = {command: work / f"triton {command}" for command in options.commands}
    imported = "import treeopt.profiling.acceptance, treespec.evaluation.runner"
    subprocess.run([sys.executable, "-c", imported], cwd=ROOT, env=surroundings(work / "triton"), check=True)
    runs: dict[str, dict[str, dict[str, Any]]] = {}
    profiles: dict[str, list[dict[str, Any]]] = {}
    figures: dict[str, Any] = {"prompts": PROFILED, "gen_len": GEN_LEN, "context": CONTEXT, "evaluated": EVALUATED}
    figures |= {"prompts_in_one_process": IN_ONE, "own_caches": True}
    for state in ("alone",) if options.small else ("empty cache", "filled cache"):
        runs[state] = {}
        for command in options.commands:
            for written in out.glob("*.json") if command == "profile acceptance" else ():
                written.unlink()  # commands go on with what is there
            if command == "tune":
                shutil.rmtree(out / "tuned", ignore_errors=True)
            runs[state][command] = timed(command, pair, out, caches[command])
            print(f"{state}: {command} {runs[state][command]['seconds']:.1f} s", file=sys.stderr, flush=True)
            if options.out:
                names = ("embedded-{}" if options.small else "inflated-{}").format
                shapes = ("target", "draft") if options.small else ("llama-2-7b", "llama-68m")
                models = dict(zip(("target", "draft"), map(names, shapes), strict=True))
                dtype = "float32" if options.small else "float16"
                provenance = Provenance.collect(models=models, dtype=dtype).to_json()
                write_json(options.out, figures | {"runs": runs, "profiles": profiles, "provenance": provenance})
    for command in options.commands if options.profile else ():
        profiles[command] = where(command, pair, out, caches[command])
    if options.out and profiles:
        write_json(options.out, json.loads(options.out.read_text()) | {"profiles": profiles})
    Console(width=100).print(table_of(runs))


if __name__ == "__main__":
    main()
