"""New heads that are yet to be trained: their config.json, their first weights, and the names that their tensors have in published files.

An EAGLE-3 head has the sizes of its target's layers and the layout of the authors (see `eagle3`). Its `lm_head` begins as the rows of the
target's; without draft tokens of its own it has none, and the target's makes its logits. All other matrices begin as those of `nn.Linear`.
Medusa-1 heads have one layer each and a matrix of their own, which begins as the target's; their layers begin as zeros, so that each head
begins as the target itself (FasterDecoding/Medusa, `medusa/model/medusa_model_legacy.py`).
A DFlash draft has two layers of the sizes of its target's; those of its authors mostly have five. It reads states of up to five layers, spread as in
the published ones (z-lab/dflash, `dflash/model.py`), and its mask is the target's last token, which many vocabularies hold in reserve.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from treespec.errors import ModelError, counted
from treespec.models.heads.borrowed import Borrowed
from treespec.models.heads.dflash import DFlashHead, DFlashPlan, dflash_shapes
from treespec.models.heads.eagle3 import FEWEST_LAYERS, Eagle3Head, Eagle3Plan
from treespec.models.heads.files import HeadFiles
from treespec.models.heads.layers import LayerSizes
from treespec.models.heads.levels import LayeredHead
from treespec.models.heads.medusa import MedusaHead, MedusaPlan
from treespec.models.heads.settings import ROPES
from treespec.models.heads.target import HeadTarget

Trainable = LayeredHead | MedusaHead | DFlashHead
"""A head whose parameters can be trained."""


class NewHead(Protocol):
    """A head that can be made as soon as its target is loaded."""

    @property
    def config(self) -> Mapping[str, Any]:
        """The content of its config.json, but for the type of its weights."""

    @property
    def file(self) -> str:
        """The name of the file of its weights."""

    def made(self, target: HeadTarget, ids: Tensor | None, seed: int) -> Trainable:
        """Return the head with its first weights, in float32 on the target's device, ready to be trained.

        `ids` int64 [Vd] are the target's ids of its draft tokens; None if they are the target's.
        """

    def stored(self, head: Trainable) -> dict[str, Tensor]:
        """Return the tensors of a head by their names in the file. They are its own, not copies."""


@dataclass(frozen=True)
class NewEagle3:
    """An EAGLE-3 head of one layer that reads the three states which heads read that name none."""

    config: Mapping[str, Any]
    plan: Eagle3Plan
    shapes: Mapping[str, tuple[int, ...]]
    """The shapes of its tensors by their canonical names."""
    file: str = "model.safetensors"

    @classmethod
    def of(cls, name: str, config: PreTrainedConfig, draft_tokens: int | None) -> "NewEagle3":
        """Return a head for the target of this name and text configuration, with so many draft tokens; None for the target's.

        Raises ModelError for a target of too few layers or tokens, or of sizes that such a head cannot have.
        """
        layers, vocabulary = int(config.num_hidden_layers), int(config.vocab_size)
        if layers < FEWEST_LAYERS:
            raise ModelError(
                f"an EAGLE-3 head reads three states of its target, which differ in targets of {FEWEST_LAYERS} layers or more, but target {name} has "
                f"{counted(layers, 'layer')}; train Medusa heads (`kind` medusa), or a draft of its own (`config`)"
            )
        if draft_tokens is not None and draft_tokens > vocabulary:
            raise ModelError(
                f"`draft_vocabulary` is {draft_tokens}, but target {name} has {counted(vocabulary, 'token')}; pass at most as many"
            )
        sizes = _sizes(config)
        hidden = sizes.hidden
        told = {"architectures": ["LlamaForCausalLMEagle3"], "model_type": "llama", **_told(sizes, config, 1)}
        told |= {} if draft_tokens is None else {"draft_vocab_size": draft_tokens}
        norms = ("layers.0.input_layernorm.weight", "layers.0.hidden_norm.weight", "norm.weight")
        shapes = {
            "fc.weight": (hidden, 3 * hidden),
            **sizes.layer_shapes("layers.0", 2 * hidden, frozenset()),
            **dict.fromkeys(norms, (hidden,)),
        }
        tables: dict[str, tuple[int, ...]] = {}
        if draft_tokens is not None:
            shapes["lm_head.weight"], tables = (draft_tokens, hidden), {"d2t": (draft_tokens,), "t2d": (vocabulary,)}
        plan = Eagle3Plan.of(HeadFiles(f"a head for {name}", told, {**shapes, **tables}, {}), _unread(name, layers, vocabulary, hidden))
        return cls(told, plan, shapes)

    def made(self, target: HeadTarget, ids: Tensor | None, seed: int) -> Eagle3Head:
        """See `NewHead.made`."""
        random = torch.Generator().manual_seed(seed)
        weights = {name: _first(shape, random) for name, shape in self.shapes.items() if name != "lm_head.weight"}
        if ids is not None:
            ids = ids.to(target.embedding.device)
            weights["lm_head.weight"] = target.lm_head[ids].float()
        weights = {name: tensor.to(target.embedding.device) for name, tensor in weights.items()}
        head = Eagle3Head(f"a head for {target.name}", self.plan, _borrowed(target), ids)
        return head.filled(weights).requires_grad_(True).train()

    def stored(self, head: Trainable) -> dict[str, Tensor]:
        """See `NewHead.stored`."""
        found = {re.sub(r"^layers\.0\.", "midlayer.", name): tensor for name, tensor in head.state_dict().items()}
        ids = head.target_ids
        if ids is not None:
            found["d2t"] = ids - torch.arange(len(ids), device=ids.device)
            found["t2d"] = torch.zeros(int(self.config["vocab_size"]), dtype=torch.bool, device=ids.device).index_fill_(0, ids, True)
        return found


@dataclass(frozen=True)
class NewMedusa:
    """Medusa-1 heads: one layer and one matrix each."""

    config: Mapping[str, Any]
    plan: MedusaPlan
    file: str = "medusa_lm_head.safetensors"
    """The name under which the authors' code and others look for them."""

    @classmethod
    def of(cls, name: str, config: PreTrainedConfig, heads: int) -> "NewMedusa":
        """Return so many heads for the target of this name and text configuration."""
        told = {"medusa_num_heads": heads, "medusa_num_layers": 1, "base_model_name_or_path": name, "hidden_size": int(config.hidden_size)}
        told["vocab_size"] = int(config.vocab_size)
        return cls(told, MedusaPlan(heads, 1, True, int(config.hidden_size), int(config.vocab_size), ()))

    def made(self, target: HeadTarget, ids: Tensor | None, seed: int) -> MedusaHead:
        """See `NewHead.made`. No number is drawn, so `seed` changes nothing; `ids` must be None."""
        assert ids is None, "Medusa heads propose all tokens of their target"
        head = MedusaHead(f"heads for {target.name}", self.plan, target)
        weights: dict[str, Tensor] = {}
        for number in range(self.plan.heads):
            for name, tensor in head.heads[number].state_dict().items():
                first = target.lm_head.float() if name == "1.weight" else torch.zeros_like(tensor, device=target.embedding.device)
                weights[f"{number}.{name}"] = first.detach().clone()
        head.heads.load_state_dict(weights, assign=True)
        return head.requires_grad_(True).train()

    def stored(self, head: Trainable) -> dict[str, Tensor]:
        """See `NewHead.stored`."""
        assert isinstance(head, MedusaHead)
        found: dict[str, Tensor] = head.heads.state_dict()
        return found


