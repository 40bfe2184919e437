"""Acceptance: the vectorised walk against following the tree child by child."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from treespec.decoding.verifiers.sequential import Sequential
from treespec.decoding.verifiers.traversal import Traversal
from treespec.kernels.plain import last_matching, settle
from treespec.trees.tensors import StaticTensors
from treespec.trees.tree import SpeculationTree


def walk(tree: SpeculationTree, tokens: list[int], choices: list[int]) -> tuple[list[int], list[int]]:
    node, path, emitted = 0, [0], [choices[0]]
    while (child := next((c for c in tree.children[node] if tokens[c] == choices[node]), None)) is not None:
        node = child
        path.append(node)
        emitted.append(choices[node])
    return path, emitted


@given(st.lists(st.integers(0, 10**6), max_size=14), st.randoms(use_true_random=False))
def test_accepts_the_path_that_the_target_chose(picks: list[int], random) -> None:  # type: ignore[no-untyped-def]
    tree = SpeculationTree.from_parents([-1, *(p % (i + 1) for i, p in enumerate(picks))])
    vocabulary = tree.max_branch + 2
    tokens = [0] * tree.size
    for children in tree.children:
        for child, token in zip(children, random.sample(range(vocabulary), len(children)), strict=True):
            tokens[child] = token
    choices = [random.randrange(vocabulary) for _ in range(tree.size)]
    chosen, tensors = torch.tensor(choices), StaticTensors.on(tree, "cpu")
    last = last_matching(torch.tensor(tokens), chosen, tensors)
    found = settle(torch.tensor(tokens), last, chosen[last], tensors, torch.zeros(tree.size), torch.zeros(1), torch.tensor([5]))
    path, emitted = walk(tree, tokens, choices)
    report = found.read()
    assert report.ranks == [tree.ranks[node] for node in path[1:]]
    assert report.target_sound
    assert report.draft_sound
    assert found.path.tolist() == path + [path[-1]] * (tree.depth + 1 - len(path))
    assert report.tokens == emitted
    assert found.last.tolist() == [tokens[path[-1]], emitted[-1]]
    assert found.length.tolist() == [5 + len(emitted)]


def test_a_verifier_of_its_own_does_not_inherit_the_kernels() -> None:
    """A subclass that weighs nodes in another way would be passed over by kernels that know nothing of it."""

    class Own(Sequential):
        pass

    assert (Sequential.order, Traversal.order, Own.order) == ("root first", "leaves first", None)
