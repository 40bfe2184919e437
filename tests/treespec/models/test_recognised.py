"""Heads that read a target's hidden states, and adapters, are named for what they are before a weight is read."""

import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from treespec.errors import ModelError
from treespec.models.loading import load_config, load_model, require_model

Build = Callable[..., PreTrainedModel]

HIDDEN, ROWS = 16, 50
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 64,
}


def _layer(prefix: str, inputs: int = HIDDEN) -> dict[str, tuple[int, ...]]:
    names = {f"self_attn.{part}_proj.weight": (HIDDEN, inputs) for part in "qkv"}
    names |= {"self_attn.o_proj.weight": (HIDDEN, HIDDEN), "mlp.gate_proj.weight": (24, HIDDEN), "mlp.up_proj.weight": (24, HIDDEN)}
    names |= {"mlp.down_proj.weight": (HIDDEN, 24), "post_attention_layernorm.weight": (HIDDEN,)}
    return {f"{prefix}.{name}": shape for name, shape in names.items()}


EAGLE3 = {
    "fc.weight": (HIDDEN, 3 * HIDDEN),
    **_layer("midlayer", 2 * HIDDEN),
    "midlayer.hidden_norm.weight": (HIDDEN,),
    "midlayer.input_layernorm.weight": (HIDDEN,),
    "norm.weight": (HIDDEN,),
    "lm_head.weight": (ROWS, HIDDEN),
    "d2t": (ROWS,),
    "t2d": (100,),
}
EAGLE1 = {"embed_tokens.weight": (100, HIDDEN), "fc.weight": (HIDDEN, 2 * HIDDEN), "fc.bias": (HIDDEN,), **_layer("layers.0")}
SPECULATORS = {name.replace("midlayer.", "layers.0."): shape for name, shape in EAGLE3.items()}
DFLASH = {"fc.weight": (HIDDEN, 2 * HIDDEN), "hidden_norm.weight": (HIDDEN,), "norm.weight": (HIDDEN,), **_layer("layers.0")}
DFLASH |= {"layers.0.input_layernorm.weight": (HIDDEN,), "layers.0.self_attn.q_norm.weight": (8,), "layers.0.self_attn.k_norm.weight": (8,)}
MEDUSA = {f"{head}.0.linear.{part}": shape for head in range(3) for part, shape in (("weight", (HIDDEN, HIDDEN)), ("bias", (HIDDEN,)))}
MEDUSA |= {f"{head}.1.weight": (100, HIDDEN) for head in range(3)}
MTP = {"model.layers.61.eh_proj.weight": (HIDDEN, 2 * HIDDEN), "model.layers.61.enorm.weight": (HIDDEN,), **_layer("model.layers.61")}
MTP |= {"model.layers.61.input_layernorm.weight": (HIDDEN,), "model.layers.61.embed_tokens.weight": (100, HIDDEN)}

HEADS: dict[str, tuple[dict[str, Any], dict[str, tuple[int, ...]], str]] = {
    "eagle3": ({**LLAMA, "draft_vocab_size": ROWS}, EAGLE3, "an EAGLE-3 head"),
    "eagle3-by-its-class-alone": ({**LLAMA, "architectures": ["LlamaForCausalLMEagle3"]}, {}, "an EAGLE-3 head"),
    "eagle3-by-its-tensors-alone": (LLAMA, EAGLE3, "an EAGLE-3 head"),
    "eagle3-of-full-vocabulary": (LLAMA, {k: v for k, v in EAGLE3.items() if k not in ("d2t", "t2d")}, "an EAGLE-3 head"),
    "eagle3-under-model": (LLAMA, {f"model.{name}": shape for name, shape in EAGLE3.items()}, "an EAGLE-3 head"),
    "eagle1": (LLAMA, EAGLE1, "an EAGLE head"),
    "eagle1-by-its-class": ({"architectures": ["EAGLEModel"], "model_type": "eagle"}, {}, "an EAGLE head"),
    "eagle-without-model-type": ({"bias": False}, {k: v for k, v in EAGLE1.items() if k != "fc.bias"}, "an EAGLE head"),
    "speculators": (
        {
            "speculators_model_type": "eagle3",
            "architectures": ["Eagle3Speculator"],
            "draft_vocab_size": ROWS,
            "transformer_layer_config": LLAMA,
            "speculators_config": {"algorithm": "eagle3", "verifier": {"name_or_path": "team/target"}},
        },
        SPECULATORS,
        r"an EAGLE-3 head in the speculators format .*of its target \('team/target'\)",
    ),
    "dflash": (
        {
            **LLAMA,
            "architectures": ["DFlashDraftModel"],
            "model_type": "qwen3",
            "block_size": 4,
            "dflash_config": {"target_layer_ids": [1]},
        },
        DFLASH,
        "a DFlash draft",
    ),
    "dflash-by-its-tensors": ({**LLAMA, "model_type": "qwen3"}, DFLASH, "a DFlash draft"),
    "medusa": (
        {"medusa_num_heads": 2, "medusa_num_layers": 1, "base_model_name_or_path": "team/base"},
        MEDUSA,
        r"a set of Medusa heads.*'team/base'",
    ),
    "medusa-by-its-tensors": (LLAMA, MEDUSA, "a set of Medusa heads"),
    "hydra": ({"hydra_num_heads": 4, "base_model_name_or_path": "team/base"}, {}, "a set of Hydra heads"),
    "mtp": ({**LLAMA, "architectures": ["DeepSeekMTPModel"], "model_type": "deepseek_mtp"}, MTP, r"a multi-token prediction \(MTP\) head"),
    "mtp-by-its-tensors": (LLAMA, MTP, r"a multi-token prediction \(MTP\) head"),
    "mlp-speculator": ({"architectures": ["MLPSpeculatorPreTrainedModel"], "model_type": "mlp_speculator"}, {}, "a speculator"),
    "gemma-assistant": ({"model_type": "gemma4_assistant", "architectures": ["Gemma4AssistantForCausalLM"]}, {}, "a speculator"),
}


