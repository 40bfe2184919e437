"""Every ordered tree of a few nodes."""

from functools import cache

from treespec.trees.tree import SpeculationTree


def forests(nodes: int) -> list[list[list]]:
    """All ordered forests of `nodes` nodes; a tree is the list of its children's trees."""
    if nodes == 0:
        return [[]]
    return [[children, *rest] for first in range(1, nodes + 1) for children in forests(first - 1) for rest in forests(nodes - first)]


def as_tree(children: list[list]) -> SpeculationTree:
    parents, queue = [-1], [children]
    for node, subtrees in enumerate(queue):
        queue += subtrees
        parents += [node] * len(subtrees)
    return SpeculationTree(tuple(parents))


@cache
def trees_of(size: int) -> list[SpeculationTree]:
    """All ordered trees of so many nodes."""
    return [as_tree(children) for children in forests(size - 1)]
