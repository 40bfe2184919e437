"""Passes by our own kernels are those of the module: in Triton's interpreter on the CPU, and on a GPU."""

import copy
from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

pytest.importorskip("triton")

from treespec.errors import ModelError
from treespec.models.fused import FusedDecoder
from treespec.models.hooked import HookedDecoder
from treespec.models.plain import PlainDecoder
from treespec.models.tree_model import TreeModel
from treespec.trees.placement import Placement, Prefix
from treespec.trees.tree import SpeculationTree

Build = Callable[..., PreTrainedModel]
TREE = SpeculationTree.from_branches([[3], [2, 0, 1], [1, 2, 1], [1, 0, 2, 0], [1, 1, 0]])
FUSED = ("llama", "qwen2", "qwen2-sliding", "qwen3", "qwen3-sliding", "mistral")
HOOKED = ("ministral", "gemma", "gemma2", "gemma3", "gpt2", "opt", "gpt_neox", "phi", "phi3", "starcoder2", "olmo2")
HOOKED = (
    *HOOKED,
    "ministral3-sliding",
    "cohere2",
    "exaone4",
    "smollm3-sliding",
    "olmo3",
    "granite",
    "glm4",
    "stablelm",
    "apertus",
    "nemotron",
)
PLAIN = ("gpt_oss", "falcon", "mixtral", "qwen3_moe", "deepseek_v3", "youtu", "gptj")
PROMPT = 21


def ids(count: int, seed: int, device: str) -> torch.Tensor:
    return torch.randint(97, (count,), generator=torch.Generator().manual_seed(seed)).to(device)


def place(length: int, device: str, tree: SpeculationTree = TREE, known: bool = False) -> Placement:
    """With a length that only the device knows."""
    prefix = Prefix(torch.tensor([length], device=device), length if known else None)
    visible = torch.tensor(tree.ancestor_mask, device=device)
    return Placement(prefix, torch.tensor(tree.depths, device=device), torch.arange(tree.size, device=device), visible)


def largest(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())


@pytest.mark.parametrize("family", [*FUSED, *HOOKED])
def test_a_tree_and_what_follows_it(family: str, tiny_module: Build, device: str) -> None:
    """Prefill in chunks, a tree, its deepest path moved, two more tokens: every logit of the plain module."""
    module = tiny_module(family).to(device)
    plain, ours = TreeModel(module, kernels=False), TreeModel(module, kernels=True)
    prompt, nodes = ids(PROMPT, 1, device), ids(TREE.size, 2, device)
    for model in (plain, ours):
        model.allocate(60)
    assert not ours.eager_reason
    assert type(ours.decoder) is (FusedDecoder if family in FUSED else HookedDecoder)
    assert largest(ours.prefill(prompt, chunk=8), plain.prefill(prompt)) < 1e-4
    assert largest(ours.forward(nodes, place(PROMPT, device)), plain.forward(nodes, place(PROMPT, device, known=True))) < 1e-4
    path = torch.tensor([n for n in range(TREE.size) if TREE.ancestor_mask[TREE.size - 1, n]], device=device)
    for model in (plain, ours):
        model.move(Prefix.of(PROMPT, device), path, 0)
    after = Placement.causal(PROMPT + len(path), 2, device)
    assert largest(ours.forward(nodes[:2], after), plain.forward(nodes[:2], after)) < 1e-4


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_wide_and_narrow_passes_agree(family: str, tiny_module: Build, device: str) -> None:
    module = tiny_module(family).to(device)
    model, plain = TreeModel(module, kernels=True), TreeModel(module, kernels=False)
    tree = SpeculationTree.k_ary(2, 5).truncated(60)
    wide = SpeculationTree.from_branches([[2], [4, 4], [4] * 8, [1] * 32]).truncated(70)
    for chosen in (tree, wide):
        nodes = ids(chosen.size, 3, device)
        for each in (model, plain):
            each.allocate(PROMPT + chosen.size)
            each.prefill(ids(PROMPT, 1, device))
        known = place(PROMPT, device, chosen, known=True)
        exact = plain.forward(nodes, known)
        assert largest(model.forward(nodes, known), exact) < 1e-4
        keep = torch.tensor([3, 0], device=device)
        assert largest(model.forward(nodes, known, keep), exact[keep]) < 1e-4


