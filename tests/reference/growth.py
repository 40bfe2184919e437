"""A dynamic tree grown one node at a time, in dictionaries."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Ranked = Callable[[tuple[int, ...]], list[tuple[int, float]]]
"""Tokens from the root on -> the draft's most likely next tokens with their log-probabilities, best first."""


@dataclass(frozen=True)
class Node:
    path: tuple[int, ...]
    """Tokens from below the root."""
    rank: int
    """Among the children that the draft proposed for its parent."""
    value: np.float32
    """Log-probability of the path."""


def grow(ranked: Ranked, root: int, size: int, depth: int, width: int) -> list[Node]:
    """The nodes kept, level by level; of equal values, the one that was found first is kept."""
    level = [Node((), 0, np.float32(0))]
    drafted = list(level)
    for _ in range(depth):
        below = [
            Node((*node.path, token), rank, np.float32(node.value + np.float32(chance)))
            for node in level
            for rank, (token, chance) in enumerate(ranked((root, *node.path))[:width])
        ]
        level = sorted(below, key=lambda node: -node.value)[:width]  # sorted() is stable
        drafted += level
    best = {id(node) for node in sorted(drafted, key=lambda node: -node.value)[:size]}
    return [node for node in drafted if id(node) in best]
