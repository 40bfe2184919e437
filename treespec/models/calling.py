"""Finding out how to call the forward of a transformers module, which differs between versions and classes."""

import inspect
from typing import Any

from torch import nn

_CACHE_NAMES = ("cache", "past_key_values")
"""The names of the cache parameter of a forward, the newer one first: transformers renamed it in 5.24."""


def cache_name(module: nn.Module) -> str:
    """Return the name of the parameter by which this module's forward takes its cache.

    A forward that only passes on its arguments (`**kwargs`) is skipped, and those of its parent classes are asked. Decorators that accept
    an old name with a warning show the signature of the function they wrap.
    """
    forwards = [module.forward, *(vars(kind)["forward"] for kind in type(module).__mro__ if "forward" in vars(kind))]
    for forward in forwards:
        names = inspect.signature(forward).parameters
        found = next((name for name in _CACHE_NAMES if name in names), None)
        if found is not None:
            return found
    return "past_key_values"


def keeps_logits(module: nn.Module) -> bool:
    """Return whether the forward has the parameter `logits_to_keep`, which says which logits to compute."""
    forward: Any = module.forward
    return "logits_to_keep" in inspect.signature(forward).parameters
