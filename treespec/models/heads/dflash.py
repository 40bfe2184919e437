"""DFlash drafts: decoder layers that fill a whole block of masks in one pass, beside states of the target for every token before it.

The layout is that of the authors (z-lab/dflash, `model/dflash.py` and `dflash/model.py`; Chen et al., arXiv 2602.06036). H is the target's hidden
size, V its vocabulary, B the block size:

- `fc.weight` [H, n H], from n states of the target at a token to one feature, and `hidden_norm.weight` [H], which norms it.
- `layers.{i}.*` as in Qwen 3, `self_attn.q_norm.weight` and `self_attn.k_norm.weight` [head width] among them.
- `norm.weight` [H], before the target's `lm_head` makes the logits; the target's embedding reads the tokens.
- In config.json: `block_size`, `num_target_layers`, and in `dflash_config` `mask_token_id` and `target_layer_ids`. The last two may stand at the top,
  and `block_size` and `num_target_layers` in `dflash_config`.

The block is the root of a tree and B - 1 masks. It is read at the places that its tokens would have in the text, and every token of it sees the
whole block and all tokens before it. Of these, each layer has keys and values of the normed feature, which no norm of the layer's own goes before.
What comes out at place d of the block proposes the token at that place: level d. `target_layer_ids` names layers by number; the state that is read
leaves the layer. For the target's last layer that is the state after its final norm, as transformers numbers states.

Not read, because published files are wrong in them: `num_hidden_layers`, `max_position_embeddings`, `tie_word_embeddings`. Refused are layers that see
a part of the text or are causal, and settings of later kinds of block drafts (DFlash 2, Domino, DSpark).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import sdpa_kernel
from torch.utils.checkpoint import checkpoint

from treespec.decoding.protocol import FINAL_STATE
from treespec.errors import CapacityError, ModelError, counted
from treespec.models.heads.borrowed import Borrowed, Embedding, require_lendable
from treespec.models.heads.files import HeadFiles
from treespec.models.heads.layers import Attention, Layer, LayerSizes, Norm, Rope, held_biases
from treespec.models.heads.levels import require_levels
from treespec.models.heads.settings import Settings
from treespec.models.heads.target import HeadTarget
from treespec.models.plain import KERNELS
from treespec.trees.placement import Layout, Prefix

KIND = "a DFlash draft"
_SETTINGS = ("block_size", "mask_token", "mask_token_id", "num_target_layers", "target_layer_ids")
"""The settings of `dflash_config` that are read, or that say the same in words."""
_PLAIN: Mapping[str, object] = {"attention_mode": "gqa", "input_embedding_scale": 1, "output_multiplier": 1, "projector_type": "dflash"}
"""Other settings and the values with which they change nothing, as `None`, false and 0 do for each."""
_AT_THE_TOP = ("input_embedding_scale", "output_multiplier", "final_logit_softcapping")
"""The names of those that the authors' code reads at the top of config.json as well."""
_CHUNK = 512
"""Number of tokens of a prompt whose states are read in one pass."""
_ROOTS = 16
"""Number of roots of each text that are read in one pass over whole texts, which repeats keys and values for every root."""


