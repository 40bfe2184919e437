"""The command line as a whole: quick help, one line per failure, exit codes."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from treeopt.cli import env, output
from treeopt.cli.errors import explain
from treespec.errors import ModelError, TreeoptError

COMMANDS = ("demo", "potential", "profile", "generate", "grow", "evaluate", "train-draft", "inspect", "compare", "env")


def test_help_lists_the_commands_that_work(run: Any) -> None:
    outcome = run("--help")
    assert outcome.code == 0
    listed = [line.split()[0] for line in outcome.out.partition("Commands:")[2].splitlines() if line.strip()]
    assert sorted(word for word in listed if word in COMMANDS) == sorted(COMMANDS)


def test_help_imports_nothing_heavy() -> None:
    """Of every command, one after another in one fresh interpreter."""
    script = (
        "import sys\nfrom treeopt.cli.main import main\n"
        "for command in sys.argv[1:]:\n"
        "    try:\n        main([*command.split(), '--help'])\n"
        "    except SystemExit:\n        pass\n"
        "    loaded = {m.partition('.')[0] for m in sys.modules} & {'torch', 'transformers', 'datasets', 'rich', 'scipy', 'numpy'}\n"
        "    print(command, sorted(loaded), file=sys.stderr)\n"
    )
    commands = ["", *COMMANDS, "profile acceptance", "profile latency"]
    done = subprocess.run([sys.executable, "-c", script, *commands], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr.splitlines() == [f"{command} []" for command in commands]
    assert done.stdout.count("Usage: ") == len(commands)


def test_python_dash_m_is_the_same_command() -> None:
    done = subprocess.run([sys.executable, "-m", "treeopt", "--version"], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("treeopt ")


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make `treeopt env` raise."""

    def set_error(error: BaseException) -> None:
        def describe() -> dict[str, Any]:
            raise error

        monkeypatch.setattr(env, "describe", describe)

    return set_error


def test_a_meant_error_is_one_line_and_exit_1(run: Any, failing: Any) -> None:
    failing(ModelError("the draft has\n 3 tokens; use another"))
    outcome = run("env")
    assert (outcome.code, outcome.out, outcome.err) == (1, "", "error: the draft has 3 tokens; use another\n")


def test_an_unexpected_error_is_one_line_that_names_debug(run: Any, failing: Any) -> None:
    failing(ZeroDivisionError("division by zero"))
    outcome = run("env", "--format", "json")
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err == "error: unexpected ZeroDivisionError: division by zero (run with --debug to see where)\n"


@pytest.mark.parametrize("arguments", [["--debug", "env"], ["env", "--debug"], ["env", "--format", "json", "--debug"]])
def test_debug_lets_the_exception_through_from_anywhere(failing: Any, arguments: list[str]) -> None:
    from click.testing import CliRunner

    from treeopt.cli.main import main

    failing(ZeroDivisionError("division by zero"))
    with pytest.raises(ZeroDivisionError):
        CliRunner().invoke(main, arguments, catch_exceptions=False)


def test_control_c_says_how_to_go_on(run: Any, failing: Any) -> None:
    failing(KeyboardInterrupt())
    outcome = run("env")
    assert (outcome.code, outcome.out, outcome.err) == (130, "", "interrupted; run the same command again to go on\n")


def test_control_c_is_known_again_in_what_libraries_make_of_it(run: Any, failing: Any) -> None:
    error = RuntimeError("Error calling __set_name__ on 'x'")
    error.__cause__ = KeyboardInterrupt()
    failing(error)
    assert run("env").err == "interrupted; run the same command again to go on\n"
    outer = ImportError("no torch")
    outer.__context__ = error
    failing(outer)
    assert run("env").err == "interrupted; run the same command again to go on\n"
    meant = ModelError("stopped; pass --resume")
    meant.__cause__ = KeyboardInterrupt()
    failing(meant)
    assert run("env").err == "error: stopped; pass --resume\n"


