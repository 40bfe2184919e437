"""Counts of the nodes that a run accepted, by depth and rank, to compare with the profile. No torch."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from treespec.errors import ProfileError
from treespec.trees.tree import SpeculationTree


@dataclass(frozen=True)
class DepthAcceptance:
    """Counts over the nodes of one depth that decoding visited: how often the child of each rank was accepted."""

    depth: int
    visits: int
    """Number of visited nodes, with and without children."""
    accepted: tuple[int, ...]
    """Accepted children by rank. The other visits ended at the node."""
    offered: tuple[int, ...] | None = None
    """Visited nodes that had a child of each rank; None for dynamic trees, because these are not kept."""


def accepted_by_depth(steps: Iterable[Sequence[int]], tree: Mapping[str, Any] | None) -> tuple[DepthAcceptance, ...]:
    """Return the counts of every depth that was visited, except the last level, whose nodes have no children.

    `steps`: per step, the ranks on the way from the root to the last accepted node; `tree`: that of the report. Steps whose tree
    was cut at the end of the cache count as if it was whole. Raises ProfileError for ranks that are not in the tree.
    """
    limit = tree["depth"] if tree else 0
    shape = SpeculationTree(tuple(tree["parents"])) if tree and "parents" in tree else None
    visits: list[int] = []
    accepted: list[dict[int, int]] = []
    offered: list[dict[int, int]] = []
    for ranks in steps:
        node = 0
        for depth, rank in enumerate((*ranks, None)):
            if depth >= limit:
                break
            if depth == len(visits):
                visits.append(0)
                accepted.append({})
                offered.append({})
            visits[depth] += 1
            children = shape.children[node] if shape is not None else ()
            for k in range(len(children)):
                offered[depth][k] = offered[depth].get(k, 0) + 1
            if rank is None:
                break
            accepted[depth][rank] = accepted[depth].get(rank, 0) + 1
            if shape is not None:
                if not 0 <= rank < len(children):
                    raise ProfileError(f"accepted ranks {list(ranks)} lead out of the report's tree; evaluate again to write a new one")
                node = children[rank]
    return tuple(
        DepthAcceptance(depth, visits[depth], _by_rank(accepted[depth]), None if shape is None else _by_rank(offered[depth]))
        for depth in range(len(visits))
    )


def _by_rank(counts: Mapping[int, int]) -> tuple[int, ...]:
    return tuple(counts.get(rank, 0) for rank in range(max(counts, default=-1) + 1))
