"""LevelSums: what each prompt adds to the chances of one level of a head. No torch."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treeopt.profiles.ratio import effects
from treespec.errors import ProfileError, counted
from treespec.files.fields import counts, listed, mapping, rows


@dataclass(frozen=True)
class LevelSums:
    """The sums of each rank's probabilities over the positions of each prompt, at one level below the roots.

    `sums[i][k]` belongs to rank k of prompt i, which has `positions[i]` positions: none if its text is too short for the level. Raises ProfileError.
    """

    sums: tuple[tuple[float, ...], ...]
    positions: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.sums) != len(self.positions) or not all(
            len(row) == len(self.sums[0]) and all(map(math.isfinite, row)) for row in self.sums
        ):
            raise ProfileError("the sums of a level must hold one finite sum of each rank for each prompt; profile again")
        if min(self.positions, default=0) < 0 or not sum(self.positions):
            raise ProfileError(
                f"the positions of a level are {self.positions!r:.40}, but they must be 0 or more, and not all 0; profile again"
            )

    @property
    def chances(self) -> tuple[float, ...]:
        """The chance of each rank."""
        return tuple((np.sum(self.sums, axis=0) / sum(self.positions)).tolist())

    def effects(self, weights: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """Return what each prompt adds to the sum of the chances times `weights` [ranks], [prompts]; see `treeopt.profiles.ratio.effects`.

        None if fewer than two prompts reach the level: nothing then tells how far the chances are off.
        """
        if sum(count > 0 for count in self.positions) < 2:
            return None
        return effects(np.array(self.sums) @ weights, self.positions)

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {"sums": [list(row) for row in self.sums], "positions": list(self.positions)}


def levels_of(value: Any) -> tuple[LevelSums, ...]:
    """Return a list of what `LevelSums.to_json` gave. Raises LookupError, TypeError, ValueError, ProfileError."""
    return tuple(LevelSums(rows(one["sums"]), counts(one["positions"])) for one in map(mapping, listed(value)))


def require_levels(deeper: tuple[LevelSums, ...], by_depth: tuple[tuple[float, ...], ...] | None, prompts: int) -> None:
    """Raise ProfileError for levels that do not belong to chances by depth, whose first row is of the level above them, or to so many prompts.

    Behind the last level there may be a row of zeros: nothing is proposed there.
    """
    if not deeper:
        return
    rows_below = len(by_depth or ()) - 1
    if by_depth is None or not (len(deeper) == rows_below or (len(deeper) == rows_below - 1 and not any(by_depth[-1]))):
        raise ProfileError(
            f"deeper has {counted(len(deeper), 'level')}, but by_depth {counted(max(0, rows_below), 'row')} below the first; give one for each row, or none"
        )
    for depth, level in enumerate(deeper, start=1):
        if len(level.sums) != prompts or len(level.sums[0]) != len(by_depth[0]):
            raise ProfileError(
                f"deeper[{depth - 1}] must hold one sum for each of {counted(len(by_depth[0]), 'rank')} and {counted(prompts, 'prompt')}"
            )
