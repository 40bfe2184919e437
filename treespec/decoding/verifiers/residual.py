"""The residual chain: a node's drafted children are verified one after the other against the rest of the target's distribution.

A node's children s_0, s_1, ... were sampled from the draft's distribution q. Verification keeps a target distribution R,
at first p, and a draft distribution D, at first q. The next child s is accepted with probability min(1, w R(s) / D(s));
otherwise R becomes the normalised positive part of w R - D, and D loses s if children were sampled without replacement.
The weight w is 1 when children are verified on their own (`swor`: Sequoia, arXiv 2402.12374, alg. 2; `swr`: SpecInfer,
arXiv 2305.09781) and the chance of the whole path so far in traversal verification (arXiv 2505.12398).

Positive parts nest, max(max(x - a, 0) - b, 0) = max(x - a - b, 0), so R is always proportional to max(p - cut q, 0) and one
number per node, `cut`, is enough: a child is accepted with probability (p(s) / q(s) - cut) / step, clamped to [0, 1], and a
rejection increases the cut by that step = sum of max(p - cut q, 0) / (w times q's remaining mass). A child can only be
rejected if w R(s) < D(s), so max(p - cut q, 0) is 0 there from then on, and nothing has to be removed from p or q.

Where q has fewer tokens than there are children without replacement, the others are tokens of q(s) = 0 that were chosen without any look at
the target. For such a child, D has all its mass at s: it is accepted with probability w R(s), and a rejection takes s out of R.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Chain:
    """The result of the chains of m nodes."""

    accept: Tensor
    """[m, ranks]; the chance of each child, given that all before it were rejected; 0 if there is no child."""
    cut: Tensor
    """[m]; when every child was rejected, the rest of the target's distribution is proportional to max(p - cut q, 0)."""
    weight: Tensor
    """[m]; the weight that is left when every child was rejected."""


def residual_chain(p: Tensor, q: Tensor, tokens: Tensor, active: Sequence[int], weight: Tensor | None, *, replacement: bool) -> Chain:
    """Run the chains of m nodes side by side, rank by rank.

    `p`, `q` [m, vocabulary]: the target's and the draft's distribution, each row summing to 1; `tokens` int64 [m, ranks]:
    the children, distinct if drawn without replacement; `active[k]`: how many of the first nodes have a child of rank k;
    `weight` [m] in [0, 1], None for all 1. Float32 or float64; the results have the same dtype. Drawn with replacement, a child of
    draft probability 0 is never accepted and changes nothing; see above for the other case. No host synchronisation.
    """
    chance, drafted = p.gather(1, tokens), q.gather(1, tokens)
    mass = q.sum(-1, keepdim=True) if replacement else _mass_left(q, drafted, tokens, active)
    left = mass.where(drafted > 0, 0.0).expand_as(chance)
    chosen = (drafted <= 0) & (not replacement)
    p, taken = p.clone(), -chance.where(chosen, 0.0)  # what a chosen child has is taken out when it is rejected
    cut, above = p.new_zeros(p.shape[0]), p.sum(-1)
    weight = None if weight is None else weight.clone()
    cuts, steps, shares = torch.zeros_like(chance), torch.zeros_like(chance), torch.zeros_like(chance)
    for rank, rows in enumerate(active):
        spent = left[:rows, rank] if weight is None else left[:rows, rank] * weight[:rows]
        step = above[:rows] / spent
        step = step.where((spent > 0) & (step < torch.inf), 0.0)  # a child of less than any float's chance is passed over: nothing changes
        cuts[:rows, rank], steps[:rows, rank] = cut[:rows], step
        share = chance[:rows, rank] / above[:rows]
        shares[:rows, rank] = share if weight is None else share * weight[:rows]
        p[:rows].scatter_add_(1, tokens[:rows, rank, None], taken[:rows, rank, None])
        further = cut[:rows] + step
        remaining = torch.addcmul(p[:rows], q[:rows], further[:, None], value=-1).clamp_min_(0).sum(-1)
        if weight is not None:
            surplus = weight[:rows] * remaining / above[:rows]
            whole = surplus + (1 - weight[:rows])
            weight[:rows] = (surplus / whole).where(whole > 0, weight[:rows])
        goes_on = remaining > 0  # where nothing remains, rejection had no chance but rounding's
        cut[:rows] = further.where(goes_on, cut[:rows])
        above[:rows] = remaining.where(goes_on, above[:rows])
    accept = ((chance / drafted - cuts) / steps).where(steps > 0, shares.where(chosen, 0.0)).clamp(0, 1)
    return Chain(accept, cut, torch.ones_like(cut) if weight is None else weight)


def _mass_left(q: Tensor, drafted: Tensor, tokens: Tensor, active: Sequence[int]) -> Tensor:
    """Return q's mass without the children before each, [m, ranks]. It only adds, so a small rest of a sharp draft stays exact."""
    there = torch.ones_like(tokens, dtype=torch.bool)
    for rank, rows in enumerate(active):
        there[rows:, rank].fill_(False)
    others = q.scatter(1, tokens.where(there, tokens[:, :1]), 0.0).sum(-1, keepdim=True)
    return others + drafted.where(there, 0.0).flip(1).cumsum(1).flip(1)
