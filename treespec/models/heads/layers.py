"""The parts of a head's decoder layer, as in Llama: norm, rotary positions, attention with keys and values of its own, and the MLP.

Source: transformers' `modeling_llama.py`, and for the norms of queries and keys `modeling_qwen3.py`; the heads' own code has the same parts.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import sdpa_kernel
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from treespec.errors import CapacityError
from treespec.models.heads.files import HeadFiles
from treespec.models.heads.settings import Settings
from treespec.models.plain import KERNELS
from treespec.trees.placement import Placement

if TYPE_CHECKING:
    from treespec.kernels.ancestors import Ancestors


@dataclass(frozen=True)
class LayerSizes:
    """The sizes of a head's decoder layers, and how they number positions."""

    hidden: int
    """Width of the hidden states, H."""
    inner: int
    """Width of the MLP."""
    heads: int
    """Number of attention heads of the queries."""
    shared_heads: int
    """Number of attention heads of the keys and values."""
    head_width: int
    """Width of an attention head."""
    epsilon: float
    """The number that the norms add to a variance."""
    rope: dict[str, Any]
    """See `Settings.rope`."""

    @classmethod
    def of(cls, files: HeadFiles, settings: Settings, hidden: int) -> "LayerSizes":
        """Return the sizes by config.json and the weights of the first layer. Raises ModelError where the two contradict each other.

        The number of layers and the most positions are not read: published files are wrong in both.
        """
        queries, keys, inner = (files.rows(f"layers.0.{part}.weight") for part in ("self_attn.q_proj", "self_attn.k_proj", "mlp.gate_proj"))
        heads = settings.count("num_attention_heads")
        shared = settings.count("num_key_value_heads", heads)
        width = settings.count("head_dim", max(1, hidden // heads))
        settings.require_agreement("hidden_size", hidden, "fc.weight")
        settings.require_agreement("intermediate_size", inner, "mlp.gate_proj.weight")
        if heads % shared:
            settings.refuse("num_attention_heads", f"a multiple of num_key_value_heads, which is {shared}")
        if width % 2:
            settings.refuse("head_dim", f"an even number (it is {width})")
        if heads * width != queries:
            settings.refuse("num_attention_heads", f"that of self_attn.q_proj.weight, which has {queries} rows for heads of {width}")
        if shared * width != keys:
            settings.refuse("num_key_value_heads", f"that of self_attn.k_proj.weight, which has {keys} rows for heads of {width}")
        if settings.values.get("hidden_act", "silu") != "silu":
            settings.refuse("hidden_act", "silu, the only one that published heads have")
        return cls(hidden, inner, heads, shared, width, settings.number("rms_norm_eps", 1e-6), settings.rope())

    def layer_shapes(self, prefix: str, inputs: int, biases: frozenset[str]) -> dict[str, tuple[int, ...]]:
        """Return name to shape of what every layer has, for attention that reads `inputs` numbers, with biases in some of its projections."""
        queries, keys = self.heads * self.head_width, self.shared_heads * self.head_width
        shapes: dict[str, tuple[int, ...]] = {
            "self_attn.q_proj.weight": (queries, inputs),
            "self_attn.k_proj.weight": (keys, inputs),
            "self_attn.v_proj.weight": (keys, inputs),
            "self_attn.o_proj.weight": (self.hidden, queries),
            "mlp.gate_proj.weight": (self.inner, self.hidden),
            "mlp.up_proj.weight": (self.inner, self.hidden),
            "mlp.down_proj.weight": (self.hidden, self.inner),
            "post_attention_layernorm.weight": (self.hidden,),
        }
        shapes |= {f"self_attn.{part}.bias": shapes[f"self_attn.{part}.weight"][:1] for part in biases}
        return {f"{prefix}.{name}": shape for name, shape in shapes.items()}


def held_biases(files: HeadFiles) -> frozenset[str]:
    """Return the projections of attention that have a bias in a head's first layer. Queries, keys and values have one together."""
    read = {"q_proj", "k_proj", "v_proj"}
    held = {part for part in (*read, "o_proj") if files.has(f"layers.0.self_attn.{part}.bias")}
    return frozenset(held | read if held & read else held)


class Seats(Protocol):
    """The places of the tokens that one pass reads, for all layers of a head: their positions, and what each of them sees."""

    @property
    def cos(self) -> Tensor:
        """[q, head width]."""

    @property
    def sin(self) -> Tensor:
        """[q, head width]."""

    def attended(self, layer: "Attention", queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Keep keys and values [.., shared heads, q, head width] of a layer, and return what its queries [.., heads, q, head width] find."""


@dataclass(frozen=True)
class Slots:
    """The places of q tokens in a head's cache."""

    slots: Tensor
    """int64 [q]; where their keys and values go."""
    mask: Tensor | None
    """bool [q, slots that hold something]; which of them each token sees, its own among them. None if only the device knows how many there
    are: then `length` and `tree` say the same for tree attention."""
    cos: Tensor
    sin: Tensor
    length: Tensor
    """int64 [1]; number of committed tokens in the cache, all of which every token sees."""
    tree: "Ancestors | None"
    """Which of the slots after these each token sees; None if there is a mask."""

    def attended(self, layer: "Attention", queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """See `Seats.attended`: keys and values are written into the layer's cache. A kernel attends if only the device knows the length."""
        layer.keys.index_copy_(1, self.slots, keys)
        layer.values.index_copy_(1, self.slots, values)
        if self.tree is not None:
            from treespec.kernels.attention import tree_attention

            scale = layer.sizes.head_width**-0.5
            return tree_attention(queries, layer.keys, layer.values, self.length, self.tree, scale=scale).transpose(0, 1)
        assert self.mask is not None
        seen = self.mask.shape[1]
        held = layer.keys[None, :, :seen], layer.values[None, :, :seen]
        with sdpa_kernel(KERNELS):
            return F.scaled_dot_product_attention(queries[None], *held, attn_mask=self.mask, enable_gqa=True)[0]


class Rope(nn.Module):
    """The rotary positions of a head, whose cache holds the tokens of a text from number `first` on.

    A head that reads the state before a token together with the token begins with number 1: token i of the text has slot and position i - 1.
    """

    def __init__(self, sizes: LayerSizes, first: int = 1) -> None:
        super().__init__()
        self.first = first
        config = LlamaConfig(
            hidden_size=sizes.hidden,
            num_attention_heads=sizes.heads,
            head_dim=sizes.head_width,
            rope_parameters=dict(sizes.rope),
            max_position_embeddings=int(sizes.rope.get("original_max_position_embeddings", 2048)),
        )
        self.table = LlamaRotaryEmbedding(config)

    def slots(self, place: Placement, like: Tensor, capacity: int) -> Slots:
        """Return the places in a head's cache of tokens that are placed in the text. Raises CapacityError if the cache lacks room."""
        length = place.prefix.length - self.first  # long before attention, which reads it before the launch ahead of its own has ended
        turns = self.turns(place.positions - self.first, like)
        if place.prefix.known is None:
            from treespec.kernels.ancestors import ancestors_of

            return Slots(place.slots - self.first, None, *turns, length, ancestors_of(place))
        mask = place.mask()[:, self.first :]
        if mask.shape[1] > capacity:
            raise CapacityError(f"a head's cache has {capacity} slots, but {mask.shape[1]} are needed; allocate as many")
        return Slots(place.slots - self.first, mask, *turns, length, None)

    def turns(self, positions: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines and sines [q, head width] of positions int64 [q], in the type of `like`."""
        cos, sin = self.table(like, positions[None])
        return cos[0], sin[0]


class Norm(nn.Module):
    """The root mean square norm of Llama: computed in float32, scaled in the type of its input."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        """Return x [.., width], normed."""
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.epsilon)).to(x.dtype)


class Attention(nn.Module):
    """Attention over the head's own keys and values: those in slots that the caller addresses, or those of whole texts.

    With `head_norms`, queries and keys are normed head by head, as in Qwen 3.
    """

    def __init__(self, sizes: LayerSizes, inputs: int, *, biases: frozenset[str], head_norms: bool = False) -> None:
        super().__init__()
        self.sizes = sizes
        queries, keys = sizes.heads * sizes.head_width, sizes.shared_heads * sizes.head_width
        self.q_proj = nn.Linear(inputs, queries, bias="q_proj" in biases)
        self.k_proj = nn.Linear(inputs, keys, bias="k_proj" in biases)
        self.v_proj = nn.Linear(inputs, keys, bias="v_proj" in biases)
        self.o_proj = nn.Linear(queries, sizes.hidden, bias="o_proj" in biases)
        self.q_norm = Norm(sizes.head_width, sizes.epsilon) if head_norms else nn.Identity()
        self.k_norm = Norm(sizes.head_width, sizes.epsilon) if head_norms else nn.Identity()
        self.keys = self.values = torch.empty(sizes.shared_heads, 0, sizes.head_width)

    @property
    def capacity(self) -> int:
        """Number of slots."""
        return self.keys.shape[1]

    def allocate(self, capacity: int) -> None:
        """Make room for so many tokens and forget those that are there."""
        weight = self.k_proj.weight
        self.keys, self.values = (weight.new_zeros(self.sizes.shared_heads, capacity, self.sizes.head_width) for _ in range(2))

    def forward(self, x: Tensor, seats: Seats) -> Tensor:
        """Return what each token attends to, [.., q, H], for x [.., q, inputs]; `seats` keeps its keys and values."""
        queries = _rotated(self.q_norm(self._by_head(self.q_proj(x))), seats.cos, seats.sin)
        found = seats.attended(self, queries, *self.kept(x, seats.cos, seats.sin))
        projected: Tensor = self.o_proj(found.transpose(-3, -2).flatten(-2))
        return projected

    def kept(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values [.., shared heads, q, head width] of x [.., q, inputs], the keys turned by `cos` and `sin` [q, head width]."""
        return _rotated(self.k_norm(self._by_head(self.k_proj(x))), cos, sin), self._by_head(self.v_proj(x))

    def _by_head(self, x: Tensor) -> Tensor:
        """Return x [.., q, heads times head width] as [.., heads, q, head width]."""
        return x.reshape(*x.shape[:-1], -1, self.sizes.head_width).transpose(-3, -2)


class Mlp(nn.Module):
    """The gated MLP of Llama."""

    def __init__(self, sizes: LayerSizes) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(sizes.hidden, sizes.inner, bias=False)
        self.up_proj = nn.Linear(sizes.hidden, sizes.inner, bias=False)
        self.down_proj = nn.Linear(sizes.inner, sizes.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return what is added to x, [.., H]."""
        added: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return added


class Layer(nn.Module):
    """A decoder layer of Llama, or with `head_norms` of Qwen 3, with keys and values of its own; in EAGLE-1 the first has no norm before attention."""

    def __init__(self, sizes: LayerSizes, *, biases: frozenset[str], normed: bool = True, head_norms: bool = False) -> None:
        super().__init__()
        self.input_layernorm = Norm(sizes.hidden, sizes.epsilon) if normed else nn.Identity()
        self.self_attn = Attention(sizes, sizes.hidden, biases=biases, head_norms=head_norms)
        self.post_attention_layernorm = Norm(sizes.hidden, sizes.epsilon)
        self.mlp = Mlp(sizes)

    def forward(self, x: Tensor, seats: Seats) -> Tensor:
        """Return x [.., q, H] after the layer."""
        x = x + self.self_attn(self.input_layernorm(x), seats)
        after: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return after


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return x [.., heads, q, head width] rotated to positions, whose cosines and sines are [q, head width]."""
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin
