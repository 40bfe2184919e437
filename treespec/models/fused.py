"""FusedDecoder: it runs Llama and similar models by our own kernels, with the weights of the transformers module.

The steps of a layer are: norm and Q, K, V in one product with rotary positions and stored K/V; tree attention; the output product with the
residual; norm, gate and up in one product with the activation; the down product with the residual. Up to `product.LARGEST` rows, the
products are those of `kernels.linear` and `kernels.qkv`; for more rows, cuBLAS multiplies, and single launches in between do the rest; captured
passes are padded to numbers of rows for which cuBLAS is fast (`row_counts`). Stacked weights replace the originals, which become views of them.
Of a model that is divided over processes, each computes its heads and its part of the MLP, and the results of the output and down products are
added up over all of them (`kernels.peers`, or a collective): such passes have single launches between the products, whatever their rows.
"""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from treespec.decoding.protocol import FINAL_STATE
from treespec.errors import ModelError
from treespec.kernels import linear as lin
from treespec.kernels.ancestors import Ancestors, ancestors_of, pack
from treespec.kernels.attention import tree_attention
from treespec.kernels.device import gpu_of
from treespec.kernels.peers import add_norm_of_peers
from treespec.kernels.pointwise import add_norm, gate, move_rows
from treespec.kernels.product import LARGEST, SMALL, Norm, Workspace
from treespec.kernels.qkv import project
from treespec.kernels.rotary import rotate_and_store
from treespec.models.parallel.shard import Shard
from treespec.models.row_counts import RowCounts
from treespec.models.states import KeptPass
from treespec.models.support import outside_fused
from treespec.models.tree_cache import TreeCache
from treespec.trees.placement import Placement, Prefix

_ROTATED_APART = 16
"""Up to this many rows, rotating queries and keys in a separate launch is faster than in a large product (benchmarks/log/launches.md)."""
_TILE, _LONGEST_INNER = 128, 8192
"""Rows and columns of cuBLAS's usual tiles; the inner dimension above which too few tiles leave much of the device idle."""
_PADDED_BYTES = 64_000_000
"""Weights of a layer from which on numbers of rows are timed: products of smaller ones take hardly longer than their launches."""
_TIMED_LAYERS, _TIMED_ROUNDS = 8, 5
"""Layers whose products are timed one after another, so that their weights are read from memory, and the rounds of it."""


@dataclass(frozen=True)
class Product:
    """One matrix, stacked from one or more linear layers."""

    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True)
class _Layer:
    """The parts of one decoder layer."""

    before: Norm
    qkv: Product
    heads: tuple[Norm, Norm] | None
    out: Product
    after: Norm
    gate_up: Product
    down: Product
    scale: float
    window: int | None

    @property
    def weight_bytes(self) -> int:
        """Return the bytes of the weights of its products."""
        return sum(product.weight.nbytes for product in (self.qkv, self.out, self.gate_up, self.down))


def refusal(module: PreTrainedModel) -> str | None:
    """Return why `FusedDecoder` cannot compute this module; None if it can."""
    why = outside_fused(type(module), module.config.get_text_config(decoder=True))
    if why:
        return why
    if any(type(part) is not nn.Linear for name, part in module.named_modules() if name.endswith(("_proj", "lm_head"))):
        return "its linear layers are not plain ones"
    if getattr(module, "quantization_method", None) is not None:
        return "its weights are quantised"
    if len({p.dtype for p in module.parameters()}) > 1 or len({p.device for p in module.parameters()}) > 1:
        return "its weights have several types or devices"
    return None