@dataclass(frozen=True)
class DFlashPlan:
    """The build of a DFlash draft, known before a weight is read."""

    sizes: LayerSizes
    state_layers: tuple[int, ...]
    """See `Head.state_layers`."""
    layers: int
    """Number of decoder layers."""
    rows: int
    """Number of draft tokens, which are the target's."""
    biases: frozenset[str]
    """The projections of attention that have a bias."""
    block: int
    """Number of tokens of a block, B."""
    mask: int
    """The token that stands for those which are to be proposed."""

    @classmethod
    def of(cls, files: HeadFiles, target: HeadTarget) -> "DFlashPlan":
        """Return the build by config.json and the headers of the weights. Raises ModelError if they do not agree with each other or the target."""
        if "speculators_model_type" in files.config:
            raise ModelError(
                f"{files.name} is {KIND} in the speculators format, and DFlash drafts are run in the layout of their authors alone; use one of these"
            )
        config = Settings.of(files)
        nested = config.inside("dflash_config")
        _require_run(config, nested)
        files.require(("fc.weight", "hidden_norm.weight", "norm.weight", "layers.0.self_attn.q_proj.weight"), KIND)
        files.require(("layers.0.self_attn.k_proj.weight", "layers.0.mlp.gate_proj.weight"), KIND)
        hidden, read = files.matrix("fc.weight")
        require_lendable(files, KIND, hidden, target)
        config.require_vocabulary(KIND, target.name, target.vocabulary_size)
        for settings in (config, nested):
            settings.require_agreement("num_target_layers", target.layers, f"{KIND} for target {target.name}")
        states = _state_layers(config, nested, target)
        if read != len(states) * hidden:
            raise ModelError(
                f"{files.name} is {KIND} whose fc.weight reads {read} numbers, but {counted(len(states), 'state')} of target {target.name} "
                f"{'has' if len(states) == 1 else 'have'} {len(states) * hidden} ({len(states)} times {hidden}); use a head made for it"
            )
        biases = held_biases(files)
        config.require_flag("attention_bias", bool(biases), "biases of self_attn")
        plan = cls(
            sizes=LayerSizes.of(files, config, hidden),
            state_layers=states,
            layers=files.count(r"layers\.(\d+)\.", "layer"),
            rows=target.vocabulary_size,
            biases=biases,
            block=_block(config, nested),
            mask=_mask(config, nested, target),
        )
        files.require_shapes(dflash_shapes(plan.sizes, len(states), plan.layers, biases), KIND)
        return plan


def dflash_shapes(sizes: LayerSizes, states: int, layers: int, biases: frozenset[str] = frozenset()) -> dict[str, tuple[int, ...]]:
    """Return name to shape of all tensors of a DFlash draft that reads so many states and has so many layers."""
    hidden = sizes.hidden
    shapes: dict[str, tuple[int, ...]] = {
        "fc.weight": (hidden, states * hidden),
        "hidden_norm.weight": (hidden,),
        "norm.weight": (hidden,),
    }
    for layer in range(layers):
        shapes |= sizes.layer_shapes(f"layers.{layer}", hidden, biases)
        shapes[f"layers.{layer}.input_layernorm.weight"] = (hidden,)
        shapes |= {f"layers.{layer}.self_attn.{part}_norm.weight": (sizes.head_width,) for part in "qk"}
    return shapes


