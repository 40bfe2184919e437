"""Who runs, who is refused by name, and how masks, windows and position limits are read from a configuration."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedConfig

from tests.reference import tiny, wrappers
from treespec.errors import CapacityError, ModelError
from treespec.evaluation.runner import check_fits
from treespec.evaluation.settings import EvaluationSettings
from treespec.models import families
from treespec.models.pairs import Pair
from treespec.models.tree_model import TreeModel
from treespec.trees.tree import SpeculationTree

Build = Callable[..., PreTrainedConfig]
LONG_ROPE = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 6, "long_factor": [2.0] * 6}


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (transformers.Qwen3NextConfig(), "qwen3_next.*running state"),
        (transformers.MambaConfig(), "mamba.*running state"),
        (transformers.Mamba2Config(), "mamba2.*running state"),
        (transformers.RwkvConfig(), "rwkv.*running state"),
        (transformers.JambaConfig(), "jamba.*running state"),
        (transformers.BloomConfig(), "bloom.*ALiBi"),
        (transformers.MptConfig(), "mpt.*ALiBi"),
        (transformers.FalconConfig(alibi=True), "falcon.*ALiBi"),
        (transformers.T5Config(), "t5.*decoder-only"),
        (transformers.BartConfig(), "bart.*decoder-only"),
        (transformers.BertConfig(), "bert.*both directions"),
        (transformers.GPTNeoConfig(), "gpt_neo.*by cache row"),
        (transformers.Llama4TextConfig(), "llama4_text.*chunks"),
        (transformers.Gemma3TextConfig(use_bidirectional_attention=True), "gemma3_text.*both directions"),
        (transformers.GPT2Config(add_cross_attention=True), "gpt2.*decoder-only"),
    ],
    ids=lambda value: value.model_type if isinstance(value, PreTrainedConfig) else "",
)
def test_families_that_cannot_be_exact_are_refused_by_name(config: PreTrainedConfig, reason: str) -> None:
    with pytest.raises(ModelError, match=reason) as caught:
        families.check(config, "some/model")
    assert str(caught.value).startswith("some/model (family ")
    assert "use another model" in str(caught.value)


def test_unknown_layer_types_are_refused(tiny_config: Build) -> None:
    config = tiny_config("qwen2")
    config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(ModelError, match="layers of type linear_attention"):
        families.check(config)


def test_unknown_families_with_windows_are_refused(tiny_config: Build) -> None:
    config = tiny_config("jais2")
    config.sliding_window = 32
    with pytest.raises(ModelError, match="jais2.*sliding windows of 32"):
        families.check(config)


def test_every_tested_family_has_a_tiny_model() -> None:
    inside = {str(wrappers.config_of(name).get_text_config(decoder=True).model_type) for name in wrappers.WRAPPERS if wrappers.known(name)}
    here = {str(tiny.config_of(name).model_type) for name in tiny.CONFIGS if tiny.known(name)} | inside
    missing = {name for name in families.VERIFIED if name in transformers.CONFIG_MAPPING} - here
    assert not missing
    assert {name for name in families.WRAPPERS if name in transformers.CONFIG_MAPPING} <= {name.split("-")[0] for name in wrappers.WRAPPERS}


def test_no_family_is_both_verified_and_refused() -> None:
    assert not set(families.VERIFIED) & set(families.REFUSED)


@pytest.mark.parametrize(
    ("family", "window"),
    [
        ("llama", None),
        ("qwen2", None),
        ("qwen2-sliding", 6),
        ("qwen3", None),
        ("qwen3-sliding", 6),
        ("mistral", 6),
        ("gemma3", 6),
        ("mixtral", 6),
    ],
)
def test_windows(family: str, window: int | None, tiny_config: Build) -> None:
    assert families.check(tiny_config(family)).window == window


def test_a_window_that_is_switched_off_is_none(tiny_config: Build) -> None:
    assert families.check(tiny_config("mistral", sliding_window=None)).window is None
    assert families.check(tiny_config("qwen2", sliding_window=6, use_sliding_window=False)).window is None


def test_only_the_tested_families_are_verified(tiny_config: Build) -> None:
    assert families.check(tiny_config("llama")).verified
    assert not families.check(tiny_config("jais2")).verified


def test_softcapped_attention_needs_eager(tiny_config: Build) -> None:
    assert families.check(tiny_config("gemma2")).attention == "eager"
    assert families.check(tiny_config("gemma3")).attention is None


@pytest.mark.parametrize(
    ("rope", "limit"),
    [
        ({"rope_type": "default", "rope_theta": 1e4}, 128),
        ({"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}, 128),
        ({"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}, 128),
        ({"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}, 32),
        (LONG_ROPE, 32),
    ],
    ids=lambda value: value["rope_type"] if isinstance(value, dict) else "",
)
def test_a_rope_that_changes_with_length_bounds_the_positions(rope: dict[str, object], limit: int, tiny_config: Build) -> None:
    changing = rope["rope_type"] != "default"
    config = tiny_config("llama", rope_parameters={**rope, **({"original_max_position_embeddings": 32} if changing else {})})
    assert families.check(config).max_positions == limit


def test_heads_that_cannot_share_keys_are_refused(tiny_config: Build) -> None:
    config = tiny_config("llama", num_attention_heads=4)
    config.num_key_value_heads = 3
    with pytest.raises(ModelError, match="draft: num_attention_heads is 4, but it must be a multiple of num_key_value_heads, which is 3"):
        families.check(config, "draft")


@pytest.mark.parametrize("original", [-5, "64"])
def test_positions_that_no_model_has_are_refused(original: object, tiny_config: Build) -> None:
    config = tiny_config("llama")
    config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": original}
    with pytest.raises(ModelError, match=f"original_max_position_embeddings is {original!r}, but it must be a whole number"):
        families.check(config)


def test_learned_positions_are_a_limit(tiny_config: Build) -> None:
    assert families.check(tiny_config("gpt2")).max_positions == 128
    assert families.check(tiny_config("opt")).max_positions == 128


@pytest.mark.parametrize(
    ("rope", "positions", "limit", "kind"),
    [
        ({"rope_type": "dynamic", "factor": 4.0, "original_max_position_embeddings": 64}, 256, 64, "dynamic"),
        ({**LONG_ROPE, "original_max_position_embeddings": 64}, 256, 64, "longrope"),
        ({"rope_type": "dynamic", "factor": 4.0}, 64, 64, None),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}, 256, 256, None),
        ({"rope_type": "linear", "factor": 4.0}, 256, 256, None),
    ],
)
def test_a_rope_that_changes_before_the_last_position_is_told(
    rope: dict[str, Any], positions: int, limit: int, kind: str | None, tiny_config: Build
) -> None:
    config = tiny_config("llama", max_position_embeddings=positions, rope_parameters={"rope_theta": 10000.0, **rope})
    family = families.check(config)
    told = f" (its rope, '{kind}', changes beyond the first 64 of the 256 positions in its config.json, and treeopt decodes up to there)"
    assert (family.max_positions, family.rope_note) == (limit, told if kind else "")
    if limit > 64:
        return
    module = AutoModelForCausalLM.from_config(config)
    model = TreeModel(module, name="tiny", kernels=False)
    with pytest.raises(CapacityError) as caught:
        model.prefill(torch.zeros(65, dtype=torch.int64))
    assert str(caught.value) == f"the prompt has 65 tokens, but tiny knows 64 positions{family.rope_note}; use a shorter `prompt_len`"
    pair = Pair(model, None, frozenset(), draft=model)
    with pytest.raises(CapacityError, match=r"need 69 positions, but the target model has 64(.*its rope.*)?; pass"):
        check_fits(pair, SpeculationTree.chain(2), (1,) * 60, EvaluationSettings(gen_len=10))
