"""The target of a head is a loaded model: its sizes are read from it, and its weights are borrowed and not copied."""

from collections.abc import Callable

import pytest
from transformers import PreTrainedModel

from treespec.models.heads.target import HeadTarget


@pytest.mark.parametrize("family", ["llama", "phi"])
def test_a_loaded_model_is_a_target(family: str, tiny_module: Callable[..., PreTrainedModel]) -> None:
    module = tiny_module(family, num_hidden_layers=3)
    target = HeadTarget.of(module, "team/target")
    assert (target.name, target.layers) == ("team/target", 3)
    assert (target.vocabulary_size, target.hidden_size) == (module.config.vocab_size, module.config.hidden_size)
    weights = dict(module.named_parameters())
    assert target.embedding is weights["model.embed_tokens.weight"]
    assert target.lm_head is weights["lm_head.weight"]
    assert target.lm_head_bias is weights.get("lm_head.bias")
    assert (target.lm_head_bias is not None) == (family == "phi")
