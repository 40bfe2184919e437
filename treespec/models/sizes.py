"""The sizes in a configuration, held against what the headers of the weights hold, before a module is made of them."""

import copy
import re
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.modules import module as registration
from transformers import PreTrainedConfig

from treespec.errors import ModelError
from treespec.models import families
from treespec.models.headers import Weights

_LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers")
_MOST_LAYERS = 10_000
"""Most layers of a model whose weights are not known yet."""
_NUMBER = re.compile(r"\.(\d+)(?=\.|$)")
_ROOM = 4
"""The times as many weights as its files hold that a module may have: shared ones count twice, and a few may be missing."""
_MOST_PARTS, _MOST_BUFFER_BYTES = 2_000, 1 << 30
"""The parts and the bytes of buffers that a module may have beyond those that its weights ask for."""


def require_counts(config: Mapping[str, Any], weights: Weights, name: str) -> None:
    """Raise ModelError for a config.json with a size that no model has, or with more layers than there are weights for."""
    held = layers_held(weights)
    for part in (config, config.get("text_config")):
        if not isinstance(part, dict):
            continue
        families.require_sizes(part, name)
        for key in _LAYER_COUNTS:
            count = part.get(key)
            if not isinstance(count, int):
                continue
            if held is not None and count > held:
                raise ModelError(
                    f"{name}: config.json asks for {_shown(count)} {'layer' if count == 1 else 'layers'} ({key}), but the weights hold {held}; "
                    "correct config.json, or save or download the model again"
                )
            if count > _MOST_LAYERS:
                raise ModelError(f"{name}: {key} is {_shown(count)}, and no model has more than {_MOST_LAYERS} layers; correct config.json")


def layers_held(weights: Weights) -> int | None:
    """Return the number of layers that the weights can make: the length of the longest list of modules; None if they are not known.

    >>> layers_held(Weights(frozenset(["model.layers.0.a.weight", "model.layers.1.a.weight", "model.norm.weight"]), None))
    2
    """
    if not weights.names or weights.guessed:
        return None
    lists: dict[str, set[int]] = defaultdict(set)
    for name in weights.names:
        found = _NUMBER.search(name)
        if found is not None:
            lists[name[: found.start()]].add(int(found.group(1)[:9]))
    return max(map(len, lists.values()), default=len(weights.names))


def _shown(count: int) -> str:
    """Return a number, or the size of one that is too long to read."""
    return str(count) if count < 10**15 else f"over 10^{len(str(count)) - 1}"


def require_built(auto: Any, config: PreTrainedConfig, weights: Weights, name: str) -> None:
    """Raise ModelError if a module of this configuration would be much larger than its weights.

    The module is made without memory, and no further than its weights allow. `auto` is transformers' class for such modules.
    """
    if weights.tensors is None:
        return
    limits = _Limits(name, config, weights)
    with _watched(limits), torch.device("meta"):
        auto.from_config(copy.deepcopy(config), trust_remote_code=False)


class _Limits:
    """The counts that a module has left: of numbers in its weights, of modules, and of bytes in buffers."""

    def __init__(self, name: str, config: PreTrainedConfig, weights: Weights) -> None:
        assert weights.tensors is not None
        self.name, self.config = name, config
        self.held = sum(tensor.numbers for tensor in weights.tensors.values())
        self.numbers = _ROOM * self.held + (1 << 20)
        self.parts = 16 * len(weights.tensors) + _MOST_PARTS
        self.buffers = _MOST_BUFFER_BYTES + _ROOM * self.held
        self.thread = threading.get_ident()

    def weight(self, module: nn.Module, key: str, value: Tensor | None) -> None:
        """Count a weight."""
        if value is not None and self._is_ours():
            self.numbers -= value.numel()
            if self.numbers < 0:
                self._refuse(f"more than {_ROOM} times the {self.held} numbers that its files hold")

    def buffer(self, module: nn.Module, key: str, value: Tensor | None) -> None:
        """Count a buffer."""
        if value is not None and self._is_ours():
            self.buffers -= value.nbytes
            if self.buffers < 0:
                self._refuse(f"tables of over {_MOST_BUFFER_BYTES} bytes beside its weights")

    def part(self, module: nn.Module, key: str, value: Any) -> None:
        """Count a module."""
        if self._is_ours():
            self.parts -= 1
            if self.parts < 0:
                self._refuse("many more modules than its files have tensors")

    def _is_ours(self) -> bool:
        """Return whether this thread makes the module: the hooks are called for every module that the process makes."""
        return threading.get_ident() == self.thread

    def _refuse(self, what: str) -> NoReturn:
        text = self.config.get_text_config(decoder=True)
        free = {"max_position_embeddings"} if hasattr(text, "rope_parameters") else set()  # costs nothing there
        sizes = {key: value for key, value in text.to_dict().items() if type(value) is int and not key.endswith("_id") and key not in free}
        named = ", ".join(f"{key} {_shown(sizes[key])}" for key in sorted(sizes, key=lambda key: -sizes[key])[:3])
        raise ModelError(
            f"{self.name}: config.json ({named}) describes a model with {what}; correct config.json, or save or download the model again"
        )


@contextmanager
def _watched(limits: _Limits) -> Iterator[None]:
    """Let the limits see what modules are given in this block."""
    with ExitStack() as stack:
        for register, see in (
            (registration.register_module_parameter_registration_hook, limits.weight),
            (registration.register_module_module_registration_hook, limits.part),
            (registration.register_module_buffer_registration_hook, limits.buffer),
        ):
            stack.callback(register(see).remove)
        yield