@pytest.mark.parametrize("error", [ModelError("the key " + "x" * 5000 + " is bad; drop it"), KeyError("the key " + "x" * 5000)])
def test_a_long_message_keeps_its_beginning_and_its_end(error: Exception) -> None:
    shown = explain(error)
    assert len(shown) <= 400
    assert "the key xxx" in shown
    assert " ... " in shown
    assert shown.endswith(("is bad; drop it", "(run with --debug to see where)"))


def test_a_note_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    output.note("the model a\nb is  used")
    assert capsys.readouterr().err == "the model a b is  used\n"


@pytest.mark.parametrize(
    ("arguments", "words", "command"),
    [
        (["demo", "--out", ""], "--out is empty; pass a value, or drop it.", "demo"),
        (["demo", "--out="], "--out is empty", "demo"),
        (["train-draft", "--target", "t", "--config", "llama-68m", "-o", ""], "-o is empty", "train-draft"),
        (["train-draft", "--target", "t", "--config", ""], "--config is empty", "train-draft"),
        (["evaluate", "--target", "t", "--mode", "baseline", "--revision", ""], "--revision is empty", "evaluate"),
        (["grow", "--acceptance", "", "--debug"], "--acceptance is empty", "grow"),
        (["profile", "latency", "--target", ""], "--target is empty", "profile latency"),
        (["profile", ""], "an argument is empty", "profile"),
        (["", "evaluate"], "an argument is empty", ""),
        (["inspect", ""], "an argument is empty", "inspect"),
        (["inspect", "x" * 5000], "xxx", "inspect"),
    ],
)
def test_empty_and_endless_values_are_wrong_usage(run: Any, arguments: list[str], words: str, command: str, tmp_path: Path) -> None:
    outcome = run(*arguments)
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1)
    assert words in outcome.err
    assert outcome.err.endswith(f"({' '.join(['treeopt', *command.split()])} --help says more)\n")
    assert len(outcome.err) < 500
    assert list(tmp_path.iterdir()) == []


class OutOfMemoryError(RuntimeError):
    """Named like torch's."""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (TreeoptError("size is 0"), "size is 0"),
        (OSError(errno.ENOSPC, "No space left on device", "/x/report.json"), "/x/report.json: the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "/x: permission is denied"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"), "the GPU's memory is full"),
        (MemoryError(), "memory is full"),
        (ValueError("odd\nthing"), "unexpected ValueError: odd thing (run with --debug"),
    ],
)
def test_errors_are_explained_in_one_line(error: Exception, words: str) -> None:
    assert explain(error).startswith(words)
    assert "\n" not in explain(error)


