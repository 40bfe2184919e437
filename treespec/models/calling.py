"""Finding out how to call the forward of a transformers module, and where its layers are, which differs between versions and classes."""

import inspect
from typing import Any

from torch import nn
from transformers import PreTrainedModel

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


def decoder_layers(module: PreTrainedModel) -> list[nn.Module]:
    """Return the decoder's layers in the order of their use: its one list with as many modules as the configuration has layers.

    Empty if there is no such list, or if there are several.
    """
    count = module.config.get_text_config(decoder=True).num_hidden_layers
    found: list[nn.ModuleList] = []
    decoder: Any = module.get_decoder()  # type: ignore[no-untyped-call]
    for part in decoder.modules():
        if isinstance(part, nn.ModuleList) and len(part) == count and not any(part in outer.modules() for outer in found):
            found.append(part)
    return list(found[0]) if len(found) == 1 else []
