"""The hidden states of a text, as transformers itself records them."""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from treespec.models.calling import decoder_layers


def states_of(module: PreTrainedModel, text: Tensor) -> Tensor:
    """All states of a text int64 [length], [length, layers + 2, Ht]: by number, and the final one last.

    They are transformers' own record; what leaves the last layer is not in it, and is seen by a hook.
    """
    seen: list[Any] = []
    last = decoder_layers(module)[-1]
    with last.register_forward_hook(lambda part, arguments, output: seen.append(output)), torch.no_grad():
        found = module(input_ids=text[None], use_cache=False, output_hidden_states=True).hidden_states
    left = seen[0] if isinstance(seen[0], Tensor) else seen[0][0]
    return torch.stack([*(state[0] for state in found[:-1]), left[0], found[-1][0]], dim=1)
