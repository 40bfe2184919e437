"""Drafters, each of which proposes a tree of tokens for a step. One table has them all, under the names that plans give.

Importing the table imports no torch; the module of a drafter is imported when the drafter is made.
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
"""The functions that make the drafter of a plan, by name. Add a drafter by one assignment. They raise SettingsError, ModelError."""
