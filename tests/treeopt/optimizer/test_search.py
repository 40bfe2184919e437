from collections.abc import Callable

import numpy as np
import pytest

from treeopt.optimizer import optimize
from treespec.errors import OptimizerError, ProfileError
from treespec.trees.tree import SpeculationTree

BUMPY = (0.6, 0.1, 0.15, 0.05)
SMOOTH = (0.6, 0.15, 0.1, 0.05)


def test_size_and_depth_without_latency(acceptance: Callable) -> None:
    result = optimize(acceptance(SMOOTH), size=4, depth=3)
    assert result.tree == SpeculationTree.chain(3)
    assert result.expected_tokens_per_step == pytest.approx(1 + 0.6 + 0.36 + 0.216)
    assert (result.predicted_seconds_per_step, result.predicted_speedup, result.certified_gap) == (None, None, None)


def test_sequoias_demo_vector_gives_its_chain(acceptance: Callable) -> None:
    vector = (0.634183, 0.107946, 0.056972, 0.022489, 0.01949, 0.014993, 0.004498, 0.002999, 0.011994, 0.004498, 0.007496, 0.004498)
    result = optimize(acceptance(vector), size=4, depth=3)
    assert result.tree == SpeculationTree.chain(3)
    assert result.expected_tokens_per_step == pytest.approx(2.2914, abs=5e-5)
    assert result.solver == "dp"


@pytest.mark.parametrize(
    ("row", "max_branch", "asked", "used"),
    [
        (SMOOTH, None, "auto", "best-first"),
        (BUMPY, None, "auto", "dp"),
        (BUMPY, 2, "auto", "best-first"),  # monotone as far as the cap lets trees go
        (SMOOTH, None, "dp", "dp"),
    ],
)
def test_auto_takes_best_first_only_where_it_is_exact(
    acceptance: Callable, row: tuple[float, ...], max_branch: int | None, asked: str, used: str
) -> None:
    assert optimize(acceptance(row), size=9, depth=4, max_branch=max_branch, solver=asked).solver == used


def test_auto_looks_at_every_depth(acceptance: Callable) -> None:
    bumpy_below = acceptance(SMOOTH, by_depth=[SMOOTH, BUMPY])
    assert optimize(bumpy_below, size=3, depth=1).solver == "best-first"
    assert optimize(bumpy_below, size=9, depth=2).solver == "dp"


def test_probabilities_by_depth_shape_the_tree(acceptance: Callable) -> None:
    profile = acceptance((0.5, 0.4), by_depth=[(0.5, 0.4), (0.1, 0.0)])
    assert optimize(profile, size=3, depth=2).tree == SpeculationTree.k_ary(2, 1)
    assert optimize(profile, size=3, depth=2).expected_tokens_per_step == pytest.approx(1.9)


def test_solvers_by_name_agree_and_smoothing_is_by_name(acceptance: Callable) -> None:
    with pytest.raises(OptimizerError, match="use solver dp or auto, or smoothing isotonic"):
        optimize(acceptance(BUMPY), size=9, depth=4, solver="best-first")
    smoothed = [optimize(acceptance(BUMPY), size=9, depth=4, solver=name, smoothing="isotonic") for name in ("best-first", "dp")]
    assert smoothed[0].expected_tokens_per_step == pytest.approx(smoothed[1].expected_tokens_per_step, rel=1e-12)
    with pytest.raises(OptimizerError, match="smoothing 'median' is unknown"):
        optimize(acceptance(BUMPY), size=9, smoothing="median")
    with pytest.raises(OptimizerError, match="solver 'magic' is unknown; use one of auto, best-first, dp"):
        optimize(acceptance(BUMPY), size=9, solver="magic")


