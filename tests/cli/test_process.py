"""The process as shells see it: its signals, its standard files, its folder and its memory."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from treeopt.cli import memory
from treeopt.cli.errors import explain

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals and /dev of Unix")
RUN = """import sys, time
from treeopt.cli import env, process
env.describe = lambda: (sys.stderr.write('ready\\n'), time.sleep(60))
sys.argv = ['treeopt', 'env']
process.run()
"""
RESET = """import signal
for number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
"""
"""Signals as a shell leaves them, whatever runs the tests ignores."""
SAID = "interrupted; run the same command again to go on\n"


def started(script: str = RUN) -> "subprocess.Popen[str]":
    process = subprocess.Popen([sys.executable, "-c", RESET + script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert process.stderr.readline() == "ready\n"
    return process


@pytest.mark.parametrize(
    "numbers", [[signal.SIGINT], [signal.SIGTERM], [signal.SIGHUP], [signal.SIGINT] * 3, [signal.SIGINT, signal.SIGTERM]]
)
def test_a_signal_ends_the_process_by_itself_with_one_line(numbers: list[signal.Signals]) -> None:
    process = started()
    for number in numbers:
        process.send_signal(number)
        time.sleep(0.003)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (-numbers[0], "", SAID)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_in_a_destructor_is_not_lost(number: signal.Signals) -> None:
    dying = (
        "class Dying:\n    def __del__(self):\n        signal.raise_signal(int({number}))\n        sys.stdout.write('not interrupted')\n"
    )
    script = RUN.replace("import sys, time\n", "import signal, sys, time\n" + dying.format(number=int(number)))
    process = started(script.replace("time.sleep(60))", "bool(Dying()), time.sleep(60))"))
    assert (process.communicate(timeout=30), process.returncode) == (("", SAID), -number)


def test_a_later_signal_ends_a_clean_up_that_does_not_end() -> None:
    stuck = RUN.replace("time.sleep(60))", "stuck())").replace(
        "sys.argv", "def stuck():\n    try:\n        time.sleep(60)\n    finally:\n        time.sleep(60)\nsys.argv"
    )
    process = started(stuck)
    process.send_signal(signal.SIGINT)
    time.sleep(1.2)
    process.send_signal(signal.SIGINT)
    assert (process.communicate(timeout=30)[1], process.returncode) == (SAID, -signal.SIGINT)


def test_an_ignored_signal_stays_ignored() -> None:
    process = started("import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + RUN.replace("time.sleep(60)", "time.sleep(0.5)"))
    process.send_signal(signal.SIGHUP)
    out, err = process.communicate(timeout=30)
    assert "interrupted" not in out + err


def shell(command: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    words = command.replace("treeopt", f"'{sys.executable}' -m treeopt")
    return subprocess.run(["bash", "-c", words], capture_output=True, text=True, timeout=60, cwd=folder, check=False)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("treeopt --help > /dev/full", "standard output: the disk is full"),
        ("treeopt grow --help > /dev/full", "the disk is full"),
        ("treeopt --version > /dev/full", "the disk is full"),
        ("treeopt inspect --list > /dev/full", "cannot write to standard output: the disk is full"),
        ("treeopt inspect --list --format json > /dev/full", "cannot write to standard output: the disk is full"),
        ("treeopt inspect --list >&-", "standard output is closed"),
        ("treeopt run --target embedded-target <&-", "standard input is empty, and there is no --prompt; pass one of the two"),
        ("mkdir gone; cd gone; rmdir ../gone; treeopt inspect --list", "the working folder was deleted; change to another one"),
        ("(ulimit -v 400000; treeopt evaluate --target embedded-target --mode baseline --num-prompts 1)", "(`ulimit -v`)"),
    ],
)
def test_what_is_missing_around_the_process_is_said_in_one_line(command: str, words: str, tmp_path: Path) -> None:
    done = shell(command, tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.stderr
    assert words in done.stderr
    assert done.stderr.startswith("error: ")


@pytest.mark.parametrize("command", ["--help", "inspect --list", "inspect --list --format json"])
def test_a_reader_that_has_seen_enough_is_no_error(command: str, tmp_path: Path) -> None:
    done = shell(f"treeopt {command} | true; exit ${{PIPESTATUS[0]}}", tmp_path)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


def test_a_closed_or_full_stderr_does_not_end_a_run(tmp_path: Path) -> None:
    for end in ("2>&-", "2> /dev/full", "<&- 2>&-"):
        assert shell(f"treeopt inspect --list {end}", tmp_path).stdout.startswith("growmaps in ")


def test_env_prints_what_it_can_where_memory_is_full(tmp_path: Path) -> None:
    done = shell("ulimit -v 400000; treeopt env --format json", tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)
    assert "torch cannot be loaded: memory is full: this process may use 410 MB" in done.stderr
    assert '"gpus": null' in done.stdout


@pytest.mark.parametrize("command", ["ulimit -v", "ulimit -d"])
@pytest.mark.parametrize("library", ["numpy", "scipy", "torch", "transformers", "datasets"])
def test_a_memory_limit_is_looked_at_before_a_large_library(command: str, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def limit(size: int) -> None:
        monkeypatch.setattr(
            memory, "_limits", lambda: [memory._Limit(size, 0, command) if each[2] == command else None for each in memory._LIMITS]
        )

    limit(1 << 50)
    memory.require_memory(library)
    limit(1 << 20)
    with pytest.raises(MemoryError, match=rf"this process may use 1 MB \(`{command}`\), and with {library} it needs .* raise that limit"):
        memory.require_memory(library)
    assert explain(MemoryError()).startswith(f"memory is full: this process may use 1 MB (`{command}`); raise that limit, or use a smaller")


def test_a_process_without_limits_loads_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_limits", lambda: [None, None])
    memory.require_memory("torch")


@pytest.mark.parametrize(
    "error",
    [
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        OSError(12, "Cannot allocate memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        RuntimeError("can't start new thread"),
        RuntimeError("std::bad_alloc"),
    ],
)
def test_full_memory_is_known_in_what_libraries_say(error: Exception) -> None:
    assert explain(error).startswith("memory is full; use a smaller")
    made = RuntimeError("Failed to import transformers.x")
    made.__cause__ = MemoryError("memory is full: this process may use 1 MB; raise that limit")
    assert explain(made) == "memory is full: this process may use 1 MB; raise that limit"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("treeopt comp", ["plain,compare"]),
        ("treeopt evaluate --grow", ["plain,--growmap"]),
        ("treeopt compare --format ", ["plain,rich", "plain,json", "plain,csv", "plain,markdown"]),
    ],
)
def test_a_shell_can_complete_a_line(words: str, expected: list[str], tmp_path: Path) -> None:
    asked = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1), "_TREEOPT_COMPLETE": "bash_complete"}
    command = [sys.executable, "-m", "treeopt"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path, env=os.environ | asked, check=False)
    assert (found.returncode, found.stdout.splitlines(), found.stderr) == (0, expected, "")
