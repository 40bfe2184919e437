"""Means per position of sums over prompts, with errors that treat prompts, not positions, as the independent units."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def ratio(sums: NDArray[np.float64], counts: Sequence[int]) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    """Return the mean (sum of sums / sum of counts) of every column and its standard error, which is None with fewer than two prompts.

    `sums` float64 [prompts, columns], `counts` positions of each prompt, at least one in all. The error is that of the linearised
    ratio estimator (Cochran, Sampling Techniques, sec. 6.3): prompts of many positions weigh more.
    """
    weights = np.asarray(counts, dtype=np.float64)
    total, units = weights.sum(), len(weights)
    mean = sums.sum(0) / total
    if units < 2:
        return mean, None
    residual = sums - weights[:, None] * mean
    return mean, np.sqrt(units / (units - 1) * (residual**2).sum(0)) / total
