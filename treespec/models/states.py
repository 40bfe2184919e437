"""The target's hidden states that heads read: which are kept, where, and how they are caught in passes that the module itself runs.

States have the numbers of `Head.state_layers`: j is the residual stream that enters decoder layer j, the number of layers that which leaves the
last one, and `FINAL_STATE` the last state after the final norm.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from treespec.decoding.protocol import FINAL_STATE
from treespec.errors import ModelError, counted
from treespec.models.calling import decoder_layers
from treespec.trees.placement import Placement


class KeptStates:
    """The states of a text's tokens, in the slots of their keys and values: `rows` [capacity, n, Ht] for n states of width Ht.

    They are zero at first, so that slots nobody wrote stay finite.
    """

    def __init__(self, layers: tuple[int, ...], capacity: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
        self.layers = layers
        self.rows = torch.zeros(capacity, len(layers), width, dtype=dtype, device=device)

    def move(self, source: Tensor, destination: Tensor) -> None:
        """Copy the states of slots `source` int64 [m] to slots `destination` int64 [m]; all are read before any is written."""
        self.rows.index_copy_(0, destination, self.rows.index_select(0, source))


class KeptPass:
    """The states of one pass, which go to the slots of its q tokens."""

    def __init__(self, states: KeptStates, slots: Tensor) -> None:
        self.states, self._slots = states, slots

    @property
    def count(self) -> int:
        """Return the number of tokens, q."""
        return self._slots.shape[0]

    def wants(self, *numbers: int) -> bool:
        """Return whether any of these states is kept."""
        return any(number in self.states.layers for number in numbers)

    def put(self, number: int, found: Tensor) -> None:
        """Keep the states [q, Ht] of a number, if they are to be kept. No host synchronisation."""
        for column, kept in enumerate(self.states.layers):
            if kept == number:
                self.states.rows[:, column].index_copy_(0, self._slots, found)


@contextmanager
def catching(module: PreTrainedModel, kept: KeptPass | None) -> Iterator[None]:
    """Keep the states of a pass that the module runs within this context; with None, do nothing. Raises ModelError within the pass."""
    if kept is None:
        yield
        return
    layers, decoder = decoder_layers(module), module.get_decoder()  # type: ignore[no-untyped-call]
    handles = [
        layer.register_forward_pre_hook(partial(_entering, kept, number), with_kwargs=True)
        for number, layer in enumerate(layers)
        if kept.wants(number)
    ]
    if kept.wants(len(layers)):
        handles.append(layers[-1].register_forward_hook(partial(_leaving, kept, len(layers))))
    if kept.wants(FINAL_STATE):
        handles.append(decoder.register_forward_hook(partial(_leaving, kept, FINAL_STATE)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def require_states(module: PreTrainedModel, layers: tuple[int, ...], name: str) -> None:
    """Raise ModelError if the states of these numbers cannot be caught in passes of a module, which messages call `name`. Runs one token."""
    if hasattr(module, "_hf_hook") or getattr(module, "hf_device_map", None):
        raise ModelError(f"{name} gives no states to a head, because its weights are moved by hooks; load it on one device")
    count = len(decoder_layers(module))
    odd = [number for number in layers if number != FINAL_STATE and not 0 <= number <= count]
    if not count or odd:
        why = f"has states 0 to {count} and {FINAL_STATE}, but state {odd[0]} was asked for" if count else "has no list of decoder layers"
        raise ModelError(f"{name} (family {module.config.model_type}) {why}; use a head made for it")
    token: Any = torch.zeros(1, 1, dtype=torch.int64, device=module.device)
    found = KeptStates(layers, 1, width_of(module), module.dtype, module.device)
    found.rows.fill_(torch.nan)
    try:
        with catching(module, KeptPass(found, Placement.causal(0, 1, module.device).slots)):
            module(input_ids=token, use_cache=False)
    except _OddStatesError as error:
        raise ModelError(f"{name} (family {module.config.model_type}) gives no states to a head: {error}; use another draft") from None
    missing = [number for number, row in zip(layers, found.rows[0], strict=True) if row.isnan().all()]
    if missing:
        raise ModelError(
            f"{name} (family {module.config.model_type}) gives no states to a head: its pass does not call "
            f"{'the decoder' if missing[0] == FINAL_STATE else f'decoder layer {missing[0]}'} as one module; use another draft"
        )


def width_of(module: PreTrainedModel) -> int:
    """Return the width of a module's hidden states."""
    return int(module.config.get_text_config(decoder=True).hidden_size)


class _OddStatesError(Exception):
    """Says what a layer reads or returns in place of one state per token."""


def _entering(kept: KeptPass, number: int, layer: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    _put(kept, number, arguments[0] if arguments else options.get("hidden_states"))


def _leaving(kept: KeptPass, number: int, part: Any, arguments: tuple[Any, ...], output: Any) -> None:
    _put(kept, number, output if isinstance(output, Tensor) else output[0])


def _put(kept: KeptPass, number: int, found: Any) -> None:
    width = kept.states.rows.shape[-1]
    if not isinstance(found, Tensor) or found.dim() != 3 or found.shape[0] != 1 or found.shape[2] != width:
        seen = f"states of shape {list(found.shape)}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise _OddStatesError(f"state {number} is {seen} and not {counted(width, 'number')} per token")
    kept.put(number, found[0])
