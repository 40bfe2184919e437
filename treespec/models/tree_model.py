"""TreeModel: a Hugging Face causal language model that runs the nodes of a tree in one pass, exactly."""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from treespec.errors import CapacityError, ModelError, counted
from treespec.kernels.device import on
from treespec.models import devices, families
from treespec.models.calling import cache_name, keeps_logits
from treespec.models.decoder import decoder_of
from treespec.models.exactness import verify_exactness
from treespec.models.facts import facts_of, identity_of
from treespec.models.generation import eos_token_ids, note_of
from treespec.models.loaded import LoadedModel
from treespec.models.plain import PlainDecoder
from treespec.models.states import KeptStates, require_states, width_of
from treespec.models.tree_cache import LayerShape, TreeCache, layer_shapes
from treespec.models.vision import TEXT_ONLY, Vision
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
    """One sequence through one model: tokens at explicit positions, keys and values in slots that the caller addresses.

    Rule of a pass: a token at position p attends to itself and to exactly p earlier tokens, at positions 0 to p - 1; the
    placement says which slots hold them. Attention masks, sliding windows and the cache are handled here and nowhere else.
    The module is put into eval mode. Methods run in inference mode and make the model's own device the current one.

    Two rules for the module, which other code may hold too:
    - Only one thread may run a module at a time, by passes or directly: a pass may change its configuration while it runs.
    - Do not convert, move or replace its weights while a TreeModel uses it: kernels stack several of them, and the module's own weights
      become views of that memory. Changes in place take effect. `allocate` raises ModelError if a weight is no longer such a view.

    Args:
        module: the model, with attention "sdpa" or "eager", as `load_model` returns it, or a module that was made elsewhere.
        name: its name in messages and provenance.
        vocabulary: keep only this many of the first logits (for a draft with more of them than its target has).
        kernels: run passes by our own kernels if the family allows it, so that nothing depends on a length that the host knows
            (None: on CUDA). `eager_reason` says why not.
        vision: the part that turns pictures into embeddings (None: the model reads text only).

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
        shard = self.loaded.shard
        self.divided = shard is not None
        self.vocabulary_rows = _logit_rows(module) if shard is None else shard.vocabulary
        self.vocabulary_size = min(vocabulary or self.vocabulary_rows, self.vocabulary_rows)
        self.device: torch.device = module.device
        self.dtype: torch.dtype = module.dtype
        self.max_positions, self.rope_note = self.family.max_positions, self.family.rope_note
        self.eos_token_ids = eos_token_ids(module, self.name)
        self._cut = self.vocabulary_size if self.vocabulary_size < self.vocabulary_rows else None
        self._keeps = keeps_logits(module)
        self._shapes: tuple[LayerShape, ...] | None = None
        self._cache: TreeCache | None = None
        self.generation = self.texts = 0
        self.state_layers: tuple[int, ...] = ()
        self._slot_positions = torch.zeros(0, dtype=torch.int64, device=self.device)
        self.decoder, self.eager_reason = decoder_of(
            module, self.family, kernels=self.device.type == "cuda" if kernels is None else kernels, shard=shard
        )
        if not self.family.verified:
            verify_exactness(self)

    generation: int
    """Number of times that the cache was replaced. A captured step is valid for one generation only."""
    texts: int
    """Number of times that room for a text was asked for. A text that is read in pieces is lost once it has risen."""
    unknown: tuple[int, ...] = ()
    """Ids below `vocabulary_size` that always have probability 0."""

    def positions_of(self, prompt: Sequence[int]) -> int:
        """Return the number of positions that a prompt takes."""
        return len(prompt)

    @property
    def stacked(self) -> bool:
        """Return whether several of the module's weights became views of stacked ones, which the kernels read."""
        return self.decoder.stacked

    def _require_same_kind(self) -> None:
        """Raise ModelError if the module was converted or moved since this model was made of it."""
        made, now = (self.dtype, self.device), (self.module.dtype, self.module.device)
        if made != now and not self.loaded.streamed:
            raise ModelError(
                f"{self.name} was {made[0]} on {made[1]} when it was taken, and is {now[0]} on {now[1]} now; convert and move modules first, "
                "then take them"
            )

    def not_applied(self, *, sampled: bool, processed: bool = False) -> str | None:
        """Return a sentence with the settings of the generation config that decoding here does not follow, None if there are none."""
        config = getattr(self.module, "generation_config", None)
        return note_of(self.name, {} if config is None else config.to_dict(), sampled=sampled, processed=processed)

    def committed(self, tokens: Sequence[int], *, last: bool = False) -> None:
        """See `WatchfulModel.committed`. Raises ModelError if the processes that hold parts of the model have other tokens."""
        if self.loaded.shard is not None:
            self.loaded.shard.team.committed(tokens, last=last)

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what people should know of how it was loaded, in sentences."""
        return self.loaded.notes

    def describe(self) -> dict[str, Any]:
        """Return the facts that identify work with the model, as plain JSON."""
        return facts_of(self.name, self.loaded, self.family.model_type, self.dtype)

    def identity(self) -> dict[str, Any]:
        """Return what tells the model from others, whatever device and number type it runs in, as plain JSON."""
        return identity_of(self.describe())

    def release(self) -> None:
        """Undo what was changed in the module: its weights get memory of their own again. This model cannot be used afterwards."""
        self.decoder.release()

    @property
    def capacity(self) -> int:
        """Return the number of slots that the cache has now."""
        return 0 if self._cache is None else self._cache.capacity

    @property
    def cache_bytes(self) -> int:
        """Return the bytes of the cache."""
        if self._cache is None:
            return 0
        states = 0 if self._cache.states is None else self._cache.states.rows.nbytes
        return states + sum(storage.nbytes for storage in self._cache.storages.values())

    @property
    def slot_bytes(self) -> int:
        """Return the bytes of one slot of a cache."""
        if self._shapes is None:
            self._shapes = self._probe()
        states = len(self.state_layers) * width_of(self.module) * self.dtype.itemsize if self.state_layers else 0
        return states + sum(shape.heads * (shape.key_dim + shape.value_dim) * shape.dtype.itemsize for shape in self._shapes)

    @property
    def states(self) -> Tensor:
        """See `StateModel.states`. Raises CapacityError if nothing is stored yet, ModelError if no states are kept."""
        kept = self._require(1).states
        if kept is None:
            raise ModelError(f"{self.name} keeps no states; name them with keep_states first")
        return kept.rows

    @_on_its_device
    def keep_states(self, layers: Sequence[int]) -> None:
        """See `StateModel.keep_states`. Raises ModelError if this module does not give these states, CapacityError if memory is too small."""
        wanted = tuple(layers)
        if wanted == self.state_layers:
            return
        if wanted:
            require_states(self.module, wanted, self.name)
        self.texts += 1
        self.state_layers = ()  # until there is room for them
        if self._cache is not None:
            self._cache.states = None  # before the new ones, so that both never exist at once
            self._cache.states = self._or_too_small(self.capacity, lambda: self._new_states(self.capacity, wanted))
            self.generation += 1
        self.state_layers = wanted

    @_on_its_device
    def allocate(self, capacity: int) -> None:
        """Make a cache of at least `capacity` slots and forget its content; a cache that is large enough is kept.

        Raises CapacityError if memory is too small, and ModelError if the module's weights were replaced (see the class).
        """
        if capacity < 1:
            raise CapacityError(f"{counted(capacity, 'cache slot was', 'cache slots were')} asked for, but a model needs at least 1")
        self.decoder.require_weights(self.name)
        self._require_same_kind()
        self.texts += 1
        if capacity <= self.capacity:
            return
        shapes = self._shapes = self._shapes or self._probe()
        self._cache = None  # before the larger one, so that both never exist at once
        self._cache = self._or_too_small(capacity, lambda: TreeCache(shapes, capacity, self._new_states(capacity, self.state_layers)))
        self.generation += 1
        self._slot_positions = torch.zeros(capacity, dtype=torch.int64, device=self.device)
        refused = self.decoder.prepare(self._cache)
        if refused:
            self.decoder, self.eager_reason = PlainDecoder(self.module, self.family), refused

    def _new_states(self, capacity: int, layers: tuple[int, ...]) -> KeptStates | None:
        """Return room for the states of so many slots; None if none are kept."""
        return KeptStates(layers, capacity, width_of(self.module), self.dtype, self.device) if layers else None

    def _or_too_small(self, capacity: int, make: Callable[[], R]) -> R:
        """Return what `make` makes. Raises CapacityError if memory is too small for this many slots."""
        try:
            return make()
        except RuntimeError as error:
            if not devices.memory_is_full(error):
                raise
            raise CapacityError(
                f"{self.name}: no memory on {self.device} for a cache of {counted(capacity, 'slot')}; use a shorter `max_length` or a smaller `dtype`"
            ) from error

    @_on_its_device
    def forward(self, tokens: Tensor, place: Placement, keep: Tensor | None = None) -> Tensor:
        """Store q tokens in the slots of `place` and return their logits, or only those of the tokens `keep`.

        `tokens` int64 [q]; the pass reads only the slots of the prefix and the m after it. `keep`: int64 [k], indices into the q
        tokens. Returns [q or k, vocabulary] in the model's dtype. No host synchronisation.
        """
        return self._pass(tokens, place, keep)

    def _pass(self, tokens: Tensor, place: Placement, keep: Tensor | None, table: Tensor | None = None) -> Tensor:
        """See `forward`. If there is a `table` [.., hidden], tokens are rows of it instead of the model's own embeddings."""
        known = place.prefix.known
        cache = self._require(1 if known is None else known + place.visible.shape[1])
        logits = self.decoder.forward(tokens, place, self._near(place), cache, keep, table)
        return logits if self._cut is None else logits[:, : self._cut]

    @_on_its_device
    def prefill(self, tokens: Tensor, pixels: Tensor | None = None, chunk: int = 512) -> Tensor:
        """Read tokens int64 [length] causally into slots 0 .. length - 1 and return logits [vocabulary] after the last.

        A pass has at most `chunk` tokens. `pixels` [pictures, 3, height, width] are the pictures that the picture tokens stand for.
        """
        length = tokens.shape[0]
        if length < 1:
            raise CapacityError("the prompt is empty, but a model needs at least 1 token to start from")
        if self.max_positions is not None and length > self.max_positions:
            raise CapacityError(
                f"the prompt has {counted(length, 'token')}, but {self.name} knows "
                f"{counted(self.max_positions, 'position')}{self.rope_note}; use a shorter `prompt_len`"
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
        """Return embeddings [batch, length, hidden] of tokens int64 [batch, length], with the pictures in their places (`Vision.put`).

        Raises ModelError.
        """
        if self.vision is None:
            raise ModelError(f"{self.name} {TEXT_ONLY}")
        table: Tensor = self.module.get_input_embeddings()(tokens)
        return self.vision.put(table, tokens, pixels, self.name)

    @_on_its_device
    def move(self, prefix: Prefix, offsets: Tensor, first: int) -> None:
        """Copy keys, values and states of slots `length + offsets` int64 [m] to slots `length + first ..`; all are read before any is written."""
        if self._cache is None:
            raise CapacityError(f"{self.name}: nothing is stored yet; call allocate and prefill first")
        self.decoder.move(self._cache, prefix, offsets, first)
        states = self._cache.states
        if self.family.window is None and states is None:
            return
        source, destination = prefix.length + offsets, prefix.length + torch.arange(first, first + offsets.shape[0], device=offsets.device)
        if self.family.window is not None:
            self._slot_positions.index_copy_(0, destination, self._slot_positions.index_select(0, source))
        if states is not None:
            states.move(source, destination)

    @_on_its_device
    def score(self, ids: Tensor, keep_from: int = 0, pixels: Tensor | None = None) -> Tensor:
        """Read texts int64 [batch, length] causally without the cache and return logits [batch, length - keep_from, vocabulary]."""
        length = ids.shape[1]
        if not 0 <= keep_from < length:
            raise CapacityError(f"logits from position {keep_from} on were asked for, but the rows have {counted(length, 'token')}")
        kwargs: dict[str, Any] = {"logits_to_keep": length - keep_from} if self._keeps else {}
        kwargs |= {"input_ids": ids} if pixels is None else {"inputs_embeds": self.embed(ids, pixels)}
        logits: Tensor = self.module(use_cache=False, **kwargs).logits
        return logits[:, -(length - keep_from) :, : self._cut]

    def _require(self, rows: int) -> TreeCache:
        if self._cache is None or rows > self._cache.capacity:
            raise CapacityError(
                f"{self.name}: the pass needs {counted(rows, 'cache slot')}, but the cache has {self.capacity}; allocate more first"
            )
        return self._cache

    def _near(self, place: Placement) -> Tensor | None:
        """Return bool [q, m], the slots after the prefix that layers with a window see; None if no layer has one."""
        window = self.family.window
        if window is None:
            return None
        positions = place.positions
        self._slot_positions.index_copy_(0, place.slots, positions)
        behind = place.prefix.length + torch.arange(place.visible.shape[1], device=positions.device)
        return place.visible & (positions[:, None] - self._slot_positions.index_select(0, behind) < window)

    @_on_its_device
    def _probe(self) -> tuple[LayerShape, ...]:
        """Return the shape of what each layer stores, found by running one token through the module with its own growing cache."""
        cache = DynamicCache()
        token: Any = torch.zeros(1, 1, dtype=torch.int64, device=self.device)
        self.module(input_ids=token, use_cache=True, **{cache_name(self.module): cache})
        shapes = layer_shapes(cache)
        if not shapes:
            raise ModelError(f"{self.name} (family {self.family.model_type}) stores no K/V rows in the cache it is given; trees need them")
        return shapes


def _logit_rows(module: Any) -> int:
    """Return the width of the module's logits."""
    weight = getattr(module.get_output_embeddings(), "weight", None)
    return int(module.config.get_text_config(decoder=True).vocab_size if weight is None else weight.shape[0])
