"""SpeculationTree against slow, obvious definitions on random trees."""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from treespec.errors import TreeError
from treespec.trees.limits import MAX_SIZE
from treespec.trees.tree import SpeculationTree


@st.composite
def raw_parents(draw, max_size=24):
    """Any array in which parents come before their children."""
    size = draw(st.integers(1, max_size))
    return [-1, *(draw(st.integers(0, node - 1)) for node in range(1, size))]


trees = raw_parents().map(SpeculationTree.from_parents)


def path_of(parents, node):
    """Ranks from the root to a node, straight from the definition."""
    ranks = []
    while node:
        siblings = [n for n, parent in enumerate(parents) if parent == parents[node]]
        ranks.append(siblings.index(node))
        node = parents[node]
    return tuple(reversed(ranks))


@given(raw_parents())
def test_from_parents_keeps_the_shape(parents):
    tree = SpeculationTree.from_parents(parents)
    assert sorted(path_of(tree.parents, n) for n in range(tree.size)) == sorted(path_of(parents, n) for n in range(len(parents)))
    assert SpeculationTree.from_parents(tree.parents) == tree


@given(trees)
def test_derived_fields_agree_with_their_definitions(tree):
    paths = [path_of(tree.parents, node) for node in range(tree.size)]
    assert tree.depths == tuple(len(path) for path in paths)
    assert tree.ranks == tuple(path[-1] if path else 0 for path in paths)
    assert tree.paths == tuple(paths[1:]) == tuple(sorted(paths[1:], key=lambda p: (len(p), p)))
    assert tree.children == tuple(tuple(n for n in range(tree.size) if tree.parents[n] == node) for node in range(tree.size))
    assert tree.level_widths == tuple(tree.depths.count(d) for d in range(tree.depth + 1))
    assert [node for level in tree.levels for node in level] == list(range(tree.size))
    assert tree.max_branch == max(tree.parents.count(node) for node in range(tree.size))
    for row, column in np.ndindex(tree.size, tree.size):
        assert tree.ancestor_mask[row, column] == (paths[column] == paths[row][: len(paths[column])])


@given(trees)
def test_builders_rebuild_the_tree(tree):
    assert SpeculationTree.from_paths(tree.paths) == tree
    assert SpeculationTree.from_branches([[len(tree.children[node]) for node in level] for level in tree.levels]) == tree
    leaves = [path for node, path in enumerate(tree.paths, 1) if not tree.children[node]]
    assert SpeculationTree.from_paths(leaves) == tree


@given(trees, st.integers(0, 30))
def test_truncation_keeps_the_first_nodes(tree, size):
    cut = tree.truncated(size)
    assert cut.parents == tree.parents[: max(1, size)]


@given(st.integers(1, 4), st.integers(0, 4))
def test_regular_builders(branches, depth):
    k_ary = SpeculationTree.k_ary(branches, depth)
    assert k_ary.level_widths == tuple(branches**d for d in range(depth + 1))
    chains = SpeculationTree.k_chains(branches, depth)
    assert chains.size == 1 + branches * depth
    assert all(len(chains.children[node]) <= 1 for node in range(1, chains.size))
    assert SpeculationTree.chain(depth).parents == tuple(range(-1, depth))


def test_the_root_alone_is_a_tree():
    root = SpeculationTree((-1,))
    assert (root.size, root.depth, root.max_branch, root.paths, root.levels) == (1, 0, 0, (), (range(1),))
    assert SpeculationTree.from_paths([]) == root == SpeculationTree.k_chains(3, 0)


def test_it_is_immutable():
    tree = SpeculationTree.chain(2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        tree.parents = (-1,)
    with pytest.raises(ValueError, match="read-only"):
        tree.ancestor_mask[0, 1] = True


@given(st.lists(st.integers(-2, 12), max_size=10))
def test_any_array_is_valid_or_refused(parents):
    valid = len(parents) > 0 and parents[0] == -1 and all(0 <= p < n for n, p in enumerate(parents) if n)
    valid = valid and all(a <= b for a, b in pairwise(parents[1:]))
    if valid:
        assert SpeculationTree(tuple(parents)).size == len(parents)
    else:
        with pytest.raises(TreeError):
            SpeculationTree(tuple(parents))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SpeculationTree(()), "at least its root"),
        (lambda: SpeculationTree((0, 0)), "node 0 is the root"),
        (lambda: SpeculationTree((-1, 1)), r"parents\[1\] is 1"),
        (lambda: SpeculationTree((-1, 0, 1, 0)), "breadth-first"),
        (lambda: SpeculationTree(tuple(range(-1, MAX_SIZE))), f"above the limit of {MAX_SIZE}"),
        (lambda: SpeculationTree.from_parents([]), "at least its root"),
        (lambda: SpeculationTree.from_parents([-1, 0, 5]), r"parents\[2\] is 5"),
        (lambda: SpeculationTree.from_parents([-1, -1]), r"parents\[1\] is -1"),
        (lambda: SpeculationTree.from_paths([(1,)]), "without rank 0"),
        (lambda: SpeculationTree.from_paths([(0, -1)]), "ranks start at 0"),
        (lambda: SpeculationTree.from_branches([[1], [1, 1]]), "level 1 has 1 node;"),
        (lambda: SpeculationTree.from_branches([[-1]]), "one count >= 0"),
        (lambda: SpeculationTree.from_branches([[10**9]]), "above the limit"),
        (lambda: SpeculationTree.k_ary(-1, 2), "branches is -1"),
        (lambda: SpeculationTree.chain(-1), "depth is -1"),
        (lambda: SpeculationTree.chain(2).truncated(-1), "size is -1"),
    ],
)
def test_impossible_trees_are_refused(build, message):
    with pytest.raises(TreeError, match=message):
        build()


def test_a_tree_of_a_list_is_that_of_a_tuple() -> None:
    tree = SpeculationTree([-1, 0, 0])
    assert tree == SpeculationTree((-1, 0, 0)) and hash(tree) == hash(SpeculationTree((-1, 0, 0)))
