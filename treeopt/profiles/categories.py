"""Acceptance by category: the chances of each rank on the prompts of every category that a data set names. No torch."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from treeopt.profiles.ratio import ratio


def by_category(categories: Sequence[str], sums: Sequence[Sequence[float]], positions: Sequence[int]) -> list[dict[str, Any]]:
    """Return the figures of each category, in the order in which they come: its prompts, its positions, and the chance of each rank.

    `categories` has the category of each prompt, "" for none; `sums` and `positions` are `prompt_sums` and `prompt_positions` of an acceptance
    profile. Errors are over the prompts of the category, None with fewer than two; chances are None where there is no position.
    """
    found = []
    for name in dict.fromkeys(categories):
        own = [place for place, category in enumerate(categories) if category == name]
        counts = [positions[place] for place in own]
        chances, errors = (None, None) if not sum(counts) else ratio(np.array([sums[place] for place in own]), counts)
        found.append(
            {
                "category": name,
                "prompts": len(own),
                "positions": sum(counts),
                "rank_probability": None if chances is None else chances.tolist(),
                "standard_error": None if errors is None else errors.tolist(),
            }
        )
    return found
