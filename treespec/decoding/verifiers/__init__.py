"""Verifiers, which find the last accepted node and the token after it from the target's logits. One table has them all, by name.

Importing the table imports no torch; the module of a verifier is imported when the verifier is made.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from treespec.decoding.verifiers.base import Verifier


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
