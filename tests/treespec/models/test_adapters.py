"""Adapters are named, never merged by accident, and merged on request."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel
from transformers.integrations import peft as attaching
from transformers.models.auto import auto_factory

from treespec.errors import ModelError
from treespec.models import adapters
from treespec.models.adapters import Adapter
from treespec.models.loading import load_config, load_model, require_model
from treespec.models.pairs import load_pair, load_target

Build = Callable[..., PreTrainedModel]

SETTINGS: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "team/base",
    "r": 2,
    "lora_alpha": 4,
    "target_modules": ["q_proj"],
    "megatron_core": "megatron.core",
    "inference_mode": True,
}


def _adapter(folder: Path, **changes: Any) -> str:
    """Write a LoRA adapter for the tiny Llama (its q_proj is [48, 48])."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({**SETTINGS, **changes}))
    generator = torch.Generator().manual_seed(3)
    prefix = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
    shapes = {prefix.format(layer, part): shape for layer in range(2) for part, shape in (("A", (2, 48)), ("B", (48, 2)))}
    save_file({key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}, folder / "adapter_model.safetensors")
    return str(folder)


@pytest.fixture
def base(tmp_path: Path, tiny_module: Build, tokenizer_into: Callable[..., None]) -> str:
    tiny_module("llama").save_pretrained(tmp_path / "base")
    tokenizer_into(tmp_path / "base")
    return str(tmp_path / "base")


