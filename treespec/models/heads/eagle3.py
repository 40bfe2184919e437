"""EAGLE-3 heads: a decoder layer that reads three fused states of the target together with the next token, and then its own output.

The layouts are those of the authors (SafeAILab/EAGLE, `eagle/model/cnets.py`) and of SpecForge, both with `midlayer.*`; EAGLE-3.1, with
norms before the fusion; and speculators, with `layers.{i}.*` and a nested configuration. H is the head's hidden size, Ht the target's, V the
target's vocabulary, Vd the head's:

- `fc.weight` [H, n Ht], `fc.bias` [H] in some: from n states of the target (three, unless others are named) to a feature g.
- `fc_norm.{i}.weight` [Ht], or `input_norm.weight` [n Ht], in some: norms of each state, or of all at once, before `fc`.
- `layers.0.self_attn.{q,k,v}_proj.weight` [.., 2H]; it reads concat(input_layernorm(embedding), hidden_norm(g)). `o_proj`, `mlp.*` and
  `post_attention_layernorm` are Llama's, and so are further layers, which read H numbers.
- `norm.weight` [H] and `lm_head.weight` [Vd, H] make logits; without `lm_head.weight`, the target's makes them.
- `embed_tokens.weight` [V, H] in some. `d2t` int64 [Vd] and `t2d` bool [V]: see `vocabulary`.

Not read, because published files are wrong in them: `architectures`, `num_hidden_layers`, `max_position_embeddings`, `tie_word_embeddings`, `bias`.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from treespec.decoding.protocol import HeadLevel
from treespec.errors import ModelError
from treespec.models.heads.borrowed import Borrowed, Embedding, chosen_embedding, require_lendable
from treespec.models.heads.files import HeadFiles
from treespec.models.heads.layers import Attention, Layer, LayerSizes, Mlp, Norm, Seats, held_biases
from treespec.models.heads.levels import LayeredHead
from treespec.models.heads.settings import Settings
from treespec.models.heads.target import HeadTarget
from treespec.models.heads.vocabulary import target_ids, vocabulary_shapes
from treespec.trees.placement import Placement

if TYPE_CHECKING:
    from treespec.models.heads.fused import FusedEagle3

KIND = "an EAGLE-3 head"
FEWEST_LAYERS = 7
"""Fewest layers of a target for which the three states that are read by default are different ones in rising order."""


@dataclass(frozen=True)
class Eagle3Plan:
    """The build of an EAGLE-3 head, known before a weight is read."""

    sizes: LayerSizes
    state_layers: tuple[int, ...]
    """See `Head.state_layers`."""
    layers: int
    """Number of decoder layers."""
    rows: int
    """Number of draft tokens."""
    target_width: int
    """Width of the target's states."""
    biases: frozenset[str]
    """The projections of attention that have a bias."""
    own_head: bool
    """Whether it has an `lm_head` of its own."""
    fc_bias: bool
    """Whether the fusion has a bias."""
    state_norms: bool
    """Whether each state is normed before the fusion."""
    joint_norm: bool
    """Whether all states are normed as one before the fusion."""
    norm_before_residual: bool
    """Whether the residual stream begins with the normed feature."""
    norm_output: bool
    """Whether the next feature is the output after the last norm."""

    @classmethod
    def of(cls, files: HeadFiles, target: HeadTarget) -> "Eagle3Plan":
        """Return the build by config.json and the headers of the weights. Raises ModelError if they do not agree with each other or the target."""
        files.require(("fc.weight", "layers.0.self_attn.q_proj.weight", "layers.0.self_attn.k_proj.weight"), KIND)
        files.require(("layers.0.mlp.gate_proj.weight", "norm.weight"), KIND)
        config = Settings.of(files)
        nested = config.inside("eagle_config")
        inside = config.inside("transformer_layer_config") if "speculators_model_type" in files.config else config
        ids = _state_layers(config, nested, target)
        hidden = _fused(files, len(ids), target)
        config.require_agreement("target_hidden_size", target.hidden_size, f"{KIND} for target {target.name}")
        inside.require_vocabulary(KIND, target.name, target.vocabulary_size)
        own_head = files.has("lm_head.weight")
        rows = files.rows("lm_head.weight") if own_head else target.vocabulary_size
        config.require_agreement(
            "draft_vocab_size", rows, "lm_head.weight" if own_head else f"{KIND} for target {target.name}, whose lm_head is used,"
        )
        require_lendable(files, KIND, hidden, target)
        biases = held_biases(files)
        inside.require_flag("attention_bias", bool(biases), "biases of self_attn")
        state_norms, joint_norm = files.has("fc_norm.0.weight"), files.has("input_norm.weight")
        for settings in (config, nested):
            settings.require_flag("fc_norm", state_norms, "fc_norm.0.weight")
            settings.require_flag("norm_before_fc", joint_norm, "input_norm.weight")
        plan = cls(
            sizes=LayerSizes.of(files, inside, hidden),
            state_layers=ids,
            layers=files.count(r"layers\.(\d+)\.", "layer"),
            rows=rows,
            target_width=target.hidden_size,
            biases=biases,
            own_head=own_head,
            fc_bias=files.has("fc.bias"),
            state_norms=state_norms,
            joint_norm=joint_norm,
            norm_before_residual=_flag(config, nested, "norm_before_residual"),
            norm_output=_flag(config, nested, "norm_output"),
        )
        files.require_shapes(plan._shapes(files, target), KIND)
        return plan

    def _shapes(self, files: HeadFiles, target: HeadTarget) -> dict[str, tuple[int, ...]]:
        """Return name to shape of all tensors that the files must hold."""
        hidden, states = self.sizes.hidden, len(self.state_layers)
        shapes: dict[str, tuple[int, ...]] = {"fc.weight": (hidden, states * self.target_width), "norm.weight": (hidden,)}
        shapes |= {"fc.bias": (hidden,)} if self.fc_bias else {}
        shapes |= {f"fc_norm.{state}.weight": (self.target_width,) for state in range(states) if self.state_norms}
        shapes |= {"input_norm.weight": (states * self.target_width,)} if self.joint_norm else {}
        shapes |= {"lm_head.weight": (self.rows, hidden)} if self.own_head else {}
        shapes |= {"embed_tokens.weight": (target.vocabulary_size, hidden)} if files.has("embed_tokens.weight") else {}
        shapes["layers.0.hidden_norm.weight"] = (hidden,)
        for layer in range(self.layers):
            inputs = hidden if layer else 2 * hidden
            shapes |= self.sizes.layer_shapes(f"layers.{layer}", inputs, self.biases)
            shapes[f"layers.{layer}.input_layernorm.weight"] = (hidden,)
        return shapes | vocabulary_shapes(files, self.rows, target)


