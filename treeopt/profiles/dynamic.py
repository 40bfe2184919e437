"""DynamicAcceptance: the steps that dynamic trees of many budgets take on the texts of an acceptance profile, prompt by prompt. No torch."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treeopt.profiles.budget_grid import BudgetGrid
from treeopt.profiles.ratio import Estimate, estimate
from treespec.decoding.plans import DynamicBudget
from treespec.errors import ProfileError, SettingsError
from treespec.files.columns import column, column_text
from treespec.files.fields import counts, mapping, natural

_MOST_NUMBERS = 1 << 26
"""Most numbers that a grid of budgets may have for all prompts together."""


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