@dataclass(frozen=True)
class NewDFlash:
    """A DFlash draft of two layers."""

    config: Mapping[str, Any]
    plan: DFlashPlan
    shapes: Mapping[str, tuple[int, ...]]
    """The shapes of its tensors by their canonical names."""
    file: str = "model.safetensors"

    @classmethod
    def of(cls, name: str, config: PreTrainedConfig, levels: int) -> "NewDFlash":
        """Return a draft of so many levels for the target of this name and text configuration.

        Raises ModelError for a target of sizes that such a draft cannot have.
        """
        sizes, layers, vocabulary = _sizes(config), int(config.num_hidden_layers), int(config.vocab_size)
        read = _spread(layers)
        told = {
            "architectures": ["DFlashDraftModel"],
            "model_type": "qwen3",
            **_told(sizes, config, _DFLASH_LAYERS),
            "block_size": levels + 1,
            "dflash_config": {"mask_token_id": vocabulary - 1, "target_layer_ids": read},
            "layer_types": ["full_attention"] * _DFLASH_LAYERS,
            "num_target_layers": layers,
        }
        shapes = dflash_shapes(sizes, len(read), _DFLASH_LAYERS)
        plan = DFlashPlan.of(HeadFiles(f"a head for {name}", told, shapes, {}), _unread(name, layers, vocabulary, sizes.hidden))
        return cls(told, plan, shapes)

    def made(self, target: HeadTarget, ids: Tensor | None, seed: int) -> DFlashHead:
        """See `NewHead.made`. `ids` must be None."""
        assert ids is None, "DFlash drafts propose all tokens of their target"
        random = torch.Generator().manual_seed(seed)
        head = DFlashHead(f"a head for {target.name}", self.plan, _borrowed(target))
        weights = {name: _first(shape, random).to(target.embedding.device) for name, shape in self.shapes.items()}
        head.load_state_dict(weights, assign=True)
        return head.requires_grad_(True).train()

    def stored(self, head: Trainable) -> dict[str, Tensor]:
        """See `NewHead.stored`."""
        found: dict[str, Tensor] = head.state_dict()
        return found


