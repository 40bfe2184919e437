from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from treeopt.optimizer.objective import choose
from treeopt.optimizer.search import solve
from treeopt.profiles.latency_model import LatencyModel
from treeopt.profiles.rest import FAMILY, NO_CHAIN, PATH, Rest, longest_chain
from treespec.errors import OptimizerError, ProfileError
from treespec.trees.tree import SpeculationTree

seconds = st.floats(0.01, 10.0)


@given(
    row=st.lists(st.floats(0, 1), min_size=1, max_size=4),
    target=st.lists(seconds, min_size=7, max_size=7),
    draft=st.lists(st.floats(0.001, 2.0), min_size=6, max_size=6),
    overhead=st.floats(0, 1.0),
    apart=st.none() | st.floats(0, 1.0),
    max_depth=st.integers(1, 6),
)
@settings(max_examples=100, deadline=None)
def test_choice_against_every_tree(
    all_trees: Callable,
    tokens_of: Callable,
    latency: Callable,
    row: list[float],
    target: list[float],
    draft: list[float],
    overhead: float,
    apart: float | None,
    max_depth: int,
) -> None:
    profile = latency(dict(enumerate(target, start=1)), dict(enumerate(draft, start=1)), overhead)
    model = replace(profile, autoregressive_overhead_seconds=() if apart is None else (apart,)).at_context()
    overheads = [overhead if apart is None else apart] + [overhead] * 6
    frontier = solve(np.array([row]), 7, max_depth, 4)
    choice = choose(frontier, model)

    def price(tree: SpeculationTree) -> float:
        draft_seconds = sum(draft[width - 1] for width in tree.level_widths[:-1])
        return (target[tree.size - 1] + draft_seconds + overheads[tree.size - 1]) / tokens_of(tree, [row])

    # what it says about its own tree is true
    chosen = frontier.tree(choice.size, choice.depth)
    assert choice.seconds_per_token == pytest.approx(price(chosen), rel=1e-12)
    assert choice.seconds_per_step == pytest.approx(model.step_seconds(chosen), rel=1e-12)
    # no tree of the frontier is cheaper, and "do not speculate" is among them
    pairs = [(n, d) for n in range(1, 8) for d in range(max_depth + 1) if frontier.value(n, d) > 0]
    assert choice.seconds_per_token <= min(price(frontier.tree(n, d)) for n, d in pairs) * (1 + 1e-12)
    assert choice.seconds_per_token <= model.autoregressive_seconds() * (1 + 1e-12)
    # the certificate holds against every tree there is, and is the bound of its definition
    best = min(price(tree) for n in range(1, 8) for tree in all_trees(n, max_depth, len(row)))
    assert best >= choice.seconds_per_token * (1 - choice.certified_gap) * (1 - 1e-12)
    bound = min((target[n - 1] + d * min(draft) + overheads[n - 1]) / frontier.value(n, d) for n, d in pairs)
    assert choice.certified_gap == pytest.approx(max(0.0, 1 - bound / choice.seconds_per_token), abs=1e-12)
    assert 0 <= choice.certified_gap < 1
    # an objective of one's own, by which long steps are worse than slow tokens, has the best tree of the frontier and a true certificate too
    waiting = choose(frontier, model, objective=lambda tokens, seconds: seconds / tokens + seconds**2)

    def cost(tree: SpeculationTree) -> float:
        return price(tree) + (price(tree) * tokens_of(tree, [row])) ** 2

    assert waiting.cost == pytest.approx(cost(frontier.tree(waiting.size, waiting.depth)), rel=1e-12)
    assert waiting.cost <= min(cost(frontier.tree(n, d)) for n, d in pairs) * (1 + 1e-12)
    best = min(cost(tree) for n in range(1, 8) for tree in all_trees(n, max_depth, len(row)))
    assert best >= waiting.cost * (1 - waiting.certified_gap) * (1 - 1e-12)


