"""The trial tree admits unknown families that are exact and refuses those that are not."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from treespec.errors import ModelError
from treespec.models.exactness import verify_exactness
from treespec.models.tree_model import TreeModel

Build = Callable[..., PreTrainedModel]


class NewConfig(LlamaConfig):
    model_type = "brand_new"


class Plain(LlamaForCausalLM):
    """A family nobody has heard of that takes masks as Llama does."""


class RowBiased(LlamaForCausalLM):
    """Adds a bias that grows with the cache row, as ALiBi does."""

    def forward(self, input_ids: Any = None, attention_mask: Any = None, **kwargs: Any) -> Any:
        rows = input_ids.shape[1] if attention_mask is None else attention_mask.shape[-1]
        bias = 0.1 * torch.arange(rows, dtype=torch.float32)
        causal = torch.full((rows, rows), float("-inf")).triu(1)[None, None] if attention_mask is None else attention_mask
        return super().forward(input_ids=input_ids, attention_mask=causal + bias, **kwargs)


class MaskDeaf(LlamaForCausalLM):
    """Ignores the mask it is given."""

    def forward(self, input_ids: Any = None, attention_mask: Any = None, **kwargs: Any) -> Any:
        return super().forward(input_ids=input_ids, **kwargs)


class PositionDeaf(LlamaForCausalLM):
    """Counts positions by itself."""

    def forward(self, input_ids: Any = None, position_ids: Any = None, **kwargs: Any) -> Any:
        return super().forward(input_ids=input_ids, position_ids=torch.arange(input_ids.shape[1])[None], **kwargs)


class Broken(LlamaForCausalLM):
    """Takes no 4D masks at all."""

    def forward(self, input_ids: Any = None, attention_mask: Any = None, **kwargs: Any) -> Any:
        if attention_mask is not None and attention_mask.dim() != 2:
            raise ValueError("attention_mask must be 2D")
        return super().forward(input_ids=input_ids, attention_mask=attention_mask, **kwargs)


def build(kind: type[LlamaForCausalLM]) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return kind(
        NewConfig(
            vocab_size=97,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            initializer_range=0.3,
            pad_token_id=0,
        )
    ).eval()


def test_an_unknown_family_that_is_exact_is_admitted() -> None:
    model = TreeModel(build(Plain))
    assert not model.family.verified
    assert verify_exactness(model) < 1e-4


@pytest.mark.parametrize("kind", [RowBiased, MaskDeaf, PositionDeaf, Broken])
def test_an_unknown_family_that_is_not_exact_is_refused(kind: type[LlamaForCausalLM]) -> None:
    with pytest.raises(ModelError, match="family brand_new.*not verified with trees") as caught:
        TreeModel(build(kind), name="x")
    assert ("2D" in str(caught.value)) == (kind is Broken)


@pytest.mark.parametrize("family", ["llama", "gemma3", "mixtral", "deepseek_v3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_rounding_passes_the_trial(family: str, dtype: torch.dtype, tiny_module: Build) -> None:
    model = TreeModel(tiny_module(family).to(dtype))
    assert verify_exactness(model, seed=1) >= 0


def test_nan_weights_do_not_pass_the_trial(tiny_module: Build) -> None:
    module = tiny_module("llama")
    with torch.no_grad():
        next(module.parameters()).fill_(float("nan"))
    with pytest.raises(ModelError, match="differ"):
        verify_exactness(TreeModel(module))
