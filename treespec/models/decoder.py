"""Decoder: it runs the passes of a TreeModel, by the module's own forward or by kernels. `decoder_of` chooses one for a module."""

import importlib.util
from typing import Any, ClassVar, Protocol

from torch import Tensor
from transformers import PreTrainedModel

from treespec.models import families
from treespec.models.families import Family
from treespec.models.offload.streaming import streamed_bytes
from treespec.models.parallel.shard import Shard
from treespec.models.plain import PlainDecoder
from treespec.models.support import outside_hooked
from treespec.models.tree_cache import TreeCache
from treespec.trees.placement import Placement, Prefix


class Decoder(Protocol):
    """Runs the passes of one module over the nodes of a tree, on a cache that is an argument of each pass."""

    stacked: ClassVar[bool]
    """Whether several of the module's weights become views of stacked ones."""
    padded: bool
    """Whether captured passes take more rows than they have where those are faster by the device's own times. May be set to False."""

    def release(self) -> None:
        """Undo what was changed in the module. No pass can be run afterwards."""

    def require_weights(self, name: str) -> None:
        """Raise ModelError if the module's weights are no longer those that passes compute with. Messages call the module `name`."""

    def prepare(self, cache: TreeCache) -> str:
        """Prepare passes over this cache. Return the reason why that is impossible; the empty string if it is possible."""

    def forward(
        self, tokens: Tensor, place: Placement, near: Tensor | None, cache: TreeCache, keep: Tensor | None, table: Tensor | None = None
    ) -> Tensor:
        """Store int64 [q] tokens in the slots of `place` and return logits [q, vocabulary], or only those of the tokens `keep`.

        `near` bool [q, m]: the slots after the prefix that layers with a window see; None if no layer has one. `table`: the embeddings
        that tokens are rows of; None for the model's own.
        """

    def move(self, cache: TreeCache, prefix: Prefix, offsets: Tensor, first: int) -> None:
        """Copy keys and values of slots `length + offsets` int64 [m] to slots `length + first ..`; all are read before any is written."""


def decoder_of(module: PreTrainedModel, family: Family, *, kernels: bool, shard: Shard | None = None) -> tuple[Decoder, str]:
    """Return the decoder of a module, and why it does not use kernels and cannot be captured; the empty string if it uses them.

    `shard` says what part of a model the module is; None if it is whole.
    """
    why = "kernels are for CUDA" if not kernels else _without_kernels(module)
    if not why and shard is not None and shard.planned:
        why = "its weights are divided by transformers' own plan"
    if not why:
        from treespec.models import fused, hooked

        if fused.refusal(module) is None:
            return fused.FusedDecoder(module, shard), ""
        decoder: Any = module.get_decoder()  # type: ignore[no-untyped-call]
        why = outside_hooked(type(decoder), module.config.get_text_config(decoder=True)) or ""
        if not why:
            return hooked.HookedDecoder(module, family), ""
    return PlainDecoder(module, family), why


def _without_kernels(module: PreTrainedModel) -> str:
    """Return why no kernel can run passes of this module; the empty string if some may."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if hasattr(module, "_hf_hook") or getattr(module, "hf_device_map", None):
        return "its weights are moved by hooks"
    if streamed_bytes(module):
        return "its weights are streamed from host memory"
    if families.rope_changes(module.config):
        return "its rotary positions change with the length of the text"
    return ""
