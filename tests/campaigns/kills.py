"""The kill campaign: kill -9 at random moments of every long command, then the same command again; run it as `python tests/campaigns/kills.py`.

Each command runs once undisturbed, which tells how long it takes, what it prints, and what it leaves. Then rounds follow: it is killed two times
to three at random moments, and in the end let run. The campaign checks that

- the last run's result and its folder are those of the undisturbed run, but for times and for what they decide: `tune` may choose another tree,
  if by the profiles of the undisturbed run it is as fast within the interval;
- no more than one batch is done again: no piece of work that a journal kept, and no more training steps than lie between checkpoints;
- nothing else is left behind.

Runs are forks of this process, which has loaded the libraries, so that kills fall into the work and not into imports.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}

PAIR = ["--target", "embedded-target", "--draft", "embedded-draft", "--device", "cpu"]
TEXTS = ["--dataset", "stdlib", "--prompt-len", "32"]
SAVE_STEPS = 3
TIMES = ("seconds", "per_second", "utc", "speedup", "intervals_95", "breakdown", "provenance", "logit_gap", "sha256")
"""Parts of the keys of JSON that two runs of one command may differ in."""


@dataclass(frozen=True)
class Command:
    """A command line, and the words that it needs to go on."""

    words: tuple[str, ...]
    again: tuple[str, ...] = ()
    chosen: tuple[str, ...] = ()
    """Files that hold what times decided, by the ends of their paths: that they are there is compared, and the choice apart (`choice`)."""


COMMANDS = {
    "profile acceptance": Command(
        (
            *("profile", "acceptance", *PAIR, *TEXTS, "--num-prompts", "12", "--gen-len", "12", "--batch-size", "2", "-o", "a.json"),
            *("--trace", "t.json"),
        )
    ),
    "profile latency": Command(
        (
            "profile",
            "latency",
            *PAIR,
            "--sizes",
            "1,2,4,8,16",
            "--widths",
            "1,2,4",
            "--context",
            "16,64",
            "--repetitions",
            "6",
            "-o",
            "l.json",
        ),
    ),
    "profile potential": Command(
        ("potential", *PAIR, *TEXTS, "--num-prompts", "12", "--gen-len", "12", "--batch-size", "2", "-o", "p.json")
    ),
    "evaluate": Command(
        ("evaluate", *PAIR, *TEXTS, "--growmap", "68m_7b-16", "--num-prompts", "8", "--gen-len", "12", "--save-tokens", "-o", "r.json")
    ),
    "train-draft": Command(
        (
            *("train-draft", *PAIR, "--dataset", "stdlib", "--num-rows", "24", "--text", "target", "--text-batch", "4", "--seq-len", "32"),
            *(
                "--steps",
                "24",
                "--save-steps",
                str(SAVE_STEPS),
                "--eval-steps",
                "12",
                "--eval-prompts",
                "8",
                "--prompt-len",
                "16",
                "--gen-len",
                "16",
            ),
            *("--batch-size", "2", "--dtype", "float32", "-o", "draft"),
        ),
        again=("--resume",),
    ),
    "tune": Command(
        (
            *("tune", *PAIR, *TEXTS, "--temperature", "0,0.6", "--num-prompts", "8", "--choose-prompts", "4", "--evaluate-prompts", "4"),
            *("--gen-len", "12", "--batch-size", "2", "--sizes", "1,2,4,8", "--widths", "1,2,4", "--repetitions", "24", "-o", "tuned"),
        ),
        chosen=(
            "tree.pt",
            "tree.json",
            "report.json",
            "page.html",
            "manifest.json",
            *(f"tuned/{file}.json" for file in ("acceptance", "trace")),
        ),
    ),
    "grow": Command(("grow", "--acceptance", "68m_7b.acceptance.json", "--latency", "68m_7b-l40.latency.json", "-o", "tree.pt")),
}


@dataclass
class Found:
    """What the campaign has seen of one command."""

    kills: int = 0
    lost: int = 0
    """Most pieces of work that one killed run had begun and not kept."""
    steps: int = 0
    """Most training steps that were done again after one kill."""
    faults: list[str] = field(default_factory=list)
    choices: list[str] = field(default_factory=list)
    """What each round chose, in words."""


def main() -> None:
    """Run the campaign and print a line per command. Exit with 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=17, help="kills per command")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=COMMANDS)
    options = parser.parse_args()
    import_all()
    draws, faults, kills = random.Random(options.seed), 0, 0
    for name in [options.only] if options.only else COMMANDS:
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            found = campaign(COMMANDS[name], Path(folder), options.kills, draws)
        kills, faults = kills + found.kills, faults + len(found.faults)
        seconds = time.monotonic() - began
        lost = f"at most {found.lost} pieces and {found.steps} training steps lost by one"
        print(f"{name}: {found.kills} kills, {lost}, {len(found.faults)} faults, {seconds:.0f} s")
        for line in (*found.faults, *(f"chose {chose} ({found.choices.count(chose)} rounds)" for chose in dict.fromkeys(found.choices))):
            print(f"  {line}")
        sys.stdout.flush()
    print(f"{kills} kills in all, {faults} faults")
    sys.exit(1 if faults else 0)


