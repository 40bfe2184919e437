"""The option `--settings FILE` of every command: options from a TOML file, which those on the command line overrule."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import click
from click.core import ParameterSource

from treeopt.cli.flags import flag_of
from treeopt.cli.values import INPUT_FILE, named_value
from treespec.errors import SettingsError, nearest

_NOT_RECORDED = {"settings", "quiet", "output_format", "dry_run"}
"""Options that are of one call, and are not written with the settings of a run."""

_FILE = "treeopt.settings"
"""Key of a context's meta: the file that gave options."""


def settings_option() -> click.Option:
    """Return the option. It is read before all others, whose defaults it replaces."""
    return click.Option(
        ["--settings"],
        type=INPUT_FILE,
        metavar="FILE",
        is_eager=True,
        expose_value=False,
        callback=_take,
        help="TOML file of options of this command, such as temperature = 0.6; those on the command line overrule it. [default: none]",
    )


def recorded_settings(ctx: click.Context) -> dict[str, Any]:
    """Return all options of the running command that have a value, by the keys of a settings file, so that the file gives them again."""
    found = {}
    for option in _options(ctx.command):
        value = ctx.params.get(option.name or "")
        if option.name in _NOT_RECORDED or value is None or (option.multiple and not value):
            continue
        named = getattr(option.type, "func", None) is named_value
        plain = _named if named else _plain
        found[_key(option)] = [plain(one) for one in value] if option.multiple else plain(value)
    return found


def with_file(error: click.BadParameter) -> click.UsageError:
    """Return the error of a value, with the settings file in front if the value stands there."""
    ctx, name = error.ctx, error.param.name if error.param is not None else None
    if ctx is None or name is None or ctx.get_parameter_source(name) is not ParameterSource.DEFAULT_MAP:
        return error
    return click.UsageError(f"{ctx.meta[_FILE]}: {error.format_message()}", ctx)


def _take(ctx: click.Context, parameter: click.Parameter, path: Any) -> None:
    """Make the defaults of the running command those of a file. Raises a usage error for what is no option of it, or no value of one."""
    if path is None:
        return
    from treespec.files.toml import read_toml

    try:
        given = read_toml(path)
    except SettingsError as error:
        raise click.UsageError(f"{error}.", ctx) from error
    known = {name: option for option in _options(ctx.command) if option.name != "settings" for name in _names(option)}
    found: dict[str, Any] = {}
    for key, value in given.items():
        option = known.get(key.replace("-", "_"))
        if option is None:
            raise click.UsageError(f"{path}: {key} is no option of {ctx.command_path}; {_nearest(key, known)}", ctx)
        assert option.name is not None
        if option.name in found:
            raise click.UsageError(f"{path}: {key} is given twice, under two names of one option; drop one.", ctx)
        found[option.name] = _value(f"{path}: {key}", option, value, ctx)
    ctx.default_map = found
    ctx.meta[_FILE] = path


def _value(what: str, option: click.Option, value: Any, ctx: click.Context) -> Any:
    """Return a TOML value as the option takes it: as on the command line, but for flags."""
    if isinstance(value, Mapping):
        raise click.UsageError(f"{what} is a table, but options have no tables; write it as a line, {what.rpartition(' ')[2]} = ...", ctx)
    if option.is_flag:
        if not isinstance(value, bool):
            raise click.UsageError(f"{what} is {value!r}, but it is a flag; write true or false.", ctx)
        return value
    if isinstance(value, list) and not option.multiple and not (option.metavar or "").endswith(",..."):
        raise click.UsageError(f"{what} is a list, but {option.opts[-1]} takes one value; write one.", ctx)
    parts = value if isinstance(value, list) else [value]
    wrong = next((part for part in parts if not isinstance(part, str | int | float) or isinstance(part, bool)), None)
    if wrong is not None:
        raise click.UsageError(f"{what} has the value {wrong!r}, but it takes texts or numbers.", ctx)
    return [str(part) for part in parts] if option.multiple else ",".join(map(str, parts))


def _nearest(key: str, known: Mapping[str, click.Option]) -> str:
    near = nearest(key.replace("-", "_"), known)
    return f"did you mean {near[0]}?" if near else "drop it."


def _options(command: click.Command) -> Iterator[click.Option]:
    yield from (option for option in command.params if isinstance(option, click.Option))


def _key(option: click.Option) -> str:
    return (flag_of(option) or option.name or "").lstrip("-").replace("-", "_")


def _names(option: click.Option) -> list[str]:
    """Return the keys that stand for an option: all of its long flags, and the name that messages have for it."""
    flags = [flag.lstrip("-").replace("-", "_") for flag in option.opts if flag.startswith("--")]
    return [*flags, *([option.name] if option.name else [])]


def _named(value: tuple[str, Any]) -> str:
    """Return an argument of the chat template as it is given."""
    return f"{value[0]}={json.dumps(value[1])}"


def _plain(value: Any) -> Any:
    """Return a value of an option as the text, number or list that gives it again."""
    if isinstance(value, tuple):
        return list(value) if all(isinstance(part, int | float) for part in value) else ",".join(map(str, value))
    return value if isinstance(value, bool | int | float) else str(value)
