"""Flags in messages: the library names parameters in backticks, and the running command shows them as its own options."""

import re

import click

_NAME = re.compile(r"`([a-z][a-z_.]*)`")
_OTHER_COMMAND = re.compile(r"`treeopt ([a-z][a-z -]*)` with `([a-z][a-z_.]*)`( \d+)?")
"""Another command, the name of one of its parameters, and its value where that is a number."""

_ELSEWHERE = {"folder": "output", "picture_prompt": "prompt", "draft": "drafts"}
"""Other names of the library's parameters, for commands that have no option of the same name."""


def with_flags(message: str, command: click.Command | None) -> str:
    """Return the message with the command's flag in place of each name in backticks, or with the bare name if the command has no such flag.

    A name that a message gives to another command ("`treeopt grow` with `dynamic`") is shown as a flag of that one.
    """
    flags = _flags(command)

    def shown(found: re.Match[str]) -> str:
        name = found.group(1)
        return flags.get(name) or flags.get(_ELSEWHERE.get(name, "")) or name

    def typed(found: re.Match[str]) -> str:
        words, name, value = found.groups()
        flag = _flags(_command_of(words)).get(name)
        return found.group() if flag is None else f"`treeopt {words} {flag}{value or ''}`"

    return _NAME.sub(shown, _OTHER_COMMAND.sub(typed, message))


def _flags(command: click.Command | None) -> dict[str | None, str]:
    """Return the long flags of a command by the names of its parameters."""
    return {} if command is None else {parameter.name: flag for parameter in command.params if (flag := flag_of(parameter))}


def _command_of(words: str) -> click.Command | None:
    """Return the command that some words behind the name of the running program call; None if there is none, or nothing runs."""
    ctx = click.get_current_context(silent=True)
    found = None if ctx is None else ctx.find_root().command
    for word in words.split():
        found = found.commands.get(word) if isinstance(found, click.Group) else None
    return found


def with_own_flags(message: str) -> str:
    """Return the message with the flags of the command that runs; without one, with bare names."""
    ctx = click.get_current_context(silent=True)
    return with_flags(message, None if ctx is None else ctx.command)


def flag_of(parameter: click.Parameter) -> str | None:
    """Return the first long flag of an option, or None for an argument."""
    return next((flag for flag in parameter.opts if flag.startswith("--")), None)


def is_given(ctx: click.Context, name: str) -> bool:
    """Return whether a parameter of the running command was given, on the line or in a file of settings, and is not its default."""
    return ctx.get_parameter_source(name) in (click.core.ParameterSource.COMMANDLINE, click.core.ParameterSource.DEFAULT_MAP)
