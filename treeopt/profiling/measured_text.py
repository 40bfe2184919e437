"""MeasuredText: the figures that an acceptance profile has of one text, and how a journal keeps them."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treeopt.profiles.budget_grid import BudgetGrid
from treeopt.profiling.tracing import TracedRow
from treespec.files.columns import column, column_text
from treespec.files.fields import list_of_length, listed, mapping, natural, numbers


@dataclass(frozen=True)
class MeasuredText:
    """The sum over the positions of one text of the chance of each rank, the number of positions, and what else was asked."""

    sums: list[float]
    positions: int
    traced: TracedRow | None = None
    """The draft's ranks and probabilities of each token, for a trace."""
    grown: tuple[int, NDArray[np.uint32]] | None = None
    """The tokens, and the steps of dynamic trees, uint32 [widths, depths, sizes]."""
    deeper: tuple[tuple[list[float], int], ...] = ()
    """The sums and the number of positions of the levels of a head below the first, as far as the text is long enough for them."""

    def to_json(self) -> dict[str, Any]:
        """Return what was measured as a journal keeps it. What was not asked for has no key."""
        found: dict[str, Any] = {"sums": self.sums, "positions": self.positions}
        if self.traced is not None:
            found["traced"] = self.traced.to_json()
        if self.grown is not None:
            found["grown"] = [self.grown[0], column_text(self.grown[1], "<u4")]
        if self.deeper:
            found["deeper"] = [list(level) for level in self.deeper]
        return found

    @classmethod
    def from_json(cls, ranks: int, value: Any, *, tracing: bool, grid: BudgetGrid | None) -> "MeasuredText":
        """Return what `to_json` gave. Raises LookupError, TypeError, ValueError."""
        found = mapping(value)
        positions, traced, grown = natural(found["positions"]), None, None
        if tracing:
            traced = TracedRow.from_json(positions, found["traced"])
        if grid is not None:
            tokens, steps = list_of_length(2, found["grown"])
            grown = natural(tokens), column("<u4", math.prod(grid.shape), steps).reshape(grid.shape)
        levels = (list_of_length(2, level) for level in listed(found.get("deeper", [])))
        deeper = tuple((list(numbers(list_of_length(ranks, sums))), natural(count)) for sums, count in levels)
        return cls(list(numbers(list_of_length(ranks, found["sums"]))), positions, traced, grown, deeper)
