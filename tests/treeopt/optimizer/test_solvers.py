"""Both solvers, against every ordered tree and against each other."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from treeopt.optimizer import best_first, dynamic_program
from treeopt.optimizer.frontier import Frontier, expected_tokens, largest_size
from treespec.errors import OptimizerError

SOLVERS = {"best-first": best_first.solve, "dp": dynamic_program.solve}

# few distinct values on purpose: ties and zeros are where an order or a cut goes wrong
probability = st.one_of(st.sampled_from([0.0, 0.0, 0.1, 0.25, 0.5, 1.0]), st.floats(0, 1))


@st.composite
def any_rows(draw: st.DrawFn, max_depths: int = 3, max_ranks: int = 5) -> np.ndarray:
    depths, ranks = draw(st.integers(1, max_depths)), draw(st.integers(1, max_ranks))
    return np.array(draw(st.lists(st.lists(probability, min_size=ranks, max_size=ranks), min_size=depths, max_size=depths)))


monotone_rows = any_rows().map(lambda rows: -np.sort(-rows, axis=1))


def test_the_enumeration_is_complete(all_trees: Callable) -> None:
    assert [len(set(all_trees(size))) for size in range(1, 8)] == [1, 1, 2, 5, 14, 42, 132]  # Catalan numbers
    assert all(tree.size == size for size in range(1, 8) for tree in all_trees(size))


def assert_best(frontier: Frontier, rows: np.ndarray, max_branch: int, all_trees: Callable, tokens_of: Callable) -> None:
    for depth in range(frontier.max_depth + 1):
        for size in range(1, frontier.max_size + 1):
            trees = all_trees(size, depth, min(max_branch, rows.shape[1]))
            if not trees:
                assert frontier.value(size, depth) == -np.inf
                with pytest.raises(OptimizerError, match="no tree of"):
                    frontier.tree(size, depth)
                continue
            assert frontier.value(size, depth) == pytest.approx(max(tokens_of(tree, rows) for tree in trees), rel=1e-12)
            tree = frontier.tree(size, depth)
            assert tree in trees
            assert tokens_of(tree, rows) == pytest.approx(frontier.value(size, depth), rel=1e-12)
            widths = frontier.level_widths(depth)[size]
            assert tuple(widths[: tree.depth + 1]) == tree.level_widths
            assert not widths[tree.depth + 1 :].any()


@given(rows=any_rows(), max_depth=st.integers(1, 6), max_branch=st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_dynamic_programme_is_best_of_all_trees(
    all_trees: Callable, tokens_of: Callable, rows: np.ndarray, max_depth: int, max_branch: int
) -> None:
    assert_best(dynamic_program.solve(rows, 7, max_depth, max_branch), rows, max_branch, all_trees, tokens_of)


@given(rows=monotone_rows, max_depth=st.integers(1, 6), max_branch=st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_best_first_is_best_of_all_trees(
    all_trees: Callable, tokens_of: Callable, rows: np.ndarray, max_depth: int, max_branch: int
) -> None:
    assert_best(best_first.solve(rows, 7, max_depth, max_branch), rows, max_branch, all_trees, tokens_of)


@given(rows=any_rows(max_depths=4, max_ranks=8).map(lambda rows: -np.sort(-rows, axis=1)), max_depth=st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_solvers_agree_on_monotone_rows(rows: np.ndarray, max_depth: int) -> None:
    one, other = (solver(rows, 90, max_depth, 8) for solver in SOLVERS.values())
    np.testing.assert_allclose(one.values, other.values, rtol=1e-12)


@given(rows=any_rows(max_depths=2, max_ranks=7), max_depth=st.integers(1, 7), data=st.data())
@settings(max_examples=40, deadline=None)
def test_dynamic_programme_matches_its_recurrence_without_cuts(rows: np.ndarray, max_depth: int, data: st.DataObject) -> None:
    size = 40
    frontier = dynamic_program.solve(rows, size, max_depth, rows.shape[1])
    depth = data.draw(st.integers(1, max_depth))
    np.testing.assert_allclose(frontier.values[depth], plain_recurrence(rows, size, 0, depth), rtol=1e-12)


def plain_recurrence(rows: np.ndarray, max_size: int, top: int, depth: int) -> np.ndarray:
    """Best value per size of a node at depth `top` with `depth` more edges below it: the textbook recurrence."""
    best = np.full(max_size + 1, -np.inf)
    best[1] = 1.0
    if depth == 0:
        return best
    below, table = plain_recurrence(rows, max_size, top + 1, depth - 1), best.copy()
    for p in rows[min(top, len(rows) - 1)]:
        grown = np.full(max_size + 1, -np.inf)
        for n in range(2, max_size + 1):
            for m in range(1, n):
                if below[m] > -np.inf:
                    grown[n] = max(grown[n], table[n - m] + p * below[m])
        table = grown
        best = np.maximum(best, table)
    return best


def test_increasing_and_shuffled_vectors_are_exact_across_blocks() -> None:
    # large enough for several blocks of one convolution; a vector sorted the wrong way has no exchange cut at all
    ranks = np.random.default_rng(1).dirichlet(np.ones(6))
    for row in (np.sort(ranks), ranks, -np.sort(-ranks)):
        frontier = dynamic_program.solve(row[None], 330, 4, 6)
        np.testing.assert_allclose(frontier.values[4], _vector_recurrence(row, 330, 4), rtol=1e-12)


def _vector_recurrence(row: np.ndarray, max_size: int, depth: int) -> np.ndarray:
    best = np.full(max_size + 1, -np.inf)
    best[1] = 1.0
    for _ in range(depth):
        below, table = best, np.full(max_size + 1, -np.inf)
        table[1] = 1.0
        best = table.copy()
        for p in row:
            grown = np.full(max_size + 1, -np.inf)
            for m in np.flatnonzero(below > -np.inf):
                grown[m:] = np.maximum(grown[m:], table[: max_size + 1 - m] + p * below[m])
            table = grown
            best = np.maximum(best, table)
    return best


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_large_trees_score_what_the_table_says(solver: Callable, published_vector: tuple[float, ...]) -> None:
    rows = -np.sort(-np.array([published_vector]))
    frontier = solver(rows, 300, 12, 32)
    for depth in (3, 7, 12):
        widths = frontier.level_widths(depth)
        for size in (2, 33, 127, 300):
            tree = frontier.tree(size, depth)
            assert (tree.size, tree.depth <= depth) == (size, True)
            assert expected_tokens(tree, rows) == pytest.approx(frontier.value(size, depth), rel=1e-12)
            assert tuple(widths[size, : tree.depth + 1]) == tree.level_widths


def test_published_vector_is_where_a_heap_is_not_enough(published_vector: tuple[float, ...], reference_heap: Callable) -> None:
    rows = np.array([published_vector])
    frontier = dynamic_program.solve(rows, 128, 8, 32)
    assert frontier.value(128, 8) == pytest.approx(5.1454, abs=5e-5)
    heap = expected_tokens(reference_heap(rows, 128, 8, 32), rows)
    assert heap == pytest.approx(5.1449, abs=5e-5)
    assert heap < frontier.value(128, 8)
    with pytest.raises(OptimizerError, match=r"rank 9 has 0\.004871 after 0\.0041494"):
        best_first.solve(rows, 128, 8, 32)
    # within the first nine ranks the vector is monotone, so best-first is exact there and allowed
    capped = best_first.solve(rows, 128, 8, 9)
    assert capped.value(128, 8) == pytest.approx(expected_tokens(reference_heap(rows, 128, 8, 9), rows), rel=1e-12)


@pytest.mark.parametrize("by_depth", [False, True])
def test_best_first_takes_what_a_heap_takes(by_depth: bool, published_vector: tuple[float, ...], reference_heap: Callable) -> None:
    rows = -np.sort(-np.array([published_vector]))
    if by_depth:
        rows = np.concatenate([rows, rows * 0.9, rows * 0.7])
    for depth in (2, 6):
        frontier = best_first.solve(rows, 150, depth, 32)
        for size in (1, 10, 150):
            heap = expected_tokens(reference_heap(rows, size, depth, 32), rows)
            assert frontier.value(size, depth) == pytest.approx(heap, rel=1e-12)


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
@pytest.mark.parametrize("row", [[0.0, 0.0, 0.0], [0.5, 0.0, 0.0], [1.0, 1.0, 1.0]])
def test_worthless_and_certain_nodes_still_fill_every_size(solver: Callable, row: list[float], tokens_of: Callable) -> None:
    frontier = solver(np.array([row]), 13, 2, 3)
    assert np.isfinite(frontier.values[2, 1:]).all()
    for size in range(1, 14):
        tree = frontier.tree(size, 2)
        assert tree.size == size
        assert tokens_of(tree, [row]) == pytest.approx(frontier.value(size, 2))


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
@pytest.mark.parametrize(("max_depth", "max_branch"), [(1, 1), (1, 4), (3, 1), (3, 2), (2, 3)])
def test_the_complete_tree_is_feasible_and_one_more_node_is_not(solver: Callable, max_depth: int, max_branch: int) -> None:
    complete = largest_size(max_depth, max_branch)
    frontier = solver(np.array([[0.4, 0.3, 0.2, 0.1]]), complete + 1, max_depth, max_branch)
    assert frontier.tree(complete, max_depth).size == complete
    with pytest.raises(OptimizerError, match=f"no tree of {complete + 1} nodes.*the largest has {complete}"):
        frontier.tree(complete + 1, max_depth)
    with pytest.raises(OptimizerError):  # one level less cannot hold it either
        frontier.tree(complete, max_depth - 1)


def test_smaller_sizes_are_nested_in_best_first_order(published_vector: tuple[float, ...]) -> None:
    frontier = best_first.solve(-np.sort(-np.array([published_vector])), 64, 6, 32)
    paths = [set(frontier.tree(size, 6).paths) for size in range(1, 65)]
    assert all(small < large for small, large in itertools.pairwise(paths))


def test_a_row_per_depth_that_repeats_is_one_row(published_vector: tuple[float, ...]) -> None:
    row = np.array([published_vector])
    tiled = dynamic_program.solve(np.repeat(row, 10, axis=0), 60, 10, 32)
    np.testing.assert_array_equal(tiled.values, dynamic_program.solve(row, 60, 10, 32).values)


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
@pytest.mark.parametrize(
    ("rows", "limits", "message"),
    [
        (np.zeros((0, 3)), (4, 3, 3), "shape"),
        (np.zeros(3), (4, 3, 3), "shape"),
        (np.array([[0.5, np.nan]]), (4, 3, 3), r"\[0, 1\]"),
        (np.array([[1.5]]), (4, 3, 3), r"\[0, 1\]"),
        (np.array([[-0.1]]), (4, 3, 3), r"\[0, 1\]"),
        (np.array([[0.5]]), (0, 3, 3), "max_size is 0"),
        (np.array([[0.5]]), (4, -1, 3), "max_depth is -1"),
        (np.array([[0.5]]), (4, 3, 0), "max_branch is 0"),
        (np.array([[0.5]]), (10**9, 3, 3), "max_size is 1000000000"),
        (np.array([[0.5]]), (60000, 60000, 3), "depth of at most"),
    ],
)
def test_what_cannot_be_solved_is_refused(solver: Callable, rows: np.ndarray, limits: tuple[int, int, int], message: str) -> None:
    with pytest.raises(OptimizerError, match=message):
        solver(rows, *limits)


def test_a_dynamic_programme_beyond_memory_is_refused() -> None:
    rows = np.random.default_rng(0).dirichlet(np.ones(64), size=100)
    with pytest.raises(OptimizerError, match="MiB"):
        dynamic_program.solve(rows, 8000, 100, 64)


def test_questions_beyond_the_table_are_refused() -> None:
    frontier = best_first.solve(np.array([[0.5]]), 4, 3, 1)
    for size, depth in ((0, 1), (5, 1), (2, 4), (2, -1)):
        with pytest.raises(OptimizerError, match=r"sizes 1\.\.4, depths 0\.\.3"):
            frontier.value(size, depth)
