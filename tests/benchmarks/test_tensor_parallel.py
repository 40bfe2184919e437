"""The model of a divided target is what it says: nothing is joined by one process, and what N does not divide stays."""

import pytest

from benchmarks.tensor_parallel import MEASURED, Link, Target, divided_seconds, measured, predictions, profile_of
from treeopt.profiles.latency_model import LatencyModel

ONE = LatencyModel(
    context=8,
    target=((1, 0.010), (4, 0.012), (8, 0.020)),
    draft=((1, 0.001), (4, 0.002)),
    overhead_seconds=0.0005,
    autoregressive_overhead_seconds=0.0002,
)
SMALL = Target(layers=3, width=10, vocabulary=100)
LINK = Link(launch_seconds=1e-5, hop_seconds=1e-6, bytes_per_second=1e6)


def test_a_pass_is_its_fixed_part_a_share_of_the_rest_and_what_is_joined() -> None:
    """By hand: 2 processes, 4 tokens, 3 layers of 10 numbers, 100 tokens of logits, 2 bytes each."""
    states, logits = 4 * 10 * 2, 4 * 100 * 2
    reduce = 1e-5 + 2 * (1e-6 + states / 2 / 1e6)
    gather = 1e-5 + 1 * (1e-6 + logits / 2 / 1e6)
    wanted = 0.002 + (0.012 - 0.002) / 2 + 6 * reduce + gather
    assert divided_seconds(4, ONE, 0.002, 2, SMALL, LINK) == pytest.approx(wanted)
    assert divided_seconds(3, ONE, 0.002, 1, SMALL, LINK) == pytest.approx(0.012), "the next larger measured size, and nothing to join"


def test_prompts_share_a_pass() -> None:
    profile = profile_of(ONE, 0.002, 1, 2, SMALL, LINK)
    assert [sample.nodes for sample in profile.target] == [1, 4]
    assert [sample.median_seconds for sample in profile.target] == pytest.approx([0.012, 0.020])
    assert [sample.nodes for sample in profile.draft] == [1], "two prompts with levels of 4 nodes are beyond the measured widths"


def test_a_link_without_cost_divides_all_but_the_fixed_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.tensor_parallel.PROMPTS", (1, 4))
    free = Link(0.0, 0.0, 1e30)
    rows = predictions(ONE, 0.008, (0.6, 0.2), SMALL, free)
    alone = {row["processes"]: row["token_seconds"] for row in rows if row["prompts"] == 1}
    for processes, seconds in alone.items():
        assert seconds == pytest.approx(0.002 + 0.008 / processes + 0.0002)
    assert all(row["over_one_process"] >= 1 for row in rows)


def test_the_measured_times_of_one_gpu_are_read() -> None:
    model, weights, chances, known = measured(MEASURED)
    assert model.largest_size >= 512
    assert 0 < weights < model.target_seconds(1)
    assert 0.5 < chances[0] < 1
    assert known["gpu"] == "NVIDIA H200"
