"""RowCounts: the numbers of rows to which captured passes of many rows are padded.

cuBLAS chooses other tiles for other numbers of rows, and not always well: on an H200, with the shapes of Llama-2-7B, a pass over 216 rows takes
longer than one over 224. Which numbers are slow depends on the shapes, the GPU and cuBLAS, so the products themselves are timed, once for each
number that is asked for. A padded pass computes the rows that it has as before, and rows of no meaning behind them.
"""

from collections.abc import Callable, Sequence

import torch

LARGEST_PADDED = 512
"""Passes of more rows are never padded."""
_MULTIPLE, _REACH = 8, 40
"""Larger numbers of rows are tried that are multiples of the one and at most the other above."""
_WORTH = 0.975
"""A larger number is taken if its products take at most this part of the seconds."""
_SAME = 1.005
"""The smallest of the numbers within this factor of the fastest is taken."""


class RowCounts:
    """The number of rows that is computed for each number that is asked for. `seconds` times the products for several numbers of rows."""

    def __init__(self, seconds: Callable[[Sequence[int]], list[float]]) -> None:
        self._seconds = seconds
        self._chosen: dict[int, int] = {}

    def of(self, rows: int) -> int:
        """Return the number of rows to compute, at least `rows`. It is timed at the first call; while a graph is captured, it is `rows` then."""
        if rows > LARGEST_PADDED:
            return rows
        if rows not in self._chosen:
            if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
                return rows
            self._chosen[rows] = self._fastest(rows)
        return self._chosen[rows]

    def _fastest(self, rows: int) -> int:
        counts: list[int] = [rows, *range((rows // _MULTIPLE + 1) * _MULTIPLE, rows + _REACH + 1, _MULTIPLE)]
        seconds = self._seconds(counts)
        limit = min(seconds) * _SAME
        if limit > seconds[0] * _WORTH:
            return rows
        return counts[next(place for place, taken in enumerate(seconds) if taken <= limit)]
