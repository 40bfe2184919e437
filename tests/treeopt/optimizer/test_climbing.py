"""Climbing on replay: never worse on its own texts, always within its bounds."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference.all_trees import trees_of
from tests.reference.ranked import in_turns, ranked
from treeopt.optimizer.climbing import Bounds, climb, cost
from treeopt.optimizer.replay import replay
from treeopt.optimizer.search import optimize
from treeopt.profiles.traced import acceptance_of
from treespec.trees.tree import SpeculationTree

some_trees = st.lists(st.integers(0, 10**6), max_size=10).map(
    lambda picks: SpeculationTree.from_parents([-1, *(p % (i + 1) for i, p in enumerate(picks))])
)
some_texts = st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=30), min_size=1, max_size=5)


@given(tree=some_trees, texts=some_texts, depth=st.integers(1, 6), branch=st.integers(1, 5), sizes=st.frozensets(st.integers(1, 12)))
@settings(max_examples=60)
def test_a_climb_never_costs_more_and_keeps_to_its_bounds(
    tree: SpeculationTree, texts: list[list[int]], depth: int, branch: int, sizes: frozenset[int]
) -> None:
    trace = ranked(texts)
    bounds = Bounds(tuple(sorted(sizes)), max(depth, tree.depth), max(branch, tree.max_branch))

    def price(other: SpeculationTree) -> float:
        return 1 + 0.02 * other.size + 0.05 * other.depth

    found = climb(tree, trace, price, bounds)
    assert cost(replay(found, trace), price) <= cost(replay(tree, trace), price)
    assert min([tree.size, *sizes]) <= found.size <= max([tree.size, *sizes])
    assert sizes or found.size == tree.size
    assert found.depth <= bounds.depth
    assert found.max_branch <= bounds.branch


def test_a_tree_of_one_size_moves_to_where_steps_end() -> None:
    """From a chain to the tree that takes five tokens at every step: a chain of three with eight children at its end."""
    rng = np.random.default_rng(0)
    trace = ranked([in_turns(rng, 20) for _ in range(20)])
    start = SpeculationTree.from_paths([(0,) * length for length in range(1, 5)] + [(rank,) for rank in range(1, 8)])
    assert start.size == 12
    found = climb(start, trace, lambda tree: 1.0, Bounds((), 4, 8))
    assert sorted(found.paths) == sorted([(0,), (0, 0), (0, 0, 0), *((0, 0, 0, rank) for rank in range(8))])
    assert int(replay(found, trace).steps.sum()) == 20 * 20


def test_sizes_are_grown_and_shrunk_by_their_price() -> None:
    """Passes over up to 12 nodes cost the same, and larger ones so much more that they never pay."""
    rng = np.random.default_rng(1)
    trace = ranked([in_turns(rng, 20) for _ in range(20)])

    def price(tree: SpeculationTree) -> float:
        return 1.0 if tree.size <= 12 else 10.0

    for start in (SpeculationTree.chain(0), SpeculationTree.chain(3), SpeculationTree.k_ary(2, 4)):
        found = climb(start, trace, price, Bounds((1, 4, 8, 12, 16, 31), 4, 8))
        assert found.size == 12
        assert cost(replay(found, trace), price) == 20 * 20


def test_trees_without_a_time_are_no_candidates() -> None:
    rng = np.random.default_rng(2)
    trace = ranked([in_turns(rng, 20) for _ in range(5)])

    def price(tree: SpeculationTree) -> float:
        return math.inf if max(tree.level_widths[:-1], default=0) > 1 else 1.0

    found = climb(SpeculationTree.chain(4), trace, price, Bounds((2, 5, 9, 14), 6, 8))
    assert max(found.level_widths[:-1]) == 1
    assert found.size > 5


@pytest.mark.parametrize("seed", range(6))
def test_small_trees_come_close_to_the_best_of_all(seed: int) -> None:
    """Of all 132 trees with six drafted nodes, a climb from the best one for chances by rank finds one with at most 2 % more steps than the fewest."""
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.ones(4), size=4)
    texts = []
    for _ in range(20):
        rank, text = 0, []
        for _ in range(50):  # the rank depends on the one before
            rank = int(rng.choice(4, p=weights[rank]))
            text.append(rank)
        texts.append(text)
    trace = ranked(texts)
    steps = [int(replay(tree, trace).steps.sum()) for tree in trees_of(7)]
    start = optimize(acceptance_of(trace, 4), size=7, depth=6).tree
    found = climb(start, trace, lambda tree: 1.0, Bounds((), 6, 4))
    assert min(steps) <= int(replay(found, trace).steps.sum()) <= 1.02 * min(steps)