def test_latency_decides_the_size(acceptance: Callable, latency: Callable) -> None:
    profile = latency({1: 0.010, 8: 0.011, 9: 0.050, 16: 0.060}, {1: 0.0002, 16: 0.0003}, overhead=0.001)
    result = optimize(acceptance(SMOOTH), latency=profile)
    assert result.tree.size == 8
    assert result.predicted_seconds_per_step is not None
    assert result.predicted_speedup == pytest.approx(0.011 / (result.predicted_seconds_per_step / result.expected_tokens_per_step))
    assert result.certified_gap is not None
    assert 0 <= result.certified_gap < 0.1
    for limits in ({"max_size": 5}, {"size": 12}, {"depth": 2}, {"max_depth": 2, "max_branch": 2}):
        tree = optimize(acceptance(SMOOTH), latency=profile, **limits).tree
        assert tree.size <= limits.get("max_size", 16)
        assert tree.size == limits.get("size", tree.size)
        assert tree.depth <= min(limits.get("depth", 99), limits.get("max_depth", 99))
        assert tree.max_branch <= limits.get("max_branch", 99)


def test_speculation_that_does_not_pay_is_not_done(acceptance: Callable, latency: Callable) -> None:
    result = optimize(acceptance((0.01,)), latency=latency({1: 1.0, 4: 2.0}, {1: 1.0, 4: 1.0}))
    assert result.tree == SpeculationTree((-1,))
    assert (result.predicted_speedup, result.certified_gap, result.expected_tokens_per_step) == (1.0, 0.0, 1.0)


def test_context_picks_the_latencies(acceptance: Callable, latency: Callable) -> None:
    profile = latency({1: 1.0, 4: 1.0}, {1: 0.1, 4: 0.1}, context=512)
    assert optimize(acceptance(SMOOTH), latency=profile, context=300).tree.size > 1
    with pytest.raises(ProfileError, match="not measured at context 600 or beyond, only at 512"):
        optimize(acceptance(SMOOTH), latency=profile, context=600)


def test_frontier_lists_every_size_and_depth_bound(acceptance: Callable, all_trees: Callable, tokens_of: Callable) -> None:
    result = optimize(acceptance(BUMPY), size=6, depth=3, max_branch=2)
    points = {(point.size, point.depth): point.expected_tokens_per_step for point in result.frontier}
    assert list(points) == sorted(points)
    for size in range(1, 7):
        for depth in range(1, 4):
            trees = all_trees(size, depth, 2)
            assert ((size, depth) in points) == bool(trees)
            if trees:
                assert points[size, depth] == pytest.approx(max(tokens_of(tree, [BUMPY]) for tree in trees))
    assert points[6, 3] == result.expected_tokens_per_step


def test_a_size_alone_gets_the_default_depth(acceptance: Callable) -> None:
    assert optimize(acceptance((1.0,)), size=33).tree == SpeculationTree.chain(32)
    assert optimize(acceptance((1.0,)), size=1).tree == SpeculationTree((-1,))
    with pytest.raises(OptimizerError, match=r"depth at most 32 and at most 1 child per node .1 rank is known.*ask for at most 33"):
        optimize(acceptance((1.0,)), size=34)
    assert optimize(acceptance((1.0,)), size=50, depth=49).tree == SpeculationTree.chain(49)


@pytest.mark.parametrize(
    ("limits", "feasible"),
    [
        ({"depth": 3, "max_branch": 1}, 4),
        ({"depth": 2, "max_branch": 3}, 13),
        ({"depth": 1}, 5),
        ({"depth": 9, "max_depth": 2, "max_branch": 2}, 7),
    ],
)
def test_one_below_feasible_raises_and_names_the_feasible(acceptance: Callable, limits: dict[str, int], feasible: int) -> None:
    assert optimize(acceptance(SMOOTH), size=feasible, **limits).tree.size == feasible
    with pytest.raises(OptimizerError, match=f"ask for at most {feasible}, or allow more"):
        optimize(acceptance(SMOOTH), size=feasible + 1, **limits)
    for name in limits:
        if limits[name] == 1 or (name == "depth" and "max_depth" in limits):
            continue
        with pytest.raises(OptimizerError, match="ask for at most"):
            optimize(acceptance(SMOOTH), size=feasible, **{**limits, name: limits[name] - 1})


