"""Quantised checkpoints: named with their precision; refused by the name of the package that is missing, or of the method that is unknown."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedConfig, PreTrainedModel

from treespec.errors import ModelError
from treespec.models import loading, quantised
from treespec.models.loading import load_model, require_model
from treespec.models.pairs import load_pair
from treespec.models.quantised import quantisation

Build = Callable[..., PreTrainedModel]

_GROUP = {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int"}}
METHODS: dict[str, tuple[dict[str, Any], str, str | None]] = {
    "awq": ({"quant_method": "awq", "bits": 4}, "awq, int4", "gptqmodel"),
    "gptq": ({"quant_method": "gptq", "bits": 8}, "gptq, int8", "optimum gptqmodel"),
    "bitsandbytes-4": (
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        "bitsandbytes, int4 (nf4)",
        "bitsandbytes",
    ),
    "bitsandbytes-8": ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes, int8", "bitsandbytes"),
    "bitsandbytes-older": ({"load_in_8bit": True}, "bitsandbytes, int8", "bitsandbytes"),
    "compressed-tensors": (
        {"quant_method": "compressed-tensors", "config_groups": {"a": _GROUP}},
        "compressed-tensors, int4",
        "compressed-tensors",
    ),
    "compressed-tensors-fp8": (
        {"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": {"num_bits": 8, "type": "float"}}}},
        "compressed-tensors, fp8",
        "compressed-tensors",
    ),
    "quanto": ({"quant_method": "quanto", "weights": "int8"}, "quanto, int8", "optimum-quanto"),
    "quanto-float8": ({"quant_method": "quanto", "weights": "float8"}, "quanto, fp8", "optimum-quanto"),
    "hqq": ({"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 4, "group_size": 64}}}, "hqq, int4", "hqq"),
    "torchao": ({"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig"}}}, "torchao, int8", "torchao"),
    "aqlm": ({"quant_method": "aqlm"}, "aqlm, of unknown precision", "aqlm"),
    "fp8": ({"quant_method": "fp8"}, "fp8", None),
    "mxfp4": ({"quant_method": "mxfp4"}, "mxfp4, fp4 (mxfp4)", None),
}


def _as_quantised(folder: Path, module: PreTrainedModel, settings: Any, key: str = "quantization_config") -> str:
    module.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, key: settings}))
    return str(folder)


@pytest.mark.parametrize("kind", METHODS)
def test_the_precision_is_named(kind: str) -> None:
    settings, said, _ = METHODS[kind]
    assert str(quantisation(PreTrainedConfig(quantization_config=settings))) == said


@pytest.mark.parametrize("kind", [kind for kind, (_, _, package) in METHODS.items() if package is not None])
def test_a_missing_package_is_named_before_a_weight_is_read(
    kind: str, tmp_path: Path, tiny_module: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, said, package = METHODS[kind]
    monkeypatch.setattr(quantised, "is_installed", lambda *names: False)
    name = _as_quantised(tmp_path, tiny_module("llama"), settings)
    for load in (require_model, load_model):
        with pytest.raises(ModelError) as caught:
            load(name)
        assert f"{name} is quantised ({said}), which needs" in str(caught.value)
        assert f": pip install {package};" in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "has the quant_method 'modelopt', which transformers does not know"),
        ({"quant_method": "exl2", "bits": 4.0}, "has the quant_method 'exl2'"),
        ({"quant_method": "\x1b[31m"}, r"has the quant_method '\\x1b\[31m'"),
        ({"quant_method": ["awq"]}, "has the quant_method"),
        ({"group_size": 64, "bits": 4}, r"names no quant_method \(as those of MLX\)"),
        ({}, "names no quant_method"),
    ],
)
def test_an_unknown_method_is_refused_and_never_ignored(settings: dict[str, Any], said: str, tmp_path: Path, tiny_module: Build) -> None:
    name = _as_quantised(tmp_path, tiny_module("llama"), settings)
    for load in (require_model, load_model):
        with pytest.raises(ModelError, match=said) as caught:
            load(name)
        assert len(str(caught.value).removeprefix(name)) < 380
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("key", ["compression_config", "quantization"])
def test_other_keys_for_the_same_are_seen(key: str, tmp_path: Path, tiny_module: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantised, "is_installed", lambda *names: False)
    name = _as_quantised(tmp_path, tiny_module("llama"), {"bits": 4, "config_groups": {"a": _GROUP}}, key)
    with pytest.raises(ModelError, match="needs compressed-tensors|names no quant_method"):
        require_model(name)


@pytest.mark.parametrize("packed", ["qweight", "weight_scale", "weight_packed", "weight.quant_map", "weight"])
def test_packed_weights_without_a_word_in_the_configuration_are_refused(packed: str, tmp_path: Path, tiny_module: Build) -> None:
    tiny_module("llama").save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state[f"model.layers.0.self_attn.q_proj.{packed}"] = torch.zeros(48, 48, dtype=torch.int8)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "hf_quant_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"weights are quantised \(model.layers.*no quantization_config; hf_quant_config.json describes"):
        require_model(str(tmp_path))


@pytest.fixture
def fp8(tmp_path: Path, tiny_module: Build, tokenizer_into: Callable[..., None]) -> str:
    """A folder with weights in eight bits, which transformers turns into plain ones where there is no GPU."""
    name = _as_quantised(tmp_path / "fp8", tiny_module("llama"), {"quant_method": "fp8", "weight_block_size": [128, 128]})
    packed = {}
    for key, value in load_file(tmp_path / "fp8" / "model.safetensors").items():
        if "_proj" in key:
            scale = value.abs().max() / 448
            packed |= {key: (value / scale).to(torch.float8_e4m3fn), f"{key}_scale_inv": scale.reshape(1, 1)}
        else:
            packed[key] = value
    save_file(packed, tmp_path / "fp8" / "model.safetensors", metadata={"format": "pt"})
    tokenizer_into(tmp_path / "fp8")
    return name


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU computes with eight bits")
def test_a_quantised_checkpoint_runs_and_says_so(fp8: str, tmp_path: Path, tiny_module: Build) -> None:
    pair = load_pair(fp8, fp8)
    record = pair.describe()["target"]
    assert record["quantization"] == "fp8, turned into float32"
    assert pair.notes[0] == f"{fp8} is quantised (fp8, turned into float32)"
    assert pair.provenance()["quantization"] == {"target": record["quantization"], "draft": record["quantization"]}
    ids = torch.arange(9)[None]
    wanted = tiny_module("llama")(ids).logits
    assert (pair.target.score(ids) - wanted).abs().max() < 0.3 * wanted.abs().max()
    assert "quantization" not in load_pair(*[_plain(tmp_path, tiny_module)] * 2).describe()["target"]


def _plain(root: Path, build: Build) -> str:
    build("llama").save_pretrained(root / "plain")
    return str(root / "plain")


def test_only_plain_weights_are_streamed_and_adapted(fp8: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_device", lambda device, offload=False: torch.device("cpu"))
    with pytest.raises(ModelError, match=r"is quantised \(fp8\), and only plain weights are streamed from host memory; drop `offload`"):
        load_model(fp8, offload=True)
    for load in (load_model, require_model):
        with pytest.raises(ModelError, match=r"is quantised \(fp8\), and `adapter` is merged into plain weights only"):
            load(fp8, adapter=str(tmp_path))
