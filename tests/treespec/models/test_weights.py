"""Weights come as safetensors or as pickles of PyTorch, whole or in parts; a pickle is looked through before it is read."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from treespec.errors import ModelError
from treespec.models import loading
from treespec.models.loading import load_model, require_model
from treespec.models.locating import weights_digest
from treespec.models.offload.streaming import streamed_bytes
from treespec.models.pairs import load_target

Build = Callable[..., PreTrainedModel]
Content = Callable[[dict[str, torch.Tensor]], object]
RAN = "TREESPEC_A_PICKLE_RAN"


@pytest.fixture(scope="module")
def module(tiny_module: Build) -> PreTrainedModel:
    return tiny_module("llama")


@pytest.fixture
def folder(module: PreTrainedModel, tmp_path: Path) -> Path:
    """A folder without weights."""
    module.config.save_pretrained(tmp_path / "model")
    module.generation_config.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def in_parts(folder: Path, weights: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Write two pickles and their index."""
    places = {name: f"pytorch_model-0000{1 + place % 2}-of-00002.bin" for place, name in enumerate(weights)}
    for part in set(places.values()):
        torch.save({name: weights[name] for name in weights if places[name] == part}, folder / part)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return index


def require_equal(folder: Path, wanted: dict[str, torch.Tensor]) -> None:
    loaded = load_model(str(folder))
    found = loaded.module.state_dict()
    assert loaded.format == "bin"
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name].float()) for name in wanted)


@pytest.mark.parametrize(
    "content",
    [
        lambda weights: weights,  # an OrderedDict with torch's _metadata
        lambda weights: dict(weights),
        lambda weights: {name: value.half() for name, value in weights.items()},
        lambda weights: {name: value.bfloat16() for name, value in weights.items()},
        lambda weights: {name: torch.nn.Parameter(value) for name, value in weights.items()},
        lambda weights: weights | {"extra.ids": torch.arange(3), "extra.seen": torch.ones(3, dtype=torch.bool)},
        lambda weights: weights | {"lm_head.weight": weights["lm_head.weight"].t().contiguous().t()},
    ],
    ids=["state", "dict", "half", "bfloat16", "parameters", "others", "strides"],
)
@pytest.mark.parametrize("packed", [True, False], ids=["zip", "before-1.6"])
def test_one_pickle_is_read(packed: bool, content: Content, folder: Path, module: PreTrainedModel) -> None:
    saved: Any = content(module.state_dict())
    torch.save(saved, folder / "pytorch_model.bin", _use_new_zipfile_serialization=packed)
    require_equal(folder, {name: saved[name] for name in module.state_dict()})


def test_storages_may_be_shared(folder: Path, tiny_module: Build) -> None:
    tied = tiny_module("llama", tie_word_embeddings=True)
    tied.config.save_pretrained(folder)
    torch.save(tied.state_dict(), folder / "pytorch_model.bin")
    require_equal(folder, tied.state_dict())


def test_pickles_in_parts_are_read(folder: Path, module: PreTrainedModel) -> None:
    in_parts(folder, module.state_dict())
    require_equal(folder, module.state_dict())


def test_safetensors_are_preferred(folder: Path, module: PreTrainedModel) -> None:
    module.save_pretrained(folder)
    before = weights_digest(str(folder))
    (folder / "pytorch_model.bin").write_bytes(b"never read")
    assert load_model(str(folder)).format == "safetensors"
    assert weights_digest(str(folder)) == before


def test_safetensors_that_transformers_does_not_look_for_are_no_weights(folder: Path, module: PreTrainedModel) -> None:
    module.save_pretrained(folder)
    (folder / "model.safetensors").rename(folder / "consolidated.safetensors")
    with pytest.raises(ModelError, match=r"holds no model.safetensors.*\(only consolidated.safetensors\); save the model"):
        require_model(str(folder))
    torch.save(module.state_dict(), folder / "pytorch_model.bin")
    assert load_model(str(folder)).format == "bin"
    require_equal(folder, module.state_dict())


def test_the_digest_and_the_description_cover_pickles(folder: Path, module: PreTrainedModel) -> None:
    weights = {name: value.clone() for name, value in module.state_dict().items()}
    found = set()
    for changed in (False, True):
        weights["lm_head.weight"][3, 5] += changed
        in_parts(folder, weights)
        found.add(weights_digest(str(folder)))
    described = load_target(str(folder)).describe()["target"]
    assert len(found) == 2
    assert described["weights"] in found
    assert (described["format"], described["quantization"]) == ("bin", None)


def test_pickles_are_offloaded_like_any_weights(folder: Path, module: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_device", lambda device, offload=False: torch.device("cpu"))
    torch.save(module.state_dict(), folder / "pytorch_model.bin")
    loaded = load_model(str(folder), offload=True).module
    ids = torch.arange(9)[None]
    assert streamed_bytes(loaded) > 0
    assert torch.equal(loaded(input_ids=ids).logits, module(input_ids=ids).logits)


class _Runs:
    def __reduce__(self) -> Any:
        return os.putenv, (RAN, "1")


def _pickle(content: Content, **how: Any) -> Callable[[Path, PreTrainedModel], object]:
    return lambda folder, module: torch.save(content(module.state_dict()), folder / "pytorch_model.bin", **how)


def _text(text: str, name: str = "pytorch_model.bin") -> Callable[[Path, PreTrainedModel], object]:
    return lambda folder, module: (folder / name).write_text(text)


def _half(folder: Path, module: PreTrainedModel) -> None:
    path = folder / "pytorch_model.bin"
    torch.save(module.state_dict(), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _index(edit: Callable[[Path, dict[str, Any]], object]) -> Callable[[Path, PreTrainedModel], object]:
    def write(folder: Path, module: PreTrainedModel) -> None:
        index = in_parts(folder, module.state_dict())
        edit(folder, index)
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))

    return write


