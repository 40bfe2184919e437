"""Measure a target that several GPUs hold, and profiles that several GPUs share: `python -m benchmarks.multi_gpu [STAGE ...] --out FILE`.

Each stage runs in processes of its own, which torchrun starts (`one` in a single one), and ends at `--limit` seconds. Figures are written to
FILE as they are found, so a stage that is killed keeps what it had; stages that FILE has already are left out, unless `--again` is given. A stage that needs
more GPUs than there are is said and left out. Nothing is downloaded, and no weight is on disk. With `--together` one start serves all stages of several
processes, which saves some 30 s for each, and a stage that fails ends those behind it. `--small` takes tiny shapes on the CPU, together.

    parity      texts of the embedded pair in fp32, beside those of one process
    one         one GPU: the plain path beside the part of a single process, and beside the launches of a divided one
    7b, 13b     the embedded pair with the cost of these shapes, held by one GPU and by all of them
    70b         random weights of the shape of Llama-2-70B, held by all GPUs
    acceptance  profiling shared by all GPUs, beside one alone; the target has the cost of Llama-2-7B
"""

import argparse
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from treespec.files.writing import write_json

TOGETHER = ("parity", "7b", "13b", "70b", "acceptance")
"""The stages of several processes, in the order in which they run."""
STAGES = ("parity", "one", *TOGETHER[1:])
_GRACE = 45.0
"""Seconds that a launcher has to end its processes."""


def read(path: Path) -> dict[str, Any]:
    """Return what a file of results has so far."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return {"stages": {}, "failed": {}, **found}


def run_stages(names: list[str], words: list[str], processes: int, limit: float) -> str:
    """Run stages in processes of their own and return how they failed; the empty string if they did not."""
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"] if processes > 1 else []
    command = [sys.executable, "-m", *launcher, "benchmarks.multi_gpu", *names, *words, "--worker"]
    print(f"== {' '.join(names)}: {' '.join(command)}", file=sys.stderr, flush=True)
    started = subprocess.Popen(command)
    try:
        code = started.wait(limit)
    except subprocess.TimeoutExpired:
        started.send_signal(signal.SIGTERM)
        try:
            started.wait(_GRACE)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()
        return f"it took more than {limit:g} s"
    return f"it ended with exit code {code}" if code else ""


def main() -> None:
    """Run the stages that are missing, one after another; with `--worker`, take part in some."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"{', '.join(STAGES)}; all of them by default")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--processes", type=int, default=2, help="GPUs that share the work")
    parser.add_argument("--limit", type=float, default=280, help="longest time of a stage, in seconds")
    parser.add_argument("--again", action="store_true", help="run stages that the file has already")
    parser.add_argument("--together", action="store_true", help="one start for all stages of several processes; `--limit` counts for each")
    parser.add_argument("--small", action="store_true", help="tiny shapes, on the CPU")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if unknown := set(arguments.stages) - set(STAGES):
        parser.error(f"there is no stage {sorted(unknown)[0]}; the stages are {', '.join(STAGES)}")
    if arguments.worker:
        from benchmarks.multi_gpu_stages import take_part

        take_part(arguments.stages, arguments.out, small=arguments.small)
        return
    done, gpus = read(arguments.out)["stages"], torch.cuda.device_count()
    wanted = [
        name for name in STAGES if name in (arguments.stages or STAGES) and (arguments.again or not done.get(name, {}).get("finished"))
    ]
    words, failed = ["--out", str(arguments.out), *(["--small"] if arguments.small else [])], False
    if arguments.small:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    groups = [[name] for name in wanted]
    if arguments.small or arguments.together:
        groups = [group for group in ([n for n in wanted if n not in TOGETHER], [n for n in wanted if n in TOGETHER]) if group]
    for group in groups:
        processes = arguments.processes if group[0] in TOGETHER else 1
        if not arguments.small and processes > gpus:
            print(f"{' '.join(group)}: {processes} GPUs are needed, and there are {gpus}: left out", file=sys.stderr)
            continue
        why = run_stages(group, words, processes, arguments.limit * len(group))
        found = read(arguments.out)
        for name in group:
            found["failed"].pop(name, None)
            if why and not found["stages"].get(name, {}).get("finished"):
                found["failed"][name] = why
        write_json(arguments.out, found)
        failed |= bool(why)
        if why:
            print(f"{' '.join(group)}: {why}; the same command goes on with what is missing", file=sys.stderr)
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
