"""Intervals hold the truth as often as they say: medians by exact counting, means and quotients by drawing, bursts of samples beside other work."""

import math
import statistics

import numpy as np
import pytest

from treeopt.profiles.intervals import FEWEST, Uncertain, of_mean, of_median, quotient
from treeopt.profiles.samples import BURST, LatencySample, interval_of


@pytest.mark.parametrize("samples", [*range(FEWEST, 40), 999, 1001, 4000])
def test_the_ends_are_as_close_as_95_of_100_allow(samples: int) -> None:
    """The k-th smallest is above the median if fewer than k samples are below it: k - 1 heads in n tosses or fewer."""
    low, high = of_median(range(samples)) or (0, 0)
    assert low == samples - 1 - high
    missed = 2 * sum(math.comb(samples, below) for below in range(int(low) + 1)) / 2**samples
    closer = missed + 2 * math.comb(samples, int(low) + 1) / 2**samples
    assert missed <= 0.05 + (1e-3 if samples > 1000 else 0)
    assert closer > 0.05 - (1e-3 if samples > 1000 else 0)


def test_fewer_samples_have_no_interval() -> None:
    assert of_median(range(FEWEST - 1)) is None
    assert interval_of([1.0] * (FEWEST * BURST - 1)) is None
    assert interval_of([1.0] * (FEWEST * BURST)) == (1.0, 1.0)
    assert LatencySample(1, 8, (1.0,) * 4).summary("size")["interval_95"] is None


def test_a_busy_neighbour_slows_whole_bursts_and_the_interval_knows() -> None:
    """Other work comes and goes slower than samples follow one another: taken for independent, they look far too certain."""
    random = np.random.default_rng(0)
    held = {"bursts": 0, "samples": 0}
    for _ in range(400):
        busy = random.random(10).repeat(BURST) < 0.4
        seconds = (1 + 0.02 * random.standard_normal(10 * BURST)) * np.where(busy, 1.5, 1.0)
        bursts, samples = interval_of(seconds.tolist()), of_median(seconds.tolist())
        assert bursts is not None
        assert samples is not None
        truth = 1.0175  # with a share of 0.6 around 1, the median of all is its quantile at 5 / 6
        held["bursts"] += bursts[0] <= truth <= bursts[1]
        held["samples"] += samples[0] <= truth <= samples[1]
        assert bursts[0] <= statistics.median(seconds) <= bursts[1]
    assert held["bursts"] >= 0.93 * 400
    assert held["samples"] < 0.85 * 400


def test_means_are_wider_where_there_are_few_prompts() -> None:
    widths = [high - low for low, high in (of_mean(2.0, 0.1, units) for units in (2, 5, 1000, 0))]
    assert widths == pytest.approx([2 * 1.27062, 2 * 0.277645, 2 * 0.196234, 2 * 0.196], rel=1e-4)  # Student's t by a table


def test_quotients_hold_the_truth_and_each_end_counts_by_itself() -> None:
    random, held = np.random.default_rng(1), 0
    for _ in range(2000):
        errors = 0.05 * random.standard_normal(3)
        ends = [Uncertain(math.exp(e), math.exp(e - 0.098), math.exp(e + 0.098)) for e in errors]
        found = quotient(ends[:2], ends[2:])
        held += found.low <= 1 <= found.high
    assert 0.93 <= held / 2000 <= 0.97
    skewed = quotient([Uncertain(2.0, 1.0, 2.0)], [Uncertain(4.0, 4.0, 4.0)])
    assert (skewed.low, skewed.value, skewed.high) == pytest.approx((0.25, 0.5, 0.5))
