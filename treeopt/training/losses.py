"""The losses that a draft is trained to minimise, per position: cross-entropy with the text, or a divergence from the target.

p is the target's next-token distribution, q the draft's, both over the tokens that the two share and at one temperature.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Loss = Literal["ce", "forward-kl", "reverse-kl"]

IGNORED = -100
"""The label of a position without a loss."""

_LOGITS_AT_ONCE = 1 << 26
"""Elements of one [positions, vocabulary] block in float32; the intermediates of only one block exist at a time."""


def summed_loss(loss: Loss, draft: Tensor, labels: Tensor, target: Tensor | None, temperature: float = 1.0) -> Tensor:
    """Return the sum of the loss over the positions whose label is not IGNORED, in nats; a scalar in float32.

    `draft` and `target` are logits [positions, vocabulary], `labels` int64 [positions] the tokens that follow. `ce` needs no `target` and
    has no temperature. Blocks of positions are computed one after the other, and again for the gradient, so that only one block's
    intermediates are held beside the logits.
    """
    rows = max(1, _LOGITS_AT_ONCE // draft.shape[-1])
    total = torch.zeros((), dtype=torch.float32, device=draft.device)
    parts = torch.split(target, rows) if target is not None else [None] * -(-draft.shape[0] // rows)
    for q, p, label in zip(torch.split(draft, rows), parts, torch.split(labels, rows), strict=True):
        total = total + checkpoint(_block, loss, q, label, p, temperature, use_reentrant=False)
    return total


def _block(loss: Loss, draft: Tensor, labels: Tensor, target: Tensor | None, temperature: float) -> Tensor:
    if target is None or loss == "ce":
        return F.cross_entropy(draft.float(), labels, ignore_index=IGNORED, reduction="sum")
    log_q = (draft.float() / temperature).log_softmax(-1)
    log_p = (target.float() / temperature).log_softmax(-1)
    left, right = (log_p, log_q) if loss == "forward-kl" else (log_q, log_p)
    return F.kl_div(right, left, log_target=True, reduction="none").sum(-1)[labels != IGNORED].sum()
