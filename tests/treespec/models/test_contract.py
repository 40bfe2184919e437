"""Every implementation of SlotModel keeps the contract: tabular, plain, by kernels, and a draft that reads text only."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.reference.contract import TREE, ScoringContract, SlotModelContract, Subject
from tests.reference.tabular import TabularModel, random_rule
from treespec.models.text_draft import TextDraft
from treespec.models.tree_model import TreeModel
from treespec.models.vocabularies import SharedIds
from treespec.trees.placement import Placement, Prefix

Build = Callable[..., PreTrainedModel]
PICTURE = 95
KNOWN = 90
OTHERS = (3, 7)
"""Ids that the text draft has for other tokens."""

INTERPRETED = (pytest.mark.interpreted, pytest.mark.slow)


def draws(device: str, *, pictures: bool = False) -> dict[str, Any]:
    """A prompt and words, all different; with a picture in the prompt's midst."""
    tokens = torch.randperm(KNOWN, generator=torch.Generator().manual_seed(3))
    tokens = tokens[(tokens != OTHERS[0]) & (tokens != OTHERS[1])].to(device)
    prompt, words = tokens[:9], tokens[9 : 9 + TREE.size + 4]
    if pictures:
        prompt = torch.cat([prompt[:4], torch.full((5,), PICTURE, device=device), prompt[4:]])
    return {"prompt": prompt, "words": words}


def tree_model(module: Any, device: str, kernels: bool) -> Subject:
    """A TreeModel of a tiny module; by kernels its passes take lengths from the device."""
    model = TreeModel(module.to(device), kernels=kernels)
    model.allocate(1)
    assert bool(model.eager_reason) is not kernels
    return Subject(model, **draws(device), on_device=kernels, twin=TreeModel(module, kernels=False) if kernels else None)


def text_draft(module: Any, device: str, kernels: bool) -> Subject:
    """A draft that passes over the prompt's picture and knows a part of the target's tokens."""
    plain, model = (
        TextDraft(module.to(device), name="draft", shared=SharedIds(KNOWN, OTHERS), vocabulary=97, picture=PICTURE, kernels=each)
        for each in (False, kernels)
    )
    return Subject(model, **draws(device, pictures=True), on_device=kernels, twin=plain if kernels else None)


PLAIN = ("llama", "mistral", "gemma3", "gpt2")
HOOKED = ("gemma3",)
FUSED = ("mistral",)

CASES = {
    **{f"plain {family}": (tree_model, family, False) for family in PLAIN},
    **{f"hooked {family}": (tree_model, family, True) for family in HOOKED},
    **{f"fused {family}": (tree_model, family, True) for family in FUSED},
    "plain text draft": (text_draft, "llama", False),
    "fused text draft": (text_draft, "llama", True),
}


class TestTabular(SlotModelContract):
    @pytest.fixture
    def subject(self) -> Subject:
        return Subject(TabularModel(97, random_rule(97, 0, memory=20)), **draws("cpu"), on_device=False)


class TestTreeModel(SlotModelContract, ScoringContract):
    @pytest.fixture(params=[pytest.param(case, id=name, marks=INTERPRETED if case[2] else ()) for name, case in CASES.items()])
    def subject(self, request: pytest.FixtureRequest, tiny_module: Build, device: str) -> Subject:
        make, family, kernels = request.param
        if kernels:
            pytest.importorskip("triton")
        return make(tiny_module(family), device, kernels)  # type: ignore[no-any-return]


class OneByOne(TreeModel):
    """Moves one row after the other."""

    def move(self, prefix: Prefix, offsets: Tensor, first: int) -> None:
        for index in range(len(offsets)):
            super().move(prefix, offsets[index : index + 1], first + index)


class Unmoved(TreeModel):
    """Moves nothing."""

    def move(self, prefix: Prefix, offsets: Tensor, first: int) -> None:
        pass


class Unmasked(TreeModel):
    """Lets every token see all slots that the pass may look at."""

    def forward(self, tokens: Tensor, place: Placement, keep: Tensor | None = None) -> Tensor:
        return super().forward(tokens, replace(place, visible=torch.ones_like(place.visible)), keep)


class ByRow(TreeModel):
    """Takes a token's slot for its position."""

    def forward(self, tokens: Tensor, place: Placement, keep: Tensor | None = None) -> Tensor:
        return super().forward(tokens, replace(place, depths=place.offsets), keep)


class Sorted(TreeModel):
    """Keeps offsets in their own order."""

    def forward(self, tokens: Tensor, place: Placement, keep: Tensor | None = None) -> Tensor:
        return super().forward(tokens, place, None if keep is None else keep.sort().values)


class Packed(TreeModel):
    """Stores tokens side by side, wherever they are said to go."""

    def forward(self, tokens: Tensor, place: Placement, keep: Tensor | None = None) -> Tensor:
        offsets = torch.arange(len(tokens))
        visible = torch.zeros_like(place.visible)
        visible[:, : len(tokens)] = place.visible[:, place.offsets]
        return super().forward(tokens, replace(place, offsets=offsets, visible=visible), keep)


class Constant(TreeModel):
    """Says the same whatever it reads."""

    def prefill(self, tokens: Tensor, pixels: Tensor | None = None, chunk: int = 512) -> Tensor:
        return torch.zeros_like(super().prefill(tokens, pixels, chunk))


class Storing(TreeModel):
    """Scores through the slots."""

    def score(self, ids: Tensor, keep_from: int = 0, pixels: Tensor | None = None) -> Tensor:
        super().prefill(ids[0])
        return super().score(ids, keep_from, pixels)


@pytest.mark.parametrize(
    ("kind", "check"),
    [
        (OneByOne, lambda subject: SlotModelContract().test_a_move_reads_everything_before_it_writes(subject, 1)),
        (Unmoved, SlotModelContract().test_an_accepted_path_is_part_of_the_prefix),
        (Unmasked, SlotModelContract().test_a_node_sees_the_prefix_and_its_ancestors_alone),
        (ByRow, SlotModelContract().test_slots_may_lie_anywhere_and_a_tree_may_grow),
        (Sorted, SlotModelContract().test_only_the_rows_that_are_kept_come_back_in_their_order),
        (Packed, SlotModelContract().test_slots_may_lie_anywhere_and_a_tree_may_grow),
        (Constant, SlotModelContract().test_the_context_matters),
        (Storing, ScoringContract().test_scoring_leaves_the_slots_alone),
    ],
)
def test_a_planted_mistake_is_found(kind: type[TreeModel], check: Callable[[Subject], None], tiny_module: Build) -> None:
    check(Subject(TreeModel(tiny_module("gemma3")), **draws("cpu"), on_device=False))
    with pytest.raises(AssertionError):
        check(Subject(kind(tiny_module("gemma3")), **draws("cpu"), on_device=False))
