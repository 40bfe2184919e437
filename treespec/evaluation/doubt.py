"""The doubt that a draft belongs to its target: it hardly ever chooses what the target does. No torch.

Even a draft that only knows which tokens are frequent agrees on some 4 of 100 tokens of text. So the draft is doubted only where the
agreement is below 2 of 100 (below three times that of chance, in a tiny vocabulary) with a certainty of 99 %.
"""

import math

_WEAKEST, _MOST, _CHANCES = 0.02, 0.05, 3
_UNLIKELY = 0.01


def is_doubtful(agreed: float, positions: int, vocabulary: int) -> bool:
    """Return whether a draft agreed with the target's choice so rarely that it must be another model's.

    >>> is_doubtful(0, 512, 32_000), is_doubtful(0, 200, 32_000), is_doubtful(20, 512, 32_000)
    (True, False, False)
    """
    rate = min(_MOST, max(_WEAKEST, _CHANCES / vocabulary))
    count = round(agreed)
    if count >= rate * positions:
        return False
    terms = (
        math.lgamma(positions + 1)
        - math.lgamma(k + 1)
        - math.lgamma(positions - k + 1)
        + k * math.log(rate)
        + (positions - k) * math.log1p(-rate)
        for k in range(count + 1)
    )
    return math.fsum(map(math.exp, terms)) < _UNLIKELY
