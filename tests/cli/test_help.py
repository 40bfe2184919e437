"""Help texts: options under headings, and at the end an example that the command understands."""

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from treeopt.cli.help import TreeoptCommand, under
from treeopt.cli.main import main


def commands(group: click.Group, *path: str) -> Iterator[tuple[str, click.Command]]:
    """Every command and group below a group, each by its whole name."""
    for name, command in group.commands.items():
        yield " ".join((*path, name)), command
        if isinstance(command, click.Group):
            yield from commands(command, *path, name)


COMMANDS = {"": main, **dict(commands(main))}


def example_of(command: click.Command) -> list[str]:
    """The words of the one command line at the end of a help text."""
    assert command.epilog is not None
    head, line = command.epilog.rsplit("\n", 1)
    assert head == "\b\nExample:"
    return shlex.split(line)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_is_one_of_the_command_and_is_understood(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for file in ("acceptance.json", "latency.json", "trace.json", "tree.pt", "report.json", "dynamic.json"):
        Path(file).touch()
    program, *words = example_of(COMMANDS[name])
    assert program == "treeopt"
    command: click.Command = main
    context = click.Context(main, info_name=program)
    while isinstance(command, click.Group):
        _, found, words = command.resolve_command(context, words)
        assert found is not None
        command = found
        context = click.Context(command, context, info_name=command.name)
    command.make_context(command.name, list(words), parent=context.parent)
    if not isinstance(COMMANDS[name], click.Group):
        assert command.callback is COMMANDS[name].callback


@pytest.mark.parametrize("name", COMMANDS)
def test_help_ends_with_the_example_and_its_texts_are_whole(name: str, run: Any) -> None:
    shown = run(*name.split(), "--help").out
    assert shown.rstrip().endswith(shlex.join(example_of(COMMANDS[name])))
    assert (COMMANDS[name].help or "").rstrip().endswith((".", "..."))
    for parameter in COMMANDS[name].params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name
            assert parameter.help[0].isupper(), parameter.help
            assert parameter.help.endswith((".", "]")), parameter.help


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if not isinstance(command, click.Group)])
def test_every_option_is_under_a_heading(name: str, run: Any) -> None:
    shown = run(*name.split(), "--help").out
    left = shown.partition("\nOptions:\n")[2].partition("\n\n")[0].splitlines()
    assert len(left) == 1
    assert "--help" in left[0]
    assert "\nOutput:\n" in shown


def test_an_inner_heading_wins_and_sections_are_in_the_order_of_options() -> None:
    @click.command(cls=TreeoptCommand)
    @under("First", click.option("--a"), under("Second", click.option("--b")), click.option("--c"))
    @click.option("--d")
    def command(**values: Any) -> None:
        """Take four options."""

    shown = command.get_help(click.Context(command))
    assert [shown.index(word) for word in ("First:", "--a", "--c", "Second:", "--b", "Options:", "--d")] == sorted(
        shown.index(word) for word in ("First:", "--a", "--c", "Second:", "--b", "Options:", "--d")
    )


def test_grow_and_generate_are_one_command(run: Any, profiles: tuple[Path, Path]) -> None:
    grow, generate = main.commands["grow"], main.commands["generate"]
    assert (grow.callback, grow.params, grow.help) == (generate.callback, generate.params, generate.help)
    lines = run("--help").out.partition("Commands:\n")[2].partition("\n\n")[0].splitlines()
    listed = dict(line.strip().split(maxsplit=1) for line in lines)
    assert listed["generate"] == "The same as grow."
    assert listed["grow"] == "Grow the best tree and write it as a growmap."
    shown = run("generate", "--help").out
    assert "`treeopt grow` and `treeopt generate`" in " ".join(shown.split())
    found = [run(name, "--acceptance", profiles[0], "--size", 4, "--depth", 2, "--format", "json").json for name in ("grow", "generate")]
    assert found[0] == found[1]
    refused = run("grow", "--size", 4)
    assert refused.code == 2
    assert "treeopt grow --help" in refused.err


def words_of(run: Any, name: str) -> str:
    """A help text without its line ends."""
    return " ".join(run(name, "--help").out.split())


def test_evaluate_says_what_is_required(run: Any) -> None:
    shown = words_of(run, "evaluate")
    assert "One of --growmap FILE, --budget FILE, --dynamic --size N --depth D, and --mode baseline is required." in shown
    assert "--draft is required with each but --mode baseline." in shown


def test_the_question_about_pictures_is_the_one_that_is_asked(run: Any) -> None:
    from treespec.data.pictures import QUESTION

    assert f"[default: {QUESTION}]" in words_of(run, "evaluate")


def test_grow_says_what_is_required_and_its_defaults(run: Any) -> None:
    from treeopt.optimizer.search import DEFAULT_MAX_DEPTH

    shown = words_of(run, "grow")
    assert "Required are --acceptance FILE (or --trace FILE) and either --latency FILE" in shown
    assert f"Largest depth to consider. [default: {DEFAULT_MAX_DEPTH}, or what the size allows]" in shown
    assert "dynamic programming (dp)" in shown
    (grow,) = [command for name, command in COMMANDS.items() if name == "grow"]
    for option in (parameter for parameter in grow.params if isinstance(parameter, click.Option)):
        said = option.get_help_record(click.Context(grow))
        assert said is not None
        known = option.is_flag or any(word in said[1] for word in ("[required", "[default", "goes with", "in place of"))
        assert known, f"{option.name} says neither its default nor when it is required"