@pytest.mark.parametrize(
    "arguments",
    [
        ["frobnicate"],
        ["--frobnicate", "env"],
        ["env", "--format", "yaml"],
        ["profile", "acceptance"],
        ["profile", "acceptance", "--target", "t", "--draft", "d", "--temperature", "-1"],
        ["profile", "acceptance", "--target", "t", "--draft", "d", "--temperature", "nan"],
        ["profile", "acceptance", "--target", "t", "--draft", "d", "--top-p", "0"],
        ["profile", "acceptance", "--target", "t", "--draft", "d", "--top-p", "1.5"],
        ["profile", "acceptance", "--target", "t", "--draft", "d", "--top-p", "nan"],
        ["profile", "acceptance", "--target", "t", "--draft", "d", "--drafting", "medusa"],
        ["profile", "acceptance", "--target", "t", "--draft", "d", "--drafting", "swor", "--draws", "0"],
        ["profile", "acceptance", "--target", "t", "--draft", "d", "--drafting", "swor", "--draft-temperature", "-0.1"],
        ["profile", "acceptance", "--target", "t", "--draft", "d", "--drafting", "swor", "--draft-temperature", "inf"],
        ["profile", "acceptance", "--target", "t", "--draft", "d", "--prompt-len", "0"],
        ["profile", "acceptance", "--target", "t", "--draft", "d", "--start", "5", "--end", "5"],
        ["profile", "acceptance", "--target", "t", "--draft", "d", "--device", "tpu"],
        ["profile", "latency", "--target", "t", "--draft", "d", "--sizes", "1,0"],
        ["profile", "latency", "--target", "t", "--draft", "d", "--widths", "1,x"],
        ["profile", "latency", "--target", "t", "--draft", "d", "--dtype", "int8"],
        ["profile", "latency", "--target", "t", "--draft", "d", "--device", "cpu", "--offload"],
        ["evaluate", "--target", "t"],
        ["evaluate", "--target", "t", "--draft", "d"],
        ["evaluate", "--target", "t", "--mode", "baseline", "--growmap", __file__],
        ["evaluate", "--target", "t", "--growmap", __file__],
        ["evaluate", "--target", "embedded-target", "--mode", "baseline", "--prompt-len", "100", "--gen-len", "50", "--max-length", "149"],
        ["evaluate", "--target", "t", "--draft", "d", "--growmap", __file__, "--verifier", "traversal"],
        ["evaluate", "--target", "t", "--draft", "d", "--growmap", __file__, "--drafting", "swor", "--verifier", "upwards"],
        ["evaluate", "--target", "t", "--draft", "d", "--growmap", __file__, "--draft-temperature", "nan"],
        ["evaluate", "--target", "t", "--draft", "d", "--growmap", __file__, "--size", "8"],
        ["evaluate", "--target", "t", "--draft", "d", "--growmap", __file__, "--depth", "3"],
        ["evaluate", "--target", "t", "--draft", "d", "--growmap", __file__, "--width", "3"],
        ["evaluate", "--target", "t", "--draft", "d", "--dynamic"],
        ["evaluate", "--target", "t", "--draft", "d", "--dynamic", "--size", "8"],
        ["evaluate", "--target", "t", "--draft", "d", "--dynamic", "--depth", "3", "--width", "2"],
        ["evaluate", "--target", "t", "--draft", "d", "--dynamic", "--size", "0", "--depth", "1"],
        ["evaluate", "--target", "t", "--dynamic", "--size", "8", "--depth", "3"],
        ["evaluate", "--target", "t", "--mode", "baseline", "--dynamic", "--size", "8", "--depth", "3"],
        ["evaluate", "--target", "t", "--mode", "baseline", "--size", "8"],
        ["evaluate", "--target", "t", "--draft", "d", "--growmap", __file__, "--dynamic", "--drafting", "swor"],
        ["evaluate", "--target", "t", "--draft", "d", "--growmap", __file__, "--dynamic", "--drafting", "swr"],
        ["evaluate", "--target", "t", "--draft", "d", "--growmap", __file__, "--dynamic", "--verifier", "traversal"],
        ["evaluate", "--target", "t", "--draft", "d", "--growmap", __file__, "--dynamic", "--drafting", "swor", "--verifier", "traversal"],
        ["potential", "--target", "t"],
        ["potential", "--target", "t", "--draft", "d", "--draft", "d"],
        ["potential", "--target", "t", "--draft", "d", "--gen-len", "1"],
        ["potential", "--target", "t", "--draft", "d", "--drafting", "topk"],
        ["generate"],
        ["inspect"],
        ["inspect", "no-such-file.pt"],
    ],
)
def test_wrong_usage_is_exit_2_and_leaves_stdout_alone(run: Any, arguments: list[str], tmp_path: Path) -> None:
    outcome = run(*arguments)
    assert outcome.code == 2, outcome
    assert outcome.out == ""
    assert outcome.err.startswith("error: ")
    assert "--help says more" in outcome.err
    assert outcome.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_misspelt_name_of_an_embedded_model_is_not_looked_for_on_the_hub() -> None:
    from treeopt.cli.hub import is_hub_name

    assert not is_hub_name("embedded-eagel3")
    assert is_hub_name("embedded-owner/model")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["profile", "latency", "--target", "owner/no-such-target", "--draft", "owner/draft"],
            "owner/no-such-target is not in the local cache",
        ),
        (
            ["profile", "acceptance", "--target", "owner/target", "--draft", "d", "--dataset", "cnn"],
            "data set cnn (abisee/cnn_dailymail) lives on the hub",
        ),
        (["potential", "--target", "embedded-target", "--draft", "embedded-draft", "--draft", "a/b"], "a/b is not in the local cache"),
        (["profile", "latency", "--target", "embedded-target", "--draft", "no-such-draft"], "no-such-draft is not in the local cache"),
        (["evaluate", "--target", "embedded-target", "--mode", "baseline", "--dataset", "c4"], "data set c4 (allenai/c4) lives on the hub"),
    ],
)
def test_an_unreachable_hub_is_found_out_before_the_slow_imports(arguments: list[str], words: str, tmp_path: Path) -> None:
    script = (
        "import sys\nfrom treeopt.cli.main import main\n"
        f"try:\n    main({arguments!r})\n"
        "finally:\n    print(sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, cwd=tmp_path, env=environment)
    if words.startswith("data set"):
        pytest.importorskip("datasets")
    looked_for = ["datasets"] if words.startswith("data set") else []  # the library has a cache of its own
    assert (done.returncode, done.stdout) == (1, f"{looked_for}\n")
    assert done.stderr.startswith("error: ")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["evaluate", "--target", "~nobody-here/m", "--mode", "baseline", "--dataset", "stdlib"],
        ["evaluate", "--target", "embedded-target", "--mode", "baseline", "--dataset", "~nobody-here/m"],
        ["profile", "latency", "--target", "embedded-target", "--draft", "~nobody-here/m"],
        ["potential", "--target", "embedded-target", "--draft", "~nobody-here/m"],
        ["train-draft", "--target", "~nobody-here/m", "--draft", "embedded-draft"],
        ["train-draft", "--target", "embedded-target", "--draft", "embedded-draft", "--eval-dataset", "~nobody-here/m"],
        ["train-draft", "--target", "embedded-target", "--draft", "d", "--dataset", "x", "--eval-dataset", "~nobody-here/m"],
    ],
    ids=" ".join,
)
def test_the_home_folder_of_nobody_is_a_meant_error(run: Any, arguments: list[str], tmp_path: Path) -> None:
    outcome = run(*arguments)
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err == "error: ~nobody-here/m begins with the home folder of a user who has none; give the whole path\n"
    assert list(tmp_path.iterdir()) == []


def test_no_journal_beside_a_device(tmp_path: Path) -> None:
    from treeopt.cli.profile import journal_of

    assert journal_of(Path(os.devnull)) is None
    assert journal_of(tmp_path / "report.json") == tmp_path / "report.json.journal"
    (tmp_path / "report.json").write_text("{}")
    assert journal_of(tmp_path / "report.json") == tmp_path / "report.json.journal"


def test_env_names_versions_but_no_folder(run: Any) -> None:
    outcome = run("env", "--format", "json")
    assert outcome.code == 0
    data = outcome.json
    assert data["python"] == sys.version.split()[0]
    assert data["torch"]
    assert str(Path.home()) + "/" not in outcome.out
    text = run("env").out
    assert data["torch"] in text
    with pytest.raises(json.JSONDecodeError):
        json.loads(text)


def test_every_option_has_help() -> None:
    from treeopt.cli.main import main

    def commands(command: click.Command) -> list[click.Command]:
        return [c for sub in command.commands.values() for c in commands(sub)] if isinstance(command, click.Group) else [command]

    silent = [f"{c.name} {p.opts[0]}" for c in commands(main) for p in c.params if isinstance(p, click.Option) and not p.help]
    assert silent == []