def import_all() -> None:
    """Load what the commands load, before they are forked off."""
    import jinja2  # noqa: F401
    import matplotlib.figure  # noqa: F401
    import torch
    import transformers  # noqa: F401

    import treeopt.profiling.acceptance
    import treeopt.profiling.latency
    import treeopt.profiling.potential
    import treeopt.training.train
    import treeopt.tuning.run  # noqa: F401
    import treespec.evaluation.runner  # noqa: F401
    from treeopt.cli import main, tables  # noqa: F401

    torch.set_num_threads(1)


def campaign(command: Command, folder: Path, kills: int, draws: random.Random) -> Found:
    """Run one command undisturbed, and then in rounds with kills in between."""
    found = Found()
    whole = new_folder(folder / "whole")
    began = time.monotonic()
    if end(start(command.words, whole)) != 0:
        found.faults.append(f"the undisturbed run failed: {said(whole)}")
        return found
    seconds, expected = time.monotonic() - began, results(whole, command.chosen)
    number = 0
    while found.kills < kills and not found.faults and number < 20 * kills:
        number += 1
        place = new_folder(folder / f"round-{number}")
        kept: set[str] = set()
        step = 0
        for attempt in range(draws.choice((1, 2, 3)) + 1):
            words = command.words + (command.again if (place / "draft" / "training.json").exists() else ())
            process = start(words, place)
            last = attempt and found.kills >= kills
            killed = not last and wait(process, draws.uniform(0.02, 1.0) * seconds)
            code = None if killed else end(process)
            found.kills += killed
            events = progress(place)
            begun, now = {key for what, key in events if what == "begin"}, {key for what, key in events if what == "kept"}
            steps = [int(key) for what, key in events if what == "step"]
            if steps and step:
                found.steps = max(found.steps, step - steps[0] + 1)
            step = max(steps, default=0)
            if kept & (begun | now):
                found.faults.append(f"work was done again that was kept: {sorted(kept & (begun | now))[:3]}")
            found.lost = max(found.lost, len(begun - now))
            kept |= now
            if killed:
                continue
            if code != 0:
                found.faults.append(f"a run after a kill failed: {said(place)}")
            break
        else:
            if end(start(command.words + (command.again if (place / "draft" / "training.json").exists() else ()), place)) != 0:
                found.faults.append(f"the last run failed: {said(place)}")
        seen = results(place, command.chosen)
        if seen != expected:
            found.faults.append(f"another result: {'; '.join(differences(expected, seen))}")
        elif command.chosen:
            chose, good = choice(whole / "tuned", place / "tuned")
            found.choices.append(chose)
            found.faults += [] if good else [f"another choice: {chose}"]
        shutil.rmtree(place)
    if found.kills < kills:
        found.faults.append(f"stopped after {number} rounds")
    if found.lost > 1 or found.steps > SAVE_STEPS:
        found.faults.append(f"{found.lost} pieces and {found.steps} training steps were lost by one kill")
    return found


def new_folder(path: Path) -> Path:
    """Return a new folder with the files that `grow` reads."""
    path.mkdir()
    for profile in (Path(__file__).parents[2] / "growmaps" / "profiles").glob("68m_7b*.json"):
        shutil.copy(profile, path)
    (path.parent / "logs").mkdir(exist_ok=True)
    return path


