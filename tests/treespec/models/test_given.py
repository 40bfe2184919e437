"""Modules that the caller has loaded are taken as they are, after the checks that loading makes."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel

from treespec.data.prompts import load_prompts
from treespec.decoding.loop import Request, decode_speculative
from treespec.errors import ModelError
from treespec.evaluation.runner import evaluate
from treespec.evaluation.settings import EvaluationSettings
from treespec.models.given import pair_of
from treespec.models.loading import load_tokenizer
from treespec.models.locating import folder_of
from treespec.models.pairs import load_pair
from treespec.models.tree_model import TreeModel
from treespec.trees.tree import SpeculationTree

Build = Callable[..., PreTrainedModel]


def loaded(name: str, head: Any = AutoModelForCausalLM) -> Any:
    return head.from_pretrained(folder_of(name), local_files_only=True)


def test_a_pair_of_modules_decodes_as_the_same_pair_from_its_files() -> None:
    tokenizer = load_tokenizer("embedded-target")
    given = pair_of(loaded("embedded-target"), loaded("embedded-draft"), tokenizer)
    read = load_pair("embedded-target", "embedded-draft")
    prompts = load_prompts("stdlib", tokenizer, num_prompts=1, prompt_len=32)
    settings = EvaluationSettings(gen_len=16, save_tokens=True)
    ours, theirs = (evaluate(pair, SpeculationTree.k_ary(2, 2), prompts, settings) for pair in (given, read))
    assert [r.output for r in ours.results] == [r.output for r in theirs.results]
    assert ours.lossless == "match"
    assert given.eos_token_ids == read.eos_token_ids
    assert given.notes == ()


def test_a_target_alone_needs_neither_draft_nor_tokenizer(tiny_module: Build) -> None:
    target = pair_of(tiny_module("llama"))
    assert list(target.models) == ["target"]
    assert target.tokenizer is None


def in_training(module: Any) -> Any:
    return module.train()


def as_tuples(module: Any) -> Any:
    module.config.return_dict = False
    return module


def on_meta(module: Any) -> Any:
    module.lm_head.to("meta")
    module.hf_device_map = {"model": 0, "lm_head": "cpu"}
    return module


def compiled(module: Any) -> Any:
    return SimpleNamespace(_orig_mod=module)  # as torch.compile wraps a module


@pytest.mark.parametrize("role", ["target", "draft"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (in_training, r"the {} is in training mode, in which dropout may change its outputs; call \.eval\(\) on it first"),
        (as_tuples, r"the {}'s configuration has return_dict False, .*; set config\.return_dict = True"),
        (on_meta, r"the {} is offloaded by accelerate, .*; load it with device_map"),
        (compiled, r"the {} was compiled by torch\.compile; pass the module that was compiled"),
        (lambda module: module.model, r"the {} is a LlamaModel, which has no head that makes logits; load it with AutoModelForCausalLM"),
        (lambda module: module.lm_head, r"the {} is a Linear, which is no model of transformers; pass a causal"),
    ],
)
def test_what_cannot_be_taken_is_named(role: str, change: Callable[[Any], Any], said: str, tiny_module: Build) -> None:
    modules: dict[str, Any] = {"target": tiny_module("llama"), "draft": tiny_module("llama")}
    modules[role] = change(modules[role])
    with pytest.raises(ModelError, match=said.format(role)):
        pair_of(**modules)


def test_a_headless_model_of_files_is_named() -> None:
    with pytest.raises(ModelError, match="has no head that makes logits"):
        pair_of(loaded("embedded-target", AutoModel))


def test_a_draft_of_another_vocabulary_is_refused(tiny_module: Build) -> None:
    with pytest.raises(ModelError, match="vocabular"):
        pair_of(loaded("embedded-target"), tiny_module("llama"))


def test_what_was_changed_is_undone() -> None:
    pytest.importorskip("triton")
    module = loaded("embedded-target")
    before = {name: weight.clone() for name, weight in module.named_parameters()}
    model = TreeModel(module, kernels=True)
    assert model.stacked
    model.release()
    assert all(torch.equal(weight, before[name]) for name, weight in module.named_parameters())
    assert all(w.untyped_storage().nbytes() == w.numel() * w.element_size() for w in module.parameters())
    with pytest.raises(ModelError, match="is no longer the tensor"):
        model.allocate(8)


@pytest.mark.gpu
def test_what_is_changed_on_cuda_is_said_and_undone() -> None:
    pair = pair_of(loaded("embedded-target").cuda(), loaded("embedded-draft").cuda())
    assert len(pair.notes) == 2
    assert "until `release` is called" in pair.notes[0]
    pair.release()
    with pytest.raises(ModelError, match="is no longer the tensor"):
        pair.target.allocate(8)


@pytest.mark.gpu
def test_models_on_two_devices_are_refused() -> None:
    with pytest.raises(ModelError, match="the target is on cuda:0 and the draft on cpu, .*move one"):
        pair_of(loaded("embedded-target").cuda(), loaded("embedded-draft"))


def test_a_module_that_was_converted_afterwards_is_named(tiny_module: Build) -> None:
    pair = pair_of(tiny_module("llama"), tiny_module("llama"))
    pair.draft.module.double()
    with pytest.raises(ModelError, match=r"was torch.float32 on cpu when it was taken, and is torch.float64 on cpu now; convert and move"):
        list(decode_speculative(pair.target, pair.draft, SpeculationTree.chain(2), Request((1, 2, 3), 4)))


def test_a_tokenizer_is_one_of_transformers(tiny_module: Build) -> None:
    with pytest.raises(ModelError, match="a tokenizer is a str, which is none of transformers"):
        pair_of(tiny_module("llama"), None, "embedded-target")
