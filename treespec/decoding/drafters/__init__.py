"""Drafters: each proposes a tree of tokens for a step. One table has them all, by the name that a `Plan` gives.

Importing the table imports no torch; a drafter's module is imported when it is made.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from treespec.decoding.drafters.base import Drafter, DrafterSetup
    from treespec.decoding.plans import DynamicBudget
    from treespec.trees.tree import SpeculationTree


def _tree(plan: "SpeculationTree", setup: "DrafterSetup") -> "Drafter":
    from treespec.decoding.drafters.static import StaticDrafter

    return StaticDrafter(plan, setup)


def _dynamic(plan: "DynamicBudget", setup: "DrafterSetup") -> "Drafter":
    from treespec.decoding.drafters.dynamic import DynamicDrafter

    return DynamicDrafter(plan, setup)


DRAFTERS: "dict[str, Callable[[Any, DrafterSetup], Drafter]]" = {"tree": _tree, "dynamic": _dynamic}
"""Makes the drafter of a plan. A new one is added by one assignment; its plan names it. They raise SettingsError, ModelError."""
