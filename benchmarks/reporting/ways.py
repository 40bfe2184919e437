"""Drafting rules with their verifiers, as tables call them."""

from treespec.decoding.drafting import Drafting
from treespec.decoding.rules import Sampling

MATCHING = "matching"


def verifier_of(rule: str, verifier: str, temperature: float, draft_temperature: float | None = None) -> str:
    """Return the verifier that decides, by the engine's own rule: matching, whatever the setting says, for children that were not sampled.

    >>> verifier_of("topk", "sequential", 1.0), verifier_of("swor", "sequential", 1.0), verifier_of("swor", "traversal", 0.0)
    ('matching', 'sequential', 'matching')
    """
    return verifier if Drafting(rule, draft_temperature, verifier).samples(Sampling(temperature)) else MATCHING


def way_name(way: str, temperatures: list[float]) -> str:
    """Return what a column calls a rule and verifier: by the verifier that decides at all temperatures but 0, where it may be matching.

    >>> way_name("swor traversal", [0.0, 1.0]), way_name("topk sequential", [0.0, 1.0])
    ('`swor`, traversal', '`topk`, matching')
    """
    rule, verifier = way.split()
    return f"`{rule}`, {verifier_of(rule, verifier, max(temperatures))}"
