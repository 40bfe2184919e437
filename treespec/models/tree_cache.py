"""TreeCache: static K/V buffers for one sequence, written at slots that the caller names."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, StaticLayer

from treespec.errors import ModelError
from treespec.models.states import KeptPass, KeptStates
from treespec.trees.placement import Placement


@dataclass(frozen=True)
class LayerShape:
    """The shape of what one layer stores per token: keys [heads, key_dim] and values [heads, value_dim]."""

    heads: int
    key_dim: int
    value_dim: int
    dtype: torch.dtype
    device: torch.device


@dataclass
class _Pass:
    """The slots that the running pass writes and the number it may read; all layers share it."""

    slots: Tensor
    kv_length: int


class TreeCacheLayer(StaticLayer):  # type: ignore[no-untyped-call]  # its __init_subclass__ is untyped
    """One layer's buffers, `keys` [1, heads, capacity, key_dim] and `values` [1, heads, capacity, value_dim].

    `update` writes the q new tokens at the slots of the running pass and returns the first `kv_length` slots. It never slides:
    the mask does sliding windows.
    """

    def __init__(self, keys: Tensor, values: Tensor, running: _Pass) -> None:
        super().__init__(max_cache_len=keys.shape[2])
        self.keys: Tensor = keys
        self.values: Tensor = values
        self.dtype, self.device = keys.dtype, keys.device
        self.batch_size, self.num_heads = keys.shape[:2]
        self.k_head_dim, self.v_head_dim = keys.shape[3], values.shape[3]
        self.is_initialized = True
        self._running = running

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write [1, heads, q, dim] states and return views of the slots that the pass may read."""
        running = self._running
        slots = running.slots if running.slots.device == self.device else running.slots.to(self.device, non_blocking=True)
        self.keys.index_copy_(2, slots, key_states)
        self.values.index_copy_(2, slots, value_states)
        return self.keys[:, :, : running.kv_length], self.values[:, :, : running.kv_length]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return (number of slots that `update` returns, offset of the first)."""
        return self._running.kv_length, 0

    def get_seq_length(self) -> int:
        """Return the number of slots that the running pass may read."""
        return self._running.kv_length


class TreeCache(Cache):
    """Static buffers of `capacity` slots for every layer. They are zero at first, so that slots nobody wrote stay finite.

    Layers of the same shape share one storage [layers, 1, heads, capacity, dim]: moving accepted slots takes one gather
    and one scatter per storage, for any number of layers. `states` are kept beside them where a head reads them.
    """

    def __init__(self, shapes: Sequence[LayerShape], capacity: int, states: KeptStates | None = None) -> None:
        self.capacity, self.states = capacity, states
        self._running = _Pass(torch.zeros(0, dtype=torch.int64), 0)
        wanted: dict[tuple[int, int, torch.dtype, torch.device], int] = {}
        for shape in shapes:
            for dim in (shape.key_dim, shape.value_dim):
                key = (shape.heads, dim, shape.dtype, shape.device)
                wanted[key] = wanted.get(key, 0) + 1
        self.storages = {
            key: torch.zeros((count, 1, key[0], capacity, key[1]), dtype=key[2], device=key[3]) for key, count in wanted.items()
        }
        rows = {key: iter(storage) for key, storage in self.storages.items()}
        layers: list[Any] = []
        for shape in shapes:
            keys, values = (next(rows[shape.heads, dim, shape.dtype, shape.device]) for dim in (shape.key_dim, shape.value_dim))
            layers.append(TreeCacheLayer(keys, values, self._running))
        super().__init__(layers=layers)

    def begin(self, slots: Tensor, kv_length: int) -> None:
        """Set the slots int64 [q] that the next pass writes, and the number of slots that it may read, `kv_length`."""
        self._running.slots = slots
        self._running.kv_length = kv_length

    def keeping(self, place: Placement) -> KeptPass | None:
        """Return where the states of a pass over these tokens are to be put; None if none are kept."""
        return None if self.states is None else KeptPass(self.states, place.slots)

    def rows(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return keys [heads, capacity, key_dim] and values [heads, capacity, value_dim] of one layer."""
        found: Any = self.layers[layer]
        return found.keys[0], found.values[0]

    def move(self, source: Tensor, destination: Tensor) -> None:
        """Copy slots `source` [m] of every layer to slots `destination` [m]; all are read before any is written."""
        if source.shape[0] == 0:
            return
        for storage in self.storages.values():
            rows = storage.index_select(3, source.to(storage.device))
            storage.index_copy_(3, destination.to(storage.device), rows)


def layer_shapes(cache: Cache) -> tuple[LayerShape, ...]:
    """Return the shape of what each layer of a filled cache stores. Raises ModelError if a layer keeps anything but keys and values."""
    shapes = []
    for index, layer in enumerate(cache.layers):
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if not isinstance(keys, Tensor) or not isinstance(values, Tensor) or keys.dim() != 4 or keys.shape[:3] != values.shape[:3]:
            raise ModelError(
                f"layer {index} of the model does not keep one key and one value row per token, which trees need; use a full-attention model"
            )
        shapes.append(LayerShape(keys.shape[1], keys.shape[3], values.shape[3], keys.dtype, keys.device))
    return tuple(shapes)