@pytest.mark.parametrize(("family", "keep"), [("llama", None), ("qwen3-sliding", [3, 0])])
def test_padded_passes(family: str, keep: list[int] | None, tiny_module: Build, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes whose length only the device knows are computed with more rows where those are faster: the same logits and stored keys."""
    monkeypatch.setattr("treespec.models.fused.LARGEST", 4)
    model, nodes = TreeModel(tiny_module(family).to(device), kernels=True), ids(TREE.size, 3, device)
    rows = None if keep is None else torch.tensor(keep, device=device)
    model.allocate(PROMPT + TREE.size)
    model.prefill(ids(PROMPT, 1, device))
    assert model._cache is not None
    exact, storages = model.forward(nodes, place(PROMPT, device), rows), list(model._cache.storages.values())
    stored = [storage.clone() for storage in storages]
    asked: list[int] = []

    class Padded:
        def of(self, rows: int) -> int:
            asked.append(rows)
            return rows + 10

    monkeypatch.setattr(model.decoder, "padded", True)
    monkeypatch.setattr(model.decoder, "_row_counts", Padded())
    found = model.forward(nodes, place(PROMPT, device), rows)
    assert asked == [TREE.size]
    assert found.shape == exact.shape
    assert largest(found, exact) < 1e-4
    assert all(largest(now, before) < 1e-4 for now, before in zip(storages, stored, strict=True))


@pytest.mark.gpu
def test_rows_are_timed_on_the_model_s_own_weights(tiny_module: Build) -> None:
    decoder = TreeModel(tiny_module("llama").to("cuda"), kernels=True).decoder
    assert isinstance(decoder, FusedDecoder)
    seconds = decoder._product_seconds([70, 72, 80])
    assert len(seconds) == 3
    assert all(0 < taken < 1 for taken in seconds)
    assert decoder._row_counts.of(70) in range(70, 111)


@pytest.mark.parametrize("keep", [None, [3, 0]])
def test_deep_products_in_halves(keep: list[int] | None, tiny_module: Build, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What wide passes do with inner dimensions beyond 8,192: the same logits, from two products that the next norm adds up."""
    model, nodes = TreeModel(tiny_module("llama").to(device), kernels=True), ids(70, 3, device)
    known = place(PROMPT, device, SpeculationTree.k_ary(2, 6).truncated(70), known=True)
    rows = None if keep is None else torch.tensor(keep, device=device)
    model.allocate(PROMPT + 70)
    model.prefill(ids(PROMPT, 1, device))
    whole = model.forward(nodes, known, rows)
    calls: list[torch.Size] = []
    bmm = torch.bmm
    monkeypatch.setattr("treespec.models.fused._LONGEST_INNER", 16)
    monkeypatch.setattr(torch, "bmm", lambda a, b: calls.append(a.shape) or bmm(a, b))
    assert largest(model.forward(nodes, known, rows), whole) < 1e-4
    config = model.module.config
    assert calls == [torch.Size([2, 70, config.intermediate_size // 2])] * config.num_hidden_layers


def test_stacked_weights_are_the_modules_own(tiny_module: Build, device: str) -> None:
    """No second copy, and a second model of the same module shares them."""
    module = tiny_module("qwen2").to(device)
    before = {name: p.clone() for name, p in module.named_parameters()}
    first = TreeModel(module, kernels=True)
    second = TreeModel(module, kernels=True)
    assert all(torch.equal(p, before[name]) for name, p in module.named_parameters())
    assert isinstance(first.decoder, FusedDecoder)
    assert isinstance(second.decoder, FusedDecoder)
    attention = module.model.layers[0].self_attn
    for model in (first.decoder, second.decoder):
        assert model.layers[0].qkv.weight.data_ptr() == attention.q_proj.weight.data_ptr()
        bias = model.layers[0].qkv.bias
        assert bias is not None
        assert bias.data_ptr() == attention.q_proj.bias.data_ptr()
    with torch.no_grad():
        attention.v_proj.weight[3, 5] = 7.0
    rows = attention.q_proj.weight.shape[0] + attention.k_proj.weight.shape[0]
    assert float(first.decoder.layers[0].qkv.weight[rows + 3, 5]) == 7.0


@pytest.mark.parametrize(
    ("replace", "weight"),
    [
        (lambda module: module.half(), "model.embed_tokens.weight"),
        (lambda module: module.load_state_dict(copy.deepcopy(module.state_dict()), assign=True), "model.embed_tokens.weight"),
        (lambda module: setattr(module.model.norm, "weight", torch.nn.Parameter(module.model.norm.weight.clone())), "model.norm.weight"),
        (lambda module: module.model.layers[1].self_attn.to(torch.float64), "model.layers.1.self_attn.q_proj.weight"),
    ],
)
def test_weights_that_were_replaced_are_refused(
    replace: Callable[[PreTrainedModel], object], weight: str, tiny_module: Build, device: str
) -> None:
    module = tiny_module("qwen2").to(device)
    model = TreeModel(module, name="mine", kernels=True)
    model.allocate(20)
    replace(module)
    for capacity in (10, 20, 30):
        with pytest.raises(ModelError, match=f"mine: {weight} is no longer the tensor .* make a new TreeModel"):
            model.allocate(capacity)


def test_weights_that_change_in_place_are_used(tiny_module: Build, device: str) -> None:
    module = tiny_module("llama").to(device)
    model = TreeModel(module, kernels=True)
    module.load_state_dict(tiny_module("llama", seed=5).state_dict())
    model.allocate(20)
    assert largest(model.prefill(ids(5, 1, device)), model.score(ids(5, 1, device)[None])[0, -1]) < 1e-4


def test_two_models_of_one_module_do_not_meet(tiny_module: Build, device: str) -> None:
    module = tiny_module("gpt2").to(device)
    models = [TreeModel(module, kernels=True) for _ in range(2)]
    for model in models:
        model.allocate(10)
    first, second = (model.prefill(ids(5, 1, device)) for model in models)
    assert not [key for part in module.modules() for key in vars(part) if "treespec" in key], "nothing is written on the module"
    assert torch.equal(first, second)
    assert largest(models[0].prefill(ids(5, 2, device)), module(input_ids=ids(5, 2, device)[None]).logits[0, -1].detach()) < 1e-4


@pytest.mark.parametrize("family", PLAIN)
def test_families_that_cannot_say_why(family: str, tiny_module: Build, device: str) -> None:
    model = TreeModel(tiny_module(family).to(device), kernels=True)
    model.allocate(8)
    if family == "gptj" and not model.eager_reason:
        pytest.skip("from 5.24 on, transformers lets the attention of gptj be replaced")
    assert isinstance(model.decoder, PlainDecoder)
    assert model.eager_reason
    assert model.prefill(ids(3, 1, device)).shape == (97,)


def test_positions_that_change_with_the_text_are_not_captured(tiny_module: Build, device: str) -> None:
    ropes = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    model = TreeModel(tiny_module("llama", rope_parameters=ropes).to(device), kernels=True)
    assert "rotary positions change" in model.eager_reason
