"""The linearised ratio estimator against the plain mean and the jackknife."""

import numpy as np
import pytest

from treeopt.profiles.ratio import ratio


def test_with_equal_counts_it_is_the_mean_of_means() -> None:
    rows = np.random.default_rng(0).normal(3, 1, (12, 4))
    mean, error = ratio(5 * rows, [5] * 12)
    assert error is not None
    assert np.allclose(mean, rows.mean(0))
    assert np.allclose(error, rows.std(0, ddof=1) / np.sqrt(12))


def test_with_unequal_counts_the_error_is_close_to_the_jackknifes() -> None:
    random = np.random.default_rng(1)
    counts = random.integers(5, 40, 300)
    sums = (random.normal(1, 0.3, 300) * counts)[:, None]
    mean, error = ratio(sums, counts.tolist())
    left_out = (sums.sum(0) - sums[:, 0]) / (counts.sum() - counts)
    jackknife = np.sqrt(299 / 300 * ((left_out - left_out.mean()) ** 2).sum())
    assert mean[0] == pytest.approx(sums.sum() / counts.sum())
    assert error is not None
    assert error[0] == pytest.approx(jackknife, rel=0.02)


def test_one_prompt_has_no_error_and_empty_prompts_add_nothing_to_the_mean() -> None:
    mean, error = ratio(np.array([[2.0]]), [4])
    assert (mean[0], error) == (0.5, None)
    mean, error = ratio(np.array([[2.0], [0.0], [6.0]]), [4, 0, 4])
    assert mean[0] == 1.0
    assert error is not None
    assert error[0] > 0
