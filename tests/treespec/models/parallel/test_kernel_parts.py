"""Passes of parts of a target by our own kernels, in Triton's interpreter, are those of the whole module."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

pytest.importorskip("triton")

from tests.reference.ranks import of_ranks
from treespec.models import fused
from treespec.models.pairs import load_target
from treespec.models.tree_model import TreeModel
from treespec.trees.placement import Placement, Prefix
from treespec.trees.tree import SpeculationTree

TREE = SpeculationTree.from_branches([[2], [2, 1], [1, 0, 1]])


@torch.inference_mode()
def logits_of(model: TreeModel) -> list[NDArray[Any]]:
    """The logits of a prompt, of a tree behind it, of some of its nodes, and of what follows an accepted path."""
    ids = (torch.arange(20) * 7 + 3) % 97
    model.allocate(24)
    place = Placement(Prefix.of(9, "cpu"), torch.tensor(TREE.depths), torch.arange(TREE.size), torch.tensor(TREE.ancestor_mask))
    found = [model.prefill(ids[:9]), model.forward(ids[: TREE.size], place), model.forward(ids[: TREE.size], place, torch.tensor([3, 0]))]
    path = torch.tensor([node for node in range(TREE.size) if TREE.ancestor_mask[TREE.size - 1, node]])
    model.move(Prefix.of(9, "cpu"), path, 0)
    found.append(model.forward(ids[:2], Placement.causal(9 + len(path), 2, "cpu")))
    return [logits.numpy() for logits in found]


def in_a_rank(folders: list[str]) -> list[list[NDArray[Any]]]:
    """The first model in passes of few rows, the others in passes of many, which are few enough for the interpreter."""
    found = []
    for number, folder in enumerate(folders):
        fused.LARGEST = 4 if number else fused.LARGEST  # in this process alone, which ends
        model = TreeModel(load_target(folder, tensor_parallel=2).target.loaded, kernels=True)
        assert type(model.decoder) is fused.FusedDecoder
        found.append(logits_of(model))
        assert not model.eager_reason
    return found


def test_kernels_compute_parts(tiny_module: Callable[..., PreTrainedModel], tmp_path_factory: pytest.TempPathFactory) -> None:
    if torch.cuda.is_available():
        pytest.skip("processes are forked here, and a GPU needs others; see docs/scaling.md for a run on GPUs")
    modules = [tiny_module("llama", num_hidden_layers=1, attention_bias=True, mlp_bias=True), tiny_module("qwen3", num_hidden_layers=1)]
    folders = [str(tmp_path_factory.mktemp("models")) for _ in modules]
    for module, folder in zip(modules, folders, strict=True):
        module.save_pretrained(folder)
    ranks = of_ranks(2, in_a_rank, folders)
    for number, module in enumerate(modules):
        whole = logits_of(TreeModel(module, kernels=False))
        for rank in ranks:
            for ours, exact in zip(rank[number], whole, strict=True):
                assert ours.shape == exact.shape
                assert abs(ours - exact).max() < 1e-4
