"""Climbing: a better tree for the very texts of a trace, found by moving nodes and replaying. No torch.

A step that ends at a node says which child the node lacked, and a visit of a leaf says what the leaf was good for. Both are first guesses,
because another tree puts the roots of later steps elsewhere; so every move is replayed, and kept only where the steps cost less.
"""

import heapq
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass

import numpy as np

from treeopt.optimizer.replay import Replay, replay
from treeopt.profiles.trace import Trace
from treespec.trees.tree import SpeculationTree

MOST_REPLAYS = 200
"""Most replays of one climb."""
_TRIED = 4
"""Nodes that are given children, one after the other, before a tree counts as the best of its size."""
_STAIRS = 2
"""Sizes that are tried in either direction: a stair of the times may lie between."""
_SHARE = 8
"""A tree grows by an eighth of its nodes between two replays."""

Path = tuple[int, ...]
Price = Callable[[SpeculationTree], float]
"""The cost of one step with a tree; infinite for a tree that may not be."""


@dataclass(frozen=True)
class Bounds:
    """The sizes that a climb may try, ascending, and the largest depth and number of children."""

    sizes: tuple[int, ...]
    depth: int
    branch: int


def cost(replayed: Replay, price: Price) -> float:
    """Return the cost of a tree's steps on the texts on which it was replayed."""
    return int(replayed.steps.sum()) * price(replayed.tree)


def climb(tree: SpeculationTree, trace: Trace, price: Price, bounds: Bounds) -> SpeculationTree:
    """Return a tree whose steps on a trace cost no more than those of the given one.

    The moves: at the same size, the least visited leaves go to where steps end; and, where several sizes may be tried, the tree grows to one of
    the next or shrinks to one of those before. The climb ends where no move helps, or after `MOST_REPLAYS`. On these texts the tree takes fewer
    steps than on others, because it was fitted to them.
    """
    best = replay(tree, trace)
    lowest = cost(best, price)
    left = MOST_REPLAYS
    while left > 0:
        for other, replays in _moves(best, trace, bounds):
            left -= replays + 1
            if price(other) == float("inf"):
                continue
            found = replay(other, trace)
            if cost(found, price) < lowest * (1 - 1e-12):
                best, lowest = found, cost(found, price)
                break
            if left <= 0:
                return best.tree
        else:
            break
    return best.tree


def _moves(place: Replay, trace: Trace, bounds: Bounds) -> Iterator[tuple[SpeculationTree, int]]:
    """Yield trees close to one, and the replays that it took to find them."""
    tree = place.tree
    visited = _visits_of(place)
    for path, children in _openings(place, bounds)[:_TRIED]:
        added = _below(tree, path, children)
        kept = {*added, *(path[:length] for length in range(1, len(path) + 1))}
        left = _without(set(tree.paths) | added, visited, len(added), kept)
        if left is not None:
            yield SpeculationTree.from_paths(left), 0
    for size in [n for n in bounds.sizes if n > tree.size][:_STAIRS]:
        grown, replays = _grown(place, trace, bounds, size)
        if grown.size > tree.size:
            yield grown, replays
    for size in [n for n in bounds.sizes if n < tree.size][-_STAIRS:]:
        left = _without(set(tree.paths), visited, tree.size - size, set())
        if left is not None:
            yield SpeculationTree.from_paths(left), 0


def _openings(place: Replay, bounds: Bounds) -> list[tuple[Path, int]]:
    """Return where steps end for want of children: (path of a node, number of children to add), the most tokens for an added node first."""
    tree = place.tree
    before = np.vstack([np.zeros((1, len(place.tokens)), dtype=np.int64), place.nodes[:-1]])
    ended = place.within & (place.nodes == 0) & (place.ranks < bounds.branch)
    ends = np.bincount((before * bounds.branch + np.minimum(place.ranks, bounds.branch - 1))[ended], minlength=tree.size * bounds.branch)
    found = []
    for node, row in enumerate(ends.reshape(tree.size, bounds.branch)):
        present = len(tree.children[node])
        if tree.depths[node] < bounds.depth and row[present:].any():
            shares = np.cumsum(row[present:]) / np.arange(1, bounds.branch - present + 1)
            children = int(np.argmax(shares)) + 1
            found.append((float(shares[children - 1]), node, children))
    paths = [(), *tree.paths]
    return [(paths[node], children) for _, node, children in sorted(found, key=lambda one: (-one[0], one[1]))]


def _visits_of(place: Replay) -> dict[Path, int]:
    """Return how many tokens each node of a tree carried, by its path."""
    counts = np.bincount(place.nodes[place.within], minlength=place.tree.size)
    return dict(zip(place.tree.paths, counts[1:].tolist(), strict=True))


def _below(tree: SpeculationTree, path: Path, children: int) -> set[Path]:
    """Return the paths of the next children of the node at the end of a path."""
    present = sum(len(other) == len(path) + 1 and other[:-1] == path for other in tree.paths)
    return {(*path, rank) for rank in range(present, present + children)}


def _grown(place: Replay, trace: Trace, bounds: Bounds, size: int) -> tuple[SpeculationTree, int]:
    """Return the tree with nodes where steps end, of this size if there are enough such places, and the number of replays."""
    replays = 0
    while True:
        tree = place.tree
        paths, most = set(tree.paths), min(size, tree.size + max(1, tree.size // _SHARE))
        for path, children in _openings(place, bounds):
            paths |= _below(tree, path, min(children, most - 1 - len(paths)))
            if len(paths) + 1 >= most:
                break
        grown = SpeculationTree.from_paths(paths)
        if grown.size in (size, tree.size):
            return grown, replays
        place, replays = replay(grown, trace), replays + 1


def _without(paths: set[Path], visited: dict[Path, int], nodes: int, kept: Set[Path]) -> set[Path] | None:
    """Return the paths without so many of the least visited ones, always a leaf that is the last of its siblings; None if `kept` forbids it."""
    left, children = set(paths), dict.fromkeys(paths, 0)
    children[()] = 0
    for path in paths:
        children[path[:-1]] += 1

    def last(path: Path) -> bool:
        return path in left and path not in kept and not children[path] and children[path[:-1]] == path[-1] + 1

    loose = [(visited.get(path, 0), path) for path in paths if last(path)]
    heapq.heapify(loose)
    while nodes and loose:
        _, path = heapq.heappop(loose)
        left.discard(path)
        children[path[:-1]] -= 1
        nodes -= 1
        for other in (path[:-1], (*path[:-1], path[-1] - 1)):
            if other and other in left and last(other):
                heapq.heappush(loose, (visited.get(other, 0), other))
    return None if nodes else left
