"""Weights in a file that the module does not have: named, or refused where another model would run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from treespec.errors import ModelError
from treespec.models.loading import load_model

Build = Callable[..., PreTrainedModel]


def _with(folder: Path, module: PreTrainedModel, extra: dict[str, torch.Tensor], **changes: Any) -> str:
    """Save a module with more tensors and other settings."""
    module.save_pretrained(folder)
    save_file(load_file(folder / "model.safetensors") | extra, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return str(folder)


def test_layers_beyond_those_of_the_configuration_are_refused(tmp_path: Path, tiny_module: Build) -> None:
    name = _with(tmp_path, tiny_module("llama", num_hidden_layers=3), {}, num_hidden_layers=2)
    with pytest.raises(ModelError, match=r"hold model\.layers\.2\..* but config.json asks for 2 layers .* without layer 2 another model"):
        load_model(name)


@pytest.mark.parametrize(
    ("family", "key"),
    [
        ("llama", "model.layers.0.self_attn.q_norm.weight"),
        ("llama", "model.layers.1.self_attn.q_proj.bias"),
        ("llama", "model.layers.1.self_attn.q_proj.lora_A.weight"),
        ("llama", "model.layers.1.pre_feedforward_layernorm.weight"),
        ("llama", "layers.1.pre_feedforward_layernorm.weight"),
        ("llama", "model.norm.bias"),
        ("llama", "model.embed_layernorm.weight"),
        ("llama", "model.embed_positions.weight"),
        ("llama", "lm_head.bias"),
        ("llama", "final_logits_bias"),
        ("llama", "model.embed_tokens.weight_scale_2"),
        ("qwen3_moe", "model.layers.0.mlp.gate.e_score_correction_bias"),
        ("gpt2", "transformer.h.0.attn.c_attn.extra"),
    ],
)
def test_parts_of_modules_that_are_there_are_refused(family: str, key: str, tmp_path: Path, tiny_module: Build) -> None:
    name = _with(tmp_path, tiny_module(family), {key: torch.zeros(3)})
    with pytest.raises(ModelError, match=f"its files hold (model.)?{key}, which the .* does not have.*another model would run"):
        load_model(name)


@pytest.mark.parametrize(
    ("family", "key", "shape"),
    [
        ("llama", "model.layers.0.self_attn.rotary_emb.inv_freq", (6,)),
        ("llama", "model.rotary_emb.inv_freq", (6,)),
        ("llama", "model.layers.0.self_attn.k_scale", (1,)),
        ("gpt2", "transformer.h.0.attn.bias", (1, 1, 128, 128)),
        ("gpt2", "h.1.attn.bias", (1, 1, 128, 128)),
        ("gpt2", "transformer.h.0.attn.masked_bias", ()),
        ("gpt_neox", "gpt_neox.layers.0.attention.bias", (1, 1, 128, 128)),
        ("gpt_neox", "gpt_neox.layers.0.attention.masked_bias", ()),
        ("gpt_neox", "gpt_neox.layers.0.attention.rotary_emb.inv_freq", (6,)),
        ("gptj", "transformer.h.0.attn.bias", (1, 1, 128, 128)),
        ("deepseek_v3", "model.layers.61.eh_proj.weight", (3,)),  # transformers lists it
    ],
)
def test_tables_and_what_transformers_ignores_are_passed_over(
    family: str, key: str, shape: tuple[int, ...], tmp_path: Path, tiny_module: Build
) -> None:
    module = tiny_module(family)
    loaded = load_model(_with(tmp_path, module, {key: torch.zeros(shape)}))
    assert loaded.notes == ()
    assert torch.equal(loaded.module.get_output_embeddings().weight, module.get_output_embeddings().weight)


def test_extra_heads_and_towers_are_named(tmp_path: Path, tiny_module: Build) -> None:
    extra = ("mtp.layers.0.q.weight", "score.weight", "vision_tower.a.weight", "model.vision.b.weight", "v_head.bias")
    loaded = load_model(_with(tmp_path, tiny_module("llama"), {key: torch.zeros(3) for key in extra}))
    assert len(loaded.notes) == 1
    assert "5 tensors in its files are not used, of model.vision, mtp, score, v_head ..." in loaded.notes[0]


def test_layers_for_multi_token_prediction_are_named(tmp_path: Path, tiny_module: Build) -> None:
    extra = {"model.layers.2.eh_proj.weight": torch.zeros(3), "model.layers.2.self_attn.q_proj.weight": torch.zeros(3)}
    loaded = load_model(_with(tmp_path, tiny_module("llama"), extra, num_nextn_predict_layers=1))
    assert "2 tensors in its files are not used, of model.layers.2" in loaded.notes[0]