@given(
    row=st.lists(st.floats(0, 1), min_size=1, max_size=4),
    target=st.lists(seconds, min_size=7, max_size=7),
    draft=st.lists(st.floats(0.001, 2.0), min_size=6, max_size=6),
    shares=st.tuples(st.floats(-0.005, 1.0), st.floats(0, 1.0), st.floats(0, 1.0), st.floats(-0.0005, 1.0)),
    chain=st.sampled_from([NO_CHAIN, FAMILY, PATH]),
    max_depth=st.integers(1, 6),
)
@settings(max_examples=150, deadline=None)
def test_a_rest_that_depends_on_the_tree_is_priced_exactly_and_certified_against_every_tree(
    all_trees: Callable,
    tokens_of: Callable,
    latency: Callable,
    row: list[float],
    target: list[float],
    draft: list[float],
    shares: tuple[float, float, float, float],
    chain: str,
    max_depth: int,
) -> None:
    rest = Rest(*shares, chain)
    overhead = max(0.0, shares[0])
    model = replace(latency(dict(enumerate(target, start=1)), dict(enumerate(draft, start=1)), overhead).at_context(), rest=rest)
    frontier = solve(np.array([row]), 7, max_depth, 4)

    def price(tree: SpeculationTree) -> float:
        if tree.size == 1:
            return target[0] + overhead
        counts = [len(children) for children in tree.children]
        links = {NO_CHAIN: 0, FAMILY: max(counts), PATH: max(map(sum, paths_of(tree, counts)))}[chain]
        step, node, link, level = shares
        own = step + node * tree.size + link * links + level * tree.depth
        return (target[tree.size - 1] + sum(draft[width - 1] for width in tree.level_widths[:-1]) + own) / tokens_of(tree, [row])

    choice = choose(frontier, model)
    chosen = frontier.tree(choice.size, choice.depth)
    assert choice.seconds_per_token == pytest.approx(price(chosen), rel=1e-9)
    pairs = [(n, d) for n in range(1, 8) for d in range(max_depth + 1) if frontier.value(n, d) > 0]
    assert choice.seconds_per_token <= min(price(frontier.tree(n, d)) for n, d in pairs) * (1 + 1e-9)
    best = min(price(tree) for n in range(1, 8) for tree in all_trees(n, max_depth, len(row)))
    assert best >= choice.seconds_per_token * (1 - choice.certified_gap) * (1 - 1e-9)
    squared = choose(frontier, model, objective=lambda tokens, seconds: seconds / tokens + seconds**2)
    cheapest = min(price(t) + (price(t) * tokens_of(t, [row])) ** 2 for n in range(1, 8) for t in all_trees(n, max_depth, len(row)))
    assert cheapest >= squared.cost * (1 - squared.certified_gap) * (1 - 1e-9)


def paths_of(tree: SpeculationTree, counts: list[int]) -> list[list[int]]:
    """The numbers of children of the nodes on the way to each node, itself included."""
    paths = [[counts[0]]]
    for node in range(1, tree.size):
        paths.append([*paths[tree.parents[node]], counts[node]])
    return paths


def test_long_chains_that_cost_make_other_trees_win(latency: Callable) -> None:
    model = latency({1: 10.0, 32: 10.0}, {1: 0.1, 16: 0.1}).at_context()
    frontier = solve(np.array([[0.5, 0.3, 0.1, 0.05]]), 32, 8, 4)
    free = choose(frontier, model, size=16)
    dear = choose(frontier, replace(model, rest=Rest(0.0, per_link=5.0, chain=PATH)), size=16)
    links = [longest_chain(frontier.tree(choice.size, choice.depth), PATH) for choice in (free, dear)]
    assert links == [9, 8]
    assert (free.depth, dear.depth) == (3, 2)
    assert dear.seconds_per_step == pytest.approx(10 + 0.1 * 2 + 5.0 * 8)


def test_gap_is_zero_where_draft_levels_cost_the_same(latency: Callable) -> None:
    model = latency({1: 10, 4: 10, 8: 12, 16: 16}, {1: 0.5, 16: 0.5}).at_context()
    choice = choose(solve(np.array([[0.7, 0.1, 0.05]]), 16, 10, 3), model)
    assert choice.size > 1
    assert choice.certified_gap == pytest.approx(0.0, abs=1e-12)


def test_cost_best_tree_can_differ_from_the_token_best_one_within_the_gap(
    all_trees: Callable, tokens_of: Callable, latency: Callable
) -> None:
    # levels wider than 1 are dear: a cheaper tree of five nodes keeps its inner levels narrow and gives up some tokens
    row = [0.5, 0.25, 0.2]
    profile = latency({1: 5.0, 5: 5.5}, {1: 0.1, 2: 3.0, 4: 3.0})
    model = profile.at_context()
    frontier = solve(np.array([row]), 5, 4, 3)
    choice = choose(frontier, model, size=5)
    prices = {tree: model.step_seconds(tree) / tokens_of(tree, [row]) for tree in all_trees(5, 4, 3)}
    assert min(prices.values()) < choice.seconds_per_token  # the frontier alone does not hold the cheapest tree
    assert min(prices.values()) >= choice.seconds_per_token * (1 - choice.certified_gap)


def test_useless_draft_means_no_speculation(latency: Callable) -> None:
    model = latency({1: 1.0, 2: 1.5, 4: 2.0}, {1: 0.5, 4: 0.5}, overhead=0.25).at_context()
    choice = choose(solve(np.array([[0.05, 0.01]]), 4, 3, 2), model)
    assert (choice.size, choice.depth) == (1, 0)
    assert choice.expected_tokens_per_step == 1.0
    assert choice.seconds_per_step == 1.25  # no draft pass at all
    assert choice.certified_gap == 0.0


