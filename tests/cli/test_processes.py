"""Commands that several processes share: one result, one that speaks, one end for all; and any number of them goes on."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Run
from treeopt.cli.joining import ALONE_ONLY, SHARED
from treeopt.cli.main import main
from treespec.files.journal import journal_of_rank

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="launches processes, and looks at them in /proc")
ACCEPTANCE = [
    *("profile", "acceptance", "--target", "embedded-target", "--draft", "embedded-draft", "--dataset", "stdlib", "--prompt-len", "16"),
    *("--num-prompts", "10", "--batch-size", "1", "--gen-len", "24", "--temperature", "0.7", "--drafting", "swor"),
]
CPU = ["--device", "cpu"]
WITHIN = 240
"""Seconds that a run may take on a slow and busy machine."""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Launched:
    """Processes that are started as a shell would, without a launcher to end the others."""

    def __init__(self, folder: Path, *lines: list[str]) -> None:
        self._opened, self.port = ExitStack(), free_port()
        meeting = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self.port),
            "WORLD_SIZE": str(len(lines)),
            "LOCAL_WORLD_SIZE": str(len(lines)),
        }
        common = {**os.environ, **meeting, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        self.started = [
            self._opened.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", "treeopt", *line],
                    cwd=folder,
                    env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            for rank, line in enumerate(lines)
        ]

    def __enter__(self) -> "Launched":
        return self

    def __exit__(self, *error: object) -> None:
        for process in self.started:
            if process.poll() is None:
                process.kill()
        self._opened.close()

    def ended(self) -> list[tuple[int, str, str]]:
        """Exit code, stdout and stderr of each, when all have ended."""
        said = [process.communicate(timeout=WITHIN) for process in self.started]
        return [(process.returncode, out, err) for process, (out, err) in zip(self.started, said, strict=True)]


def errors(said: list[tuple[int, str, str]]) -> list[str]:
    """The lines that say why something ended."""
    return [line for _, _, err in said for line in err.splitlines() if line.startswith(("error:", "interrupted"))]


def content(path: Path) -> dict[str, Any]:
    """A profile without its provenance, which has times."""
    return {key: value for key, value in json.loads(path.read_text()).items() if key != "provenance"}


def listening(process: int) -> Iterator[tuple[str, int]]:
    """The addresses and ports at which a process listens."""
    own = set()
    for one in Path(f"/proc/{process}/fd").iterdir():
        try:
            own.add(os.readlink(one))
        except FileNotFoundError:
            continue
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{process}/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and f"socket:[{words[9]}]" in own:
                address, port = words[1].split(":")
                yield address, int(port, 16)


def test_a_killed_process_ends_all_and_another_number_goes_on(run: Run, tmp_path: Path) -> None:
    """Rank 1 of two is killed when it has kept something. The other ends with a line; three go on, and the result is that of one alone."""
    assert run(*ACCEPTANCE, *CPU, "--quiet", "-o", "alone.json").code == 0
    line = [*ACCEPTANCE, *CPU, "-o", "shared.json"]
    journals = [journal_of_rank(tmp_path / "shared.json.journal", rank) for rank in range(3)]
    with Launched(tmp_path, line, line) as launched:
        until = time.monotonic() + WITHIN
        while not (journals[1].exists() and journals[1].stat().st_size > 300) and time.monotonic() < until:
            assert launched.started[1].poll() is None, launched.ended()
            time.sleep(0.01)
        addresses = [set(listening(process.pid)) for process in launched.started]
        launched.started[1].send_signal(signal.SIGKILL)
        killed = time.monotonic()
        said = launched.ended()
        took = time.monotonic() - killed
    loopback = {address for address, _ in addresses[1]}
    assert loopback <= {"0100007F", "00000000000000000000000001000000"}, f"rank 1 listens at {loopback}"
    assert took < 20
    assert [code for code, _, _ in said] == [1, -signal.SIGKILL]
    [why] = errors(said)
    assert re.fullmatch(
        r"error: rank 1 of 2 was ended from outside \(process \d+ is gone\), and so the others end; what is finished is kept: run the same command "
        r"again to go on",
        why,
    )
    assert all(out == "" for _, out, _ in said)
    left = sorted(
        path.name for path in tmp_path.iterdir() if path.name.startswith(("shared", ".treeopt-shared")) and not path.name.endswith(".lock")
    )
    assert left == [journals[0].name, journals[1].name], "nothing is half-written"
    assert [path.name for path in tmp_path.glob(".treeopt-*.lock")] == [f".treeopt-{journals[1].name}.lock"], "that of the killed process"
    finished = sum(len(journal.read_text().splitlines()) - 1 for journal in journals[:2])
    with Launched(tmp_path, line, line, line) as launched:
        said = launched.ended()
    assert [code for code, _, _ in said] == [0, 0, 0], said
    with socket.socket() as other:
        assert other.connect_ex(("127.0.0.1", launched.port)) != 0, "nothing listens after the end"
    assert [bool(out) for _, out, _ in said] == [True, False, False], "the first alone prints its result"
    assert [err for _, _, err in said[1:]] == ["", ""]
    assert content(tmp_path / "shared.json") == content(tmp_path / "alone.json")
    assert json.loads((tmp_path / "shared.json").read_text())["provenance"]["processes"] == 3
    assert finished > 0
    assert not [path for path in tmp_path.iterdir() if "journal" in path.name], "the lock of the killed process was taken and removed"


def test_torchrun_ends_all_with_one_line_for_an_error_of_one(tmp_path: Path) -> None:
    """The journal of rank 1 cannot be written. torchrun ends the other, which says nothing, and reports in its own words."""
    journal_of_rank(tmp_path / "a.json.journal", 1).mkdir()
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "treeopt"]
    done = subprocess.run(
        [*launch, *ACCEPTANCE, *CPU, "-o", "a.json"],
        cwd=tmp_path,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=WITHIN,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    [why] = errors([(1, "", done.stderr)])
    assert why.endswith(
        "a.json.journal.rank1 is no regular file, and a file of that name keeps unfinished work; remove it (on rank 1 of 2)"
    )
    assert not (tmp_path / "a.json").exists()


@pytest.mark.parametrize(
    ("others", "codes", "message"),
    [
        (
            [*CPU, "--seed", "1"],
            [1, 1],
            "error: rank 1 of 2 was started with --seed 1, but rank 0 with --seed 0; give all processes the same command line",
        ),
        ([*CPU, "--gen-len", "1"], [1, 2], r"error: Invalid value for '--gen-len': 1 is not in the range x>=2. .*\(on rank 1 of 2\)"),
    ],
)
def test_other_words_in_one_process_end_both_with_one_line(others: list[str], codes: list[int], message: str, tmp_path: Path) -> None:
    line = [*ACCEPTANCE, "-o", "a.json"]
    with Launched(tmp_path, [*line, *CPU], [*line, *others]) as launched:
        said = launched.ended()
    [why] = errors(said)
    assert re.fullmatch(message, why)
    assert [code for code, _, _ in said] == codes
    assert list(tmp_path.iterdir()) == []


def test_processes_without_gpus_need_to_be_told_to_use_the_cpu(tmp_path: Path) -> None:
    with Launched(tmp_path, [*ACCEPTANCE], [*ACCEPTANCE]) as launched:
        said = launched.ended()
    [why] = errors(said)
    assert why.startswith(
        "error: a launcher started 2 processes, 2 of them on this host, and there is no CUDA GPU for each; start as many as there are "
    )
    assert [code for code, _, _ in said] == [2, 2]


def test_a_command_that_runs_in_one_process_is_refused_by_all(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from treespec.files import joined

    monkeypatch.setattr(joined, "FAIL_SECONDS", 0.5)  # here nobody else comes
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}.items():
        monkeypatch.setenv(name, value)
    done = run("profile", "latency", "--target", "embedded-target", "--draft", "embedded-draft")
    assert done.code == 2
    assert done.err.startswith("error: treeopt profile latency runs in one process, but a launcher started 2; run it without the launcher.")


@pytest.mark.parametrize("device", ["cuda:1", "mps", "xpu"])
def test_one_device_is_not_enough_for_two(device: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from treespec.files import joined

    monkeypatch.setattr(joined, "FAIL_SECONDS", 0.5)
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}.items():
        monkeypatch.setenv(name, value)
    done = run(*ACCEPTANCE, "--device", device)
    assert done.code == 2
    assert done.err.startswith(
        f"error: --device {device} is one device, but a launcher started 2 processes, which need one each; pass --device cuda"
    )


@pytest.mark.parametrize(("given", "rank", "left"), [(None, 1, "1"), ("3,5", 1, "5"), ("3", 1, ""), ("GPU-a,GPU-b", 0, "GPU-a")])
def test_each_process_takes_the_gpu_of_its_number(given: str | None, rank: int, left: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from treeopt.cli.joining import _take_device
    from treespec.files.processes import Place

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if given is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    _take_device(Place(rank, 2, rank, 2), "auto")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == left


def test_what_each_command_does_with_several_processes() -> None:
    shared = {name for name, command in main.commands.items() if getattr(command, "processes", ALONE_ONLY) == SHARED}
    assert shared == {"evaluate", "potential", "tune"}
    profile: Any = main.commands["profile"]
    assert {name: command.processes for name, command in profile.commands.items()} == {"acceptance": SHARED, "latency": ALONE_ONLY}
