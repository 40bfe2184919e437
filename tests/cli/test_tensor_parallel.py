"""`--tensor-parallel`: commands that torchrun starts several times over give what one process gives, and end together."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.cli.conftest import Run
from treeopt.profiles.latency import read_latency

Torchrun = Callable[..., "subprocess.Popen[str]"]

LAUNCH = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
TREE = ("--dynamic", "--size", "4", "--depth", "2")


@pytest.fixture
def torchrun(tmp_path: Path) -> Torchrun:
    """Start two processes of `treeopt ARGS`, or of a line of the shell."""

    def start(*arguments: object, shell: str = "") -> "subprocess.Popen[str]":
        what = ["--no-python", "sh", "-c", shell] if shell else ["-m", "treeopt", *map(str, arguments)]
        own = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        return subprocess.Popen(
            [*LAUNCH, *what],
            cwd=tmp_path,
            env={**os.environ, **own},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def ended(started: "subprocess.Popen[str]") -> tuple[int, str, list[str]]:
    """The exit code, stdout, and the lines of treeopt on stderr: all before the report of torch, and how it ended, which may be said beside that."""
    out, err = started.communicate(timeout=300)
    lines = err.splitlines()
    cut = next((at for at, line in enumerate(lines) if "torch/distributed" in line or "torch.distributed" in line), len(lines))
    return started.returncode, out, lines[:cut] + [line for line in lines[cut:] if line.startswith(("error: ", "interrupted"))]


def workers(started: "subprocess.Popen[str]") -> dict[int, int]:
    """The ids of the processes that a launcher has started, by their numbers."""
    found = {}
    for child in Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text(encoding="ascii").split():
        words = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        found |= {int(word[5:]): int(child) for word in words if word.startswith(b"RANK=")}
    return found


def test_one_process_alone_is_shown_the_command(pair: tuple[Path, Path], run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("treespec.files.joined.FAIL_SECONDS", 0.5)  # here nobody else comes
    monkeypatch.delenv("RANK", raising=False)
    words = ["--target", pair[0], "--draft", pair[1], "--prompt", "w1 w2", "--tensor-parallel", "2"]
    done = run("run", *words)
    assert done.code == 2
    assert (
        "--tensor-parallel 2 takes 2 processes, and this one stands alone; start it with: torchrun --nproc-per-node 2 -m -- treeopt run "
        in done.err
    )
    assert f"--target {pair[0]} --draft {pair[1]} --prompt 'w1 w2' --tensor-parallel 2" in done.err
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    done = run("run", *words, "--offload")
    assert done.code == 2
    assert "--offload streams the layers of a whole target" in done.err
    done = run("run", *words[:-1], "4")
    assert "--tensor-parallel is 4, but 2 processes were started; pass --tensor-parallel 2, or start it with: torchrun" in done.err
    if not torch.cuda.is_available():
        done = run("run", *words)
        assert (done.code, done.out) == (1, "")
        assert done.err.splitlines()[-1].endswith("torch finds none on this machine; pass --device cpu to run on processors")


def test_whichever_fails_first_says_why(pair: tuple[Path, Path], torchrun: Torchrun) -> None:
    """The launcher ends the first process, which is late, as soon as the other one has ended."""
    line = f"{sys.executable} -m treeopt run --target {pair[0]} --draft {pair[1]} --prompt w1 --tensor-parallel 4 --device cpu"
    code, out, err = ended(torchrun(shell=f"[ $RANK = 0 ] && sleep 60; exec {line}"))
    assert (code, out) == (1, "")
    assert [each.partition(";")[0] for each in err] == ["error: --tensor-parallel is 4, but 2 processes were started"]


def test_a_tuning_run_takes_the_decisions_of_the_first_process(
    pair: tuple[Path, Path], rows: Path, run: Run, torchrun: Torchrun, tmp_path: Path
) -> None:
    """Latencies differ from process to process, and what is grown on them must not. The growmap says for how many processes it is."""
    words = [
        "tune",
        "--target",
        pair[0],
        "--draft",
        pair[1],
        "--dataset",
        rows,
        "--num-prompts",
        2,
        "--evaluate-prompts",
        2,
        "--prompt-len",
        16,
    ]
    words += ["--gen-len", 12, "--repetitions", 4, "--max-branch", 4, "--device", "cpu", "-o", "tuned"]
    code, out, err = ended(torchrun(*words, "--tensor-parallel", 2, "--quiet"))
    assert code == 0, err
    assert out.startswith("chosen")
    assert (read_latency(tmp_path / "tuned/latency.json").provenance or {})["tensor_parallel"] == 2
    models = ["--target", pair[0], "--draft", pair[1], "--dataset", rows, "--num-prompts", 1, "--prompt-len", 16, "--gen-len", 4]
    other = run("evaluate", *models, "--growmap", "tuned/tree.pt", "--device", "cpu", "--threads", 1)
    assert other.code == 0
    assert "the growmap was timed on a target held by 2 processes (this run has 1)" in other.err
    other = run(*words)
    assert other.code == 1
    assert "tuned was made with --tensor-parallel 2, but this run has none" in other.err


def test_processes_of_other_arguments_end_with_one_line(pair: tuple[Path, Path], torchrun: Torchrun, tmp_path: Path) -> None:
    words = f"run --target {pair[0]} --draft {pair[1]} --prompt 'w1 w2' --seed $RANK --device cpu --quiet --tensor-parallel 2"
    code, out, err = ended(torchrun(shell=f"exec {sys.executable} -m treeopt {words}"))
    assert code != 0
    assert out == ""
    assert len(err) == 1
    assert err[0].startswith("error: the processes of this run differ in the command line: process 0 has run --target ")


def test_an_evaluation_goes_on_after_a_kill_and_is_that_of_one_process(
    pair: tuple[Path, Path], rows: Path, run: Run, torchrun: Torchrun, tmp_path: Path
) -> None:
    """A killed process ends the others, the next run takes up what was finished, and the whole is what one process gives."""
    words = ["evaluate", "--target", pair[0], "--draft", pair[1], "--dataset", rows, "--num-prompts", 4, "--prompt-len", 16, *TREE]
    words += ["--gen-len", 80, "--temperature", "0.7", "--save-tokens", "--device", "cpu", "--format", "json", "--quiet"]
    alone = run(*words, "-o", "alone.json").json
    words += ["--tensor-parallel", 2, "-o", "both.json"]
    started = torchrun(*words)
    journal, until = tmp_path / "both.json.journal", time.monotonic() + 200
    while not (journal.is_file() and journal.stat().st_size):
        assert started.poll() is None, started.communicate()
        assert time.monotonic() < until
        time.sleep(0.05)
    found = workers(started)
    os.kill(found[1], signal.SIGKILL)
    code, out, err = ended(started)
    assert code != 0
    assert out == ""
    assert len(err) == 1
    assert "another process of this run has ended" in err[0] or "rank 1 of 2 was ended from outside" in err[0] or "interrupted" in err[0]
    assert not (tmp_path / "both.json").exists()
    assert not any(Path(f"/proc/{process}").exists() for process in found.values())
    kept = journal.read_bytes()
    code, out, err = ended(torchrun(*words))
    assert (code, err) == (0, [])
    both = json.loads(out)
    for name in ("tokens", "steps", "observed_acceptance", "prompt_set"):
        assert both[name] == alone[name], name
    read = [json.loads((tmp_path / name).read_text(encoding="utf-8")) for name in ("alone.json", "both.json")]
    assert read[0]["outputs"] == read[1]["outputs"]
    assert [both["provenance"][name] for name in ("tensor_parallel", "processes", "backend")] == [2, 2, "gloo"]
    assert not any("processes shared the prompts" in note for note in both["notes"])
    first = json.loads(kept.splitlines()[1])["value"]
    assert read[1]["results"][0]["seconds"] == first["seconds"]  # it went on, and did not begin anew
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone.json", "both.json"]
