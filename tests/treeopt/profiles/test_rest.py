"""The rest of a step: chains of trees against every tree, and a fit that finds what was planted."""

from itertools import product

import numpy as np
import pytest

from tests.reference.all_trees import trees_of
from treeopt.profiles.rest import FAMILY, NO_CHAIN, PATH, Rest, chain_of, fit, least_chains, longest_chain
from treespec.decoding.drafting import Drafting
from treespec.decoding.rules import Sampling
from treespec.decoding.step_rule import GREEDY, StepRule
from treespec.trees.tree import SpeculationTree


def slow_chain(tree: SpeculationTree, kind: str) -> int:
    counts = [len(children) for children in tree.children]
    if kind != PATH:
        return max(counts) if kind == FAMILY else 0
    above = [0] * tree.size
    for node in range(tree.size):
        step: int = node
        while step >= 0:
            above[node] += counts[step]
            step = tree.parents[step]
    return max(above)


@pytest.mark.parametrize("kind", [NO_CHAIN, FAMILY, PATH])
def test_no_tree_has_a_shorter_chain_than_the_least(kind: str) -> None:
    least = least_chains(kind, 7, 6)
    for size, depth in product(range(2, 8), range(1, 7)):
        found = [slow_chain(tree, kind) for tree in trees_of(size) if tree.depth == depth]
        if found:
            assert least[depth, size] <= min(found), (size, depth)
            assert least[depth, size] >= min(found) - (kind == PATH), "and it is close"
    for tree in trees_of(6):
        assert longest_chain(tree, kind) == slow_chain(tree, kind)


def test_least_chains_of_large_trees() -> None:
    assert least_chains(FAMILY, 512, 10)[[1, 2, 8, 9], 511].tolist() == [510, 23, 2, 2]
    path = least_chains(PATH, 512, 10)
    assert path[1, 512] == 511
    assert (np.diff(path[1:], axis=1) >= 0).all(), "a larger tree of the same depth has no shorter chain"


def test_verifiers_have_the_chains_that_they_walk() -> None:
    warm = Sampling(0.6)
    kinds = [chain_of(StepRule.of(warm, Drafting("swor", verifier=name))) for name in ("matching", "sequential", "traversal")]
    assert kinds == [NO_CHAIN, FAMILY, PATH]
    assert chain_of(GREEDY) == NO_CHAIN


def test_a_planted_rest_is_found_and_nothing_is_below_zero() -> None:
    trees = [SpeculationTree.chain(5), SpeculationTree.k_ary(2, 3), SpeculationTree.k_ary(7, 1), SpeculationTree.k_chains(4, 4)]
    trees += [SpeculationTree.k_ary(3, 2), SpeculationTree.chain(1)]
    planted = Rest(2e-4, 1e-6, 3e-5, 4e-5, PATH)
    features = [(1.0, tree.size, longest_chain(tree, PATH), tree.depth) for tree in trees]
    rests = [planted.seconds(tree) for tree in trees]
    found = fit(features, rests, [1e-3 + rest for rest in rests])
    assert found == pytest.approx([planted.per_step, planted.per_node, planted.per_link, planted.per_level], rel=1e-6)
    assert min(fit(features, [-rest for rest in rests], [1e-3] * len(rests))) >= 0, "passes that were measured too slow leave no rest"
    slow = Rest(-8e-5, 1e-6, 3e-5, -9e-6, PATH)
    found = fit(features, [slow.seconds(tree) for tree in trees], [1e-3] * len(trees), target=1e-3, level=1e-4)
    assert found == pytest.approx([-8e-5, 1e-6, 3e-5, -9e-6], rel=1e-6), "unless they may take a little back"
    bound = fit(features, [-1e-2 * tree.depth for tree in trees], [1e-3] * len(trees), target=1e-3, level=1e-4)
    assert bound == [-1e-4, 0, 0, -1e-5], "a tenth of the shortest passes at most"


@pytest.mark.parametrize(("steps", "columns"), [(1, {0}), (2, {0, 2}), (3, {0, 2, 3}), (5, {0, 1, 2, 3})])
def test_fewer_steps_fit_fewer_numbers(steps: int, columns: set[int]) -> None:
    trees = [SpeculationTree.chain(5), SpeculationTree.k_ary(2, 3), SpeculationTree.k_ary(7, 1), SpeculationTree.k_chains(4, 4)]
    trees = [*trees, SpeculationTree.k_ary(3, 2)][:steps]
    planted = Rest(2e-4, 1e-6, 3e-5, 4e-5, PATH)
    features = [(1.0, tree.size, longest_chain(tree, PATH), tree.depth) for tree in trees]
    found = fit(features * 2, [planted.seconds(tree) for tree in trees] * 2, [1e-3] * steps * 2)
    assert {place for place, value in enumerate(found) if value} <= columns
    assert found[0] > 0