class DFlashHead(nn.Module):
    """A DFlash draft. It is a `ParallelHead` and a `ScoringHead`.

    Its slots hold keys and values of the committed tokens, token i of the text in slot i. Those of a block go behind them, and are written over by
    the next one.
    """

    name: str
    kind: str = "dflash"
    state_layers: tuple[int, ...]
    target_ids: Tensor | None = None
    notes: tuple[str, ...] = ()
    levels: int

    def __init__(self, name: str, plan: DFlashPlan, borrowed: Borrowed) -> None:
        super().__init__()
        self.name, self.plan, self.borrowed = name, plan, borrowed
        self.state_layers, self.levels = plan.state_layers, plan.block - 1
        sizes = plan.sizes
        with torch.device("meta"):
            self.fc = nn.Linear(len(plan.state_layers) * sizes.hidden, sizes.hidden, bias=False)
            self.hidden_norm = Norm(sizes.hidden, sizes.epsilon)
            self.stack = tuple(Layer(sizes, biases=plan.biases, head_norms=True) for _ in range(plan.layers))
            self.layers = nn.ModuleList(self.stack)
            self.norm = Norm(sizes.hidden, sizes.epsilon)
        self.rope = Rope(sizes, first=0).to(borrowed.embedding.device)
        places = torch.arange(plan.block, device=borrowed.embedding.device)
        self._masks = torch.full_like(places[1:], plan.mask)
        self._behind = plan.block - places
        self._layout = Layout.fixed(places, places, torch.ones(plan.block, plan.block, dtype=torch.bool, device=places.device))

    @classmethod
    def load(cls, files: HeadFiles, target: HeadTarget, embedding: Embedding | None = None) -> "DFlashHead":
        """Check a draft against its target and load it, in the type and on the device of the target's embedding. Raises ModelError.

        It has no embedding of its own, so that `embedding` must be left out.
        """
        if embedding is not None:
            raise ModelError(f"{files.name} is {KIND}, which has no embedding of its own, but `embedding` is {embedding!r}; leave it out")
        plan = DFlashPlan.of(files, target)
        head = cls(files.name, plan, Borrowed(target.embedding, target.lm_head, target.lm_head_bias))
        head.load_state_dict(files.read(target.embedding.dtype, target.embedding.device), assign=True)
        return head.requires_grad_(False).eval()

    @property
    def vocabulary_size(self) -> int:
        """See `Head.vocabulary_size`."""
        return self.plan.rows

    def allocate(self, capacity: int) -> None:
        """See `ParallelHead.allocate`; there is room for a block behind the last token."""
        for layer in self.stack:
            layer.self_attn.allocate(capacity + self.plan.block)

    def begin(self, states: Tensor, length: int) -> None:
        """See `ParallelHead.begin`."""
        for start in range(0, length, _CHUNK):
            self._keep(states, torch.arange(start, min(start + _CHUNK, length), device=states.device))

    def propose(self, states: Tensor, root: Tensor, prefix: Prefix) -> Tensor:
        """See `ParallelHead.propose`.

        The states of the last B tokens before the root are read: as many as the last step can have committed, so every step reads equally many.
        Those of them that were read before come out as before. Near the beginning of a text there are fewer, and its first token is read repeatedly.
        """
        self._keep(states, (prefix.length - self._behind).clamp_min(0))
        x = self.borrowed.embedded(torch.cat((root, self._masks)))
        seats = self.rope.slots(self._layout.behind(prefix), x, self.stack[0].self_attn.capacity)
        for layer in self.stack:
            x = layer(x, seats)
        return self.borrowed.logits(self.norm(x[1:]))

    def score(self, tokens: Tensor, states: Tensor, levels: int) -> Iterator[Tensor]:
        """See `ScoringHead.score`. The slots are neither read nor written, and gradients flow through all levels.

        A level reads no token behind its root. Raises CapacityError for more levels than a block has masks.
        """
        require_levels(tokens, levels)
        if levels > self.levels:
            raise CapacityError(
                f"{self.name} has blocks of {self.plan.block}, the root among them, but {levels} levels are asked for; ask for {self.levels} at most"
            )
        length = tokens.shape[1]
        features = self._features(states[:, : length - 1])
        text = [(layer.self_attn, *layer.self_attn.kept(features, *self._turns(0, length - 1, features))) for layer in self.stack]
        held = {attention: (keys, values) for attention, keys, values in text}
        run = (
            partial(checkpoint, self._blocks, use_reentrant=False) if torch.is_grad_enabled() else self._blocks
        )  # keys and values of every root are large
        blocks = [run(tokens, range(first, min(first + _ROOTS, length)), held) for first in range(1, length, _ROOTS)]
        found = torch.cat(blocks, dim=1)
        for level in range(1, levels + 1):
            yield self.borrowed.logits(found[:, : length - level, level])

    def _features(self, states: Tensor) -> Tensor:
        """Return the features [.., H] of states [.., state layers, H]."""
        found: Tensor = self.hidden_norm(self.fc(states.flatten(-2)))
        return found

    def _turns(self, start: int, stop: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines and sines [stop - start, head width] of positions in a row, in the type of `like`."""
        return self.rope.turns(torch.arange(start, stop, device=like.device), like)

    def _keep(self, states: Tensor, rows: Tensor) -> None:
        """Write keys and values of the tokens in rows int64 [q] of the target's states into the slots of these numbers."""
        features = self._features(states.index_select(0, rows))
        turns = self.rope.turns(rows, features)
        for layer in self.stack:
            attention = layer.self_attn
            keys, values = attention.kept(features, *turns)
            attention.keys.index_copy_(1, rows, keys)
            attention.values.index_copy_(1, rows, values)

    def _blocks(self, tokens: Tensor, roots: range, held: Mapping[Attention, tuple[Tensor, Tensor]]) -> Tensor:
        """Return what the norm before the logits gives for the blocks [batch, roots, B, H] of some roots of texts int64 [batch, length]."""
        masks = self._masks.expand(len(tokens), len(roots), -1)
        x = self.borrowed.embedded(torch.cat((tokens[:, roots.start : roots.stop, None], masks), dim=2))
        places = torch.arange(roots.start, roots.stop, device=x.device)[:, None] + torch.arange(self.plan.block, device=x.device)
        cos, sin = (turn.view(len(roots), 1, self.plan.block, -1) for turn in self.rope.turns(places.flatten(), x))
        before = torch.arange(roots.stop - 1, device=x.device) < places[:, :1]
        seats = Blocks(cos, sin, held, F.pad(before, (0, self.plan.block), value=True))
        for layer in self.stack:
            x = layer(x, seats)
        normed: Tensor = self.norm(x)
        return normed


@dataclass(frozen=True)
class Blocks:
    """The places of the blocks of some roots of whole texts. A block sees the text before its root, and itself."""

    cos: Tensor
    """[roots, 1, B, head width]."""
    sin: Tensor
    held: Mapping[Attention, tuple[Tensor, Tensor]]
    """Keys and values [batch, shared heads, length, head width] that each layer has of the texts."""
    mask: Tensor
    """bool [roots, text before the last root + B]; which tokens of the text, and then of the block, each block sees."""

    def attended(self, layer: Attention, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """See `Seats.attended`; queries, keys and values are [batch, roots, heads, B, head width]."""
        batch, roots, block = len(queries), len(self.mask), queries.shape[-2]
        text = self.mask.shape[1] - block
        seen_keys, seen_values = (
            torch.cat((old[:, None, :, :text].expand(-1, roots, -1, -1, -1), own), dim=-2).flatten(0, 1)
            for old, own in zip(self.held[layer], (keys, values), strict=True)
        )
        mask = self.mask[:, None, None].expand(-1, 1, block, -1).repeat(batch, 1, 1, 1)
        with sdpa_kernel(KERNELS):
            found = F.scaled_dot_product_attention(queries.flatten(0, 1), seen_keys, seen_values, attn_mask=mask, enable_gqa=True)
        return found.view(batch, roots, *found.shape[1:])


def _require_run(config: Settings, nested: Settings) -> None:
    """Raise ModelError for settings that change the pass in ways that are not run."""
    for settings in (config, nested):
        for key in ("causal", "is_causal", "use_swa", "use_sliding_window"):
            if settings.flag(key):
                settings.refuse(key, "false: only blocks that see themselves and the whole text are run")
    types = config.values.get("layer_types")
    odd = [each for each in types if each != "full_attention"] if isinstance(types, list) else []
    if odd:
        raise ModelError(
            f"{config.name}: layer_types in config.json names {odd[0]!r:.40}, but only DFlash drafts whose layers see the whole text "
            "(full_attention) are run; use another draft"
        )
    others = {key: config.values.get(key) for key in _AT_THE_TOP} | {
        key: nested.values[key] for key in nested.values if key not in _SETTINGS
    }
    for key, value in others.items():
        if value and value != _PLAIN.get(key):
            raise ModelError(
                f"{config.name}: config.json asks for {key!r:.40} {value!r:.40}, which is not run; use a DFlash draft without it"
            )


def _either(config: Settings, nested: Settings, key: str) -> Settings:
    """Return the part of the settings that has a key: `dflash_config` where both do."""
    return nested if nested.values.get(key) is not None else config


def _state_layers(config: Settings, nested: Settings, target: HeadTarget) -> tuple[int, ...]:
    """Return the states that the layers leave whose ids config.json names. Raises ModelError for those that the target does not have."""
    key = "target_layer_ids"
    where = _either(config, nested, key)
    found = where.ids(key)
    if found is None:
        where.refuse(key, "a list of the target's layers")
    if found[-1] >= target.layers:
        raise ModelError(
            f"{config.name} is {KIND} that reads the state that leaves layer {found[-1]} ({key}), but target {target.name} has the layers "
            f"0 to {target.layers - 1}; use a head made for it"
        )
    return tuple(FINAL_STATE if layer == target.layers - 1 else layer + 1 for layer in found)


def _block(config: Settings, nested: Settings) -> int:
    """Return the block size. Raises ModelError for one without a mask, and for none."""
    where = _either(config, nested, "block_size")
    found = where.count("block_size")
    if found < 2:
        where.refuse("block_size", "2 or more: the root and a mask")
    return found


def _mask(config: Settings, nested: Settings, target: HeadTarget) -> int:
    """Return the token that is the mask. Raises ModelError for one that the target does not have."""
    where = _either(config, nested, "mask_token_id")
    found: Any = where.values.get("mask_token_id")
    if type(found) is not int or not 0 <= found < target.vocabulary_size:
        where.refuse("mask_token_id", f"a token of target {target.name}, 0 to {target.vocabulary_size - 1}")
    return int(found)
