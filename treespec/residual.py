"""The residual chain: a node's drafted children, verified one after the other against what is left of the target.

A node's children s_0, s_1, ... were sampled from the draft's distribution q. Verification keeps a target distribution R,
at first p, and a draft distribution D, at first q. The next child s is accepted with probability min(1, w R(s) / D(s));
otherwise R becomes the normalised positive part of w R - D, and D loses s if children were sampled without replacement.
The weight w is 1 when children are verified on their own (`swor`: Sequoia, arXiv 2402.12374, alg. 2; `swr`: SpecInfer,
arXiv 2305.09781) and the chance of the whole path so far in traversal verification (arXiv 2505.12398).

Positive parts nest, max(max(x - a, 0) - b, 0) = max(x - a - b, 0), so R is always proportional to max(p - cut q, 0) and one
number per node, `cut`, says it all: a child is accepted with probability (p(s) / q(s) - cut) / step, clamped to [0, 1], and a
rejection moves the cut up by that step = sum(R's positive part) / (w times q's remaining mass). A child can only be
rejected where w R(s) < D(s), so its part of R is 0 from then on.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Chain:
    """The outcome for m nodes."""

    accept: Tensor
    """[m, ranks]; the chance of each child, given that all before it were rejected. 0 where there is none."""
    weight: Tensor
    """[m]; the weight that is left once every child was rejected."""
    p: Tensor
    """[m, vocabulary]; without the rejected tokens where they were sampled without replacement."""
    q: Tensor
    """[m, vocabulary]; likewise."""
    cut: Tensor
    """[m]; once every child was rejected, the target's distribution is proportional to max(p - cut q, 0)."""


def residual_chain(p: Tensor, q: Tensor, tokens: Tensor, active: Sequence[int], weight: Tensor, *, replacement: bool) -> Chain:
    """Run the chains of m nodes side by side, rank by rank.

    `p`, `q` [m, vocabulary]: the target's and the draft's distribution, each row summing to 1; `tokens` int64 [m, ranks]:
    the children; `active[k]`: how many of the first nodes have a child of rank k; `weight` [m], in [0, 1]. Float32 or float64,
    and so are the results. A child whose draft probability is 0 counts as absent: it is never accepted and changes
    nothing. No host synchronisation.
    """
    if not replacement:
        p, q = p.clone(), q.clone()
    weight, cut = weight.clone(), torch.zeros_like(weight)
    accept = p.new_zeros(tokens.shape)
    above, left = p.sum(-1), q.sum(-1)  # sum(max(p - cut q, 0)) and q's remaining mass
    for rank, rows in enumerate(active):
        token = tokens[:rows, rank, None]
        some_p, some_q = p[:rows], q[:rows]
        chance, drafted = some_p.gather(1, token)[:, 0], some_q.gather(1, token)[:, 0]
        spent = weight[:rows] * left[:rows]
        here = (drafted > 0) & (spent > 0)
        step = (above[:rows] / spent).where(here, 1.0)
        accept[:rows, rank] = ((chance / drafted - cut[:rows]) / step).clamp(0, 1).where(here, 0.0)
        if not replacement:
            some_p.scatter_(1, token, chance.where(~here, 0.0)[:, None])
            some_q.scatter_(1, token, drafted.where(~here, 0.0)[:, None])
            left[:rows] = some_q.sum(-1)
        further = cut[:rows] + step
        remaining = torch.addcmul(some_p, some_q, further[:, None], value=-1).clamp_min_(0).sum(-1)
        surplus = weight[:rows] * remaining / above[:rows]
        total = surplus + (1 - weight[:rows])
        weight[:rows] = (surplus / total).where(here & (total > 0), weight[:rows])
        goes_on = here & (remaining > 0)  # where nothing remains, rejection had no chance but rounding's
        cut[:rows] = further.where(goes_on, cut[:rows])
        above[:rows] = remaining.where(goes_on, above[:rows])
    return Chain(accept, weight, p, q, cut)
