"""The table of families says what really happens when models of them are loaded."""

from collections.abc import Callable

import pytest
import torch
from transformers import CONFIG_MAPPING, PreTrainedModel

pytest.importorskip("triton")

from tests.reference import wrappers
from tests.reference.tiny import CONFIGS, known
from treespec.models import families
from treespec.models.fused import FusedDecoder
from treespec.models.hooked import HookedDecoder
from treespec.models.pairs import tree_model
from treespec.models.plain import PlainDecoder
from treespec.models.support import Support, all_families, support_of
from treespec.models.tree_model import TreeModel

Build = Callable[..., PreTrainedModel]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # the kernels are interpreted only where there is no GPU
DECODERS = {"all": FusedDecoder, "attention": HookedDecoder, "none": PlainDecoder}


@pytest.fixture(scope="module")
def table() -> dict[str, Support]:
    return {row.model_type: row for row in all_families()}


def agree(said: Support, model: TreeModel) -> None:
    model.allocate(8)
    assert type(model.decoder) is DECODERS[said.kernels]
    assert model.eager_reason == said.eager
    assert said.captured == (not model.eager_reason)
    assert (said.exact == "tested") == model.family.verified


@pytest.mark.parametrize("family", [name for name in CONFIGS if known(name)])
def test_what_is_said_of_a_family_is_what_its_models_do(family: str, tiny_module: Build) -> None:
    module = tiny_module(family)
    agree(support_of(module.config), TreeModel(module.to(DEVICE), kernels=True))


@pytest.mark.parametrize("name", ["mistral3", "qwen2_5_vl", "gemma3", "cohere2_vision", "voxtral"])
def test_what_is_said_of_a_wrapper_is_what_its_text_does(name: str) -> None:
    module = wrappers.module_of(name)
    said, inside = support_of(module.config), tree_model(module, name).module
    agree(said, TreeModel(inside.to(DEVICE), kernels=True))
    assert said.inside == module.config.get_text_config(decoder=True).model_type
    assert not said.pictures


def test_the_table_has_every_family_that_is_tested_or_refused(table: dict[str, Support]) -> None:
    refused = {name: why for name, why in families.REFUSED.items() if name in CONFIG_MAPPING}  # an older transformers lacks some
    assert refused
    assert {name: table[name].refused for name in refused} == refused
    assert all(row.exact == "tested" for name, row in table.items() if name in families.VERIFIED)
    assert table["llava"].pictures
    assert table["llava"].exact == "tested"
    assert table["afmoe"].exact == "refused" if "afmoe" in table else True


def test_a_row_that_is_refused_says_why_and_one_without_graphs_too(table: dict[str, Support]) -> None:
    for row in table.values():
        assert bool(row.refused) == (row.exact == "refused"), row
        assert row.captured == (row.kernels != "none"), row
        assert bool(row.eager) == (row.exact != "refused" and not row.captured), row
