"""Verifiers, which find the last accepted node and the token after it from the target's logits. One table has them all, by name.

Importing the table imports no torch; the module of a verifier is imported when the verifier is made.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from treespec.errors import SettingsError

if TYPE_CHECKING:
    from treespec.decoding.verifiers.base import Verifier
    from treespec.trees.tree import SpeculationTree


MATCHING = "matching"
"""The verifier of children that are not sampled, whichever is asked for."""
NO_CHAIN, FAMILY, PATH = "none", "family", "path"
"""Chains that a verifier walks one link after the other, so that its time grows with the longest: none, the children of a node (all nodes side by
side), or those of all nodes on a path from the root."""


@dataclass(frozen=True)
class VerifierEntry:
    """The entry of a verifier in the table."""

    make: "Callable[[], Verifier]"
    help: str
    """A phrase for a help text."""
    sampled: bool = False
    """Whether it needs sampled children."""
    distinct: bool = False
    """Whether it needs distinct siblings, which sampling with replacement does not guarantee."""
    chain: str = NO_CHAIN
    """The chain that it walks one link after the other: `NO_CHAIN`, `FAMILY` or `PATH`. Latency profiles fit its time to that."""


def _matching() -> "Verifier":
    from treespec.decoding.verifiers.matching import Matching

    return Matching()


def _sequential() -> "Verifier":
    from treespec.decoding.verifiers.sequential import Sequential

    return Sequential()


def _traversal() -> "Verifier":
    from treespec.decoding.verifiers.traversal import Traversal

    return Traversal()


VERIFIERS: dict[str, VerifierEntry] = {
    "sequential": VerifierEntry(_sequential, "sampled children from the root down", chain=FAMILY),
    MATCHING: VerifierEntry(_matching, "distinct children by the target's own choice", distinct=True),
    "traversal": VerifierEntry(_traversal, "sampled children from the leaves up", sampled=True, chain=PATH),
}
"""The verifiers by name; the first one is the default. Add a verifier by one assignment."""


def verifier_named(name: str) -> VerifierEntry:
    """Return the verifier with this name. Raises SettingsError for a name that is not registered."""
    if str(name) not in VERIFIERS:
        raise SettingsError(f"`verifier` is {name!r}, but it must be one of {', '.join(VERIFIERS)}")
    return VERIFIERS[name]


AT_LEAST_SEQUENTIAL = ("sequential", "traversal")
"""The verifiers whose tokens per step acceptance profiles of sampled children say: those profiles hold the shares of `sequential` acceptance."""


def traversal_note(verifier: str, tree: "SpeculationTree") -> str | None:
    """Return what the tokens per step of a tree are that were predicted by sequential acceptance, if `verifier` is traversal; else None.

    Traversal accepts no less where the subtrees of elder siblings contain those of younger ones. Trees without a second child need no words.
    """
    if verifier != "traversal" or tree.max_branch < 2:
        return None
    than = "below which traversal does not fall on this tree" if tree.nested else "and traversal accepts more on most trees, but not on all"
    return f"those of sequential acceptance, {than}"
