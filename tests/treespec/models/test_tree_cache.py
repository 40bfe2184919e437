"""Rows go to the slots named, come back as far as asked, and move as one."""

import pytest
import torch
from transformers import DynamicCache

from treespec.errors import ModelError
from treespec.models.tree_cache import LayerShape, TreeCache, layer_shapes

CPU = torch.device("cpu")
PLAIN = LayerShape(heads=2, key_dim=4, value_dim=4, dtype=torch.float32, device=CPU)
UNEVEN = LayerShape(heads=1, key_dim=6, value_dim=3, dtype=torch.float32, device=CPU)


def numbered(shape: LayerShape, rows: int, start: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values whose row r is filled with start + r (values: its negative)."""
    numbers = torch.arange(start, start + rows, dtype=shape.dtype)[None, None, :, None]
    return numbers.expand(1, shape.heads, rows, shape.key_dim), -numbers.expand(1, shape.heads, rows, shape.value_dim)


def rows_of(cache: TreeCache, layer: int) -> list[float]:
    keys, values = cache.layers[layer].keys, cache.layers[layer].values
    assert keys is not None
    assert values is not None
    assert torch.equal(keys[0, 0, :, 0], -values[0, 0, :, 0])
    assert bool((keys == keys[:, :1, :, :1]).all())
    return [float(x) for x in keys[0, 0, :, 0]]


def test_rows_are_written_to_their_slots_and_read_up_to_the_length() -> None:
    cache = TreeCache([PLAIN, UNEVEN, PLAIN], capacity=6)
    cache.begin(torch.tensor([4, 1]), kv_length=5)
    for layer, shape in enumerate([PLAIN, UNEVEN, PLAIN]):
        keys, values = cache.update(*numbered(shape, 2, 10 * (layer + 1)), layer)
        assert keys.shape == (1, shape.heads, 5, shape.key_dim)
        assert values.shape == (1, shape.heads, 5, shape.value_dim)
        assert rows_of(cache, layer) == [0, 10 * layer + 11, 0, 0, 10 * layer + 10, 0]
    assert cache.get_seq_length() == 5
    assert cache.get_mask_sizes(2, 0) == (5, 0)


def test_a_move_reads_everything_before_it_writes() -> None:
    cache = TreeCache([PLAIN, UNEVEN], capacity=6)
    cache.begin(torch.arange(6), kv_length=6)
    for layer, shape in enumerate([PLAIN, UNEVEN]):
        cache.update(*numbered(shape, 6, 0), layer)
    cache.move(torch.tensor([2, 3, 5]), torch.tensor([1, 2, 3]))
    assert rows_of(cache, 0) == rows_of(cache, 1) == [0, 2, 3, 5, 4, 5]
    cache.move(torch.tensor([0, 1]), torch.tensor([1, 0]))
    assert rows_of(cache, 0) == [2, 0, 3, 5, 4, 5]


def test_layers_of_one_shape_share_a_storage() -> None:
    assert len(TreeCache([PLAIN] * 5, capacity=4).storages) == 1
    assert len(TreeCache([PLAIN, UNEVEN], capacity=4).storages) == 3


def test_shapes_are_read_from_a_filled_cache() -> None:
    cache = DynamicCache()
    for layer, shape in enumerate([PLAIN, UNEVEN]):
        cache.update(*numbered(shape, 1, 0), layer)
    assert layer_shapes(cache) == (PLAIN, UNEVEN)


def test_a_layer_without_rows_is_refused() -> None:
    cache = DynamicCache()
    cache.update(*numbered(PLAIN, 1, 0), 1)  # layer 0 stays empty
    with pytest.raises(ModelError, match="layer 0 .* full-attention"):
        layer_shapes(cache)
