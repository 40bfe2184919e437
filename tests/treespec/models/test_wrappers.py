"""Text models inside models that see or hear: text alone decodes as the wrapper's own `generate` does, and pictures are refused truly."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from transformers import PreTrainedModel

from tests.reference import wrappers
from treespec.decoding.loop import Request, decode_speculative
from treespec.decoding.plans import DynamicBudget
from treespec.errors import ModelError
from treespec.models.loading import load_picture_reader, require_model
from treespec.models.pairs import load_pair, tree_model
from treespec.trees.tree import SpeculationTree

PROMPT = (5, 17, 3, 44, 61, 8, 20, 33, 80, 12, 7)  # longer than the sliding windows of the tiny models
NAMES = [name for name in wrappers.WRAPPERS if wrappers.known(name) and name not in ("paligemma", "gemma3n")]
GEN_LEN = 20


def generated(module: PreTrainedModel) -> list[int]:
    ids = torch.tensor([PROMPT])
    module.generation_config.eos_token_id = None
    output = module.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=GEN_LEN, do_sample=False, pad_token_id=0)
    return output[0, len(PROMPT) :].tolist()


def perturbed(module: PreTrainedModel) -> PreTrainedModel:
    draft = copy.deepcopy(module)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in draft.parameters():
            parameter += 0.04 * parameter.std() * torch.randn(parameter.shape, generator=generator) if parameter.numel() > 1 else 0.0
    return draft


@pytest.mark.parametrize("name", NAMES)
def test_text_decodes_as_the_wrappers_own_generate(name: str) -> None:
    module = wrappers.module_of(name)
    expected, ids = generated(module), torch.tensor([PROMPT])
    logits = module(input_ids=ids, use_cache=False).logits
    target, draft = tree_model(module, name), tree_model(perturbed(module), "draft")
    assert target.family.verified
    assert torch.allclose(target.score(ids), logits, atol=1e-5), "scales and caps behind the head are the wrapper's"
    for plan in (SpeculationTree.from_branches([[3], [2, 1, 0], [1, 1, 1]]), DynamicBudget.of(12, 4)):
        records = list(decode_speculative(target, draft, plan, Request(PROMPT, GEN_LEN)))
        assert [token for record in records for token in record.tokens] == expected, plan
        assert len(records) < GEN_LEN, "a draft that is never right tests nothing"


@pytest.mark.parametrize(("target", "draft"), [("mistral3", "smolvlm"), ("qwen2_5_vl", "qwen2_5_vl"), ("smolvlm", "gemma3")])
def test_wrappers_are_loaded_from_folders_as_target_and_as_draft(
    target: str, draft: str, tmp_path: Path, tokenizer_into: Callable[..., None]
) -> None:
    folders = []
    for role, name in (("target", target), ("draft", draft)):
        folders.append(tmp_path / role)
        wrappers.module_of(name, seed=len(folders)).save_pretrained(folders[-1])
        tokenizer_into(folders[-1])
    pair = load_pair(*map(str, folders))
    assert pair.pictures is None
    expected = generated(wrappers.module_of(target, seed=1))
    records = decode_speculative(pair.target, pair.draft, SpeculationTree.k_ary(2, 2), Request(PROMPT, GEN_LEN))
    assert [token for record in records for token in record.tokens] == expected
    assert pair.describe()["target"]["family"] == wrappers.config_of(target).get_text_config(decoder=True).model_type


@pytest.mark.parametrize(
    ("name", "decoder"), [("mistral3", "FusedDecoder"), ("qwen2_5_vl-sliding", "HookedDecoder"), ("gemma3", "HookedDecoder")]
)
def test_kernels_run_the_text_inside(name: str, decoder: str, device: str) -> None:
    pytest.importorskip("triton")
    from treespec.models.tree_model import TreeModel

    module = wrappers.module_of(name).to(device)
    plain = tree_model(module, name)
    ours = TreeModel(plain.module, kernels=True)
    ids = torch.tensor(PROMPT, device=device)
    for model in (plain, ours):
        model.allocate(20)
    assert type(ours.decoder).__name__ == decoder, ours.eager_reason
    assert torch.allclose(ours.prefill(ids, chunk=4), plain.score(ids[None])[0, -1], atol=1e-4)


def test_a_wrapper_that_nobody_tested_is_tried_when_it_is_loaded() -> None:
    name = "idefics2"
    config = transformers.Idefics2Config(
        text_config={"model_type": "mistral", **wrappers.WRAPPERS["mistral3"][1], "sliding_window": None},
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 16,
            "patch_size": 8,
        },
        perceiver_config={"resampler_n_heads": 2, "resampler_head_dim": 16, "num_key_value_heads": 1, "resampler_depth": 1},
    )
    torch.manual_seed(0)
    model = tree_model(transformers.AutoModelForMultimodalLM.from_config(config).eval(), name)
    assert not model.family.verified


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (transformers.Llama4Config(), "attend in chunks"),
        (transformers.PaliGemmaConfig(), "both directions"),
        (transformers.CLIPConfig(), r"\(model_type clip\) is no causal language model and has none inside"),
    ],
    ids=lambda value: value.model_type if isinstance(value, transformers.PreTrainedConfig) else "",
)
def test_wrappers_that_cannot_run_are_refused_by_name(config: transformers.PreTrainedConfig, reason: str, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x02" + bytes(7) + b"{}")
    with pytest.raises(ModelError, match=reason):
        require_model(str(tmp_path))


def test_pictures_of_a_wrapper_are_refused_with_a_remedy_that_works(tmp_path: Path) -> None:
    wrappers.config_of("qwen2_5_vl").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="reads text only here; for prompts with pictures use a llava"):
        load_picture_reader(str(tmp_path))
