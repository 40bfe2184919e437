"""The target of a head: its name, its sizes, the weights that heads borrow from it, and its states along whole texts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from treespec.errors import ModelError
from treespec.models.calling import keeps_logits
from treespec.models.parallel.shard import Shard


@dataclass(frozen=True)
class HeadTarget:
    """The target whose states a head reads."""

    name: str
    """The name of the target in messages."""
    layers: int
    """Number of its decoder layers."""
    embedding: Tensor
    """Weights [V, Ht] of its token embedding, before any scaling: V is its vocabulary, Ht its hidden size."""
    lm_head: Tensor
    """Weights [V, Ht] that make logits of its last state."""
    lm_head_bias: Tensor | None = None
    """Weights [V] that are added to these logits; None for most targets."""

    @classmethod
    def of(cls, module: PreTrainedModel, name: str, shard: Shard | None = None) -> "HeadTarget":
        """Return a loaded target. The weights are the module's own and not copied; of a target in parts, the head's are put together.

        Raises ModelError for a target that transformers has divided.
        """
        inside: Any = module
        embedding, lm_head = inside.get_input_embeddings(), inside.get_output_embeddings()
        layers = int(module.config.get_text_config(decoder=True).num_hidden_layers)
        weight, bias = lm_head.weight, getattr(lm_head, "bias", None)
        if shard is not None:
            if shard.planned:
                raise ModelError(
                    f"target {name} (family {module.config.model_type}) is divided by transformers' own plan, which lends a head no weights; use a "
                    "draft that is a model of its own"
                )
            weight = shard.team.joined(weight.detach().T, shard.vocabulary).T.contiguous()
            bias = None if bias is None else shard.team.joined(bias.detach(), shard.vocabulary)
        return cls(name, layers, embedding.weight, weight, bias)

    @property
    def vocabulary_size(self) -> int:
        """Number of its embedding rows."""
        return self.embedding.shape[0]

    @property
    def hidden_size(self) -> int:
        """Width of its hidden states."""
        return self.embedding.shape[1]


def text_states(module: PreTrainedModel, ids: Tensor, layers: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Read texts int64 [batch, length] with the plain module; return its states [batch, length, layers, Ht] and logits [batch, length, V].

    `layers` are numbered as in `Head.state_layers`. Raises ModelError for the state that leaves the last layer, which transformers gives
    only after the final norm.
    """
    found = _read(module, ids, layers)
    return _stacked(found, layers), found.logits


def states_along(module: PreTrainedModel, ids: Tensor, layers: Sequence[int]) -> Tensor:
    """Return the states of `text_states` alone. Modules that can do so compute logits of no more than one token of each text."""
    return _stacked(_read(module, ids, layers, **({"logits_to_keep": 1} if keeps_logits(module) else {})), layers)


def _stacked(found: Any, layers: Sequence[int]) -> Tensor:
    return torch.stack([found.hidden_states[layer] for layer in layers], dim=2)


def _read(module: PreTrainedModel, ids: Tensor, layers: Sequence[int], **options: Any) -> Any:
    count = int(module.config.get_text_config(decoder=True).num_hidden_layers)
    for layer in layers:
        if layer >= count:
            raise ModelError(
                f"state {layer} leaves the last of the target's {count} layers before its final norm, and a whole-text pass has it only after the "
                "norm; use a head that reads earlier states"
            )
    return module(input_ids=ids, use_cache=False, output_hidden_states=True, **options)
