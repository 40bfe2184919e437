"""Slow, obvious implementations that the solvers are held against."""

import heapq
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from tests.reference.all_trees import trees_of
from treeopt.profiles.acceptance import AcceptanceProfile
from treeopt.profiles.latency import LatencyProfile, LatencySample
from treespec.trees.tree import SpeculationTree

# JackFram/llama-68m for Llama-2-7B on C4, greedy: published measurements, not monotone
# fmt: off
LLAMA_68M_FOR_7B = (
    0.73246, 0.085874, 0.037976, 0.021108, 0.012809, 0.010283, 0.00884, 0.0067653, 0.0041494, 0.004871, 0.003969, 0.0024355, 0.0033375,
    0.0029767, 0.0019845, 0.0027061, 0.0018943, 0.00099224, 0.0017139, 0.00054122, 0.0023453, 0.00099224, 0.0012629, 0.0015335,
    0.0014433, 0.0011727, 0.00063143, 0.0010824, 0.00099224, 0.00090204, 0.00036082, 0.0011727,
)
# fmt: on


def path_sum(tree: SpeculationTree, rows: Sequence[Sequence[float]]) -> float:
    """F from each node's own path, without sharing anything between nodes."""
    values = [np.prod([rows[min(depth, len(rows) - 1)][rank] for depth, rank in enumerate(path)]) for path in tree.paths]
    return 1.0 + float(sum(values))


def heap_tree(rows: Sequence[Sequence[float]], size: int, max_depth: int, max_branch: int) -> SpeculationTree:
    """The most probable node that is reachable is taken, `size` times: parents and earlier siblings first."""
    paths: list[tuple[int, ...]] = []
    heap = [(-1.0, ())]
    while heap and len(paths) < size:
        _, path = heapq.heappop(heap)
        paths.append(path)
        options = [(*path, 0)] + ([(*path[:-1], path[-1] + 1)] if path else [])
        for option in options:
            row = rows[min(len(option), len(rows)) - 1]
            if len(option) <= max_depth and option[-1] < min(max_branch, len(row)):
                product = np.prod([rows[min(d, len(rows) - 1)][rank] for d, rank in enumerate(option)])
                heapq.heappush(heap, (-float(product), option))
    return SpeculationTree.from_paths([path for path in paths if path])


@pytest.fixture(scope="session")
def all_trees() -> Callable[..., list[SpeculationTree]]:
    """All ordered trees of a size (at most 7) within a depth and a number of children."""

    def fitting(size: int, max_depth: int = 99, max_branch: int = 99) -> list[SpeculationTree]:
        return [tree for tree in trees_of(size) if tree.depth <= max_depth and tree.max_branch <= max_branch]

    return fitting


@pytest.fixture(scope="session")
def tokens_of() -> Callable[[SpeculationTree, Sequence[Sequence[float]]], float]:
    return path_sum


@pytest.fixture(scope="session")
def reference_heap() -> Callable[..., SpeculationTree]:
    return heap_tree


@pytest.fixture(scope="session")
def published_vector() -> tuple[float, ...]:
    return LLAMA_68M_FOR_7B


@pytest.fixture(scope="session")
def acceptance() -> Callable[..., AcceptanceProfile]:
    """A profile of given rank probabilities."""

    def make(ranks: Sequence[float], by_depth: Sequence[Sequence[float]] | None = None) -> AcceptanceProfile:
        rest = max(0.0, 1 - sum(ranks))
        rows = None if by_depth is None else tuple(map(tuple, by_depth))
        return AcceptanceProfile("topk", 0.0, 1.0, tuple(ranks), rest, (), 100, 5, by_depth=rows)

    return make


@pytest.fixture(scope="session")
def latency() -> Callable[..., LatencyProfile]:
    """A profile of given target and draft medians at one context."""

    def make(target: dict[int, float], draft: dict[int, float], overhead: float = 0.0, context: int = 256) -> LatencyProfile:
        return LatencyProfile(
            tuple(LatencySample(size, context, (seconds,)) for size, seconds in target.items()),
            tuple(LatencySample(width, context, (seconds,)) for width, seconds in draft.items()),
            (overhead,),
        )

    return make