def start(words: tuple[str, ...], folder: Path) -> int:
    """Fork off a run of the command line in a folder, and return its process. It reports its progress in a file."""
    log = folder.parent / "logs" / folder.name
    process = os.fork()
    if process:
        return process
    os.chdir(folder)
    for descriptor, name in ((1, ".out"), (2, ".err"), (3, ".progress")):
        os.dup2(os.open(f"{log}{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    sys.stdout, sys.stderr = open(1, "w"), open(2, "w")  # noqa: SIM115
    report_work()
    from treeopt.cli.main import main as command

    try:
        command.main(list(words), prog_name="treeopt")
    except SystemExit as ended:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ended.code if isinstance(ended.code, int) else 1)
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
    os._exit(70)


def report_work() -> None:
    """Have this process write what it does into file 3: pieces of work that it begins and keeps, and training steps."""
    from treeopt.cli.progress import Progress
    from treespec.files.journal import Journal

    piece, put = Journal.piece, Journal.put_all

    def note(what: str, key: object) -> None:
        os.write(3, f"{what}\t{key}\n".encode())

    def noted_piece(self: Journal, key: str, work: Any, value: Any = lambda done: done) -> Any:
        def noted_work() -> Any:
            note("begin", f"{self.path} {key}")
            return work()

        return piece(self, key, noted_work, value)

    def noted_put(self: Journal, values: Mapping[str, Any]) -> None:
        put(self, values)
        for key in values:
            note("kept", f"{self.path} {key}")

    def noted_progress(self: Progress, what: str, done: int, total: int) -> None:
        if what == "training":
            note("step", done)

    Journal.piece, Journal.put_all, Progress.__call__ = noted_piece, noted_put, noted_progress  # type: ignore[method-assign,assignment]


def wait(process: int, seconds: float) -> bool:
    """Kill a process after some seconds. Return False if it ended before."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            ENDED[process] = status
            return False
        time.sleep(0.005)
    os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    if not os.WIFSIGNALED(status):
        ENDED[process] = status
        return False
    return True


ENDED: dict[int, int] = {}


def end(process: int) -> int:
    """Return the exit code of a process, once it has ended."""
    status = ENDED.pop(process, None)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1] if status is None else status)


def said(folder: Path) -> str:
    """Return the last words of the last run in a folder."""
    return (folder.parent / "logs" / f"{folder.name}.err").read_text(errors="replace")[-300:].replace("\n", " | ")


def progress(folder: Path) -> list[tuple[str, str]]:
    """Return what the last run in a folder reported of its work. A kill may have torn the last line."""
    lines = (folder.parent / "logs" / f"{folder.name}.progress").read_text().split("\n")[:-1]
    return [(what, key) for what, _, key in (line.partition("\t") for line in lines)]


def results(folder: Path, chosen: tuple[str, ...]) -> dict[str, Any]:
    """Return what a run left, by the path of the file: JSON without times, tensors, and the size of other files; nothing of those `chosen` by times."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): None if str(path).endswith(chosen) else content(path) for path in paths}


def choice(whole: Path, place: Path) -> tuple[str, bool]:
    """Return what a run of `tune` chose, in words, and whether it is as good a choice as that of an undisturbed run.

    The tree is timed by the profiles of the undisturbed run. It is as good if it is no slower than the 95 % interval of that run's own.
    """
    from treeopt.optimizer.search import acceptance_rows
    from treeopt.profiles.acceptance import read_acceptance
    from treeopt.profiles.latency import read_latency
    from treespec.trees.growmap import read_growmap

    expected, seen = (json.loads((folder / "manifest.json").read_text()) for folder in (whole, place))
    if not seen["finished"]:
        return "nothing: the manifest says that the run is not finished", False
    best, now = expected["chosen"], seen["chosen"]
    tree, candidate = read_growmap(place / "tree.pt").tree, f"candidates/{now['draft']}/{now['drafting']}-t{now['temperature']:g}"
    rows = acceptance_rows(read_acceptance(whole / candidate / "choice.json"))
    seconds = read_latency(whole / "latency.json").at_context(None).step_seconds(tree)
    speed, (low, high) = sum(tree.path_probabilities(rows[: max(1, tree.depth)].tolist())) / seconds, best["interval_95"]
    said = f"{now['name']}, size {tree.size}, depth {tree.depth}: {speed:.1f} tokens/s, the undisturbed run's has the interval {low:.1f} to {high:.1f}"
    return said, speed >= low


def content(path: Path) -> Any:
    """Return the content of a file in a form that may be compared."""
    if path.suffix == ".json":
        return dict(plain("", json.loads(path.read_text())))
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return {name: tensor.numpy().tobytes() for name, tensor in load_file(path).items()}
    if path.suffix == ".pt":
        return path.read_bytes()
    return path.stat().st_size if path.name != "training_args.bin" else None


def plain(place: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Give the places in JSON with their values; under those that hold times, only the number of values."""
    if any(word in place.rpartition(".")[2] for word in TIMES):
        yield place, len(value) if isinstance(value, list) else None
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from plain(f"{place}.{key}", item)
    elif isinstance(value, list) and any(isinstance(item, Mapping | list) for item in value):
        for index, item in enumerate(value):
            yield from plain(f"{place}[{index}]", item)
    else:
        yield place, value


def differences(expected: Mapping[str, Any], seen: Mapping[str, Any]) -> list[str]:
    """Return in words how two results differ, in the first places."""
    said = [f"{name} is {'missing' if name in expected else 'left behind'}" for name in expected.keys() ^ seen.keys()]
    for name in expected.keys() & seen.keys():
        one, other = expected[name], seen[name]
        if one != other:
            places = [p for p in one.keys() | other.keys() if one.get(p) != other.get(p)] if isinstance(one, dict) else []
            said.append(
                f"{name} differs" + "".join(f" at {p}: {str(one.get(p))[:40]} / {str(other.get(p))[:40]}" for p in sorted(places)[:3])
            )
    return said[:5]


if __name__ == "__main__":
    main()
