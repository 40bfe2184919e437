"""The tree of a budget is EAGLE-2's, grown by hand here, and the chosen budget is the best of all of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from treeopt.exports.budgets import MOST_DEPTH, best_budget, grown, seconds
from treeopt.profiles.latency_model import LatencyModel

ROWS = st.lists(st.floats(0.0, 0.3), min_size=1, max_size=3).map(lambda row: np.array([row]))


def by_hand(rows, size, depth, width):
    """Tokens per step of the best `size` nodes, grown path by path with a list for each level; ranks count as no likelier than elder ones."""
    p = rows[0]
    score = {(): 1.0}
    chance = {(): 1.0}
    front, drafted = [()], []
    for _ in range(depth):
        level = [(*path, rank) for path in front for rank in range(min(width, len(p)))]
        for path in level:
            score[path] = score[path[:-1]] * min(p[: path[-1] + 1])
            chance[path] = chance[path[:-1]] * p[path[-1]]
        drafted += level
        front = sorted(sorted(level, key=lambda path: -score[path])[:width], key=level.index)
    best = sorted(drafted, key=lambda path: -score[path])[: size - 1]
    return set(best), 1.0 + sum(chance[path] for path in best)


@settings(deadline=None)
@given(ROWS, st.integers(1, 4), st.integers(1, 4), st.data())
def test_the_tree_of_a_budget_is_the_one_that_is_grown_by_hand(rows, depth, width, data):
    pool = grown(rows, depth, width)
    size = data.draw(st.integers(1, len(pool.chances) + 1))
    paths, tokens = by_hand(rows, size, depth, width)
    tree = pool.tree(size)
    assert set(tree.paths) == paths
    assert pool.tokens[size] == pytest.approx(tokens)
    assert sum(tree.path_probabilities(rows.tolist())) == pytest.approx(tokens)


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.floats(0.05, 0.5), min_size=1, max_size=2).map(lambda row: np.array([row])),
    st.lists(st.floats(0.5, 3.0), min_size=3, max_size=3),
    st.floats(0.01, 0.5),
)
def test_the_chosen_budget_has_the_least_seconds_per_token(rows, times, drafting):
    times = sorted(times)
    model = LatencyModel(64, tuple(zip((1, 4, 7), times, strict=True)), ((1, drafting), (4, drafting * 1.5)), 0.1)
    costs = {}
    for depth in range(1, min(MOST_DEPTH, 6) + 1):
        for width in range(1, rows.shape[1] + 1):
            for size in range(depth + 1, min(7, 1 + depth * width) + 1):
                costs[size, depth, width] = seconds(model, size, depth, width) / by_hand(rows, size, depth, width)[1]
    found = best_budget(rows, model)
    assert found is not None
    assert found.seconds_per_step / found.tokens_per_step == pytest.approx(min(costs.values()))
    assert costs[found.size, found.depth, found.width] == pytest.approx(min(costs.values()))


def test_a_step_pays_the_root_then_a_pass_for_each_further_level():
    model = LatencyModel(64, ((1, 10.0), (8, 12.0)), ((1, 1.0), (4, 2.0)), 0.5)
    assert seconds(model, 8, 3, 4) == 12.0 + 1.0 + 2 * 2.0 + 0.5


def test_nothing_is_chosen_where_no_tree_was_measured():
    assert best_budget(np.array([[0.5]]), LatencyModel(64, ((1, 1.0),), ((1, 0.1),), 0.0)) is None
