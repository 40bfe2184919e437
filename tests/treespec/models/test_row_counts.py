"""The numbers of rows that captured passes are padded to."""

from collections.abc import Sequence

import pytest

from treespec.models.row_counts import LARGEST_PADDED, RowCounts


class Times:
    """Seconds by number of rows; each question is kept."""

    def __init__(self, slow: dict[int, float]) -> None:
        self.slow = slow
        self.asked: list[list[int]] = []

    def __call__(self, counts: Sequence[int]) -> list[float]:
        self.asked.append(list(counts))
        return [self.slow.get(count, 1 + count / 1e5) for count in counts]


@pytest.mark.parametrize(
    ("rows", "slow", "chosen"),
    [
        (216, {216: 1.1}, 224),
        (209, {209: 1.1, 216: 1.1, 224: 1.05}, 232),
        (210, {210: 1.02}, 210),  # too little to gain
        (200, {}, 200),
        (225, {225: 1.1, 232: 1.1, 240: 1.0005, 248: 1.0}, 240),  # the smallest of those that are as fast
        (190, dict.fromkeys(range(190, 400), 1.1), 190),  # nothing faster within reach
    ],
)
def test_a_slow_number_of_rows_becomes_the_next_fast_one(rows: int, slow: dict[int, float], chosen: int) -> None:
    assert RowCounts(Times(slow)).of(rows) == chosen


def test_each_number_is_timed_once() -> None:
    times = Times({100: 2.0})
    counts = RowCounts(times)
    assert [counts.of(100), counts.of(100), counts.of(104)] == [104, 104, 104]
    assert [asked[0] for asked in times.asked] == [100, 104]


def test_passes_of_many_rows_are_not_timed() -> None:
    times = Times({LARGEST_PADDED + 1: 9.0})
    assert RowCounts(times).of(LARGEST_PADDED + 1) == LARGEST_PADDED + 1
    assert not times.asked
