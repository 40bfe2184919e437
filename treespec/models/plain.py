"""PlainDecoder: it runs any family by the module's own attention, with a mask that says what every token sees."""

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from treespec.models.calling import cache_name, keeps_logits
from treespec.models.families import Family
from treespec.models.states import catching
from treespec.models.tree_cache import TreeCache
from treespec.trees.placement import Placement, Prefix

MASK_ALIGNMENT = 16
"""Mask rows start at multiples of this many elements; otherwise CUDA's attention kernels copy the mask once per layer."""

KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""The attention kernels to choose from: all but cuDNN's, which makes a new plan for every K/V length (about 50 ms a pass on an H200).
In decoding, every pass has a new length."""


class PlainDecoder:
    """Computes passes by the module's own forward. Every pass needs a prefix whose length the host knows."""

    stacked: ClassVar[bool] = False
    padded = False

    def __init__(self, module: PreTrainedModel, family: Family) -> None:
        self.module, self.family, self._dtype = module, family, module.dtype
        self._cache_name, self._keeps = cache_name(module), keeps_logits(module)

    def release(self) -> None:
        """See `Decoder.release`. Nothing was changed."""

    def require_weights(self, name: str) -> None:
        """See `Decoder.require_weights`. Passes run the module itself."""

    def prepare(self, cache: TreeCache) -> str:
        """See `Decoder.prepare`. This has nothing to do."""
        return ""

    def forward(
        self, tokens: Tensor, place: Placement, near: Tensor | None, cache: TreeCache, keep: Tensor | None, table: Tensor | None = None
    ) -> Tensor:
        """See `Decoder.forward`. The mask covers all slots up to the last one that the pass reads."""
        mask = place.mask()
        cache.begin(place.slots, mask.shape[1])
        kwargs: dict[str, Any] = {self._cache_name: cache} | ({} if keep is None or not self._keeps else {"logits_to_keep": keep})
        kwargs |= {"input_ids": tokens[None]} if table is None else {"inputs_embeds": table[tokens][None]}
        with sdpa_kernel(KERNELS), catching(self.module, cache.keeping(place)):
            output = self.module(
                attention_mask=self._masks(place, mask, near),
                position_ids=place.positions[None],
                use_cache=True,
                **kwargs,
            )
        logits: Tensor = output.logits[0]
        return logits[keep] if keep is not None and not self._keeps else logits

    def move(self, cache: TreeCache, prefix: Prefix, offsets: Tensor, first: int) -> None:
        """See `Decoder.move`."""
        cache.move(prefix.length + offsets, prefix.length + torch.arange(first, first + offsets.shape[0], device=offsets.device))

    def _masks(self, place: Placement, mask: Tensor, near: Tensor | None) -> Tensor | dict[str, Tensor]:
        """Return the mask or masks in the form that the family needs; `mask` bool [q, length + m]."""
        window, single = self.family.window, self.family.mask_style == "single"
        full = _additive(mask, self._dtype)
        if window is None or near is None:
            return full if single else {"full_attention": full}
        if mask.shape[1] <= window:  # no row can lie further back than there are rows
            return full if single else {"full_attention": full, "sliding_attention": full}
        slots = torch.arange(mask.shape[1] - near.shape[1], device=mask.device)  # of the prefix, each at the position of its slot
        sliding = _additive(torch.cat([place.positions[:, None] - slots < window, near], dim=1), self._dtype)
        return sliding if single else {"full_attention": full, "sliding_attention": sliding}


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return [1, 1, q, kv] to add to attention scores: 0 if `mask` is True, else -inf. Converting here saves a conversion per layer."""
    q, kv = mask.shape
    rows = torch.full((q, -(-kv // MASK_ALIGNMENT) * MASK_ALIGNMENT), float("-inf"), dtype=dtype, device=mask.device)
    return rows[:, :kv].masked_fill_(mask, 0.0)[None, None]
