"""TreeModel: a Hugging Face causal language model that runs the nodes of a tree in one pass, exactly."""

import importlib.util
import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import DynamicCache, PreTrainedModel

from treespec.errors import CapacityError, ModelError
from treespec.models import families
from treespec.models.exactness import verify_exactness
from treespec.models.families import Family
from treespec.models.offload.streaming import streamed_bytes
from treespec.models.tree_cache import LayerShape, TreeCache, layer_shapes
from treespec.models.vision import Vision
from treespec.trees.placement import Placement, Prefix

if TYPE_CHECKING:
    from treespec.models.fused import FusedDecoder
    from treespec.models.hooked import HookedDecoder

MASK_ALIGNMENT = 16
"""Mask rows start at multiples of this many elements: CUDA's attention kernels copy the mask once per layer otherwise."""

KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Attention kernels to choose from: all but cuDNN's, which plans anew for every K/V length (about 50 ms a pass on an H200), and in
decoding every pass has a new one."""


class TreeModel:
    """One sequence through one model: tokens at explicit positions, K/V rows in slots that the caller addresses.

    Contract of a pass: a token's position is the number of rows it attends to besides its own, which lie at positions
    0, 1, ... before it; the caller's mask says which slots hold them. Attention masks, sliding windows and the cache are
    handled here and nowhere else. The module is put into eval mode. Methods run in inference mode.

    Args:
        module: the model, with attention "sdpa" or "eager".
        name: what messages and provenance call it.
        vocabulary: keep only the first so many logits (for a pair of models that pad their rows differently).
        kernels: run passes by our own kernels where the family allows it, so that nothing depends on a length that the host knows
            (None: on CUDA). `plain` says why not.
        vision: turns pictures into rows of a prompt (None: the model reads text only).

    Raises:
        ModelError: the family cannot be exact with trees, by table or by `verify_exactness` on this very module.
    """

    def __init__(
        self,
        module: PreTrainedModel,
        *,
        name: str = "",
        vocabulary: int | None = None,
        kernels: bool | None = None,
        vision: Vision | None = None,
    ) -> None:
        self.module, self.vision = module, vision
        torch.nn.Module.eval(module)
        self.name = name or str(getattr(module.config, "_name_or_path", "")) or str(module.config.model_type)
        self.family = families.check(module.config, self.name)
        text = module.config.get_text_config(decoder=True)
        attention = str(getattr(text, "_attn_implementation", None))
        if attention not in ("sdpa", "eager"):
            raise ModelError(
                f'{self.name} uses attention "{attention}", which takes no tree masks; load it with attn_implementation="sdpa"'
            )
        self.vocabulary_rows = _logit_rows(module)
        self.vocabulary_size = min(vocabulary or self.vocabulary_rows, self.vocabulary_rows)
        self.device: torch.device = module.device
        self.dtype: torch.dtype = module.dtype
        self.max_positions = self.family.max_positions
        self.eos_token_ids = _eos_token_ids(module)
        self._cut = self.vocabulary_size if self.vocabulary_size < self.vocabulary_rows else None
        self._keeps = "logits_to_keep" in inspect.signature(module.forward).parameters
        self._shapes: tuple[LayerShape, ...] | None = None
        self._cache: TreeCache | None = None
        self.generation = 0
        self._slot_positions = torch.zeros(0, dtype=torch.int64, device=self.device)
        self._by_kernels, self.plain = None, "kernels are for CUDA"
        if self.device.type == "cuda" if kernels is None else kernels:
            self._by_kernels, self.plain = _kernel_pass(module, self.family)
        if not self.family.verified:
            verify_exactness(self)

    generation: int
    """How often the cache was made anew: what is captured belongs to one."""

    def positions_of(self, prompt: Sequence[int]) -> int:
        """How many positions a prompt takes."""
        return len(prompt)

    @property
    def known_tokens(self) -> int:
        """How many of the first ids it can give a chance to; no more than `vocabulary_size`."""
        return self.vocabulary_size

    @property
    def capacity(self) -> int:
        """Cache slots there are now."""
        return 0 if self._cache is None else self._cache.capacity

    @property
    def cache_bytes(self) -> int:
        """Memory of the cache."""
        return 0 if self._cache is None else sum(storage.nbytes for storage in self._cache.storages.values())

    @torch.inference_mode()
    def allocate(self, capacity: int) -> None:
        """Make room for `capacity` slots and forget what is stored; a larger cache that is there already is kept.

        Raises CapacityError when the memory does not hold it.
        """
        if capacity < 1:
            raise CapacityError(f"{capacity} cache slots were asked for, but a model needs at least 1")
        if capacity <= self.capacity:
            return
        if self._shapes is None:
            self._shapes = self._probe()
        self._cache = None  # before the larger one, so that both never exist at once
        try:
            self._cache = TreeCache(self._shapes, capacity)
        except torch.OutOfMemoryError as error:
            raise CapacityError(
                f"{self.name}: no memory on {self.device} for a cache of {capacity} slots; use a shorter `max_length` or a smaller `dtype`"
            ) from error
        self.generation += 1
        self._slot_positions = torch.zeros(capacity, dtype=torch.int64, device=self.device)
        if self._by_kernels is not None:
            self.plain = self._by_kernels.prepare(self._cache)
            if self.plain:
                self._by_kernels = None

    @torch.inference_mode()
    def forward(self, tokens: Tensor, place: Placement, keep: Tensor | None = None) -> Tensor:
        """Store q tokens where they stand and return their logits, or those of the rows `keep` only.

        `tokens` int64 [q]; the pass looks at no slot beyond the prefix and the m behind it. `keep`: int64 [k], indices into the q
        tokens. Returns [q or k, vocabulary] in the model's dtype. Nothing here waits for the device.
        """
        return self._pass(tokens, place, keep)

    def _pass(self, tokens: Tensor, place: Placement, keep: Tensor | None, table: Tensor | None = None) -> Tensor:
        """See `forward`. Tokens are rows of `table` [.., hidden] where there is one, in place of the model's own embeddings."""
        if self._by_kernels is not None:
            known = place.prefix.known
            cache = self._require(1 if known is None else known + place.visible.shape[1])
            logits = self._by_kernels.forward(tokens, place, self._near(place), cache, keep, table)
        else:
            logits = self._pass_plain(tokens, place, keep, table)
        return logits if self._cut is None else logits[:, : self._cut]

    def _pass_plain(self, tokens: Tensor, place: Placement, keep: Tensor | None, table: Tensor | None) -> Tensor:
        """By the module's own attention, under a mask over all slots up to the last that the pass looks at."""
        mask, positions, slots = place.mask(), place.positions, place.slots
        cache = self._require(mask.shape[1])
        cache.begin(slots, mask.shape[1])
        kwargs: dict[str, Any] = {} if keep is None or not self._keeps else {"logits_to_keep": keep}
        kwargs |= {"input_ids": tokens[None]} if table is None else {"inputs_embeds": table[tokens][None]}
        with sdpa_kernel(KERNELS):
            output = self.module(
                attention_mask=self._masks(positions, slots, mask),
                position_ids=positions[None],
                past_key_values=cache,
                use_cache=True,
                **kwargs,
            )
        logits: Tensor = output.logits[0]
        return logits[keep] if keep is not None and not self._keeps else logits

    @torch.inference_mode()
    def prefill(self, tokens: Tensor, pixels: Tensor | None = None, chunk: int = 512) -> Tensor:
        """Read tokens int64 [length] causally into slots 0 .. length - 1, at most `chunk` per pass; logits [vocabulary] of the last.

        `pixels` [pictures, 3, height, width]: what stands where the tokens are the picture's.
        """
        length = tokens.shape[0]
        if length < 1:
            raise CapacityError("the prompt is empty, but a model needs at least 1 token to start from")
        if self.max_positions is not None and length > self.max_positions:
            raise CapacityError(
                f"the prompt has {length} tokens, but {self.name} knows {self.max_positions} positions; use a shorter `prompt_len`"
            )
        self._require(length)
        table = None if pixels is None else self.embed(tokens[None], pixels)[0]
        read = tokens if table is None else torch.arange(length, device=tokens.device)
        logits = tokens
        for start in range(0, length, chunk):
            part = read[start : start + chunk]
            place = Placement.causal(start, part.shape[0], tokens.device)
            logits = self._pass(part, place, place.rows[-1:], table)
        return logits[0]

    @torch.inference_mode()
    def embed(self, tokens: Tensor, pixels: Tensor) -> Tensor:
        """Embeddings [batch, length, hidden] of int64 [batch, length] tokens, equally many pictures in each row, in their places.

        A row's pictures stand at its first picture tokens; any that a model wrote itself behind them are tokens like others. Raises
        ModelError.
        """
        if self.vision is None:
            raise ModelError(f"{self.name} reads text only; use a vision-language model for prompts with pictures")
        shape = self.vision.shape
        wanted = pixels.shape[0] * shape.rows // tokens.shape[0]
        here = tokens == shape.token_id
        here &= here.cumsum(1) <= wanted
        if not bool((here.sum(1) == wanted).all()):
            raise ModelError(
                f"{int(here.sum())} picture tokens stand for {pixels.shape[0]} pictures of {shape.rows} rows each ({self.name})"
            )
        table: Tensor = self.module.get_input_embeddings()(tokens)
        table[here] = self.vision.rows(pixels).flatten(0, 1).to(table.dtype)
        return table

    @torch.inference_mode()
    def move(self, prefix: Prefix, rows: Tensor, first: int) -> None:
        """Copy the K/V rows of slots `length + rows` int64 [m] to slots `length + first ..`; all are read before any is written."""
        if self._cache is None:
            raise CapacityError(f"{self.name}: nothing is stored yet; call allocate and prefill first")
        if self._by_kernels is not None:
            from treespec.kernels.pointwise import move_rows

            for storage in self._cache.storages.values():
                move_rows(storage, prefix.length, rows, first)
        if self._by_kernels is not None and self.family.window is None:
            return
        source = prefix.length + rows
        destination = prefix.length + torch.arange(first, first + rows.shape[0], device=rows.device)
        if self._by_kernels is None:
            self._cache.move(source, destination)
        if self.family.window is not None:
            self._slot_positions.index_copy_(0, destination, self._slot_positions.index_select(0, source))

    @torch.inference_mode()
    def score(self, ids: Tensor, keep_from: int = 0, pixels: Tensor | None = None) -> Tensor:
        """Plain causal pass over int64 [batch, length] rows without the cache: logits [batch, length - keep_from, vocabulary]."""
        length = ids.shape[1]
        if not 0 <= keep_from < length:
            raise CapacityError(f"logits from position {keep_from} on were asked for, but the rows have {length} tokens")
        kwargs: dict[str, Any] = {"logits_to_keep": length - keep_from} if self._keeps else {}
        kwargs |= {"input_ids": ids} if pixels is None else {"inputs_embeds": self.embed(ids, pixels)}
        logits: Tensor = self.module(use_cache=False, **kwargs).logits
        return logits[:, -(length - keep_from) :, : self._cut]

    def _require(self, rows: int) -> TreeCache:
        if self._cache is None or rows > self._cache.capacity:
            raise CapacityError(f"{self.name}: the pass needs {rows} cache slots, but {self.capacity} are allocated; allocate more first")
        return self._cache

    def _near(self, place: Placement) -> Tensor | None:
        """bool [q, m]: what layers with a window see of the slots behind the prefix; None where no layer has one."""
        window = self.family.window
        if window is None:
            return None
        positions = place.positions
        self._slot_positions.index_copy_(0, place.slots, positions)
        behind = place.prefix.length + torch.arange(place.visible.shape[1], device=positions.device)
        return place.visible & (positions[:, None] - self._slot_positions.index_select(0, behind) < window)

    def _masks(self, positions: Tensor, slots: Tensor, mask: Tensor) -> Tensor | dict[str, Tensor]:
        """The mask or masks in the form that the family takes."""
        window = self.family.window
        if window is None:
            full = _additive(mask, self.dtype)
            return full if self.family.mask_style == "single" else {"full_attention": full}
        self._slot_positions.index_copy_(0, slots, positions)
        kv = mask.shape[1]
        if kv <= window:  # no row can lie further back than there are rows
            full = _additive(mask, self.dtype)
            return full if self.family.mask_style == "single" else {"full_attention": full, "sliding_attention": full}
        near = positions[:, None] - self._slot_positions[:kv] < window
        sliding = _additive(mask & near, self.dtype)
        if self.family.mask_style == "single":
            return sliding
        return {"full_attention": _additive(mask, self.dtype), "sliding_attention": sliding}

    def _probe(self) -> tuple[LayerShape, ...]:
        """Shapes of what each layer stores, from one token through the module with its own growing cache."""
        cache = DynamicCache()
        self.module(input_ids=torch.zeros(1, 1, dtype=torch.int64, device=self.device), past_key_values=cache, use_cache=True)
        shapes = layer_shapes(cache)
        if not shapes:
            raise ModelError(f"{self.name} (family {self.family.model_type}) stores no K/V rows in the cache it is given; trees need them")
        return shapes


