"""Ties: outputs that part where the target's best logits are closer than rounding, as other orders of the same sums may round them apart.

How close that is follows from the number type and the size of the logits. With u the machine epsilon of the model's type, a that of
its sums (float32, or float64 for float64), n the width of the last hidden state h, and L the number of layers:

- A logit is rounded to the type when it is stored: u |logit|.
- It is a sum of n products, h w, whose order differs between a pass over one token and one over many: a sum |h_j w_j|.
- h itself differs between the two passes. Each layer rounds what it adds to the stream twice, by u of its size, and its sums differ by
  a sqrt(n); 2 L + 1 such errors add up like a random walk. They turn logits by that share of their spread, their standard deviation.

The tolerance is the sum of the three, the last one three times, as for three standard deviations.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from treespec.models.tree_model import TreeModel

_DEVIATIONS = 3


@dataclass(frozen=True)
class Closeness:
    """The target's two best logits at a position, and what rounding may do to them."""

    logit_gap: float
    """The difference of the two largest logits."""
    tolerance: float
    """The largest difference of two logits that rounding can turn around."""
    tie: bool
    """Whether all tokens in question have logits within `tolerance` of the largest."""


@torch.inference_mode()
def closeness(
    target: TreeModel,
    context: list[int],
    tokens: list[int | None],
    pixels: Tensor | None = None,
    process: Callable[[Tensor, Tensor], Tensor] = lambda text, logits: logits,
) -> Closeness:
    """Compare the logits of `tokens` after a context, in one plain pass. None stands for an output that ended there, which is no tie.

    `process` turns the text int64 [length] and the target's logits [vocabulary] into those that tokens are chosen from.
    """
    read, hidden = _last_logits(target, context, pixels)
    logits = process(torch.tensor(context, device=read.device), read).double()
    best = logits.topk(min(2, logits.shape[0]))
    tolerance = _tolerance(target, read, hidden, best.indices)
    worst = min((float(logits[token]) for token in tokens if token is not None), default=-math.inf)
    return Closeness(
        logit_gap=float((best.values[0] - best.values[-1]).nan_to_num()),  # finite also where processors leave one token
        tolerance=tolerance,
        tie=None not in tokens and float(best.values[0]) - worst <= tolerance,
    )


def _last_logits(target: TreeModel, context: list[int], pixels: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the logits [vocabulary] after a context, and the hidden state that the output embeddings read there, float64."""
    seen: list[Tensor] = []
    module: Any = target.module
    head = module.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    try:
        logits = target.score(torch.tensor([context], device=target.device), len(context) - 1, pixels)[0, -1]
    finally:
        hook.remove()
    return logits.double(), seen[-1].reshape(-1, seen[-1].shape[-1])[-1].double()


def _tolerance(target: TreeModel, logits: Tensor, hidden: Tensor, best: Tensor) -> float:
    unit = torch.finfo(target.dtype).eps
    sums = torch.finfo(torch.float64 if target.dtype == torch.float64 else torch.float32).eps
    module: Any = target.module
    weight = module.get_output_embeddings().weight
    products = float((weight[best].double().abs() @ hidden.abs()).max()) if weight.is_floating_point() else 0.0
    config = module.config.get_text_config(decoder=True)
    walk = math.sqrt(2 * int(config.num_hidden_layers) + 1) * (unit + sums * math.sqrt(hidden.shape[0]))
    spread = float(logits.std()) if logits.shape[0] > 1 else 0.0
    return unit * float(logits[best].abs().max()) + sums * products + _DEVIATIONS * walk * spread
