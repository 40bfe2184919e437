"""The plans whose steps a latency profile times: stars, chains, typical trees as an optimizer chooses them, and budgets of dynamic trees."""

from collections.abc import Sequence

import numpy as np

from treeopt.optimizer import best_first
from treespec.decoding.plans import DynamicBudget
from treespec.trees.tree import SpeculationTree

DEEPEST = 10
"""Depth of the deepest typical tree."""
SAMPLED_CHILDREN = 32
"""Most children of a node in trees of sampled children: kernels draw up to 64, and no optimizer wants more."""
_STEEP, _FLAT = (0.6, 0.35), (0.12, 0.95)
"""Acceptance rows p[k] = first * decay^k: of drafts whose first choice is often right, and of drafts that guess."""
_TYPICAL = (
    (2, 1, _STEEP),
    (8, 7, _STEEP),
    (12, 3, _FLAT),
    (16, 5, _STEEP),
    (33, 2, _FLAT),
    (32, 4, _STEEP),
    (64, 8, _STEEP),
    (128, 6, _STEEP),
)
"""Size, depth and row of the typical trees. One is a chain, others are bushy."""
_LARGEST, _LARGE = (512, DEEPEST, _STEEP), 128
"""The first is a size: where that or more is measured, the second is a typical tree too."""
_BUDGETS = ((4, 2), (12, 3), (24, 6), (64, 4), (64, 8), (128, 6))


def star(size: int) -> SpeculationTree:
    """Return a root with its children, `size` nodes in all."""
    return SpeculationTree.from_branches([[size - 1]] if size > 1 else [])


def level_of(width: int, *, sampled: bool) -> SpeculationTree:
    """Return a tree whose last level but one has `width` nodes, each with one child.

    Sampled children are drawn by families of no more than `SAMPLED_CHILDREN`: more are not typical, and may take another path.
    """
    if not sampled or width <= SAMPLED_CHILDREN:
        return SpeculationTree.k_chains(width, 2)
    first = min(SAMPLED_CHILDREN, -(-width // SAMPLED_CHILDREN) * 2)
    split = [width // first + (place < width % first) for place in range(first)]
    return SpeculationTree.from_branches([[first], split, [1] * width])


def typical_trees(sizes: Sequence[int], widest: int, vocabulary: int, deepest: int = DEEPEST) -> tuple[SpeculationTree, ...]:
    """Return typical trees of measured `sizes`, the largest up to 512 among them, with levels of at most `widest` nodes. None without sizes above 1.

    They have a depth of `deepest` at most.
    """
    found: dict[SpeculationTree, None] = {}
    for size, depth, row in (*_TYPICAL, *([_LARGEST] if max(sizes) >= _LARGE else [])):
        known = [n for n in sizes if 1 < n <= size]
        if not known:
            continue
        branches = min(16, vocabulary)
        edges, nodes = min(depth, deepest), max(known)
        chances = np.array([[row[0] * row[1] ** rank for rank in range(branches)]])
        chain = size == depth + 1
        tree = (
            SpeculationTree.chain(min(nodes - 1, edges)) if chain else best_first.solve(chances, nodes, edges, branches).tree(nodes, edges)
        )
        if max(tree.level_widths[:-1]) <= widest:
            found[tree] = None
    return tuple(found) or ((SpeculationTree.chain(1),) if max(sizes) > 1 else ())


def typical_budgets(sizes: Sequence[int], widths: Sequence[int], deepest: int = DEEPEST) -> tuple[DynamicBudget, ...]:
    """Return budgets of dynamic trees of measured `sizes` and level `widths`, of a depth of `deepest` at most. None without sizes above 1."""
    found: dict[DynamicBudget, None] = {}
    for size, most in _BUDGETS:
        depth = min(most, deepest)
        nodes = max((n for n in sizes if n <= min(size, 1 + depth * max(widths))), default=1)
        edges = min(depth, nodes - 1)
        if edges < 1:
            continue
        wanted = DynamicBudget.of(nodes, edges).width
        fitting = [w for w in widths if 1 + edges * w >= nodes]
        if fitting:
            found[DynamicBudget(nodes, edges, min(fitting, key=lambda w: abs(w - wanted)))] = None
    return tuple(found) or ((DynamicBudget(2, 1, min(widths)),) if max(sizes) > 1 else ())


def level_budget(width: int) -> DynamicBudget:
    """Return the budget of dynamic trees of two levels of `width` nodes."""
    return DynamicBudget(max(3, width + 1), 2, width)