def _tensors(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(shape, dtype=torch.int64 if name == "d2t" else torch.float32) for name, shape in shapes.items()}


def _head(folder: Path, kind: str) -> str:
    config, shapes, said = HEADS[kind]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if shapes:
        save_file(_tensors(shapes), folder / "model.safetensors")
    return said


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_is_named_before_a_weight_is_read(kind: str, tmp_path: Path) -> None:
    said = _head(tmp_path, kind)
    for load in (require_model, load_model, load_config):
        with pytest.raises(
            ModelError, match=f"is {said}.*cannot run by itself.*give (a whole causal language model|it as the draft)"
        ) as caught:
            load(str(tmp_path))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["eagle3-by-its-tensors-alone", "eagle1", "medusa-by-its-tensors"])
@pytest.mark.parametrize("form", ["zip", "older", "index"])
def test_a_head_whose_weights_are_a_pickle_is_named_too(kind: str, form: str, tmp_path: Path) -> None:
    config, shapes, said = HEADS[kind]
    (tmp_path / "config.json").write_text(json.dumps(config))
    if form == "index":
        index = {"weight_map": dict.fromkeys(shapes, "pytorch_model-00001-of-00001.bin")}
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    else:
        torch.save(_tensors(shapes), tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(ModelError, match=f"is {said}"):
        require_model(str(tmp_path))


@pytest.mark.parametrize("file", ["medusa_lm_head.pt", "medusa_lm_head.safetensors"])
def test_medusa_heads_are_known_by_their_file(file: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / file).write_bytes(b"")
    with pytest.raises(ModelError, match="is a set of Medusa heads"):
        require_model(str(tmp_path))


@pytest.mark.parametrize("file", ["model.safetensors", "medusa_lm_head.safetensors"])
def test_a_head_without_a_config_is_named(file: str, tmp_path: Path) -> None:
    save_file(_tensors(HEADS["medusa-by-its-tensors"][1]), tmp_path / file)
    with pytest.raises(ModelError, match="is a set of Medusa heads"):
        require_model(str(tmp_path))


@pytest.mark.parametrize("kind", ["eagle3", "speculators", "medusa"])
def test_a_cached_hub_id_of_a_head_is_named(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _cached(tmp_path, monkeypatch, lambda folder: _head(folder, kind))
    with pytest.raises(ModelError, match=f"^team/model is {HEADS[kind][2]}"):
        require_model("team/model")


def _cached(root: Path, monkeypatch: pytest.MonkeyPatch, fill: Callable[[Path], object]) -> None:
    """Put what `fill` writes into an empty hub cache, as team/model."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root))
    repository, commit = root / "models--team--model", "0" * 40
    fill(repository / "snapshots" / commit)
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)


def test_whole_models_with_heads_beside_them_are_no_heads(tmp_path: Path, tiny_module: Build) -> None:
    module = tiny_module("llama")
    module.save_pretrained(tmp_path / "plain")
    state = {name: value.clone() for name, value in module.state_dict().items()}
    extra = {
        "mtp.fc.weight": torch.zeros(3, 3),
        "medusa_head.0.0.linear.weight": torch.zeros(3, 3),
        "score.weight": torch.zeros(2, 48),
        "d2t": torch.zeros(3),
    }
    shutil.copytree(tmp_path / "plain", tmp_path / "more")
    save_file(state | extra, tmp_path / "more" / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tmp_path / "more" / "config.json").read_text())
    (tmp_path / "more" / "config.json").write_text(json.dumps({**config, "medusa_num_heads": 1}))
    loaded = load_model(str(tmp_path / "more"))
    assert loaded.notes == (f"{tmp_path / 'more'}: 4 tensors in its files are not used, of d2t, medusa_head, mtp, score",)
    assert load_model(str(tmp_path / "plain")).notes == ()


def test_a_pickle_is_looked_at_and_never_loaded(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    with zipfile.ZipFile(tmp_path / "pytorch_model.bin", "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02cos\nsystem\nX\x05\x00\x00\x00d2t.aX\x03\x00\x00\x00d2t\x85R.")
    with pytest.raises(ModelError, match="is an EAGLE-3 head"):
        require_model(str(tmp_path))
    for broken in (b"", b"PK\x03\x04", io.BytesIO(b"x" * 100).getvalue()):
        (tmp_path / "pytorch_model.bin").write_bytes(broken)
        with pytest.raises(ModelError, match="pytorch_model.bin"):
            require_model(str(tmp_path))
