"""What traces of heads lead to: ranks that depend on the root are walked one by one, and no tree is deeper than the levels that were traced."""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference.ranked import drawn_of_head, of_head
from treeopt.growmap_making import Limits, generate_fastest
from treeopt.optimizer.climbing import Bounds, climb, cost
from treeopt.optimizer.fitting import BY_DEPTH, BY_RANK, Search, fits
from treeopt.optimizer.replay import replay
from treeopt.optimizer.search import optimize
from treeopt.optimizer.selection import select
from treeopt.optimizer.visits import folds_of, rows_by_depth, visits
from treeopt.profiles.traced import acceptance_of
from treespec.errors import OptimizerError, ProfileError
from treespec.trees.tree import SpeculationTree

LEVELS = 3
ROWS = np.array([[0.6, 0.2, 0.1], [0.3, 0.4, 0.1], [0.1, 0.1, 0.5]])
"""Chances at each level; at the second one rank 1 is likelier than rank 0, and at the third rank 2."""
TREE = SpeculationTree.from_paths([(0,), (1,), (2,), (0, 0), (0, 1), (1, 0), (0, 1, 0), (0, 1, 1), (0, 1, 2)])


@st.composite
def some_levels(draw: st.DrawFn) -> list[list[list[int]]]:
    lengths = draw(st.lists(st.integers(0, 20), min_size=1, max_size=4))
    rank = st.integers(0, 3)
    return [[draw(st.lists(rank, min_size=max(0, n - d), max_size=max(0, n - d))) for n in lengths] for d in range(LEVELS)]


some_trees = st.lists(st.integers(0, 10**6), max_size=12).map(
    lambda picks: SpeculationTree.from_parents([-1, *(p % (i + 1) for i, p in enumerate(picks))])
)


def walked(tree: SpeculationTree, levels: list[list[int]]) -> list[tuple[int, int]]:
    """The depth at which each token of a text was met, and its rank there: at depth d, that of level d below the root of the step."""
    known, found, root = set(tree.paths), [], 0
    while root < len(levels[0]):
        path: tuple[int, ...] = ()
        for depth in range(len(levels[0]) - root):
            rank = levels[depth][root] if depth < LEVELS else -1
            found.append((depth, rank))
            if (*path, rank) not in known:
                break
            path = (*path, rank)
        root = len(found)
    return found


@given(levels=some_levels(), tree=some_trees, ranks=st.integers(1, 5))
@settings(max_examples=100, deadline=None)
def test_a_replay_is_a_walk_by_root_and_depth(levels: list[list[list[int]]], tree: SpeculationTree, ranks: int) -> None:
    trace = of_head(levels)
    if tree.depth > LEVELS:
        with pytest.raises(ProfileError, match=f"depth of {tree.depth}, but the trace is of a head and has 3 levels"):
            replay(tree, trace)
        return
    found = replay(tree, trace)
    counts = np.zeros((len(trace.texts), tree.depth + 1, ranks + 1), dtype=np.int64)
    for place in range(len(trace.texts)):
        steps = walked(tree, [level[place] for level in levels])
        assert found.steps[place] == sum(depth == 0 for depth, _ in steps)
        for depth, rank in steps:
            if depth < LEVELS:
                counts[place, depth, min(rank, ranks)] += 1
    np.testing.assert_array_equal(visits(found, trace, ranks), counts)


def test_some_texts_of_a_trace_are_replayed_as_in_the_whole() -> None:
    trace = drawn_of_head(np.random.default_rng(0), ROWS, 6, 30)
    part = trace.of_texts([4, 1])
    np.testing.assert_array_equal(part.ranks_by_depth, trace.ranks_by_depth[:, :, [4, 1]])
    np.testing.assert_array_equal(replay(TREE, part).steps, replay(TREE, trace).steps[[4, 1]])


def test_the_chances_of_every_level_are_those_of_the_trace() -> None:
    trace = drawn_of_head(np.random.default_rng(1), ROWS, 20, 400)
    profile = acceptance_of(trace, 3)
    assert profile.by_depth is not None
    np.testing.assert_allclose(profile.by_depth, ROWS, atol=0.02)
    assert profile.rank_probability == profile.by_depth[0]
    counts = trace.rank_counts(3)
    np.testing.assert_array_equal([level.sums for level in profile.deeper], counts[1:, :, :-1])
    np.testing.assert_array_equal([level.positions for level in profile.deeper], counts[1:].sum(2))


def test_few_visits_shrink_to_the_chances_of_their_level() -> None:
    """Steps meet what all roots do, so the levels' own chances stand for every depth, however few visits it has."""
    trace = drawn_of_head(np.random.default_rng(2), ROWS, 20, 400)
    counts = visits(replay(SpeculationTree.chain(1), trace), trace, 3)
    found = rows_by_depth(counts, folds_of(trace, 5), trace.rank_counts(3))
    assert len(found.rows) == LEVELS
    np.testing.assert_allclose(found.rows, ROWS, atol=0.03)
    assert abs(found.nats) < 0.01


def search(size: int = 10) -> Search:
    return Search(partial(optimize, size=size, depth=LEVELS), lambda tree: 1.0, (6, 8, 10, 12), 3, 3)


def test_every_model_finds_trees_within_the_levels() -> None:
    trace = drawn_of_head(np.random.default_rng(3), ROWS, 12, 80)
    found = fits(trace, search())
    assert {fit.tree.depth for fit in found.values()} <= {2, 3}
    assert found[BY_RANK].tree == optimize(acceptance_of(trace, 3), size=10, depth=LEVELS).tree
    flat = replace(acceptance_of(trace, 3), by_depth=None, deeper=())
    assert found[BY_RANK].tree != optimize(flat, size=10, depth=LEVELS).tree, "the first level's chances would lead to another tree"
    assert found[BY_DEPTH].profile.by_depth is not None
    chosen = select(trace, search(), timed=False)
    result, profile = chosen.outcome(search().solve, acceptance_of(trace, 3), None, None)
    assert result.tree.depth <= LEVELS
    assert profile.by_depth is not None
    climbed = climb(TREE, trace, lambda tree: 1.0, Bounds((8, 10, 12), LEVELS, 3))
    assert cost(replay(climbed, trace), lambda tree: 1.0) <= cost(replay(TREE, trace), lambda tree: 1.0)


def test_grow_looks_for_no_tree_below_the_levels() -> None:
    trace = drawn_of_head(np.random.default_rng(4), np.array([[0.9, 0.05], [0.9, 0.05]]), 10, 60)
    (made,) = generate_fastest([], trace=trace, limits=Limits(size=6))
    assert made.result.tree.depth == 2
    refused: dict[str, Any] = {"size": 6, "depth": 3}, {"size": 6, "max_depth": 4}
    for limits in refused:
        with pytest.raises(
            OptimizerError, match=r"depth` is \d, but the trace is of a head and has 2 levels.*ask for at most 2, or leave `trace` out"
        ):
            generate_fastest([], trace=trace, limits=Limits(**limits))