class FusedDecoder:
    """Computes passes by our own kernels. The module keeps working: its weights are views of ours as long as nobody replaces them."""

    stacked: ClassVar[bool] = True

    def __init__(self, module: Any, shard: Shard | None = None) -> None:
        """Take a module. `shard` says what part of a model it is; None if it is whole. The part of a single process is whole too."""
        model = module.model
        shard = self._shard = None if shard is None or shard.team.size == 1 else shard
        self.workspace = Workspace(module.device)
        self.embedding: Tensor = model.embed_tokens.weight
        self.layers = [_layer(layer) for layer in model.layers]
        self.final = _norm(model.norm)
        self.head = Product(module.lm_head.weight.detach(), None if module.lm_head.bias is None else module.lm_head.bias.detach())
        if module.device.type == "cuda":
            torch.cuda.empty_cache()  # the originals are gone, but their memory is kept in pieces that are too small for what comes
        self._row_counts = RowCounts(self._product_seconds)
        self._peers = None if shard is None else shard.team.peers(self.embedding.dtype)
        self.padded = shard is None and module.device.type == "cuda" and self.layers[0].weight_bytes >= _PADDED_BYTES
        self._module, self._places = module, dict(_places(module))
        self._rotary = model.rotary_emb
        self._tables: tuple[Tensor, Tensor] | None = None

    def release(self) -> None:
        """See `Decoder.release`. Every weight that is a view gets memory of its own."""
        for parameter in self._module.parameters():
            if parameter.untyped_storage().nbytes() > parameter.numel() * parameter.element_size():
                parameter.data = parameter.data.clone()

    def require_weights(self, name: str) -> None:
        """See `Decoder.require_weights`. Weights may be changed in place."""
        found = dict(_places(self._module))
        odd = next((weight for weight, place in self._places.items() if found.get(weight) != place), None)
        if odd is not None:
            raise ModelError(
                f"{name}: {odd} is no longer the tensor that passes compute with: the module was converted, moved or given other parameters "
                "after this TreeModel was made; do that first, and make a new TreeModel of it"
            )

    def prepare(self, cache: TreeCache) -> str:
        """See `Decoder.prepare`. This makes rotary tables for as many positions as the cache has slots."""
        capacity = cache.capacity
        if self._tables is None or self._tables[0].shape[0] < capacity:
            device = self.embedding.device
            places = torch.arange(capacity, device=device)[None]
            cos, sin = self._rotary(torch.zeros(1, dtype=torch.float32, device=device), places)
            half = cos.shape[-1] // 2
            self._tables = (cos[0, :, :half].float().contiguous(), sin[0, :, :half].float().contiguous())
        return ""

    def forward(
        self, tokens: Tensor, place: Placement, near: Tensor | None, cache: TreeCache, keep: Tensor | None, table: Tensor | None = None
    ) -> Tensor:
        """See `Decoder.forward`."""
        table = self.embedding if table is None else table
        tree, edge = ancestors_of(place), None if near is None else pack(near)
        if tokens.shape[0] > LARGEST or self._shard is not None:
            return self._wide(tokens, place, tree, edge, cache, keep, table)
        space, kept = self.workspace, cache.keeping(place)
        stream = lin.start(table, tokens, self.layers[0].before)
        for index, layer in enumerate(self.layers):
            if kept is not None:
                kept.put(index, stream.plain)
            keys, values = cache.rows(index)
            where = self._where(place, keys, values)
            if layer.heads is None and (tokens.shape[0] > _ROTATED_APART or layer.qkv.weight.nbytes <= SMALL):
                query = project(stream, layer.qkv.weight, space, *where, bias=layer.qkv.bias)
            else:
                query = rotate_and_store(lin.linear(stream, layer.qkv.weight, space, bias=layer.qkv.bias), *where, layer.heads)
            seen = self._attend(query, keys, values, layer, place, tree if layer.window is None or edge is None else edge)
            stream = lin.linear_add(seen, layer.out.weight, stream.plain, layer.after, space, bias=layer.out.bias)
            inner = lin.linear(stream, layer.gate_up.weight, space, bias=layer.gate_up.bias, gated=True)
            following = self.layers[index + 1].before if index + 1 < len(self.layers) else self.final
            stream = lin.linear_add(inner, layer.down.weight, stream.plain, following, space, bias=layer.down.bias)
        if kept is not None:
            self._keep_last(kept, stream.plain, None)
        logits = lin.linear(stream, self.head.weight, space, bias=self.head.bias)
        return logits if keep is None else logits.index_select(0, keep)

    def move(self, cache: TreeCache, prefix: Prefix, offsets: Tensor, first: int) -> None:
        """See `Decoder.move`. The length is read on the device."""
        for storage in cache.storages.values():
            move_rows(storage, prefix.length, offsets, first)

    def _wide(
        self,
        tokens: Tensor,
        place: Placement,
        tree: Ancestors,
        edge: Ancestors | None,
        cache: TreeCache,
        keep: Tensor | None,
        table: Tensor,
    ) -> Tensor:
        count, kept = tokens.shape[0], cache.keeping(place)
        rows = self._row_counts.of(count) if self.padded and place.prefix.known is None else count
        x = F.embedding(tokens if rows == count else F.pad(tokens, (0, rows - count)), table)
        room = None if rows == count else x.new_zeros(rows, self.layers[0].out.weight.shape[1])
        delta: Tensor | None = None
        for index, layer in enumerate(self.layers):
            x, normed = self._normed(x, layer.before, delta)
            if kept is not None:
                kept.put(index, x[:count])
            keys, values = cache.rows(index)
            qkv = self._times(normed, layer.qkv)
            query = rotate_and_store(qkv[:count], *self._where(place, keys, values), layer.heads)
            seen = self._attend(query, keys, values, layer, place, tree if layer.window is None or edge is None else edge, room)
            x, normed = self._normed(x, layer.after, self._times(seen, layer.out))
            inner = self._gated(normed, layer.gate_up)
            delta = _summands(inner, layer.down) if self._shard is None else self._times(inner, layer.down)
        if kept is not None:
            x, delta = self._keep_last(kept, x, delta)
        if keep is not None:
            x, delta = x.index_select(0, keep), None if delta is None else delta.index_select(-2, keep)
        logits = self._times(self._normed(x, self.final, delta)[1], self.head)
        if self._shard is not None:
            logits = self._shard.team.joined(logits, self._shard.vocabulary)
        return logits[:count] if keep is None else logits

    def _times(self, x: Tensor, product: Product) -> Tensor:
        """Return x W^T + bias [rows, columns], x [rows, inner]: by our own kernel for the few rows of a part of a model, else by cuBLAS."""
        if self._shard is not None and x.shape[0] <= LARGEST:
            return lin.linear(x, product.weight, self.workspace, bias=product.bias)
        return F.linear(x, product.weight, product.bias)

    def _gated(self, x: Tensor, product: Product) -> Tensor:
        """Return silu(gates) up [rows, columns / 2] of the product with stacked gates and up: for the few rows of a part of a model in one launch."""
        if self._shard is not None and x.shape[0] <= LARGEST:
            return lin.linear(x, product.weight, self.workspace, bias=product.bias, gated=True)
        return gate(self._times(x, product))

    def _normed(self, x: Tensor, norm: Norm, delta: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return x + delta and its norm, as `add_norm` does. In a part of a model, delta is what this process has computed of it, and is used up."""
        if self._shard is None or delta is None:
            return add_norm(x, norm, delta)
        if self._peers is not None and self._peers.fit(delta):
            return add_norm_of_peers(x, norm, delta, self._peers)
        return add_norm(x, norm, self._shard.team.sum(delta))

    def _keep_last(self, kept: KeptPass, x: Tensor, delta: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Keep what leaves the last layer, x + delta [count or more, hidden], and the same after the final norm. Return x and delta, added up or not."""
        if not kept.wants(len(self.layers), FINAL_STATE):
            return x, delta
        last, normed = self._normed(x, self.final, delta)
        kept.put(len(self.layers), last[: kept.count])
        kept.put(FINAL_STATE, normed[: kept.count])
        return last, None

    def _where(self, place: Placement, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return (length, depths, offsets, cos, sin, keys, values): the positions of the nodes and the places for their keys and values."""
        assert self._tables is not None
        return (place.prefix.length, place.depths, place.offsets, *self._tables, keys, values)

    def _attend(
        self, query: Tensor, keys: Tensor, values: Tensor, layer: _Layer, place: Placement, seen: Ancestors, room: Tensor | None = None
    ) -> Tensor:
        """Return tree attention of query [q, heads, dim] over the stored keys and values: [q, heads dim], or the first rows of `room`."""
        return tree_attention(
            *(query.transpose(0, 1), keys, values, place.prefix.length, seen),
            scale=layer.scale,
            window=layer.window,
            depths=place.depths,
            out=None if room is None else room.view(room.shape[0], *query.shape[1:]),
        ).flatten(1)

    def _product_seconds(self, counts: Sequence[int]) -> list[float]:
        """Return the seconds that the products of `_TIMED_LAYERS` layers take for each number of rows. Waits for the device."""
        layers, like = self.layers[:_TIMED_LAYERS], self.embedding
        products = (layers[0].qkv, layers[0].out, layers[0].gate_up, layers[0].down)
        inner_sizes = [product.weight.shape[1] for product in products]
        # random numbers, because products of equal ones are faster; from a stream of their own, so that nothing else is drawn otherwise
        stream = torch.Generator(like.device).manual_seed(0)
        inputs = [
            [torch.randn(rows, size, generator=stream, dtype=like.dtype, device=like.device) for size in inner_sizes] for rows in counts
        ]
        taken: list[list[tuple[Any, Any]]] = [[] for _ in counts]
        for turn in range(1 + _TIMED_ROUNDS):  # the first finds cuBLAS's kernels
            for (states, mixed, normed, inner), events in zip(inputs, taken, strict=True):
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
                start.record()
                for layer in layers:
                    F.linear(states, layer.qkv.weight, layer.qkv.bias)
                    F.linear(mixed, layer.out.weight, layer.out.bias)
                    F.linear(normed, layer.gate_up.weight, layer.gate_up.bias)
                    _summands(inner, layer.down)
                end.record()
                if turn:
                    events.append((start, end))
        torch.cuda.synchronize(like.device)
        return [statistics.median(start.elapsed_time(end) / 1e3 for start, end in events) for events in taken]


def _places(module: nn.Module) -> Iterator[tuple[str, tuple[int, torch.Size, torch.dtype]]]:
    """Yield each parameter's name, address, shape and dtype. While we hold that memory, nothing else can have the same address."""
    for name, parameter in module.named_parameters():
        yield name, (parameter.data_ptr(), parameter.shape, parameter.dtype)


def _summands(x: Tensor, product: Product) -> Tensor:
    """Return the product [rows, columns], or its two halves of the inner dimension, [2, rows, columns], if it makes only few tiles."""
    (rows, inner), columns = x.shape, product.weight.shape[0]
    tiles = -(-rows // _TILE) * -(-columns // _TILE)
    if product.bias is not None or inner % 16 or inner <= _LONGEST_INNER or tiles > gpu_of(x.device).multiprocessors * 3 // 4:
        return F.linear(x, product.weight, product.bias)
    halves = x.view(rows, 2, inner // 2).transpose(0, 1), product.weight.view(columns, 2, inner // 2).permute(1, 2, 0)
    return torch.bmm(*halves)


def _layer(layer: Any) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    normed = hasattr(attention, "q_norm")
    return _Layer(
        before=_norm(layer.input_layernorm),
        qkv=stacked([attention.q_proj, attention.k_proj, attention.v_proj]),
        heads=(_norm(attention.q_norm), _norm(attention.k_norm)) if normed else None,
        out=stacked([attention.o_proj]),
        after=_norm(layer.post_attention_layernorm),
        gate_up=stacked([mlp.gate_proj, mlp.up_proj]),
        down=stacked([mlp.down_proj]),
        scale=float(attention.scaling),
        window=_window(attention),
    )


def _window(attention: Any) -> int | None:
    window = getattr(attention, "sliding_window", None)
    if window is None and type(attention).__name__ == "MistralAttention":
        window = getattr(attention.config, "sliding_window", None)
    return None if window is None else int(window)


def _norm(norm: Any) -> Norm:
    return Norm(norm.weight.detach(), float(norm.variance_epsilon))


def stacked(layers: list[Any]) -> Product:
    """Return the weights of linear layers as one matrix, and make the layers' parameters views of it."""
    weight = _joined([layer.weight for layer in layers])
    bias = None if layers[0].bias is None else _joined([layer.bias for layer in layers])
    return Product(weight, bias)


def _joined(parameters: list[Any]) -> Tensor:
    """Return one tensor of all rows, of which the parameters are views. It is made now, unless it was made before for the same module."""
    whole: Tensor = parameters[0].detach()
    rows = sum(p.shape[0] for p in parameters)
    step = whole[0].numel()
    places = [(p.untyped_storage().data_ptr(), p.storage_offset()) for p in parameters]
    expected = [(places[0][0], places[0][1] + step * sum(p.shape[0] for p in parameters[:i])) for i in range(len(parameters))]
    if places == expected and whole.untyped_storage().nbytes() >= (places[0][1] + rows * step) * whole.element_size():
        return whole.as_strided((rows, *whole.shape[1:]), whole.stride())
    joined = torch.cat([p.detach() for p in parameters])
    for parameter, part in zip(parameters, torch.split(joined, [p.shape[0] for p in parameters]), strict=True):
        parameter.data = part
    return joined