def test_every_size_is_scored_not_only_measured_ones_or_powers_of_two(latency: Callable) -> None:
    # a staircase with its edge at 6: size 6 pays what size 5 pays
    model = latency({1: 1.0, 6: 1.01, 8: 5.0}, {8: 0.001}).at_context()
    choice = choose(solve(np.array([[0.6, 0.2, 0.1]]), 8, 7, 3), model)
    assert choice.size == 6


def test_ties_go_to_the_smaller_and_shallower_tree(latency: Callable) -> None:
    model = latency({8: 1.0}, {8: 1.0}).at_context()
    choice = choose(solve(np.array([[0.0]]), 8, 7, 1), model)
    assert (choice.size, choice.depth) == (1, 0)
    chain = choose(solve(np.array([[1.0]]), 3, 7, 1), model, size=3)
    assert (chain.size, chain.depth) == (3, 2)  # depth bounds 3 .. 7 give the same tree


def test_levels_wider_than_measured_are_no_candidates(latency: Callable) -> None:
    rows = np.array([[0.3, 0.3, 0.3]])
    narrow = latency({16: 1.0}, {2: 0.01}).at_context()
    choice = choose(solve(rows, 16, 6, 3), narrow)
    assert max(solve(rows, 16, 6, 3).tree(choice.size, choice.depth).level_widths[:-1]) <= 2
    with pytest.raises(OptimizerError, match="wider than 2, the largest measured"):
        choose(solve(rows, 13, 2, 3), narrow, size=13)  # the complete tree: its middle level has 3 nodes
    with pytest.raises(ProfileError, match="width 3 is beyond 2"):
        narrow.step_seconds(SpeculationTree.k_ary(3, 2))


@pytest.mark.parametrize("cost", [lambda tokens, seconds: -tokens, lambda tokens, seconds: tokens * float("nan")], ids=["below 0", "NaN"])
def test_a_cost_that_is_none_is_refused(cost: Any) -> None:
    model = LatencyModel(256, ((1, 1.0), (2, 1.1)), ((1, 0.1),), 0.0)
    with pytest.raises(OptimizerError, match="no number above 0"):
        choose(solve(np.array([[0.5]]), 2, 1, 1), model, objective=cost)


@given(
    row=st.lists(st.floats(0, 1), min_size=1, max_size=3),
    target=st.lists(seconds, min_size=6, max_size=6),
    draft=st.lists(st.floats(0.001, 2.0), min_size=5, max_size=5),
    below=st.floats(0.001, 2.0),
)
@settings(max_examples=50, deadline=None)
def test_a_head_whose_root_takes_another_time(
    all_trees: Callable, tokens_of: Callable, latency: Callable, row: list[float], target: list[float], draft: list[float], below: float
) -> None:
    """Every choice is the cheapest tree of the frontier, and no tree there is undercuts the certificate."""
    model = replace(latency(dict(enumerate(target, start=1)), dict(enumerate(draft, start=1)), 0.1).at_context(), below=below)
    frontier = solve(np.array([row]), 6, 4, 3)
    choice = choose(frontier, model)

    def price(tree: SpeculationTree) -> float:
        levels = tree.level_widths[:-1]
        drafting = sum(draft[0] if place == 0 else below if width == 1 else draft[width - 1] for place, width in enumerate(levels))
        return (target[tree.size - 1] + drafting + 0.1) / tokens_of(tree, [row])

    pairs = [(n, d) for n in range(1, 7) for d in range(5) if frontier.value(n, d) > 0]
    assert choice.seconds_per_token == pytest.approx(min(price(frontier.tree(n, d)) for n, d in pairs), rel=1e-12)
    assert choice.seconds_per_step == pytest.approx(model.step_seconds(frontier.tree(choice.size, choice.depth)), rel=1e-12)
    best = min(price(tree) for n in range(1, 7) for tree in all_trees(n, 4, len(row)))
    assert best >= choice.seconds_per_token * (1 - choice.certified_gap) * (1 - 1e-12)


def test_deep_trees_of_a_head_that_proposes_all_levels_at_once_pay_for_one_pass(latency: Callable) -> None:
    """With one pass over the root per step, whatever the depth, a chain as deep as the limit is best, and the certificate knows it."""
    free = replace(latency(dict.fromkeys(range(1, 7), 10.0), {1: 5.0, 6: 1e-12}, 0.0).at_context(), below=1e-12)
    frontier = solve(np.array([[0.9]]), 6, 5, 1)
    choice = choose(frontier, free)
    assert (choice.size, choice.depth) == (6, 5)
    assert choice.seconds_per_step == pytest.approx(10.0 + 5.0)
    assert choice.certified_gap == pytest.approx(0.0, abs=1e-9)
    assert choose(frontier, replace(free, below=None)).depth < 5, "a root's pass for every level is too much"
