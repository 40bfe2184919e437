"""HookedDecoder: it runs any family of transformers with our tree attention, through transformers' attention interface."""

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

from treespec.errors import counted
from treespec.kernels.ancestors import Ancestors, ancestors_of, pack
from treespec.kernels.attention import tree_attention
from treespec.kernels.pointwise import move_rows
from treespec.models.calling import cache_name, keeps_logits
from treespec.models.families import Family
from treespec.models.states import catching
from treespec.models.tree_cache import TreeCache
from treespec.trees.placement import Placement, Prefix

NAME = "treespec"
"""The name under which transformers knows our attention."""


@dataclass
class _Running:
    """The state of the pass that the attention layers are in."""

    place: Placement | None = None
    tree: Ancestors | None = None
    """The slots of the tree that layers see."""
    edge: Ancestors | None = None
    """The slots of the tree that layers with a window see."""
    calls: int = 0
    windowed: int = 0
    """The number of these calls that said their window."""


_RUNNING: ContextVar[_Running] = ContextVar("_RUNNING")
"""The pass that this thread is running."""


class HookedDecoder:
    """Computes passes by the module's own forward with our tree attention. Outside of passes, the module keeps its usual attention."""

    stacked: ClassVar[bool] = False
    padded = False

    def __init__(self, module: PreTrainedModel, family: Family) -> None:
        self.module, self.mask_style, self.windowed = module, family.mask_style, family.window
        self.positions = family.max_positions
        self.running = _Running()
        self._cache_name, self._keeps = cache_name(module), keeps_logits(module)
        self._config: Any = module.config.get_text_config(decoder=True)
        if NAME not in AttentionInterface().valid_keys():  # type: ignore[no-untyped-call]
            AttentionInterface.register(NAME, _attend)
            AttentionMaskInterface.register(NAME, _no_mask)

    def release(self) -> None:
        """See `Decoder.release`. Nothing was changed."""

    def require_weights(self, name: str) -> None:
        """See `Decoder.require_weights`. Passes run the module itself."""

    def prepare(self, cache: TreeCache) -> str:
        """See `Decoder.prepare`. This reads one token, to check that every layer calls tree attention."""
        for keys, values in map(cache.rows, range(len(cache.layers))):
            if keys.shape != values.shape:
                return f"its keys are {keys.shape[-1]} wide and its values {values.shape[-1]}, and tree attention reads rows of one width"
        token = torch.zeros(1, dtype=torch.int64, device=self.module.device)
        place = Placement.causal(0, 1, self.module.device)
        self.forward(token, place, None if self.windowed is None else place.visible, cache, None)
        if self.running.calls == len(cache.layers):
            return self._without_windows(len(cache.layers))
        return f"tree attention can stand in for {self.running.calls} of its {counted(len(cache.layers), 'attention layer')} only"

    def _without_windows(self, layers: int) -> str:
        """Return how many layers with a window did not say so to the attention; the empty string if all did."""
        kinds = getattr(self._config, "layer_types", None) or []
        expected = 0 if self.windowed is None else layers if self.mask_style == "single" else kinds.count("sliding_attention")
        missing = expected - self.running.windowed
        return f"tree attention is not told the window of {missing} of its {counted(layers, 'layer')}" if missing > 0 else ""

    def forward(
        self, tokens: Tensor, place: Placement, near: Tensor | None, cache: TreeCache, keep: Tensor | None, table: Tensor | None = None
    ) -> Tensor:
        """See `Decoder.forward`."""
        cache.begin(place.slots, cache.capacity)
        nothing = torch.zeros(1, 1, 1, 1, dtype=torch.bool, device=tokens.device)  # a 4D mask is passed on as it is
        masks: Any = nothing if self.mask_style == "single" else {"full_attention": nothing, "sliding_attention": nothing}
        positions = (
            place.positions if self.positions is None else place.positions.clamp_max(self.positions - 1)
        )  # what is beyond is dropped
        kwargs: dict[str, Any] = {self._cache_name: cache} | ({} if keep is None or not self._keeps else {"logits_to_keep": keep})
        kwargs |= {"input_ids": tokens[None]} if table is None else {"inputs_embeds": table[tokens][None]}
        usual, before = self._config._attn_implementation, _RUNNING.set(self.running)
        self.running.place, self.running.calls, self.running.windowed = place, 0, 0
        self.running.tree, self.running.edge = ancestors_of(place), None if near is None else pack(near)
        self._config._attn_implementation = NAME
        try:
            with catching(self.module, cache.keeping(place)):
                output = self.module(
                    attention_mask=masks,
                    position_ids=positions[None],
                    use_cache=True,
                    **kwargs,
                )
        finally:
            self._config._attn_implementation = usual
            _RUNNING.reset(before)
            self.running.place = self.running.tree = self.running.edge = None
        logits: Tensor = output.logits[0]
        return logits[keep] if keep is not None and not self._keeps else logits

    def move(self, cache: TreeCache, prefix: Prefix, offsets: Tensor, first: int) -> None:
        """See `Decoder.move`. The length is read on the device."""
        for storage in cache.storages.values():
            move_rows(storage, prefix.length, offsets, first)


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """Make no mask: tree attention has its own."""


def _attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute tree attention in the form that transformers calls: query [1, heads, q, dim], key and value [1, kv_heads, capacity, dim]."""
    running = _RUNNING.get()
    place = running.place
    assert place is not None, "the attention is called within passes only"
    assert running.tree is not None
    running.calls += 1
    running.windowed += sliding_window is not None
    seen = tree_attention(
        query[0],
        key[0],
        value[0],
        place.prefix.length,
        running.tree if sliding_window is None or running.edge is None else running.edge,
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        window=sliding_window,
        depths=place.depths,
        cap=softcap,
    )
    return seen[None], None
