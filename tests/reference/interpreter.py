"""Triton's interpreter, without what it does over and over: it takes more time for that than for the kernels themselves.

A launch puts the interpreter's functions in the place of those of `triton.language`, and the old ones back at its end. Each call of a
device function in between looks through all names again, and finds none left. And for each operation, the table of types is built anew.
"""

from collections.abc import Callable
from functools import cache
from types import FunctionType, ModuleType
from typing import Any


def quicken() -> None:
    """Make Triton's interpreter replace names only where some are left, and keep its table of types. Calling it again changes nothing."""
    from triton.runtime import interpreter

    if not hasattr(interpreter._patch_lang, "whole"):
        interpreter._patch_lang = once_per_launch(interpreter._patch_lang)
        interpreter._get_np_dtype = once_per_name(interpreter._get_np_dtype)


def once_per_launch(patch: Callable[[FunctionType], Any]) -> Callable[[FunctionType], Any]:
    """Replace the names that a function sees, unless that is done."""
    from triton import language
    from triton.runtime import interpreter

    @cache
    def languages(function: FunctionType) -> list[ModuleType]:
        return [module for module in (language, language.core) if any(value is module for value in function.__globals__.values())]

    def patch_what_is_left(function: FunctionType) -> Any:
        is_builtin = language.core.is_builtin
        left = any(is_builtin(module.load) or is_builtin(module.tensor.__add__) for module in languages(function))
        return patch(function) if left else interpreter._LangPatchScope()

    patch_what_is_left.whole = patch  # type: ignore[attr-defined]
    return patch_what_is_left


def once_per_name(find: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Find NumPy's type for one of Triton's, whose name says all of it, only once."""
    known: dict[str, Any] = {}

    def find_once(dtype: Any) -> Any:
        if dtype.name not in known:
            known[dtype.name] = find(dtype)
        return known[dtype.name]

    return find_once