_DFLASH_LAYERS = 2


def _spread(layers: int) -> list[int]:
    """Return the layers whose states a new DFlash draft reads, of so many: five from the second on to the third from the last, or all but the last.

    >>> _spread(36), _spread(8), _spread(4), _spread(1)
    ([1, 9, 17, 25, 33], [1, 2, 3, 4, 5], [0, 1, 2], [0])
    """
    if layers < 8:
        return list(range(max(1, layers - 1)))
    return [round(1 + step * (layers - 4) / 4) for step in range(5)]


def _sizes(config: PreTrainedConfig) -> LayerSizes:
    """Return the sizes of a target's layers, without rotary positions."""
    hidden, heads = int(config.hidden_size), int(config.num_attention_heads)
    return LayerSizes(
        hidden=hidden,
        inner=int(getattr(config, "intermediate_size", None) or 4 * hidden),
        heads=heads,
        shared_heads=int(getattr(config, "num_key_value_heads", None) or heads),
        head_width=int(getattr(config, "head_dim", None) or hidden // heads),
        epsilon=float(getattr(config, "rms_norm_eps", None) or 1e-6),
        rope={},
    )


def _told(sizes: LayerSizes, config: PreTrainedConfig, layers: int) -> dict[str, Any]:
    """Return what config.json says of a head with so many layers of these sizes, and with the rotary positions of its target."""
    theta, scaling = _rope(config)
    return {
        "attention_bias": False,
        "bos_token_id": getattr(config, "bos_token_id", None),
        "eos_token_id": getattr(config, "eos_token_id", None),
        "head_dim": sizes.head_width,
        "hidden_act": "silu",
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.inner,
        "max_position_embeddings": int(getattr(config, "max_position_embeddings", None) or 2048),
        "num_attention_heads": sizes.heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": sizes.shared_heads,
        "rms_norm_eps": sizes.epsilon,
        "rope_scaling": scaling,
        "rope_theta": theta,
        "tie_word_embeddings": False,
        "vocab_size": int(config.vocab_size),
    }


def _first(shape: tuple[int, ...], random: torch.Generator) -> Tensor:
    """Return the first weights of a norm, which are ones, or of a matrix, which are those of `nn.Linear`."""
    if len(shape) == 1:
        return torch.ones(shape)
    return torch.empty(shape).uniform_(-(shape[1] ** -0.5), shape[1] ** -0.5, generator=random)


def _borrowed(target: HeadTarget) -> Borrowed:
    bias = target.lm_head_bias
    wide = (None if matrix is None else matrix.detach().float() for matrix in (target.embedding, target.lm_head, bias))
    embedding, lm_head, bias = wide
    assert embedding is not None
    assert lm_head is not None
    return Borrowed(embedding, lm_head, bias)


def _unread(name: str, layers: int, vocabulary: int, hidden: int) -> HeadTarget:
    """Return a target whose sizes are known and whose weights have not been read."""
    shape = torch.empty(vocabulary, hidden, device="meta")
    return HeadTarget(name, layers, shape, shape)


def _rope(config: PreTrainedConfig) -> tuple[float, dict[str, Any] | None]:
    """Return the base of the target's rotary positions, and how they are scaled; without a kind that heads are run with, plain ones of 10,000."""
    found = getattr(config, "rope_parameters", None)
    if not isinstance(found, dict) or found.get("rope_type", "default") not in ROPES:
        return 10_000.0, None
    theta = float(found.get("rope_theta") or 10_000.0)
    scaling = {key: value for key, value in found.items() if key != "rope_theta"}
    return theta, None if scaling.get("rope_type", "default") == "default" else scaling
