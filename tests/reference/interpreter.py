"""Triton's interpreter, without what it does anew for every call of a device function although the launch has done it.

A launch puts the interpreter's functions in the place of those of `triton.language`, and the old ones back at its end. Each call of a
device function in between looks through all names again and finds none left, which takes more time than the kernels themselves.
"""

from collections.abc import Callable
from functools import cache
from types import FunctionType, ModuleType
from typing import Any


def patch_once_per_launch() -> None:
    """Make Triton's interpreter look for names that are to be replaced only where some are. Calling it again changes nothing."""
    from triton import language
    from triton.runtime import interpreter

    patch: Callable[[FunctionType], Any] = interpreter._patch_lang
    if hasattr(patch, "whole"):
        return

    @cache
    def languages(function: FunctionType) -> list[ModuleType]:
        return [module for module in (language, language.core) if any(value is module for value in function.__globals__.values())]

    def patch_what_is_left(function: FunctionType) -> Any:
        is_builtin = language.core.is_builtin
        left = any(is_builtin(module.load) or is_builtin(module.tensor.__add__) for module in languages(function))
        return patch_what_is_left.whole(function) if left else interpreter._LangPatchScope()  # type: ignore[attr-defined]

    patch_what_is_left.whole = patch  # type: ignore[attr-defined]
    interpreter._patch_lang = patch_what_is_left
