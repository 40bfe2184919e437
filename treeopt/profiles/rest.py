"""Rest: what a step takes beside its passes, as a function of its tree. It is fitted to whole steps of a few typical trees.

Verification of sampled children goes along chains: rank by rank, in all nodes side by side (`sequential`), or level by level as well
(`traversal`). So the rest grows with the longest chain of a tree, and with its nodes and its levels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from treespec.decoding.step_rule import StepRule
from treespec.decoding.verifiers import FAMILY, NO_CHAIN, PATH, VERIFIERS
from treespec.trees.tree import SpeculationTree

__all__ = ["FAMILY", "NO_CHAIN", "PATH", "Fit", "Rest", "chain_of", "fit", "least_chains", "longest_chain"]

Count = TypeVar("Count", float, NDArray[np.float64])

TAKEN_BACK = 0.1
"""Largest share of the shortest passes that a rest may take back: passes that are timed one by one take a little longer than in a row."""
_IN_ORDER = (0, 2, 3, 1)
"""Columns of the features (step, node, link, level) in the order in which they are fitted where there are few steps."""


@dataclass(frozen=True)
class Rest:
    """Seconds of a step beside its passes: a constant, and shares per node, per link of the longest chain and per level.

    Those per node and per link are never below 0; the others may correct passes that were measured a little too slow. Dynamic trees have no
    chain; their candidates count as links.
    """

    per_step: float
    per_node: float = 0.0
    per_link: float = 0.0
    per_level: float = 0.0
    chain: str = NO_CHAIN

    def at(self, nodes: Count, links: Count, levels: Count) -> Count:
        """Return the seconds of trees with so many nodes, links of the longest chain, and levels below the root: numbers, or arrays of one shape."""
        return self.per_step + self.per_node * nodes + self.per_link * links + self.per_level * levels

    def seconds(self, tree: SpeculationTree) -> float:
        """Return the seconds of a tree."""
        return self.at(tree.size, longest_chain(tree, self.chain), tree.depth)


@dataclass(frozen=True)
class Fit:
    """The fit of a rest to measured `steps` of so many different trees. The rule has so many `numbers` to fit.

    `error` is the median relative error of the steps' own times as the fit predicts them.
    """

    steps: int
    numbers: int
    error: float

    @property
    def short(self) -> bool:
        """Whether there are fewer steps than numbers to fit."""
        return self.steps < self.numbers


def chain_of(rule: StepRule) -> str:
    """Return which chain of a tree counts for a rule."""
    return VERIFIERS[rule.verifier].chain


def longest_chain(tree: SpeculationTree, chain: str) -> int:
    """Return the links of the longest chain of a tree.

    >>> tree = SpeculationTree.from_branches([[2], [3, 1], [0, 0, 0, 4]])
    >>> [longest_chain(tree, kind) for kind in (NO_CHAIN, FAMILY, PATH)]
    [0, 4, 7]
    """
    if chain == NO_CHAIN:
        return 0
    children = [0] * tree.size
    for parent in tree.parents[1:]:
        children[parent] += 1
    if chain == FAMILY:
        return max(children)
    links = children
    for node in range(1, tree.size):  # parents come before their children
        links[node] += links[tree.parents[node]]
    return max(links)


def least_chains(chain: str, max_size: int, max_depth: int) -> NDArray[np.float64]:
    """Return the fewest links that a tree of n nodes and exactly d levels below the root can have, [max_depth + 1, max_size + 1].

    Whatever the shape of the tree, its longest chain has no fewer. A family of at most b makes at most 1 + b + ... + b^d nodes. On paths of at
    most s children in all, a tree has at most N(s, d) = max over k of 1 + k N(s - k, d - 1) nodes: the root takes k of them.

    >>> least_chains(FAMILY, 7, 2)[2].tolist()
    [1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0]
    >>> least_chains(PATH, 7, 2)[1:, 3:].tolist()
    [[2.0, 3.0, 4.0, 5.0, 6.0], [2.0, 3.0, 3.0, 4.0, 4.0]]
    """
    least = np.zeros((max_depth + 1, max_size + 1))
    if chain == NO_CHAIN:
        return least
    sizes = np.arange(max_size + 1)
    most = np.ones(max_size + 1, dtype=np.int64)  # most nodes by links, of the depth above: the root alone
    for depth in range(1, max_depth + 1):
        if chain == FAMILY:
            found = [1]
            while found[-1] < max_size:
                found.append(_complete(len(found), depth, max_size))
        else:
            found = [1]
            while found[-1] < max_size:
                links = len(found)
                k = np.arange(1, links + 1)
                found.append(min(max_size, int((1 + k * most[np.minimum(links - k, len(most) - 1)]).max())))
            most = np.array(found, dtype=np.int64)
        fewest = np.searchsorted(np.array(found), sizes)
        least[depth] = np.maximum(fewest, 1 if chain == FAMILY else depth)  # a path of d levels has d children or more
    return least


def _complete(branches: int, depth: int, most: int) -> int:
    """Return the nodes of the complete tree, or `most` if that is less."""
    nodes = width = 1
    for _ in range(depth):
        width *= branches
        nodes += width
        if nodes >= most:
            return most
    return nodes


def fit(
    features: Sequence[Sequence[float]], rests: Sequence[float], wholes: Sequence[float], *, target: float = 0.0, level: float = 0.0
) -> list[float]:
    """Return the coefficients per step, node, link and level that predict whole steps with the least sum of squared relative errors.

    One row of `features`, one rest and one whole step in seconds per measured tree. Nodes and links take no time back. A step and a level may:
    passes that are timed one by one take a little longer than in a row. They take back no more than `TAKEN_BACK` of the shortest `target` pass
    and of the shortest draft `level`. Where there are fewer different rows than numbers, the others are 0: first that per node, then that per level.
    """
    from scipy.optimize import lsq_linear

    weights = 1 / np.asarray(wholes, dtype=np.float64)
    table = np.asarray(features, dtype=np.float64)
    scale = np.maximum(table.max(axis=0), 1.0) / weights.max()
    most_back = np.array([target * TAKEN_BACK, 0.0, 0.0, level * TAKEN_BACK])
    used = np.array(numbers_of(features)[: len(np.unique(table, axis=0))])
    found = np.zeros(4)
    bounds = -most_back[used] * scale[used] - 1e-15, np.full(len(used), np.inf)
    rows = table[:, used] / scale[used] * weights[:, None]
    found[used] = lsq_linear(rows, np.asarray(rests, dtype=np.float64) * weights, bounds, method="bvls", tol=1e-12).x
    return [float(x) + 0.0 for x in np.maximum(found / scale, -most_back)]  # no -0


def numbers_of(features: Sequence[Sequence[float]]) -> list[int]:
    """Return the columns of the features that some tree has, those first that are fitted first."""
    return [column for column in _IN_ORDER if any(row[column] for row in features)]
