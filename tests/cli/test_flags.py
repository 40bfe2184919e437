"""What the library calls by a parameter's name, the command line calls by its flag."""

from pathlib import Path
from typing import Any

import click
import pytest

from treeopt.cli.flags import with_flags


@click.command()
@click.option("--max-length")
@click.option("--context", "--contexts", "contexts")
@click.option("--draft", "drafts", multiple=True)
@click.option("-o", "--output")
@click.argument("file")
def command(**values: Any) -> None:
    """Take a few options."""


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("`max_length` is 12; pass `max_length` 25 or more", "--max-length is 12; pass --max-length 25 or more"),
        ("a smaller `contexts`", "a smaller --context"),
        ("pass `drafts`, or `draft`", "pass --draft, or --draft"),
        ("another `folder` or `output`", "another --output or --output"),
        ("`continuation_len` and `file` are no options here", "continuation_len and file are no options here"),
        ("`treeopt inspect` lists `Them`", "`treeopt inspect` lists `Them`"),
    ],
)
def test_names_become_flags_of_the_command(message: str, shown: str) -> None:
    assert with_flags(message, command) == shown


def test_names_of_another_command_become_flags_of_that_one() -> None:
    from treeopt.cli.main import main

    message = "`treeopt grow` with `dynamic` writes one, `treeopt profile latency` with `repetitions` 24 another; pass `max_length`"
    shown = "`treeopt grow --dynamic` writes one, `treeopt profile latency --repetitions 24` another; pass --max-length"
    unknown = "`treeopt grow` with `nothing`, `treeopt none` with `size`"
    with click.Context(main):
        assert with_flags(message, command) == shown
        assert with_flags(unknown, command) == "`treeopt grow` with nothing, `treeopt none` with size"
    assert with_flags(message, command).startswith("`treeopt grow` with dynamic"), "where nothing runs, nothing is known"


def test_without_a_command_names_are_bare() -> None:
    assert with_flags("`max_length` is 12", None) == "max_length is 12"


def test_a_command_below_a_group_shows_its_own_flags(run: Any, pair: tuple[Path, Path]) -> None:
    models = ["--target", pair[0], "--draft", pair[1], "--device", "cpu"]
    outcome = run("profile", "latency", *models, "--context", 5000)
    assert outcome.code == 1
    assert "--context" in outcome.err
    assert "`" not in outcome.err
