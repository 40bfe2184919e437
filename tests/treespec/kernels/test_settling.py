"""The end of a step in one launch, against the operations that define it, on trees of every shape and with damaged logits."""

import pytest
import torch
from torch import Tensor

from treespec.kernels import plain
from treespec.kernels.settling import LARGEST, settle_matching
from treespec.trees.tensors import StaticTensors, TreeTensors
from treespec.trees.tree import SpeculationTree

pytestmark = pytest.mark.usefixtures("poison")


def some_tree(size: int, seed: int) -> SpeculationTree:
    """Any tree: of a few seeds a chain, a star, and deep and wide ones."""
    drawn = torch.randint(0, 1 << 30, (size,), generator=torch.Generator().manual_seed(seed)).tolist()
    back = {0: 1, 1: size}.get(seed, 2 + seed)
    parents = [max(0, node - 1 - drawn[node] % back) for node in range(size)]
    if seed == 1:
        parents = [0] * size
    return SpeculationTree.from_parents([-1, *parents[1:]])


def some_step(tree: SpeculationTree, accept: float, seed: int, device: str) -> tuple[Tensor, Tensor]:
    """(tokens, choices) where siblings differ, and a choice is one of the children's tokens with probability `accept`."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.tensor([7 * rank + 1 for rank in tree.ranks])
    choices = torch.zeros(tree.size, dtype=torch.int64)
    for node, children in enumerate(tree.children):
        if children and float(torch.rand((), generator=generator)) < accept:
            choices[node] = 7 * int(torch.randint(0, len(children), (), generator=generator)) + 1
    return tokens.to(device), choices.to(device)


def agree(tokens: Tensor, choices: Tensor, tree: TreeTensors, largest: Tensor, drafted: Tensor, length: Tensor) -> list[int]:
    """The report, which is the same by both."""
    found = settle_matching(tokens, choices, tree, largest, drafted, length)
    expected = plain.finish_step(tokens, choices, tree, largest, drafted, length)
    for one, other in ((found.path, expected.path), (found.report, expected.report), (found.state, expected.state)):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        assert one.tolist() == other.tolist()
    return found.report.tolist()


@pytest.mark.parametrize("accept", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("size", [1, 2, 3, 17, 64, 65, 130])
def test_the_step_is_the_reference_s(size: int, seed: int, accept: float, device: str) -> None:
    tree = some_tree(size, seed)
    tensors = StaticTensors.on(tree, device)
    length = torch.tensor([41], device=device)
    for draw in range(3):
        tokens, choices = some_step(tree, accept, draw, device)
        largest, drafted = torch.randn(size, device=device), torch.randn(size // 2, device=device)
        agree(tokens, choices, tensors, largest, drafted, length)


@pytest.mark.parametrize("seed", [0, 3])
def test_the_largest_tree(seed: int, device: str) -> None:
    tree = some_tree(LARGEST, seed)
    tokens, choices = some_step(tree, 1.0, 0, device)
    largest, length = torch.zeros(LARGEST, device=device), torch.ones(1, dtype=torch.int64, device=device)
    report = agree(tokens, choices, StaticTensors.on(tree, device), largest, torch.zeros(700, device=device), length)
    assert report[-3] > 0, "something was accepted"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("damage", [float("nan"), float("inf"), -float("inf")])
def test_health_is_of_the_path_and_of_all_that_was_drafted(damage: float, dtype: torch.dtype, device: str) -> None:
    tree = SpeculationTree.from_branches([[2], [1, 1]])
    tensors, length = StaticTensors.on(tree, device), torch.tensor([5], device=device)
    tokens, choices = torch.tensor([9, 1, 2, 3, 4], device=device), torch.tensor([1, 3, 0, 6, 0], device=device)
    for node in range(tree.size):
        largest = torch.ones(tree.size, dtype=dtype, device=device)
        largest[node] = damage
        report = agree(tokens, choices, tensors, largest, largest[:3], length)
        assert report[-3:] == [2, 0 if node in (0, 1, 3) else 1, 0 if node < 3 else 1]
        assert report[:3] == [1, 3, 6]


def test_any_stride_and_nothing_drafted(device: str) -> None:
    """As an autoregressive step has it: one node, and choices that are a column."""
    tensors = StaticTensors.on(SpeculationTree((-1,)), device)
    both = torch.tensor([[3, 4], [5, 6]], device=device)
    report = agree(both[:1, 0], both[1:, 1], tensors, torch.ones(2, 2, device=device)[:1, 1], torch.ones(0, device=device), both[0, :1])
    assert report == [6, 0, 0, 1, 1]
    tree = some_tree(20, 2)
    tokens, choices = some_step(tree, 1.0, 1, device)
    wide = torch.stack([choices, choices + 1], dim=1)
    agree(
        tokens,
        wide[:, 0],
        StaticTensors.on(tree, device),
        torch.ones(20, 3, device=device)[:, 1],
        torch.ones(4, device=device),
        both[0, :1],
    )


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("size", [33, 67])
def test_a_tree_known_only_on_the_device(size: int, packed: bool, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a dynamic tree has: tensors that no one has seen, with bits if kernels made it."""
    static = StaticTensors.on(some_tree(size, 3), device)
    bits = static.bits if packed else None
    tree = TreeTensors(static.depth + 2, static.depths, static.parents, static.ranks, static.ancestors, bits=bits)
    if packed:
        monkeypatch.setattr("treespec.kernels.settling.pack", None)  # no launch for what is there
    tokens, choices = some_step(static.tree, 1.0, 5, device)
    agree(tokens, choices, tree, torch.ones(size, device=device), torch.ones(9, device=device), torch.tensor([3], device=device))
