"""BudgetGrid: the budgets of dynamic trees whose steps are counted on the texts of an acceptance profile. No torch, and nothing heavy at import."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from treespec.checks import require_whole
from treespec.errors import SettingsError, counted
from treespec.trees.limits import MAX_SIZE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class BudgetGrid:
    """The budgets to measure: level widths, each with every depth up to `max_depth` and every size up to `max_size`.

    One growth of a width and of the largest depth holds the trees of all depths and sizes, so these cost nothing more; every width is grown by itself.
    """

    widths: tuple[int, ...] = (2, 4, 8, 16)
    max_depth: int = 8
    max_size: int = 64

    def __post_init__(self) -> None:
        require_whole(1, max_depth=self.max_depth)
        require_whole(2, max_size=self.max_size)
        if not self.widths or any(type(width) is not int or width < 1 for width in self.widths):
            raise SettingsError(f"`widths` is {','.join(map(str, self.widths)) or 'empty'}, but it needs whole numbers of 1 or more")
        if len(set(self.widths)) < len(self.widths):
            raise SettingsError(f"`widths` is {','.join(map(str, self.widths))}, but each is measured once; name each once")
        if 1 + self.max_depth * max(self.widths) > MAX_SIZE or self.max_size > MAX_SIZE:
            raise SettingsError(
                f"`max_size` is {self.max_size}, and {counted(self.max_depth, 'level')} of width {max(self.widths)} have "
                f"{counted(1 + self.max_depth * max(self.widths), 'node')}, but trees have at most {MAX_SIZE}; pass smaller ones"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return the number of widths, depths and sizes; depth d has index d - 1, and so has a size."""
        return len(self.widths), self.max_depth, self.max_size

    def of_vocabulary(self, vocabulary: int) -> "BudgetGrid":
        """Return the grid without the widths that a vocabulary has too few tokens for. Raises SettingsError if none is left."""
        kept = tuple(width for width in self.widths if width <= vocabulary)
        if not kept:
            raise SettingsError(
                f"`widths` begins with {min(self.widths)}, but the vocabulary has {counted(vocabulary, 'token')}; pass {vocabulary} or less"
            )
        return BudgetGrid(kept, self.max_depth, self.max_size)

    def of_levels(self, levels: int) -> "BudgetGrid":
        """Return the grid without the depths that a head which proposes so many levels at once cannot draft."""
        return BudgetGrid(self.widths, min(self.max_depth, levels), self.max_size)

    @cached_property
    def met(self) -> "NDArray[np.bool_]":
        """bool [widths, depths, sizes]; whether some tree meets the budget: it has a node on each level, and no level has more than its width."""
        import numpy as np

        width = np.array(self.widths)[:, None, None]
        depth, size = np.arange(1, self.max_depth + 1)[:, None], np.arange(1, self.max_size + 1)
        found: NDArray[np.bool_] = (size > depth) & (size <= 1 + depth * width)
        return found
