"""The figures of an evaluation by category: one set for the prompts of every category that a data set names. No torch."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treespec.evaluation import figures
from treespec.tables import Table, number

_FIGURES = {"tokens_per_step": figures.tokens_per_step, "speedup": figures.speedup}


def by_category(categories: Sequence[str], columns: Mapping[str, NDArray[np.float64]]) -> list[dict[str, Any]]:
    """Return the figures of each category, in the order in which they come; none if no prompt has a category.

    `categories` has the category of each prompt, "" for none; `columns` [prompts] are those of `figures`. Intervals are 95 % bootstrap intervals
    over the prompts of the category.
    """
    if not any(categories):
        return []
    found = []
    for name in dict.fromkeys(categories):
        own = {key: column[np.array([category == name for category in categories])] for key, column in columns.items()}
        found.append(
            {
                "category": name,
                "prompts": len(own["steps"]),
                "tokens": int(own["tokens"].sum()) + len(own["steps"]),
                "steps": int(own["steps"].sum()),
                **{key: figures.figure_of(own, figure) for key, figure in _FIGURES.items()},
                "intervals_95": {key: figures.interval_of(own, figure) for key, figure in _FIGURES.items()},
            }
        )
    return found


def category_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Draw the figures of each category, a row each."""
    shown = [
        (
            row["category"] or "-",
            str(row["prompts"]),
            f"{row['tokens']:,}",
            *(number(row[key], 3, row["intervals_95"][key]) for key in _FIGURES),
        )
        for row in rows
    ]
    columns = ("category", "prompts", "tokens", "tokens/step", "speed-up")
    return Table("by category, with 95 % intervals over prompts", columns, shown, left=("category",))
