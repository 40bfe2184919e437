"""DynamicAcceptance: the steps that dynamic trees of many budgets take on the texts of an acceptance profile, prompt by prompt. No torch."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treeopt.profiles.ratio import Estimate, estimate
from treespec.checks import require_whole
from treespec.decoding.plans import DynamicBudget
from treespec.errors import ProfileError, SettingsError, counted
from treespec.files.columns import column, column_text
from treespec.files.fields import counts, mapping, natural
from treespec.trees.limits import MAX_SIZE

_MOST_NUMBERS = 1 << 26
"""Most numbers that a grid of budgets may have for all prompts together."""


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

    @cached_property
    def met(self) -> NDArray[np.bool_]:
        """bool [widths, depths, sizes]; whether some tree meets the budget: it has a node on each level, and no level has more than its width."""
        width = np.array(self.widths)[:, None, None]
        depth, size = np.arange(1, self.max_depth + 1)[:, None], np.arange(1, self.max_size + 1)
        found: NDArray[np.bool_] = (size > depth) & (size <= 1 + depth * width)
        return found


@dataclass(frozen=True, eq=False)
class DynamicAcceptance:
    """The steps of dynamic trees on known texts: exactly those of decoding these texts with them, but for rounding.

    `tokens[i]` tokens of prompt i came with steps (all but its first). Raises ProfileError.
    """

    grid: BudgetGrid
    tokens: tuple[int, ...]
    steps: NDArray[np.uint32]
    """uint32 [widths, depths, sizes, prompts]; 0 for budgets that no tree meets."""

    def __post_init__(self) -> None:
        if self.steps.shape != (*self.grid.shape, len(self.tokens)):
            raise ProfileError(f"dynamic has steps of shape {self.steps.shape}, not {(*self.grid.shape, len(self.tokens))}; profile again")
        own, tokens = self.steps[self.grid.met], np.array(self.tokens, dtype=np.int64)
        depth = np.broadcast_to(np.arange(1, self.grid.max_depth + 1)[:, None], self.grid.shape)[self.grid.met]
        sound = (own <= tokens) & (own * (depth[:, None] + 1) >= tokens)
        if not sound.all():
            place = int(np.argmin(sound.all(axis=1)))
            raise ProfileError(
                f"dynamic has steps of depth {depth[place]} that cannot make {tokens.sum()} tokens: a step makes 1 to depth + 1; profile again"
            )

    def budgets(self) -> Iterator[DynamicBudget]:
        """Yield the budgets that some tree meets, by width, depth and size."""
        for width, depth, size in np.argwhere(self.grid.met).tolist():
            yield DynamicBudget(size + 1, depth + 1, self.grid.widths[width])

    def steps_of(self, budget: DynamicBudget) -> NDArray[np.uint32]:
        """Return the steps of each prompt, uint32 [prompts]. Raises ProfileError for a budget that was not measured."""
        grid = self.grid
        if budget.width not in grid.widths or budget.depth > grid.max_depth or budget.size > grid.max_size:
            raise ProfileError(
                f"dynamic trees of {budget.size} nodes, depth {budget.depth} and width {budget.width} were not measured, only widths "
                f"{', '.join(map(str, grid.widths))}, depths up to {grid.max_depth} and sizes up to {grid.max_size}; profile with these"
            )
        found: NDArray[np.uint32] = self.steps[grid.widths.index(budget.width), budget.depth - 1, budget.size - 1]
        return found

    def tokens_per_step(self, budget: DynamicBudget) -> Estimate | None:
        """Return the tokens of a step, with the error over prompts; None without a step."""
        steps = self.steps_of(budget)
        return estimate(self.tokens, steps.tolist()) if steps.any() else None

    def to_json(self) -> dict[str, Any]:
        """Return the entry of the profile's file."""
        return asdict(self.grid) | {
            "widths": list(self.grid.widths),
            "prompt_tokens": list(self.tokens),
            "prompt_steps": column_text(self.steps, "<u4"),
        }


def dynamic_acceptance_of(value: Any) -> DynamicAcceptance:
    """Return the entry of a profile's file. Raises LookupError, TypeError, ValueError, ProfileError."""
    found = mapping(value)
    try:
        grid = BudgetGrid(counts(found["widths"]), natural(found["max_depth"]), natural(found["max_size"]))
    except SettingsError as e:
        raise ValueError(str(e)) from e
    tokens = counts(found["prompt_tokens"])
    length = int(np.prod(grid.shape)) * len(tokens)
    if length > _MOST_NUMBERS:
        raise ValueError(f"its grid has {length:,} numbers, above the limit of {_MOST_NUMBERS:,}")
    return DynamicAcceptance(grid, tokens, column("<u4", length, found["prompt_steps"]).reshape(*grid.shape, len(tokens)))
