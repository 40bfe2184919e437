"""Continue many prompts at once with the plain module: the texts on which acceptance is profiled."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from treespec.decoding.rules import Sampling
from treespec.decoding.sampling import choose, require_finite
from treespec.models.calling import cache_name, keeps_logits


@torch.inference_mode()
def continue_prompts(
    module: PreTrainedModel,
    prompts: Tensor,
    gen_len: int,
    sampling: Sampling,
    generators: Sequence[torch.Generator],
    eos_token_ids: frozenset[int],
    vocabulary: int | None = None,
    on_token: Callable[[int], None] = lambda done: None,
    embeddings: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the target's own continuations of equally long prompts, batched.

    `prompts` int64 [batch, length], with `embeddings` [batch, length, hidden] read in their place where they hold pictures. Returns
    (tokens int64 [batch, length + gen_len], valid bool [batch, gen_len]): `valid` marks generated tokens up to and including the first
    EOS. `vocabulary`: only so many of the first tokens may be chosen (None: any). Raises ModelError when logits are not finite.
    """
    rows = prompts.shape[0]
    cache = roomy_cache(module, prompts.shape[1] + gen_len)
    eos = torch.tensor(sorted(eos_token_ids), dtype=torch.int64, device=prompts.device)
    tokens = [prompts]
    alive = torch.ones(rows, dtype=torch.bool, device=prompts.device)
    valid, finite = [], torch.ones((), dtype=torch.bool, device=prompts.device)
    read = prompts
    fixed: dict[str, Any] = {cache_name(module): cache, "use_cache": True} | ({"logits_to_keep": 1} if keeps_logits(module) else {})
    for done in range(gen_len):
        words = {"input_ids": read} if embeddings is None or done else {"inputs_embeds": embeddings}
        logits = module(**words, **fixed).logits[:, -1, :vocabulary]
        finite &= logits.amax(-1).isfinite().all()
        # every prompt draws from its own stream, whatever batch it is in
        draws = [choose(logits[i : i + 1], sampling, generators[i]) for i in range(0 if sampling.greedy else rows)]
        chosen = torch.cat(draws) if draws else choose(logits, sampling, None)
        valid.append(alive)
        alive = alive & ~torch.isin(chosen, eos)
        read = chosen[:, None]
        tokens.append(read)
        on_token(done + 1)
        if done % 16 == 15 and not bool(alive.any()):
            break
    require_finite(int(finite))
    missing = gen_len - len(valid)
    if missing:
        tokens.append(read.expand(rows, missing))
        valid += [torch.zeros_like(alive)] * missing
    return torch.cat(tokens, dim=1), torch.stack(valid, dim=1)


def roomy_cache(module: PreTrainedModel, room: int) -> DynamicCache:
    """Return a module's usual cache, whose layers that keep every token have memory for `room` tokens from the start."""
    cache = DynamicCache(config=module.config)
    cache.layers = [RoomyLayer(room) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


class RoomyLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """A layer of a cache for texts whose length is known: the usual one copies all of its rows for every token."""

    def __init__(self, room: int) -> None:
        """Take memory for `room` tokens when the first ones come."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._room = room
        self._rows: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write rows, [batch, heads, new tokens, width] each, and return all rows so far: [batch, heads, tokens, width]."""
        if self._rows is None:
            self.lazy_initialization(key_states, value_states)
            keys, values = (new.new_empty(*new.shape[:-2], self._room, new.shape[-1]) for new in (key_states, value_states))
            self._rows = keys, values
        length = self.get_seq_length()
        end = length + key_states.shape[-2]
        for rows, new in zip(self._rows, (key_states, value_states), strict=True):
            rows[..., length:end, :] = new
        self.keys, self.values = (rows[..., :end, :] for rows in self._rows)
        return self.keys, self.values
