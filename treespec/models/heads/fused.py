"""FusedEagle3: the levels of an EAGLE-3 head by our own kernels, with the weights of its module, for captured steps.

A level reads every weight once, for few rows, so its time is the time to read them, and that of its launches: the norms of embedding and feature
in one, and for each layer queries, keys and values in one product, rotary positions and stored K/V, tree attention, and the three products of
`kernels.linear` with all that is between them. The last of these, the vocabulary's, has the final norm in it. So a head of one layer takes eight
launches, or nine where attention is split. Stacked weights replace the originals, which become views of them, as in `FusedDecoder`.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from treespec.decoding.protocol import HeadLevel
from treespec.kernels import linear as lin
from treespec.kernels.ancestors import ancestors_of
from treespec.kernels.attention import tree_attention
from treespec.kernels.beside import start_beside
from treespec.kernels.pointwise import add_norm
from treespec.kernels.product import LARGEST, Norm, Stream, Workspace
from treespec.kernels.rotary import rotate_and_store
from treespec.models.fused import Product, stacked
from treespec.models.heads import layers
from treespec.trees.placement import Placement

if TYPE_CHECKING:
    from treespec.models.heads.eagle3 import Eagle3Head, FirstLayer

MOST_ROWS = LARGEST
"""Most tokens of a level that it computes."""


@dataclass(frozen=True)
class _Layer:
    """The parts of one decoder layer."""

    attention: layers.Attention
    qkv: Product
    out: Product
    after: Norm
    gate_up: Product
    down: Product


class FusedEagle3:
    """Computes levels of up to `MOST_ROWS` tokens whose place only the device knows."""

    def __init__(self, head: "Eagle3Head") -> None:
        """Take a head whose cache is made: there are rotary tables for as many positions as it has slots."""
        first, others = head.stack
        self._first_position, self._norm_output = head.rope.first, head.plan.norm_output
        self._normed_residual = first.norm_before_residual
        self._embedding, device = head.borrowed.embedding.detach(), head.borrowed.embedding.device
        self._starts = _norm(first.input_layernorm), _norm(first.hidden_norm)
        stack: list[FirstLayer | layers.Layer] = [first, *others]
        self._layers = [_layer(layer) for layer in stack]
        self._final = _norm(head.norm)
        self._following = [*(_norm(layer.input_layernorm) for layer in others), self._final]
        own = head.lm_head
        bias = None if own is not None or head.borrowed.lm_head_bias is None else head.borrowed.lm_head_bias.detach()
        self._head = Product((head.borrowed.lm_head if own is None else own.weight).detach(), bias)
        self._space = Workspace(device)
        places = torch.arange(first.self_attn.capacity, device=device)
        cos, sin = head.rope.turns(places, torch.zeros(1, dtype=torch.float32, device=device))
        half = cos.shape[-1] // 2
        self._tables = cos[:, :half].contiguous(), sin[:, :half].contiguous()

    def forward(self, tokens: Tensor, features: Tensor, place: Placement, keep: Tensor | None = None) -> HeadLevel:
        """See `LevelHead.forward`."""
        # Before the first kernel of the pass, which waits for it: later ones read it before the launch ahead of their own has ended.
        length, tree = place.prefix.length - self._first_position, ancestors_of(place)
        where, space = (length, place.depths, place.offsets, *self._tables), self._space
        features = features.contiguous()
        x: Tensor | Stream = start_beside(self._embedding, tokens, features, self._starts)
        residual = x[:, features.shape[1] :].contiguous() if self._normed_residual and isinstance(x, Tensor) else features
        for layer, following in zip(self._layers, self._following, strict=True):
            keys, values = layer.attention.keys, layer.attention.values
            query = rotate_and_store(lin.linear(x, layer.qkv.weight, space, bias=layer.qkv.bias), *where, keys, values)
            scale = layer.attention.sizes.head_width**-0.5
            seen = tree_attention(query.transpose(0, 1), keys, values, length, tree, scale=scale).flatten(1)
            x = lin.linear_add(seen, layer.out.weight, residual, layer.after, space, bias=layer.out.bias)
            inner = lin.linear(x, layer.gate_up.weight, space, gated=True)
            x = lin.linear_add(inner, layer.down.weight, x.plain, following, space)
            residual = x.plain
        assert isinstance(x, Stream)  # there is a layer
        logits, after = lin.linear(x, self._head.weight, space, bias=self._head.bias), x.plain
        if keep is not None:
            logits, after = logits.index_select(0, keep), after.index_select(0, keep)
        return HeadLevel(logits, add_norm(after, self._final)[1] if self._norm_output else after)


def takes(head: "Eagle3Head") -> bool:
    """Return whether a head's weights are of types and in a form that the kernels read."""
    weights = [head.borrowed.embedding, *(parameter for parameter in head.parameters() if parameter.dim() == 2)]
    weights += [head.borrowed.lm_head] if head.lm_head is None else []
    known = (torch.float16, torch.bfloat16, torch.float32)
    return (
        len({weight.dtype for weight in weights}) == 1 and weights[0].dtype in known and all(weight.is_contiguous() for weight in weights)
    )


def _layer(layer: "FirstLayer | layers.Layer") -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    return _Layer(
        attention,
        qkv=stacked([attention.q_proj, attention.k_proj, attention.v_proj]),
        out=stacked([attention.o_proj]),
        after=_norm(layer.post_attention_layernorm),
        gate_up=stacked([mlp.gate_proj, mlp.up_proj]),
        down=stacked([mlp.down_proj]),
    )


def _norm(norm: object) -> Norm:
    assert isinstance(norm, layers.Norm)  # EAGLE-3 norms before every layer
    return Norm(norm.weight.detach(), norm.epsilon)