def _kernel_pass(module: PreTrainedModel, family: Family) -> "tuple[FusedDecoder | HookedDecoder | None, str]":
    """What runs passes by kernels, or why nothing can."""
    if importlib.util.find_spec("triton") is None:
        return None, "triton is not installed"
    if hasattr(module, "_hf_hook") or getattr(module, "hf_device_map", None):
        return None, "its weights are moved by hooks"
    if streamed_bytes(module):
        return None, "its weights are streamed from host memory"
    if families.rope_changes(module.config):
        return None, "its rotary positions change with the length of the text"
    from treespec.models import fused, hooked

    if fused.refusal(module) is None:
        return fused.FusedDecoder(module), ""
    reason = hooked.refusal(module, family)
    return (hooked.HookedDecoder(module, family), "") if reason is None else (None, reason)


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """[1, 1, q, kv] to add to attention scores: 0 where `mask` is True, else -inf. One conversion here saves one per layer."""
    q, kv = mask.shape
    rows = torch.full((q, -(-kv // MASK_ALIGNMENT) * MASK_ALIGNMENT), float("-inf"), dtype=dtype, device=mask.device)
    return rows[:, :kv].masked_fill_(mask, 0.0)[None, None]


def _logit_rows(module: Any) -> int:
    """Width of the module's logits."""
    weight = getattr(module.get_output_embeddings(), "weight", None)
    return int(module.config.get_text_config(decoder=True).vocab_size if weight is None else weight.shape[0])


def _eos_token_ids(module: PreTrainedModel) -> frozenset[int]:
    """The generation config's EOS ids; the model config's where it names none."""
    for config in (getattr(module, "generation_config", None), module.config.get_text_config(decoder=True)):
        ids = getattr(config, "eos_token_id", None)
        if ids is not None:
            return frozenset([ids] if isinstance(ids, int) else [int(i) for i in ids])
    return frozenset()
