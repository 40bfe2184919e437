"""Chances by depth: what a tree's steps meet, and how strongly few visits are shrunk."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.reference.ranked import MISSED, alike, by_depth, ranked, walked
from treeopt.optimizer.frontier import expected_tokens
from treeopt.optimizer.replay import replay
from treeopt.optimizer.search import acceptance_rows, optimize
from treeopt.optimizer.visits import average_row, folds_of, rows_by_depth, shrunk, visits
from treeopt.profiles.acceptance import AcceptanceProfile
from treespec.trees.tree import SpeculationTree

TREE = SpeculationTree.from_paths([(0, 0, 0), (0, 0, 1), (0, 1), (1, 0), (2,)])
ROWS = np.array([[0.5, 0.2, 0.15], [0.3, 0.5, 0.1], [0.8, 0.1, 0.0], [0.2, 0.2, 0.2]])

some_texts = st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=30), min_size=1, max_size=5)
some_trees = st.lists(st.integers(0, 10**6), max_size=12).map(
    lambda picks: SpeculationTree.from_parents([-1, *(p % (i + 1) for i, p in enumerate(picks))])
)


@given(texts=some_texts, tree=some_trees, ranks=st.integers(1, 6))
def test_every_position_is_visited_once_and_at_the_depth_that_a_walk_finds(
    texts: list[list[int]], tree: SpeculationTree, ranks: int
) -> None:
    trace = ranked(texts)
    found = visits(replay(tree, trace), trace, ranks)
    expected = np.zeros((len(texts), tree.depth + 1, ranks + 1), dtype=np.int64)
    for place, text in enumerate(texts):
        for depth, rank in zip(walked(tree, text), text, strict=True):
            expected[place, depth, min(rank, ranks)] += 1
    np.testing.assert_array_equal(found, expected)
    assert found.sum() == trace.positions


def test_positions_that_the_draft_does_not_read_are_left_out() -> None:
    from dataclasses import replace

    trace = ranked([[0, 1, 0, 0], [1, 0]])
    short = replace(trace.texts[0], draft_reads=2)
    cut = replace(
        trace,
        texts=(short, trace.texts[1]),
        **{name: getattr(trace, name)[[0, 1, 4, 5]] for name in ("rank", "log_probability", "top_log_probability")},
    )
    assert visits(replay(TREE, cut), cut, 3).sum() == cut.positions == 4


def test_known_chances_by_depth_are_recovered() -> None:
    rng = np.random.default_rng(0)
    trace = ranked([by_depth(rng, TREE, ROWS, 200) for _ in range(200)])
    counts = visits(replay(TREE, trace), trace, 3)
    found = rows_by_depth(counts, folds_of(trace, 5))
    seen = counts.sum((0, 2))
    errors = np.sqrt(ROWS * (1 - ROWS) / seen[:, None])
    assert (np.abs(found.rows[:4] - ROWS) < 4 * errors + 0.002).all()
    assert found.nats > 0.05
    average = average_row(counts.sum(0))
    np.testing.assert_allclose(found.rows[4], average[:-1])
    assert np.abs(ROWS - average[:-1]).max() > 0.2  # roots and what follows them are no average positions


def test_what_is_alike_at_all_depths_stays_alike() -> None:
    """Few visits look unlike the average by chance alone, and are shrunk to it."""
    rng = np.random.default_rng(1)
    row = [0.6, 0.2, 0.1]
    trace = ranked([alike(rng, row, 60) for _ in range(40)])
    counts = visits(replay(TREE, trace), trace, 3)
    found = rows_by_depth(counts, folds_of(trace, 5))
    raw = counts.sum(0) / counts.sum((0, 2))[:, None]
    assert found.strength >= 256
    assert found.nats < 0.002
    # the mean squares of the errors of all visited rows, with and without shrinkage
    shrunk_rows = np.broadcast_to(found.rows, (len(raw), 3)) if len(found.rows) == 1 else found.rows[: len(raw)]
    assert ((shrunk_rows - row) ** 2).sum() < ((raw[:, :-1] - row) ** 2).sum() / 2


def test_the_estimator_is_the_posterior_mean_of_its_prior() -> None:
    counts = np.array([[6, 2, 0], [0, 0, 0]])
    average = average_row(counts)
    np.testing.assert_allclose(average, (np.array([6, 2, 0]) + 1 / 3) / 9)
    np.testing.assert_allclose(shrunk(counts, 4.0), [(np.array([6, 2, 0]) + 4 * average) / 12, average])
    np.testing.assert_allclose(shrunk(counts, np.inf), [average, average])
    assert shrunk(counts, 1.0).sum(1) == pytest.approx([1, 1])


def test_the_strength_is_that_of_the_largest_held_out_likelihood() -> None:
    """Found anew, fold by fold and position by position."""
    from treeopt.optimizer.visits import STRENGTHS

    rng = np.random.default_rng(2)
    rows = np.array([[0.5, 0.2], [0.62, 0.14]])
    trace = ranked([by_depth(rng, SpeculationTree.k_ary(2, 1), rows, 40) for _ in range(30)])
    counts = visits(replay(SpeculationTree.k_ary(2, 1), trace), trace, 2)
    folds = folds_of(trace, 3)
    scores = []
    for strength in STRENGTHS:
        score = 0.0
        for fold in folds:
            rest = sum(counts[text] for text in range(30) if text not in fold)
            chances = shrunk(np.asarray(rest), strength)
            score += sum(float(counts[text][d, k] * np.log(chances[d, k])) for text in fold for d in range(2) for k in range(3))
        scores.append(score)
    found = rows_by_depth(counts, folds)
    assert found.strength == STRENGTHS[int(np.argmax(scores))]
    assert found.nats == pytest.approx((max(scores) - scores[-1]) / trace.positions)


@pytest.mark.parametrize("solver", ["dp", "best-first"])
def test_both_solvers_are_exact_for_rows_of_a_trace(solver: str, all_trees: Callable, tokens_of: Callable) -> None:
    rng = np.random.default_rng(3)
    trace = ranked([by_depth(rng, TREE, ROWS, 100) for _ in range(20)])
    found = rows_by_depth(visits(replay(TREE, trace), trace, 3), folds_of(trace, 5)).rows
    assert len(found) == TREE.depth + 2
    profile = AcceptanceProfile("topk", 0.0, 1.0, tuple(found[-1]), 0.0, (), 100, 5, by_depth=tuple(map(tuple, found.tolist())))
    smoothing = "none" if solver == "dp" else "isotonic"  # rows that rise with rank are refused by best-first
    rows = acceptance_rows(profile, smoothing)
    assert smoothing == "none" or not np.allclose(rows, found)
    for size in range(1, 8):
        for depth in range(1, 5):
            trees = all_trees(size, depth, 3)
            if not trees:
                continue
            result = optimize(profile, size=size, depth=depth, solver=solver, smoothing=smoothing)
            best = max(tokens_of(tree, rows) for tree in trees)
            assert result.expected_tokens_per_step == pytest.approx(best, rel=1e-12)
            assert expected_tokens(result.tree, rows) == pytest.approx(best, rel=1e-12)


def test_folds_keep_equal_prompts_and_neighbours_together() -> None:
    trace = ranked([[0, MISSED]] * 8, prompts=[1, 2, 3, 1, 4, 5, 6, 6])
    assert folds_of(trace, 3) == [[0, 1, 3], [2, 4], [5, 6, 7]]
    assert folds_of(trace, 50) == [[0, 3], [1], [2], [4], [5], [6, 7]]
