"""One node's residual chain as the papers state it: a target that is reduced and a draft that loses tokens, in plain lists."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class PlainChain:
    accept: list[float]
    """Per child: its chance, given that all before it were rejected."""
    residual: list[float]
    """What the next token is drawn from after all children were rejected."""
    weight: float


def plain_chain(p: Sequence[float], q: Sequence[float], tokens: Sequence[int], weight: float, *, replacement: bool) -> PlainChain:
    """SpecInfer's and Sequoia's rule for weight 1; with a weight, traversal verification's rule for one node."""
    target, draft, accept = list(p), list(q), []
    for token in tokens:
        unlikely = draft[token] <= 0
        if weight <= 0 or (unlikely and replacement):
            accept.append(0.0)
            continue
        proposed = [float(i == token) for i in range(len(draft))] if unlikely else draft
        accept.append(min(1.0, weight * target[token] / proposed[token]))
        excess = [max(weight * t - d, 0.0) for t, d in zip(target, proposed, strict=True)]
        mass = sum(excess)
        if mass > 0:
            target = [e / mass for e in excess]
        if mass + 1 - weight > 0:
            weight = mass / (mass + 1 - weight)
        if not replacement:
            draft[token] = 0.0
            left = sum(draft)
            draft = [d / left for d in draft] if left > 0 else draft
    return PlainChain(accept, target, weight)