@pytest.fixture
def with_peft(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets everybody believe that peft is installed."""
    for module in (auto_factory, attaching):
        monkeypatch.setattr(module, "is_peft_available", lambda: True)
    monkeypatch.setattr(adapters, "is_installed", lambda *names: True)


@pytest.mark.usefixtures("with_peft")
def test_an_adapter_beside_whole_weights_is_named_and_not_attached(base: str, tiny_module: Build) -> None:
    _adapter(Path(base))
    loaded = load_model(base)
    assert loaded.notes == (
        f"{base} holds whole weights and an adapter (adapter_config.json): the weights run as they are; `adapter` merges one, where that is wanted",
    )
    wanted = tiny_module("llama").state_dict()
    assert all(torch.equal(value, wanted[key]) for key, value in loaded.module.state_dict().items())
    assert loaded.adapter is None
    assert "adapter" not in load_target(base).describe()["target"]


@pytest.mark.parametrize("peft", [False, True])
def test_an_adapter_beside_weights_is_no_matter_of_what_is_installed(
    peft: bool, base: str, monkeypatch: pytest.MonkeyPatch, tiny_module: Build
) -> None:
    _adapter(Path(base))
    for module in (auto_factory, attaching):
        monkeypatch.setattr(module, "is_peft_available", lambda: peft)
    ids = torch.arange(9)[None]
    assert torch.equal(load_model(base).module(ids).logits, tiny_module("llama")(ids).logits)


@pytest.mark.parametrize("more", [(), ("config.json",), ("config.json", "training_args.bin", "optimizer.pt")])
def test_an_adapter_alone_names_its_base_and_the_way(more: tuple[str, ...], base: str, tmp_path: Path) -> None:
    name = _adapter(tmp_path / "lora")
    for file in more:
        content = (Path(base) / file).read_bytes() if file == "config.json" else b""
        (tmp_path / "lora" / file).write_bytes(content)
    for load in (require_model, load_model, load_config):
        with pytest.raises(ModelError, match=r"is an adapter for 'team/base' and no model by itself; .*`adapter` of the target"):
            load(name)
    _adapter(tmp_path / "lora", base_model_name_or_path=None)
    with pytest.raises(ModelError, match="is an adapter for a model that it does not name"):
        require_model(name)


def test_peft_is_named_where_it_is_missing(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "is_installed", lambda *names: False)
    name = _adapter(tmp_path / "lora")
    for load in (require_model, load_model):
        with pytest.raises(ModelError, match="needs peft: pip install peft; or give a folder into which it is merged already"):
            load(base, adapter=name)


@pytest.mark.usefixtures("with_peft")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "has the peft_type 'IA3', and only LORA is merged here"),
        ({"peft_type": "PREFIX_TUNING"}, "changes what the model reads and not its weights, so that it cannot be merged"),
        ({"peft_type": None}, "has the peft_type None"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa', which changes its base as well"),
        ({"megatron_config": {"a": 1}}, "has the setting 'megatron_config', which is not merged here"),
        ({"layer_replication": [[0, 2]]}, "has the setting 'layer_replication'"),
        ({"\x1b[31m": 1}, r"has the setting '\\x1b\[31m'"),
        ({"r": 10**9}, "has the rank 1000000000, but its weights have at most 48 rows"),
        ({"r": "2"}, "has the rank '2'"),
        ({"rank_pattern": {"q_proj": 10**9}}, "has the rank 1000000000"),
    ],
)
def test_what_cannot_be_merged_is_told_before_a_weight_is_read(changes: dict[str, Any], message: str, base: str, tmp_path: Path) -> None:
    name = _adapter(tmp_path / "lora", **changes)
    with pytest.raises(ModelError, match=message):
        require_model(base, adapter=name)


@pytest.mark.usefixtures("with_peft")
def test_folders_without_an_adapter(base: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no folder .*nowhere, which `adapter` or `draft_adapter` names"):
        require_model(base, adapter=str(tmp_path / "nowhere"))
    with pytest.raises(ModelError, match="holds no adapter"):
        require_model(base, adapter=base)
    name = _adapter(tmp_path / "lora")
    (tmp_path / "lora" / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match="holds neither adapter_model.safetensors nor adapter_model.bin; save it with save_pretrained"):
        require_model(base, adapter=name)
    (tmp_path / "lora" / "adapter_config.json").write_text("[")
    with pytest.raises(ModelError, match="adapter_config.json is no JSON"):
        require_model(base, adapter=name)


@pytest.mark.usefixtures("with_peft")
def test_the_digest_is_of_settings_and_weights(tmp_path: Path) -> None:
    first = Adapter.of(_adapter(tmp_path / "a")).describe()
    assert first["name"] == "a"
    again, other = Adapter.of(_adapter(tmp_path / "b")).describe(), Adapter.of(_adapter(tmp_path / "c", lora_alpha=5)).describe()
    assert first["sha256"] == again["sha256"] != other["sha256"]


def test_a_merged_adapter_is_the_weights_plus_its_product(base: str, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="merging needs peft")
    name = _adapter(tmp_path / "lora")
    pair = load_pair(base, base, adapter=name)
    plain, merged = pair.draft.module.state_dict(), pair.target.module.state_dict()
    lora = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    assert plain.keys() == merged.keys()
    for key, value in plain.items():
        part = f"base_model.model.{key.removesuffix('.weight')}.lora_"
        added = 2.0 * lora[f"{part}B.weight"] @ lora[f"{part}A.weight"] if f"{part}A.weight" in lora else 0.0
        assert torch.allclose(merged[key], value + added, atol=1e-5)
    record = pair.describe()
    assert record["target"]["adapter"]["name"] == "lora"
    assert "adapter" not in record["draft"]
    assert pair.provenance()["models"] == {"target": "base", "draft": "base", "adapter": "lora"}
    other = tmp_path / "other"
    shutil.copytree(base, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    with pytest.raises(ModelError, match="does not fit"):
        load_model(base, adapter=_adapter(tmp_path / "wrong", target_modules=["v_proj"]))
    (tmp_path / "lora" / "adapter_model.safetensors").unlink()
    torch.save(lora, tmp_path / "lora" / "adapter_model.bin")
    again = load_model(base, adapter=name).module.state_dict()
    assert all(torch.equal(value, again[key]) for key, value in merged.items())
