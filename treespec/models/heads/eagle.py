"""EAGLE-1 and EAGLE-2 heads, which are the same layers: they read the target's last state together with the next token, and then their own output.

The layout is that of the authors (SafeAILab/EAGLE, `eagle/model/cnets1.py`). H is the target's hidden size and V its vocabulary:

- `fc.weight` [H, 2H], from concat(embedding, state) to what the layers read; `fc.bias` [H] unless config.json says `"bias": false`.
- `layers.{i}.*` as in Llama; the first layer has no `input_layernorm`. A bias of queries, keys and values in some (`qkv_bias`).
- `embed_tokens.weight` [V, H]; without it, the target's.

The state is the target's last one after its final norm. The output of the layers is the next such state, so the target's `lm_head` makes the logits.
Not read, because published files are wrong in them: `architectures`, `num_hidden_layers`, `max_position_embeddings`, `tie_word_embeddings`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from treespec.decoding.protocol import FINAL_STATE, HeadLevel
from treespec.errors import ModelError
from treespec.models.heads.borrowed import Borrowed, Embedding
from treespec.models.heads.files import HeadFiles
from treespec.models.heads.layers import Layer, LayerSizes, Seats, held_biases
from treespec.models.heads.levels import LayeredHead
from treespec.models.heads.settings import Settings
from treespec.models.heads.target import HeadTarget

KIND = "an EAGLE head"


@dataclass(frozen=True)
class EaglePlan:
    """The build of an EAGLE head, known before a weight is read."""

    sizes: LayerSizes
    layers: int
    """Number of decoder layers."""
    rows: int
    """Number of draft tokens, which are the target's."""
    biases: frozenset[str]
    """The projections of attention that have a bias."""
    fc_bias: bool
    """Whether the fusion has a bias."""

    @classmethod
    def of(cls, files: HeadFiles, target: HeadTarget) -> "EaglePlan":
        """Return the build by config.json and the headers of the weights. Raises ModelError if they do not agree with each other or the target."""
        files.require(("fc.weight", "layers.0.self_attn.q_proj.weight", "layers.0.self_attn.k_proj.weight"), KIND)
        files.require(("layers.0.mlp.gate_proj.weight",), KIND)
        config = Settings.of(files)
        hidden, read = files.matrix("fc.weight")
        if hidden != target.hidden_size or read != 2 * hidden:
            raise ModelError(
                f"{files.name} is {KIND} for a target of hidden size {hidden} (fc.weight is [{hidden}, {read}]), but target {target.name} "
                f"has {target.hidden_size} and needs [{target.hidden_size}, {2 * target.hidden_size}]; use a head made for it"
            )
        config.require_vocabulary(KIND, target.name, target.vocabulary_size)
        biases, fc_bias = held_biases(files), files.has("fc.bias")
        config.require_flag("qkv_bias", bool(biases), "biases of self_attn")
        config.require_flag("bias", fc_bias, "fc.bias")
        if not fc_bias and config.flag("bias") is None:
            files.require(("fc.bias",), f'{KIND} whose config.json does not say "bias": false')
        plan = cls(
            sizes=LayerSizes.of(files, config, hidden),
            layers=files.count(r"layers\.(\d+)\.", "layer"),
            rows=target.vocabulary_size,
            biases=biases,
            fc_bias=fc_bias,
        )
        files.require_shapes(plan._shapes(files), KIND)
        return plan

    def _shapes(self, files: HeadFiles) -> dict[str, tuple[int, ...]]:
        """Return name to shape of all tensors that the files must hold."""
        hidden = self.sizes.hidden
        shapes: dict[str, tuple[int, ...]] = {"fc.weight": (hidden, 2 * hidden)}
        shapes |= {"fc.bias": (hidden,)} if self.fc_bias else {}
        shapes |= {"embed_tokens.weight": (self.rows, hidden)} if files.has("embed_tokens.weight") else {}
        for layer in range(self.layers):
            shapes |= self.sizes.layer_shapes(f"layers.{layer}", hidden, self.biases)
            shapes |= {f"layers.{layer}.input_layernorm.weight": (hidden,)} if layer else {}
        return shapes


class EagleHead(LayeredHead):
    """An EAGLE-1 or EAGLE-2 head."""

    kind = "eagle"
    state_layers: tuple[int, ...] = (FINAL_STATE,)

    def __init__(self, name: str, plan: EaglePlan, borrowed: Borrowed) -> None:
        super().__init__(name, plan, borrowed)
        self.plan = plan
        with torch.device("meta"):
            self.fc = nn.Linear(2 * plan.sizes.hidden, plan.sizes.hidden, bias=plan.fc_bias)
            self.stack = tuple(Layer(plan.sizes, biases=plan.biases, normed=layer > 0) for layer in range(plan.layers))
            self.layers = nn.ModuleList(self.stack)
        self.attentions = tuple(layer.self_attn for layer in self.stack)

    @classmethod
    def load(cls, files: HeadFiles, target: HeadTarget, embedding: Embedding | None = None) -> "EagleHead":
        """Check a head against its target and load it, in the type and on the device of the target's embedding. Raises ModelError.

        The embedding in the files is used, if there is one and `embedding` is not "target".
        """
        plan = EaglePlan.of(files, target)
        weights = files.read(target.embedding.dtype, target.embedding.device)
        own = weights.pop("embed_tokens.weight", None)
        used = target.embedding if own is None or embedding == "target" else own
        return cls(files.name, plan, Borrowed(used, target.lm_head, target.lm_head_bias)).filled(weights)

    def features(self, states: Tensor) -> Tensor:
        """See `LevelHead.features`: the states themselves."""
        return states[..., 0, :]

    def read(self, tokens: Tensor, features: Tensor, seats: Seats, keep: Tensor | None = None) -> HeadLevel:
        """See `LayeredHead.read`."""
        x = self.fc(torch.cat((self.borrowed.embedded(tokens), features), dim=-1))
        for layer in self.stack:
            x = layer(x, seats)
        x = x if keep is None else x[keep]
        return HeadLevel(self.borrowed.logits(x), x)
