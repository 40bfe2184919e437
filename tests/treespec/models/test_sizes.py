"""Sizes in config.json are held against the headers of the weights before a module is made, and headers against their files."""

import json
import resource
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from treespec.errors import ModelError
from treespec.models.loading import load_model, require_model

Build = Callable[..., PreTrainedModel]
HUGE = 10**6


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tiny_module: Build) -> Path:
    root = tmp_path_factory.mktemp("sizes")
    for family in ("llama", "gpt2", "gptj", "opt", "mixtral", "phi3"):
        tiny_module(family).save_pretrained(root / family)
    return root


def _changed(folders: Path, tmp_path: Path, family: str, **changes: Any) -> str:
    shutil.copytree(folders / family, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, **changes}))
    return str(tmp_path / "model")


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        (
            "llama",
            {"num_hidden_layers": 10**4},
            r"asks for 10000 layers \(num_hidden_layers\), but the weights hold 2; correct config.json",
        ),
        ("llama", {"num_hidden_layers": 10**9}, "asks for 1000000000 layers"),
        ("llama", {"num_hidden_layers": 10**400}, r"asks for over 10\^400 layers"),
        ("gpt2", {"n_layer": 10**5}, r"asks for 100000 layers \(n_layer\), but the weights hold 2"),
        ("llama", {"hidden_size": HUGE}, r"config.json \(hidden_size 1000000, .* describes a model with more than 4 times the \d+ numbers"),
        ("llama", {"vocab_size": HUGE}, "vocab_size 1000000"),
        ("llama", {"intermediate_size": 10**9}, "intermediate_size 1000000000"),
        ("llama", {"head_dim": HUGE}, "head_dim 1000000"),
        ("phi3", {"intermediate_size": HUGE}, "intermediate_size 1000000"),
        ("mixtral", {"num_local_experts": HUGE}, "num_local_experts 1000000"),
        ("gpt2", {"n_positions": HUGE}, "n_positions 1000000"),
        ("opt", {"max_position_embeddings": HUGE}, "max_position_embeddings 1000000"),
        ("gptj", {"n_positions": 10**9}, "n_positions 1000000000, .* with tables of over"),
        ("llama", {"hidden_size": 10**18}, "overflow"),
        ("llama", {"num_attention_heads": 0}, "num_attention_heads is 0, but it must be a whole number, 1 or more"),
        ("llama", {"num_attention_heads": -4}, "num_attention_heads is -4, but"),
        ("llama", {"num_hidden_layers": 2.5}, "num_hidden_layers is 2.5, but"),
        ("llama", {"hidden_size": "48"}, "hidden_size is '48', but"),
        ("llama", {"num_hidden_layers": True}, "num_hidden_layers is True, but"),
        ("llama", {"num_attention_heads": HUGE, "num_key_value_heads": HUGE}, "not a multiple of the number of attention heads"),
        ("llama", {"layer_types": ["full_attention"] * 10**5}, "must be equal to the number of `layer_types`"),
        ("mixtral", {"num_experts_per_tok": 100}, "num_experts_per_tok is 100, but the model has 4 experts"),
    ],
)
def test_a_size_beyond_the_weights_is_refused_at_once(
    family: str, changes: dict[str, Any], message: str, folders: Path, tmp_path: Path
) -> None:
    name = _changed(folders, tmp_path, family, **changes)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(ModelError, match=message):
        require_model(name)
    assert time.process_time() - start < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20, "under 1 GiB (counted in KiB)"


@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj", "opt", "mixtral", "phi3"])
def test_sizes_that_fit_are_no_matter(family: str, folders: Path) -> None:
    require_model(str(folders / family))
    load_model(str(folders / family))


def test_positions_that_cost_nothing_are_no_size(folders: Path, tmp_path: Path) -> None:
    require_model(_changed(folders, tmp_path, "llama", max_position_embeddings=10**12))


def _header(entries: dict[str, Any], body: bytes = b"", length: int | None = None) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x00" * 4, "but the file has 4"),
        (_header({}, length=2**60), "its header is 1152921504606846976 bytes long, but the file has"),
        (struct.pack("<Q", 3) + b"abc", "its header is no JSON"),
        (struct.pack("<Q", 2) + b"[]", "its header is no JSON object"),
        (struct.pack("<Q", 40_000) + b"[" * 40_000, "its header is no JSON"),
        (_header({"a": {"dtype": "F32", "shape": [10], "data_offsets": [0, 40]}}), "'a' ends behind the end of the file"),
        (_header({"a": {"dtype": "F32", "shape": [10**9], "data_offsets": [0, 4]}}, b"0000"), "'a' contradicts itself"),
        (_header({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"0000"), "'a' contradicts itself"),
        (_header({"a": {"dtype": "XYZ", "shape": [1], "data_offsets": [0, 4]}}, b"0000"), "the entry of 'a' is"),
        (_header({"a": 5}), "the entry of 'a' is 5"),
    ],
)
def test_damaged_headers(content: bytes, message: str, folders: Path, tmp_path: Path) -> None:
    name = _changed(folders, tmp_path, "llama")
    (Path(name) / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=f"cannot be loaded: model.safetensors is damaged: .*{message}.*; save or download") as caught:
        require_model(name)
    assert "\n" not in str(caught.value)


def test_a_sparse_file_costs_no_memory(folders: Path, tmp_path: Path) -> None:
    name = _changed(folders, tmp_path, "llama")
    with (Path(name) / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", 10**9))
        file.truncate(1 << 32)
    with pytest.raises(ModelError, match="its header is 1000000000 bytes long, and at most 33554432 are read"):
        require_model(name)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {f"model.layers.{i}.a": "gone.safetensors" for i in range(2)}}, "lacks gone.safetensors, the file that its"),
        ({"weight_map": {"a": "../model.safetensors"}}, "has no weight_map from tensors to files beside it"),
        ({"weight_map": ["a"]}, "has no weight_map"),
        ({"weight_map": {}}, "is no index of weights"),
    ],
)
def test_a_wrong_index(index: Any, message: str, folders: Path, tmp_path: Path) -> None:
    name = _changed(folders, tmp_path, "llama")
    (Path(name) / "model.safetensors").rename(Path(name) / "other.safetensors")
    (Path(name) / "model.safetensors.index.json").write_text(json.dumps({**index, "metadata": {}}))
    with pytest.raises(ModelError, match=message):
        require_model(name)


def test_shards_are_read_as_one(tmp_path: Path, tiny_module: Build) -> None:
    tiny_module("llama").save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    load_model(str(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(ModelError, match="asks for 3 layers .* hold 2"):
        load_model(str(tmp_path))


@pytest.mark.parametrize("content", ["{", "[]", "5", "[" * 10**5])
def test_a_configuration_that_is_no_object(content: str, folders: Path, tmp_path: Path) -> None:
    name = _changed(folders, tmp_path, "llama")
    (Path(name) / "config.json").write_text(content)
    with pytest.raises(ModelError, match="cannot be loaded: config.json is no JSON object; save or download"):
        require_model(name)


@pytest.mark.parametrize(("changes", "message"), [({"hidden_size": HUGE}, "hidden_size 1000000"), ({"num_hidden_layers": 10**4}, "hold 2")])
def test_pickles_of_weights_bound_sizes_too(changes: dict[str, Any], message: str, folders: Path, tmp_path: Path) -> None:
    name = _changed(folders, tmp_path, "llama", **changes)
    torch.save(load_file(Path(name) / "model.safetensors"), Path(name) / "pytorch_model.bin")
    (Path(name) / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=message):
        require_model(name)
