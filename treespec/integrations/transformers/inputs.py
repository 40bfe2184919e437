"""Checks of what `generate` hands over against what trees can follow, and the prompts in it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from treespec.errors import SettingsError

_PASSED_BY = frozenset({"use_cache", "logits_to_keep", "attention_mask", "position_ids", "cache_position", "past_key_values"})
"""Arguments of passes that trees have their own of."""

_REFUSED = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
_OTHER_SEARCHES = ("constraints", "force_words_ids", "penalty_alpha", "dola_layers")


def refuse(config: GenerationConfig, model_kwargs: Mapping[str, Any]) -> None:
    """Raise SettingsError for settings and arguments that trees cannot follow. The message names them."""
    if (config.num_beams or 1) > 1 or (getattr(config, "num_beam_groups", None) or 1) > 1:
        raise SettingsError(
            f"`num_beams` is {config.num_beams}, but a tree verifies one text at a time; pass 1, or leave out `custom_generate`"
        )
    if getattr(config, "guidance_scale", None) not in (None, 1):
        raise SettingsError("guidance reads a second (negative) prompt at every step, which trees do not; leave out `guidance_scale`")
    if others := [name for name in _OTHER_SEARCHES if getattr(config, name, None)]:
        raise SettingsError(f"`{others[0]}` is another way of decoding; leave it out, or leave out `custom_generate`")
    if asked := [name for name in _REFUSED if getattr(config, name, None)]:
        raise SettingsError(f"`{asked[0]}` asks for what a step of a tree does not give; leave it out, or leave out `custom_generate`")
    cache = model_kwargs.get("past_key_values")
    if cache is not None and cache.get_seq_length():
        raise SettingsError("`past_key_values` hold a text already, but trees have caches of their own; pass the whole text as `input_ids`")
    for name, value in model_kwargs.items():
        if name not in _PASSED_BY and not _is_nothing(value):
            raise SettingsError(f"trees read `input_ids` alone, but `{name}` was given; leave it out, or leave out `custom_generate`")


def _is_nothing(value: Any) -> bool:
    """Return whether an argument says nothing: none, false, or zeros such as the token types of a single text, alone or by names."""
    if isinstance(value, Mapping):
        return all(map(_is_nothing, value.values()))
    return not bool(value.any()) if isinstance(value, Tensor) else value is None or value is False


def prompts_of(input_ids: Tensor, mask: Tensor | None, positions: Tensor | None) -> list[tuple[int, ...]]:
    """Return the prompt of each row of int64 [batch, length], without the padding on its left.

    `mask` [batch, length] is 0 at the padding; None says that there is none. Raises SettingsError for empty prompts, for padding
    elsewhere, and for `positions` [.., batch or 1, length] other than 0, 1, 2 ...
    """
    rows, width = input_ids.shape
    mask = torch.ones_like(input_ids) if mask is None else mask.to(torch.bool).to(torch.int64)
    if mask.shape != input_ids.shape:
        raise SettingsError(f"`attention_mask` is {[*mask.shape]}, but `input_ids` are {[*input_ids.shape]}; pass one of the same shape")
    if not bool(mask.any(-1).all()):
        raise SettingsError("a prompt is empty; give it at least 1 token")
    if bool((mask.diff(dim=-1) < 0).any()):
        raise SettingsError("`attention_mask` leaves out tokens behind the first of a prompt; pad prompts on the left")
    if positions is not None:
        wanted = mask.cumsum(-1) - 1
        if bool(((positions[..., -width:] != wanted) & (mask > 0)).any()):
            raise SettingsError("`position_ids` are not those of whole texts from 0 on; leave them out")
    return [tuple(input_ids[row][mask[row] > 0].tolist()) for row in range(rows)]