def _elsewhere(folder: Path, index: dict[str, Any]) -> None:
    index["weight_map"] = {name: f"../model/{part}" for name, part in index["weight_map"].items()}


def _other_weights(folder: Path, module: PreTrainedModel) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "transformers_weights": "adapter_model.bin"}))
    torch.save(module.state_dict(), folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (_pickle(lambda w: w | {"x": _Runs()}), r"asks to run posix\.putenv when loaded; refused|asks to run nt\.putenv"),
        (_pickle(lambda w: w | {"x": _Runs()}, _use_new_zipfile_serialization=False), r"asks to run \w+\.putenv when loaded; refused"),
        (_pickle(lambda w: w | {"x": torch.nn.Linear(2, 2)}), r"asks to run torch\.nn\.modules\.linear\.Linear when loaded; refused"),
        (_pickle(lambda w: {"state_dict": w, "epoch": 3}), "holds state_dict, epoch and is no file of weights alone"),
        (_pickle(lambda w: list(w.values())), "holds a list instead of weights by name"),
        (_pickle(lambda w: w | {"x": torch.zeros(1).expand(2**25)}), "holds 4 bytes for x, which would unfold to 33554432 numbers"),
        (_pickle(lambda w: w | {"x": torch.eye(2).to_sparse()}), r"asks to run torch\._utils\._rebuild_sparse_tensor"),
        (_pickle(lambda w: w | {"step": 5}), "holds step and is no file of weights alone"),
        (_pickle(lambda w: {k: v for k, v in w.items() if "lm_head" not in k}), r"1 weight is missing from its files \(lm_head.weight\); save"),
        (_pickle(lambda w: {f"module.{k}": v for k, v in w.items()}), r"missing from its files .*; they hold others \(module.lm_head"),
        (_pickle(lambda w: w | {"lm_head.weight": torch.zeros(97, 12)}), r"lm_head.weight has the shape \[97, 12\], but config.json asks"),
        (_text("version https://git-lfs.github.com/spec/v1\n"), "pytorch_model.bin of .* is a pointer of git-lfs and not the file itself"),
        (_text("version https://git-lfs.github.com/spec/v1\n", "model.safetensors"), "model.safetensors of .* is a pointer of git-lfs"),
        (_text(""), "pytorch_model.bin of .* is empty; download it again"),
        (_text("<html>"), "is no file of torch.save, or it is damaged"),
        (_half, "is damaged: it begins as a zip archive and is none"),
        (_text("{}", "pytorch_model-00001-of-00002.bin"), r"no GGUF file \(only pytorch_model-00001-of-00002.bin\); save the model"),
        (_text("{}", "pytorch_model.bin.index.json"), "has no weight_map from tensors to files beside it"),
        (_text("{}", "model.safetensors.index.json"), "model.safetensors.index.json has no weight_map from tensors to files beside it"),
        (_index(lambda folder, index: index.pop("metadata")), 'has no "metadata", which transformers needs'),
        (_index(lambda folder, index: index["weight_map"].update(x=3)), "has no weight_map from tensors to files beside it"),
        (_index(lambda folder, index: (folder / "pytorch_model-00002-of-00002.bin").unlink()), "lacks pytorch_model-00002-of-00002.bin, one of"),
        (_index(_elsewhere), "has no weight_map from tensors to files beside it"),
        (_other_weights, "names 'adapter_model.bin' as its weights"),
    ],
)  # fmt: skip
def test_what_is_no_weights_is_one_line(
    write: Callable[[Path, PreTrainedModel], object], message: str, folder: Path, module: PreTrainedModel
) -> None:
    write(folder, module)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(str(folder))
    assert "\n" not in str(caught.value)
    assert RAN not in os.environ


def test_a_storage_that_claims_too_much_takes_no_memory(folder: Path, module: PreTrainedModel) -> None:
    path = folder / "pytorch_model.bin"
    torch.save({"x": torch.zeros(77, 3)}, path, _use_new_zipfile_serialization=False)
    claim = path.read_bytes().replace(b"K\xe7", b"\x8a\x08" + (2**40).to_bytes(8, "little"), 1)  # 231 numbers
    path.write_bytes(claim)
    with pytest.raises(ModelError, match="claims a storage of 1099511627776 numbers, but has"):
        load_model(str(folder))


def test_a_part_of_safetensors_that_is_missing_is_named(folder: Path, module: PreTrainedModel, tmp_path: Path) -> None:
    module.save_pretrained(folder, max_shard_size="20KB")
    parts = sorted(folder.glob("*.safetensors"))
    assert len(parts) > 1
    shutil.move(parts[-1], tmp_path)
    with pytest.raises(ModelError, match=rf"lacks {parts[-1].name}, one of the {len(parts)} files that its model.safetensors.index.json"):
        load_model(str(folder))
