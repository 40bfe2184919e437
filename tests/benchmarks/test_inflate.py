"""An inflated model computes what the small one does."""

import dataclasses

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.inflate import SHAPES, Shape, big_config, inflate, inflated, inflated_pair
from treespec.embedded import DRAFT_FOLDER, TARGET_FOLDER
from treespec.errors import ModelError

BIG = Shape(hidden_size=96, num_hidden_layers=5, num_attention_heads=6, intermediate_size=200)


def small_config(**changes):
    config = {
        "vocab_size": 50,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 64,
        "rms_norm_eps": 1e-3,  # large, so that a forgotten rescaling shows
        "initializer_range": 0.3,
        "tie_word_embeddings": True,
    }
    return LlamaConfig(**(config | changes))


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return LlamaForCausalLM(small_config()).eval()


@torch.no_grad()
def test_logits_are_those_of_the_small_model(small):
    big = inflate(small, LlamaForCausalLM(big_config(small.config, BIG))).eval()
    ids = torch.randint(0, 50, (3, 20), generator=torch.Generator().manual_seed(1))
    expected, found = small(ids).logits, big(ids).logits
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_the_new_weights_do_real_work(small):
    big = inflate(small, LlamaForCausalLM(big_config(small.config, BIG)))
    for name, parameter in big.named_parameters():
        if any(part in name for part in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")):
            assert (parameter != 0).float().mean() > 0.99, name
    assert (big.model.layers[-1].self_attn.o_proj.weight == 0).all()


def test_two_inflations_are_equal(small):
    first, second = (inflate(small, LlamaForCausalLM(big_config(small.config, BIG)), seed=3).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_dim": 8}, "equal head_dim"),
        ({"vocab_size": 60}, "equal vocab_size"),
        ({"num_hidden_layers": 1}, "num_hidden_layers is 2"),
        ({"num_key_value_heads": 3}, "one key/value head per query head"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings=False"),
        ({"rms_norm_eps": 1e-3}, "rms_norm_eps=0.000333333"),
        ({"attention_bias": True}, "no biases"),
    ],
)
def test_shapes_that_cannot_match_are_refused(small, changes, message):
    config = LlamaConfig.from_dict(big_config(small.config, BIG).to_dict() | changes)
    with pytest.raises(ModelError, match=message):
        inflate(small, LlamaForCausalLM(config))


def test_the_published_shapes():
    assert dataclasses.astuple(SHAPES["llama-2-7b"]) == (4096, 32, 32, 11008)
    assert dataclasses.astuple(SHAPES["llama-68m"]) == (768, 2, 12, 3072)


def test_unknown_shape_and_untrained_folder(tmp_path):
    with pytest.raises(ModelError, match="no shape 'llama-9'"):
        inflated(tmp_path, "llama-9", "cpu", torch.float32)
    with pytest.raises(ModelError, match="has no weights"):
        inflated(tmp_path, "llama-68m", "cpu", torch.float32)


needs_pair = pytest.mark.skipif(
    not all((folder / "model.safetensors").exists() for folder in (TARGET_FOLDER, DRAFT_FOLDER)),
    reason="the embedded pair is not trained yet",
)


@needs_pair
@torch.no_grad()
def test_the_embedded_pair_can_be_inflated():
    pair = inflated_pair("cpu", torch.float32, Shape(512, 13, 4, 1024), Shape(256, 3, 4, 512))
    ids = pair.tokenizer("def read(self, size=-1):\n    return self", return_tensors="pt").input_ids
    for folder, big in ((TARGET_FOLDER, pair.target), (DRAFT_FOLDER, pair.draft)):
        small = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
        torch.testing.assert_close(big(ids).logits, small(ids).logits, atol=1e-3, rtol=1e-3)


@pytest.mark.gpu
@needs_pair
@torch.no_grad()
def test_full_size_on_a_gpu_agrees_with_the_small_target():
    torch.cuda.reset_peak_memory_stats()
    big = inflated(TARGET_FOLDER, "llama-2-7b", "cuda", torch.float16)
    size = sum(p.numel() for p in big.parameters()) * 2
    assert torch.cuda.max_memory_allocated() < size + (2 << 30)
    small = LlamaForCausalLM.from_pretrained(TARGET_FOLDER, dtype=torch.float32)
    ids = torch.randint(1, 4096, (2, 64), generator=torch.Generator().manual_seed(0))
    agree = (big(ids.cuda()).logits.argmax(-1).cpu() == small(ids).logits.argmax(-1)).float().mean()
    assert agree > 0.9
