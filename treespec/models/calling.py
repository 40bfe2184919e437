"""How the forward of a transformers module wants to be called, which changes with the version and with the class."""

import inspect
from typing import Any

from torch import nn

_CACHE_NAMES = ("cache", "past_key_values")
"""What forwards call the cache that they are given, the newer name first: transformers has renamed it in 5.24."""


def cache_name(module: nn.Module) -> str:
    """Return the name under which this module's forward takes its cache.

    A forward that hands on whatever it is given (`**kwargs`) is passed over for those of its parent classes. Decorators that take an old
    name with a warning show the signature of what they wrap.
    """
    forwards = [module.forward, *(vars(kind)["forward"] for kind in type(module).__mro__ if "forward" in vars(kind))]
    for forward in forwards:
        names = inspect.signature(forward).parameters
        found = next((name for name in _CACHE_NAMES if name in names), None)
        if found is not None:
            return found
    return "past_key_values"


def keeps_logits(module: nn.Module) -> bool:
    """Return whether the forward can be told which logits to compute, by `logits_to_keep`."""
    forward: Any = module.forward
    return "logits_to_keep" in inspect.signature(forward).parameters
