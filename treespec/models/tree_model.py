"""TreeModel: a Hugging Face causal language model that runs the nodes of a tree in one pass, exactly."""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from treespec.errors import CapacityError, ModelError
from treespec.kernels.device import on
from treespec.models import families
from treespec.models.calling import cache_name, keeps_logits
from treespec.models.decoder import decoder_of
from treespec.models.exactness import verify_exactness
from treespec.models.loaded import LoadedModel
from treespec.models.plain import PlainDecoder
from treespec.models.tree_cache import LayerShape, TreeCache, layer_shapes
from treespec.models.vision import Vision
from treespec.trees.placement import Placement, Prefix

P = ParamSpec("P")
R = TypeVar("R")


def _on_its_device(method: Callable[Concatenate["TreeModel", P], R]) -> Callable[Concatenate["TreeModel", P], R]:
    """Run a method in inference mode, and with the model's device as the current one."""

    @wraps(method)
    def run(self: "TreeModel", /, *args: P.args, **kwargs: P.kwargs) -> R:
        with torch.inference_mode(), on(self.device):
            return method(self, *args, **kwargs)

    return run


class TreeModel:
    """One sequence through one model: tokens at explicit positions, K/V rows in slots that the caller addresses.

    Contract of a pass: a token's position is the number of rows it attends to besides its own, which lie at positions
    0, 1, ... before it; the caller's mask says which slots hold them. Attention masks, sliding windows and the cache are
    handled here and nowhere else. The module is put into eval mode. Methods run in inference mode, and
    on the model's own device, whichever is the current one.

    Two rules, which concern the module that others may hold too:
    - No two threads run one module at the same time, be it by passes or by itself: a pass may change its configuration while it runs.
    - Do not convert, move or replace its weights while a TreeModel uses it: by kernels, several of them are stacked, and the module's own
      become views of that memory. Changes in place are seen. `allocate` raises ModelError where a weight is no such view any more.

    Args:
        module: the model, with attention "sdpa" or "eager"; as `load_model` returns it, or a module that was made elsewhere.
        name: what messages and provenance call it.
        vocabulary: keep only the first so many logits (for a pair of models that pad their rows differently).
        kernels: run passes by our own kernels where the family allows it, so that nothing depends on a length that the host knows
            (None: on CUDA). `eager_reason` says why not.
        vision: turns pictures into rows of a prompt (None: the model reads text only).

    Raises:
        ModelError: the family cannot be exact with trees, by table or by `verify_exactness` on this very module.
    """

    def __init__(
        self,
        module: PreTrainedModel | LoadedModel,
        *,
        name: str = "",
        vocabulary: int | None = None,
        kernels: bool | None = None,
        vision: Vision | None = None,
    ) -> None:
        self.loaded, self.vision = LoadedModel.of(module), vision
        self.module = module = self.loaded.module
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
        self._keeps = keeps_logits(module)
        self._shapes: tuple[LayerShape, ...] | None = None
        self._cache: TreeCache | None = None
        self.generation = 0
        self._slot_positions = torch.zeros(0, dtype=torch.int64, device=self.device)
        self.decoder, self.eager_reason = decoder_of(
            module, self.family, kernels=self.device.type == "cuda" if kernels is None else kernels
        )
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

    @_on_its_device
    def allocate(self, capacity: int) -> None:
        """Make room for `capacity` slots and forget what is stored; a larger cache that is there already is kept.

        Raises CapacityError when the memory does not hold it, and ModelError when the module's weights were replaced (see the class).
        """
        if capacity < 1:
            raise CapacityError(f"{capacity} cache slots were asked for, but a model needs at least 1")
        self.decoder.require_weights(self.name)
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
        refused = self.decoder.prepare(self._cache)
        if refused:
            self.decoder, self.eager_reason = PlainDecoder(self.module, self.family), refused

    @_on_its_device
    def forward(self, tokens: Tensor, place: Placement, keep: Tensor | None = None) -> Tensor:
        """Store q tokens where they stand and return their logits, or those of the rows `keep` only.

        `tokens` int64 [q]; the pass looks at no slot beyond the prefix and the m behind it. `keep`: int64 [k], indices into the q
        tokens. Returns [q or k, vocabulary] in the model's dtype. Nothing here waits for the device.
        """
        return self._pass(tokens, place, keep)

    def _pass(self, tokens: Tensor, place: Placement, keep: Tensor | None, table: Tensor | None = None) -> Tensor:
        """See `forward`. Tokens are rows of `table` [.., hidden] where there is one, in place of the model's own embeddings."""
        known = place.prefix.known
        cache = self._require(1 if known is None else known + place.visible.shape[1])
        logits = self.decoder.forward(tokens, place, self._near(place), cache, keep, table)
        return logits if self._cut is None else logits[:, : self._cut]

    @_on_its_device
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
            logits = self._pass(part, place, place.offsets[-1:], table)
        return logits[0]

    @_on_its_device
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

    @_on_its_device
    def move(self, prefix: Prefix, offsets: Tensor, first: int) -> None:
        """Copy the K/V rows of slots `length + offsets` int64 [m] to slots `length + first ..`; all are read before any is written."""
        if self._cache is None:
            raise CapacityError(f"{self.name}: nothing is stored yet; call allocate and prefill first")
        self.decoder.move(self._cache, prefix, offsets, first)
        if self.family.window is not None:
            destination = prefix.length + torch.arange(first, first + offsets.shape[0], device=offsets.device)
            self._slot_positions.index_copy_(0, destination, self._slot_positions.index_select(0, prefix.length + offsets))

    @_on_its_device
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

    def _probe(self) -> tuple[LayerShape, ...]:
        """Shapes of what each layer stores, from one token through the module with its own growing cache."""
        cache = DynamicCache()
        token: Any = torch.zeros(1, 1, dtype=torch.int64, device=self.device)
        self.module(input_ids=token, use_cache=True, **{cache_name(self.module): cache})
        shapes = layer_shapes(cache)
        if not shapes:
            raise ModelError(f"{self.name} (family {self.family.model_type}) stores no K/V rows in the cache it is given; trees need them")
        return shapes


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