class FirstLayer(nn.Module):
    """The first decoder layer, which reads an embedding beside a feature."""

    def __init__(self, plan: Eagle3Plan) -> None:
        super().__init__()
        sizes = plan.sizes
        self.input_layernorm = Norm(sizes.hidden, sizes.epsilon)
        self.hidden_norm = Norm(sizes.hidden, sizes.epsilon)
        self.self_attn = Attention(sizes, 2 * sizes.hidden, biases=plan.biases)
        self.post_attention_layernorm = Norm(sizes.hidden, sizes.epsilon)
        self.mlp = Mlp(sizes)
        self.norm_before_residual = plan.norm_before_residual

    def forward(self, embedding: Tensor, feature: Tensor, seats: Seats) -> Tensor:
        """Return the residual stream [.., q, H] after the layer, for embeddings [.., q, H] and features [.., q, H]."""
        normed = self.hidden_norm(feature)
        x = normed if self.norm_before_residual else feature
        x = x + self.self_attn(torch.cat((self.input_layernorm(embedding), normed), dim=-1), seats)
        after: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return after


class Eagle3Head(LayeredHead):
    """An EAGLE-3 head."""

    kind = "eagle3"

    def __init__(self, name: str, plan: Eagle3Plan, borrowed: Borrowed, ids: Tensor | None) -> None:
        super().__init__(name, plan, borrowed)
        self.plan, self.state_layers, self.target_ids = plan, plan.state_layers, ids
        sizes, epsilon, width = plan.sizes, plan.sizes.epsilon, len(plan.state_layers) * plan.target_width
        with torch.device("meta"):
            self.fc = nn.Linear(width, sizes.hidden, bias=plan.fc_bias)
            self.fc_norm = nn.ModuleList(Norm(plan.target_width, epsilon) for _ in plan.state_layers if plan.state_norms)
            self.input_norm = Norm(width, epsilon) if plan.joint_norm else nn.Identity()
            self.stack = FirstLayer(plan), tuple(Layer(sizes, biases=plan.biases) for _ in range(1, plan.layers))
            self.layers = nn.ModuleList([self.stack[0], *self.stack[1]])
            self.norm = Norm(sizes.hidden, epsilon)
            self.lm_head = nn.Linear(sizes.hidden, plan.rows, bias=False) if plan.own_head else None
        self.attentions = self.stack[0].self_attn, *(layer.self_attn for layer in self.stack[1])
        self._fused: FusedEagle3 | None = None

    @classmethod
    def load(cls, files: HeadFiles, target: HeadTarget, embedding: Embedding | None = None) -> "Eagle3Head":
        """Check a head against its target and load it, in the type and on the device of the target's embedding. Raises ModelError.

        `embedding` is whose `embed_tokens` is used if the files hold one: the head's own or the target's. Without it, that is known only if the
        two are equal, the target's has another width, or config.json says that the head's was trained (`embed_requires_grad`).
        """
        plan = Eagle3Plan.of(files, target)
        weights = files.read(target.embedding.dtype, target.embedding.device)
        ids = target_ids(files, weights, target)
        own = weights.pop("embed_tokens.weight", None)
        used = target.embedding if own is None else chosen_embedding(files, own, target, embedding)
        return cls(files.name, plan, Borrowed(used, target.lm_head, target.lm_head_bias), ids).filled(weights)

    def allocate(self, capacity: int) -> None:
        """See `LevelHead.allocate`."""
        super().allocate(capacity)
        self._fused = None

    def forward(self, tokens: Tensor, features: Tensor, place: Placement, keep: Tensor | None = None) -> HeadLevel:
        """See `LevelHead.forward`. Where only the device knows the place of a few tokens, as in captured steps, kernels compute the level."""
        if place.prefix.known is None:
            from treespec.models.heads import fused

            if tokens.shape[0] <= fused.MOST_ROWS and fused.takes(self):
                if self._fused is None:
                    self._fused = fused.FusedEagle3(self)
                return self._fused.forward(tokens, features, place, keep)
        return super().forward(tokens, features, place, keep)

    def features(self, states: Tensor) -> Tensor:
        """See `LevelHead.features`; states may be [.., state layers, Ht]."""
        if self.plan.state_norms:
            states = torch.stack([norm(states[..., place, :]) for place, norm in enumerate(self.fc_norm)], dim=-2)
        fused: Tensor = self.fc(self.input_norm(states.flatten(-2)))
        return fused

    def read(self, tokens: Tensor, features: Tensor, seats: Seats, keep: Tensor | None = None) -> HeadLevel:
        """See `LayeredHead.read`."""
        first, others = self.stack
        x = first(self.borrowed.embedded(tokens), features, seats)
        for layer in others:
            x = layer(x, seats)
        x = x if keep is None else x[keep]
        normed = self.norm(x)
        logits = self.borrowed.logits(normed) if self.lm_head is None else self.lm_head(normed)
        return HeadLevel(logits, normed if self.plan.norm_output else x)


