"""A GGUF file is a model: its weights are dequantised, its own tokenizer and chat template are used, and that is said."""

import random
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from tests.reference.gguf_files import TEMPLATE, write_gguf
from treespec.errors import ModelError, TreeoptError
from treespec.models import loading
from treespec.models.loading import load_model, load_tokenizer, quantization_of, tokenizer_or_none
from treespec.models.locating import weights_digest
from treespec.models.offload.streaming import streamed_bytes
from treespec.models.pairs import load_pair

IDS = torch.arange(9)[None]


@pytest.fixture(scope="module")
def module(tiny_module: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    return tiny_module("llama", hidden_size=64, vocab_size=97)


@pytest.mark.parametrize(("kind", "near", "said"), [("F32", 1e-5, None), ("F16", 0.02, None), ("Q8_0", 0.5, "Q8_0")])
def test_a_file_is_read(kind: str, near: float, said: str | None, module: PreTrainedModel, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", module, kind)
    loaded = load_model(str(path))
    assert loaded.module.dtype == torch.float32
    assert torch.allclose(loaded.module(input_ids=IDS).logits, module(input_ids=IDS).logits, atol=near)
    assert (loaded.format, loaded.quantization) == ("gguf", said and f"{said}, dequantised")
    assert quantization_of(str(path)) == said
    assert weights_digest(str(path)) == loaded.digest is not None


def test_the_tokenizer_and_the_template_are_the_files_own(module: PreTrainedModel, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", module)
    tokenizer = load_tokenizer(str(path))
    assert tokenizer.encode("abb") == [3, 6]
    assert tokenizer.chat_template == TEMPLATE
    assert tokenizer_or_none(str(write_gguf(tmp_path / "mute.gguf", module, tokenizer=False))) is None


def test_a_folder_with_one_file_is_the_file(module: PreTrainedModel, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "a.gguf", module)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')  # as beside many such files on the hub
    assert load_model(str(tmp_path)).digest == weights_digest(str(path))
    write_gguf(tmp_path / "mmproj-a.gguf", module)  # the eyes, which are not read
    assert load_model(str(tmp_path)).digest == weights_digest(str(path))
    write_gguf(tmp_path / "b.gguf", module)
    with pytest.raises(ModelError, match=r"holds 2 GGUF files \(a.gguf, b.gguf\); give the path of one in"):
        load_model(str(tmp_path))
    module.save_pretrained(tmp_path)
    assert load_model(str(tmp_path)).format == "safetensors"


def test_a_pair_says_what_was_dequantised(module: PreTrainedModel, tmp_path: Path) -> None:
    target, draft = (str(write_gguf(tmp_path / f"{kind}.gguf", module, kind)) for kind in ("F32", "Q8_0"))
    pair = load_pair(target, draft)
    described = pair.describe()
    assert [described[role]["format"] for role in ("target", "draft")] == ["gguf", "gguf"]
    assert described["draft"]["quantization"] == "Q8_0, dequantised"
    assert pair.provenance()["quantization"] == {"draft": "Q8_0, dequantised"}
    assert pair.eos_token_ids == {2}


def test_a_dequantised_model_is_saved_and_offloaded_like_any(
    module: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "_device", lambda device, offload=False: torch.device("cpu"))
    path = str(write_gguf(tmp_path / "tiny.gguf", module, "Q8_0"))
    plain, streamed = load_model(path).module, load_model(path, offload=True).module
    assert streamed_bytes(streamed) > 0
    assert torch.equal(streamed(input_ids=IDS).logits, plain(input_ids=IDS).logits)
    plain.save_pretrained(tmp_path / "saved")
    assert load_model(str(tmp_path / "saved")).format == "safetensors"


def test_no_bar_is_drawn_where_stderr_is_no_terminal(module: PreTrainedModel, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_model(str(write_gguf(tmp_path / "tiny.gguf", module)))
    assert "Converting" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "claims",
    [
        {"block_count": 10_000},
        {"embedding_length": 10**6},
        {"feed_forward_length": 10**9},
        {"vocab_size": 10**9},
        {"attention.head_count": 10**6},
        {"attention.head_count": 0},
    ],
)
def test_claims_are_held_against_the_tensors(claims: dict[str, int], module: PreTrainedModel, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", module, **claims)
    ((name, value),) = claims.items()
    with pytest.raises(ModelError, match=f"claims {name} {value}, but its tensors have"):
        load_model(str(path))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda data: data[: len(data) // 2], "would end at byte .*, and the file at"),
        (lambda data: data[:50], "is not a whole GGUF file"),
        (lambda data: b"GGML" + data[4:], "it does not begin with GGUF"),
        (lambda data: data[:4] + b"\1" + data[5:], "its version is 1"),
        (lambda data: data[:8] + b"\xff" * 8 + data[16:], "it claims 18446744073709551615 values"),
        (lambda data: data[:16] + b"\xff" * 8 + data[24:], "it claims 18446744073709551615 values"),
        (lambda data: b"", "is empty; download it again"),
        (lambda data: b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of git-lfs"),
        (lambda data: data.replace(b"llama", b"ll\xffma"), "UnicodeDecodeError"),
        (lambda data: data.replace(b"llama", b"lxxma"), "of the architecture lxxma, which transformers .* cannot read"),
    ],
)
def test_a_damaged_file_is_one_line(edit: Callable[[bytes], bytes], message: str, module: PreTrainedModel, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", module)
    path.write_bytes(edit(path.read_bytes()))
    with pytest.raises(ModelError, match=message) as caught:
        load_model(str(path))
    assert "\n" not in str(caught.value)


def test_a_part_of_a_file_is_named(module: PreTrainedModel, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny-00001-of-00003.gguf", module, parts=3)
    with pytest.raises(
        ModelError, match=r"is one of 3 parts of a GGUF file.* llama-gguf-split --merge tiny-00001-of-00003.gguf whole.gguf"
    ):
        load_model(str(path))


@pytest.mark.parametrize(
    ("architecture", "kind", "said"),
    [("llama", "adapter", "adapter"), ("clip", "mmproj", "mmproj"), ("eagle3", "model", "eagle3 without token_embd.weight")],
)
def test_what_is_no_whole_model_is_named(architecture: str, kind: str, said: str, tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "part.gguf", architecture)
    writer.add_type(kind)
    writer.add_tensor("fc.weight", np.ones((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match=rf"is no whole model \({said}\); give the GGUF file of a causal language model"):
        load_model(str(tmp_path / "part.gguf"))


def test_flipped_bytes_raise_nothing_else(module: PreTrainedModel, tmp_path: Path) -> None:
    data = write_gguf(tmp_path / "tiny.gguf", module, "Q8_0").read_bytes()
    draw = random.Random(0)
    for _ in range(40):
        other = bytearray(data)
        for _ in range(3):
            other[draw.randrange(3000)] = draw.randrange(256)
        (tmp_path / "other.gguf").write_bytes(other)
        try:
            load_model(str(tmp_path / "other.gguf"))
            load_tokenizer(str(tmp_path / "other.gguf"))
        except TreeoptError as error:
            assert "\n" not in str(error)