@pytest.mark.parametrize("name", ["size", "depth", "max_size", "max_depth", "max_branch"])
@pytest.mark.parametrize("value", [0, -3])
def test_limits_below_one_are_refused(acceptance: Callable, name: str, value: int) -> None:
    with pytest.raises(OptimizerError, match=f"`{name}` is {value}, but it must be 1 or more"):
        optimize(acceptance(SMOOTH), **{"size": 4, name: value})


def test_sizes_that_nothing_covers_are_refused(acceptance: Callable, latency: Callable) -> None:
    profile = latency({1: 1.0, 4: 1.0}, {1: 0.1, 4: 0.1})
    with pytest.raises(OptimizerError, match="without a latency profile the size"):
        optimize(acceptance(SMOOTH), depth=3)
    with pytest.raises(OptimizerError, match="`size` is 5, but the latency profile ends at 4 nodes at context 256"):
        optimize(acceptance(SMOOTH), latency=profile, size=5)
    with pytest.raises(OptimizerError, match="`max_size` is 5, but the latency profile ends at 4"):
        optimize(acceptance(SMOOTH), latency=profile, max_size=5)
    with pytest.raises(OptimizerError, match="`size` is 1000000000, but trees have at most 65536 nodes"):
        optimize(acceptance(SMOOTH), size=10**9, depth=3)
    with pytest.raises(OptimizerError, match="`size` is 4, but `max_size` is 3"):
        optimize(acceptance(SMOOTH), size=4, max_size=3)


def test_isotonic_smoothing_is_the_nearest_non_increasing_row(acceptance: Callable) -> None:
    from treeopt.optimizer.search import acceptance_rows

    profile = acceptance(BUMPY, by_depth=[BUMPY, SMOOTH])
    np.testing.assert_array_equal(acceptance_rows(profile), [BUMPY, SMOOTH])
    np.testing.assert_allclose(acceptance_rows(profile, "isotonic"), [(0.6, 0.125, 0.125, 0.05), SMOOTH])


def test_a_rank_that_only_opens_the_next_one_is_worth_its_place(
    acceptance: Callable, reference_heap: Callable, tokens_of: Callable
) -> None:
    row = (0.5, 0.1, 0.3)
    assert tokens_of(reference_heap([row], 4, 2, 3), [row]) == pytest.approx(1.85)
    result = optimize(acceptance(row), size=4, depth=2)
    assert result.tree == SpeculationTree.k_ary(3, 1)
    assert result.expected_tokens_per_step == pytest.approx(1.9)


def test_the_worked_example_of_the_documentation(acceptance: Callable, latency: Callable, published_vector: tuple[float, ...]) -> None:
    sizes = (1, 2, 4, 8, 16, 32, 64, 128)
    target = (0.0253891, 0.0267916, 0.0281511, 0.0270777, 0.0268194, 0.0275833, 0.0272538, 0.0294885)
    draft = (0.00028056, 0.00024142, 0.00023922, 0.00024904, 0.00027014, 0.00031361, 0.00033226, 0.0004222)
    profile = latency(dict(zip(sizes, target, strict=True)), dict(zip(sizes, draft, strict=True)))
    result = optimize(acceptance(published_vector), latency=profile)
    assert result.solver == "dp"
    assert result.tree.level_widths == (1, 8, 14, 19, 13, 16, 13, 15, 9, 10, 10)
    assert result.expected_tokens_per_step == pytest.approx(5.2686, abs=5e-5)
    assert result.predicted_seconds_per_step == pytest.approx(0.03222, abs=5e-6)
    assert result.predicted_speedup == pytest.approx(4.15, abs=5e-3)
    assert result.certified_gap == pytest.approx(0.0106, abs=5e-5)
