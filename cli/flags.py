"""From the names of parameters, which the library's messages have in backticks, to the options of the running command."""

import re

import click

_NAME = re.compile(r"`([a-z][a-z_.]*)`")

_ELSEWHERE = {"folder": "output", "picture_prompt": "prompt", "draft": "drafts"}
"""What a parameter of the library is called by a command that has none of its own name."""


def with_flags(message: str, command: click.Command | None) -> str:
    """Return the message with the command's flag in place of each name in backticks, or the bare name where the command has none."""
    flags = {} if command is None else {parameter.name: flag for parameter in command.params if (flag := flag_of(parameter))}

    def shown(found: re.Match[str]) -> str:
        name = found.group(1)
        return flags.get(name) or flags.get(_ELSEWHERE.get(name, "")) or name

    return _NAME.sub(shown, message)


def flag_of(parameter: click.Parameter) -> str | None:
    """Return the first long flag of an option; None for an argument."""
    return next((flag for flag in parameter.opts if flag.startswith("--")), None)