def _state_layers(config: Settings, nested: Settings, target: HeadTarget) -> tuple[int, ...]:
    """Return the layers whose input states the head reads. Raises ModelError for those that the target does not have.

    A list at the top of config.json has them so (speculators, vLLM). One in `eagle_config` names the layers that the states leave (SpecForge,
    SGLang): each enters the layer after it.
    """
    if nested.flag("use_aux_hidden_state") is False:
        nested.refuse("use_aux_hidden_state", "true: an EAGLE-3 head reads several states")
    key = "eagle_aux_hidden_state_layer_ids"
    told, left = config.ids(key), nested.ids(key)
    found = told if told is not None else None if left is None else tuple(layer + 1 for layer in left)
    if found is None:
        if target.layers < FEWEST_LAYERS:
            raise ModelError(
                f"{config.name} is {KIND} that names no layers ({key}), and those that are read then exist in targets of "
                f"{FEWEST_LAYERS} layers or more, but target {target.name} has {target.layers}; use a head made for it"
            )
        return 2, target.layers // 2, target.layers - 3
    if found[-1] > target.layers:
        raise ModelError(
            f"{config.name} is {KIND} that reads the state {'that enters' if left is None or told is not None else 'that leaves'} layer "
            f"{(told or left or found)[-1]} ({key}), but target {target.name} has {target.layers} layers; use a head made for it"
        )
    return found


def _flag(config: Settings, nested: Settings, key: str) -> bool:
    """Return a setting that may stand at the top or in `eagle_config`, False without it."""
    return bool(config.flag(key) or nested.flag(key))


def _fused(files: HeadFiles, states: int, target: HeadTarget) -> int:
    """Return the head's hidden size. Raises ModelError if its fusion reads states of another width, or another number of them."""
    hidden, read = files.matrix("fc.weight")
    if read == states * target.hidden_size:
        return hidden
    if read % states == 0 and read % target.hidden_size:
        raise ModelError(
            f"{files.name} is {KIND} for a target of hidden size {read // states} (fc.weight), but target {target.name} has "
            f"{target.hidden_size}; use a head made for it"
        )
    raise ModelError(
        f"{files.name} is {KIND} whose fc.weight reads {read} numbers, but {states} states of target {target.name} have "
        f"{states * target.hidden_size} ({states} times {target.hidden_size}); use a head made for it"
    )
