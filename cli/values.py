"""Types of the values of options."""

import json
import math
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import click

from treeopt.cli.flags import with_flags
from treespec.errors import GrowMapError, SettingsError

POSITIVE = click.IntRange(min=1)
NATURAL = click.IntRange(min=0)

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


class Finite(click.FloatRange):
    """A float within a range that is neither infinite nor NaN."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number. Raises a usage error for anything else."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


class File(click.Path):
    """A file and no folder: one that exists, or with `exists` False one to write."""

    def __init__(self, *, exists: bool = True) -> None:
        super().__init__(exists=exists, dir_okay=False, readable=exists, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path. Raises a usage error for a folder, and for a file that is missing or cannot be read."""
        if os.path.isdir(value):
            self.fail(f"{os.fspath(value)} is a folder, but a file is needed; name one in it.", param, ctx)
        return super().convert(value, param, ctx)


INPUT_FILE = File()
OUTPUT_FILE = File(exists=False)


class GrowmapFile(File):
    """An existing file, or the name of a growmap that comes with treeopt, which becomes its file. If there are both, the file is taken."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the file. Raises a usage error, with the names that are near, if there is none."""
        folder = os.path.isdir(value)
        if os.path.dirname(value) or (os.path.exists(value) and not folder):  # names have no folder before them
            return super().convert(value, param, ctx)
        from treeopt.growmap_library import find

        try:
            return find(os.fspath(value))
        except GrowMapError as error:
            if folder:
                return super().convert(value, param, ctx)
            self.fail(str(error), param, ctx)


GROWMAP_FILE = GrowmapFile()


def int_list(value: str) -> tuple[int, ...]:
    """Return whole numbers of 1 or more that are separated by commas, sorted, each once: `4,1,2` -> (1, 2, 4). Raises a usage error otherwise."""
    try:
        numbers = sorted({int(part) for part in value.split(",")})
    except ValueError as e:
        raise click.BadParameter(f"{value!r} is not a list of whole numbers such as 1,2,4.") from e
    if numbers[0] < 1:
        raise click.BadParameter(f"{numbers[0]} is not in the range x>=1.")
    return tuple(numbers)


def number_list(value: str) -> tuple[float, ...]:
    """Return finite numbers that are separated by commas, each once, in their order: `0,0.6` -> (0.0, 0.6). Raises a usage error otherwise."""
    try:
        numbers = tuple(dict.fromkeys(float(part) for part in value.split(",")))
    except ValueError as e:
        raise click.BadParameter(f"{value!r} is not a list of numbers such as 0,0.6.") from e
    odd = next((number for number in numbers if not math.isfinite(number)), None)
    if odd is not None:
        raise click.BadParameter(f"{odd} is not a finite number.")
    return numbers


def share_list(value: str) -> tuple[float, ...]:
    """Return numbers above 0 and up to 1 that are separated by commas, each once: `0.9,1` -> (0.9, 1.0). Raises a usage error otherwise."""
    try:
        numbers = number_list(value)
    except click.BadParameter as e:
        raise click.BadParameter(f"{value!r} is not a list of numbers above 0 and up to 1 such as 0.9,1.") from e
    odd = next((number for number in numbers if not 0 < number <= 1), None)
    if odd is not None:
        raise click.BadParameter(f"{odd:g} is not above 0 and up to 1; 1 keeps every token.")
    return numbers


def name_list(known: Collection[str]) -> Callable[[str], tuple[str, ...]]:
    """Return the type of a list of names out of a few, separated by commas, each once. `names_metavar` shows it in the help."""

    def names(value: str) -> tuple[str, ...]:
        found = tuple(dict.fromkeys(name.strip() for name in value.split(",")))
        for name in found:
            if name not in known:
                raise click.BadParameter(f"{name!r} is not one of {', '.join(known)}.")
        return found

    return names


def names_metavar(known: Collection[str]) -> str:
    """Return the names as the help shows a list out of them."""
    return f"[{'|'.join(known)}],..."


def device_name(value: str) -> str:
    """Return `auto` or the name of a device after a check of its form only; a device that is not there is found out when it is used."""
    from treespec.models.devices import require_name

    if value != "auto":
        try:
            require_name(value)
        except SettingsError as error:
            ctx = click.get_current_context(silent=True)
            raise click.BadParameter(
                with_flags(str(error).removeprefix("`device` "), None if ctx is None else ctx.command) + "."
            ) from error
    return value


def dtype_name(value: str) -> str:
    """Return torch's name of a floating point type, given by it or by its short name (fp32, fp16, bf16); `auto` stays."""
    name = DTYPES.get(value, value)
    if name not in ("auto", *DTYPES.values()):
        raise click.BadParameter(f"{value!r} is not one of auto, float32, float16, bfloat16 (fp32, fp16, bf16).")
    return name


def named_value(value: str) -> tuple[str, Any]:
    """Return NAME and VALUE of `NAME=VALUE`. VALUE is JSON, or else text; True, False and None are also read as JSON's own."""
    name, equals, text = value.partition("=")
    if not name or not equals:
        raise click.BadParameter(f"{value!r} is not NAME=VALUE, such as enable_thinking=false.")
    try:
        return name, json.loads({"True": "true", "False": "false", "None": "null"}.get(text, text))
    except (ValueError, RecursionError):
        return name, text
