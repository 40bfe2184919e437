"""Drafters: each proposes a tree of tokens for a step. One table has them all, by the name that a `Plan` gives.

Importing the table imports no torch; a drafter's module is imported when it is made.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from treespec.errors import SettingsError

if TYPE_CHECKING:
    from treespec.decoding.drafters.base import Drafter
    from treespec.decoding.drafting import Drafting
    from treespec.decoding.plans import DynamicBudget
    from treespec.decoding.protocol import SlotModel
    from treespec.decoding.rules import Sampling
    from treespec.trees.tree import SpeculationTree

Given = TypeVar("Given")


def _tree(draft: "SlotModel | None", plan: "SpeculationTree", vocabulary: int, sampling: "Sampling", drafting: "Drafting") -> "Drafter":
    from treespec.decoding.drafters.static import StaticDrafter

    return StaticDrafter(require_draft(draft), plan, vocabulary, sampling, drafting)


def _dynamic(draft: "SlotModel | None", plan: "DynamicBudget", vocabulary: int, sampling: "Sampling", drafting: "Drafting") -> "Drafter":
    from treespec.decoding.drafters.dynamic import DynamicDrafter

    return DynamicDrafter(require_draft(draft), plan, vocabulary, sampling, drafting)


def require_draft(draft: Given | None) -> Given:
    """Return the draft model of a tree, or its name. Raises SettingsError where none is given."""
    if draft is None:
        raise SettingsError("a tree needs a draft model; pass `draft`, or decode with the target alone")
    return draft


DRAFTERS: "dict[str, Callable[[SlotModel | None, Any, int, Sampling, Drafting], Drafter]]" = {"tree": _tree, "dynamic": _dynamic}
"""Makes a drafter from (the draft model, the plan, how many tokens may be proposed, the target's sampling, the drafting setting).

A new one is added by one assignment; its plan names it.
"""
