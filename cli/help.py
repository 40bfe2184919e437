"""Help texts: options under headings, and an example at the end."""

from collections.abc import Callable
from typing import Any

import click

from treeopt.cli.errors import refuse_empty
from treeopt.cli.joining import ALONE_ONLY, together
from treeopt.cli.settings_file import settings_option, with_file

Command = Callable[..., Any]
"""A function that becomes a command."""

_HEADINGS = "__headings__"
"""Attribute of such a function: the headings of its options, by the options' names."""

_COMMON = "Every command"
"""Heading of the options that all commands have."""
_WORDS = "treeopt.words"
"""Key of a context's meta: the words of the command line behind the command's name."""


class TreeoptCommand(click.Command):
    """A command whose help lists the options under the headings that `under` gave them; the others follow as Options.

    Every command has `--settings`. `processes` says what it does where a launcher started several (`joining.SHARED` and others).
    """

    def __init__(self, *arguments: Any, processes: str = ALONE_ONLY, **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        self.params.append(settings_option())
        self.processes = processes

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, together with other processes if a launcher started some."""
        with together(ctx, self.processes):
            return super().invoke(ctx)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the words of the command. Raises a usage error for an empty one."""
        refuse_empty(ctx, args)
        ctx.meta[_WORDS] = tuple(args)
        try:
            return super().parse_args(ctx, args)
        except click.BadParameter as error:
            raise with_file(error) from None

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a section for each heading, in the order of the options."""
        headings: dict[str | None, str] = {"settings": _COMMON, **getattr(self.callback, _HEADINGS, {})}
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):  # the usage line has the arguments
                sections.setdefault(headings.get(parameter.name, "Options"), []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)


def words_of(ctx: click.Context) -> tuple[str, ...]:
    """Return the words of the command line, as they were given, behind the name of a `TreeoptCommand`."""
    words: tuple[str, ...] = ctx.meta[_WORDS]
    return words


def under(heading: str, *options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Return a decorator that adds `options` to a command, which its help lists under `heading`."""

    def decorate(command: Command) -> Command:
        known = len(_parameters(command))
        for option in reversed(options):
            command = option(command)
        added = {parameter.name: heading for parameter in _parameters(command)[known:]}
        setattr(command, _HEADINGS, {**added, **getattr(command, _HEADINGS, {})})
        return command

    return decorate


def example(line: str) -> str:
    """Return the end of a help text: one command line that shows how the command is used."""
    return f"\b\nExample:\n  {line}"


def _parameters(command: Command) -> list[click.Parameter]:
    """Return the parameters that click has noted on a function so far, the last one first."""
    return getattr(command, "__click_params__", [])
