"""Means per position of sums over prompts, with errors that treat prompts, not positions, as the independent units."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Estimate:
    """A mean per position, its standard error and 95 % interval (Student's t) over prompts; None with fewer than two prompts."""

    mean: float
    standard_error: float | None
    interval_95: tuple[float, float] | None

    def to_json(self) -> dict[str, Any]:
        """Return the estimate as plain data."""
        interval = None if self.interval_95 is None else list(self.interval_95)
        return {"mean": self.mean, "standard_error": self.standard_error, "interval_95": interval}


def estimate(sums: ArrayLike, counts: Sequence[float]) -> Estimate:
    """Return the estimate of one mean from its sum and its count in every prompt, both [prompts]. See `ratio`."""
    mean, error = ratio(np.asarray(sums, dtype=np.float64)[:, None], counts)
    if error is None:
        return Estimate(float(mean[0]), None, None)
    from scipy.special import stdtrit

    reach = float(stdtrit(len(counts) - 1, 0.975)) * float(error[0])
    return Estimate(float(mean[0]), float(error[0]), (float(mean[0]) - reach, float(mean[0]) + reach))


def ratio(sums: NDArray[np.float64], counts: Sequence[float]) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
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


def ratio_difference(sums: ArrayLike, counts: Sequence[int], other_sums: ArrayLike, other_counts: Sequence[int]) -> float:
    """Return the standard error of the difference of two means per position that were measured on the same prompts, two or more.

    All are [prompts]. What a prompt adds to the one mean is held against what it adds to the other, as `ratio` linearises them, so what
    makes a prompt easy or hard for both does not count.
    """
    return error_of(effects(sums, counts) - effects(other_sums, other_counts))


def effects(sums: ArrayLike, counts: Sequence[int]) -> NDArray[np.float64]:
    """Return what each prompt adds to the error of a mean per position, [prompts], from its sum and its count in every prompt.

    That is its part of the linearised ratio (see `ratio`). Those of several means on the same prompts may be added up, each times a weight.
    """
    column, positions = np.asarray(sums, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    parts: NDArray[np.float64] = (column - positions * (column.sum() / positions.sum())) / positions.sum()
    return parts


def error_of(parts: NDArray[np.float64]) -> float:
    """Return the standard error of a figure from what each of two or more prompts adds to its error, [prompts]."""
    return float(np.sqrt(len(parts) / (len(parts) - 1) * (parts**2).sum()))
