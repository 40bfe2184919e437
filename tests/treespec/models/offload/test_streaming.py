"""An offloaded module computes what it did before, with few layers on the device at a time."""

import copy
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from treespec.decoding.engine import CacheBudget, EagerSteps, Engine
from treespec.decoding.loop import Request, decode_autoregressive, decode_speculative
from treespec.decoding.step import StepSpec
from treespec.decoding.timing import CudaTimer, now
from treespec.errors import ModelError
from treespec.models.offload import host_memory
from treespec.models.offload import streaming as offloading
from treespec.models.offload.streaming import offload, streamed_bytes
from treespec.models.tree_model import TreeModel
from treespec.trees.placement import Placement, Prefix
from treespec.trees.tree import SpeculationTree

Build = Callable[..., PreTrainedModel]
TREE = SpeculationTree.from_branches([[3], [2, 0, 1], [1, 2, 1], [1, 0, 2, 0]])
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"num_hidden_layers": 5},
    "qwen2": {"num_hidden_layers": 5},
    "qwen3": {"num_hidden_layers": 3},
    "gemma3": {"num_hidden_layers": 3, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "gpt2": {"n_layer": 5},
    "opt": {"num_hidden_layers": 5},
    "gpt_neox": {"num_hidden_layers": 5},
    "falcon": {"num_hidden_layers": 5},
    "mixtral": {"num_hidden_layers": 4},  # as many experts as layers
    "deepseek_v3": {"num_hidden_layers": 5},  # the first layer is smaller than the others
    "gptj": {"n_layer": 5},  # admitted by a trial tree
}


def ids(count: int, seed: int, device: str = "cpu") -> Tensor:
    return torch.randint(97, (count,), generator=torch.Generator().manual_seed(seed)).to(device)


def logits_of(model: TreeModel, device: str = "cpu") -> list[Tensor]:
    """A prompt in chunks, a tree, its deepest path accepted, two more tokens; then all again behind another prompt, and a plain pass."""
    found = []
    model.allocate(60)
    for seed, length in ((1, 21), (2, 17)):
        found.append(model.prefill(ids(length, seed, device), chunk=8))
        prefix = Prefix.of(length, device)
        visible = torch.tensor(TREE.ancestor_mask, device=device)
        place = Placement(prefix, torch.tensor(TREE.depths, device=device), torch.arange(TREE.size, device=device), visible)
        found.append(model.forward(ids(TREE.size, seed + 2, device), place))
        path = torch.tensor([n for n in range(TREE.size) if TREE.ancestor_mask[TREE.size - 1, n]], device=device)
        model.move(prefix, path, 0)
        found.append(model.forward(ids(2, seed + 4, device), Placement.causal(length + len(path), 2, device)))
    found.append(model.score(ids(24, 7, device).reshape(2, 12)))
    return found


@pytest.mark.parametrize("slots", [2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_logit_is_that_of_the_module_as_it_was(family: str, slots: int, tiny_module: Build) -> None:
    module = tiny_module(family, **FAMILIES[family])
    wanted = logits_of(TreeModel(copy.deepcopy(module)))
    model = TreeModel(offload(module, "cpu", slots=slots))
    assert all(torch.equal(a, b) for a, b in zip(logits_of(model), wanted, strict=True))


def test_layers_share_slots_of_the_largest_and_the_rest_stays(tiny_module: Build) -> None:
    module = tiny_module("deepseek_v3", num_hidden_layers=5)
    sizes = [sum(p.nbytes for p in layer.parameters()) for layer in module.model.layers]
    assert sizes[0] < sizes[1]
    rest = {name: p.data_ptr() for name, p in module.named_parameters() if ".layers." not in name}
    shapes = {name: p.shape for name, p in module.named_parameters()}
    offload(module, "cpu")
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in module.model.layers.parameters()}
    room = max(sizes) + 256 * len(list(module.model.layers[1].parameters()))
    for _ in range(2):
        module(input_ids=ids(3, 1)[None])
        storages |= {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in module.model.layers.parameters()}
    assert len(storages) == 2
    assert all(max(sizes) <= size <= room for size in storages.values())
    assert sum(sizes) <= streamed_bytes(module) <= sum(sizes) + 5 * (room - max(sizes))
    assert {name: p.data_ptr() for name, p in module.named_parameters() if name in rest} == rest
    assert {name: p.shape for name, p in module.named_parameters()} == shapes


def test_the_original_weights_are_freed(tiny_module: Build) -> None:
    import weakref

    module = tiny_module("llama", num_hidden_layers=3)
    originals = [weakref.ref(p) for p in module.model.layers.parameters()]
    offload(module, "cpu")
    gc.collect()
    assert originals
    assert all(original() is None for original in originals)


def test_a_layer_is_freed_before_the_next_is_copied(tiny_module: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Host memory holds the weights and one layer more, at no time all of them twice."""
    import weakref

    module = tiny_module("llama", num_hidden_layers=4)
    layers = [[weakref.ref(p) for p in layer.parameters()] for layer in module.model.layers]
    alive: list[int] = []
    make = host_memory.block

    def block(count: int) -> Tensor:
        alive.append(sum(any(p() is not None for p in layer) for layer in layers))
        return make(count)

    monkeypatch.setattr(host_memory, "block", block)
    offload(module, "cpu")
    assert alive == [4, 3, 2, 1]


@pytest.mark.parametrize("tied", [True, False])
def test_tied_embeddings_stay_tied_and_are_not_streamed(tied: bool, tiny_module: Build) -> None:
    module = tiny_module("llama", num_hidden_layers=3, tie_word_embeddings=tied)
    before = copy.deepcopy(module)
    offload(module, "cpu")
    assert (module.lm_head.weight is module.model.embed_tokens.weight) == tied
    layers = sum(p.nbytes for p in before.model.layers.parameters())
    assert layers <= streamed_bytes(module) < layers + before.lm_head.weight.nbytes // 2
    tokens = ids(9, 1)[None]
    assert torch.equal(module(input_ids=tokens).logits, before(input_ids=tokens).logits)


def test_weights_that_layers_share_with_each_other_or_with_the_rest_stay(tiny_module: Build) -> None:
    module = tiny_module("llama", num_hidden_layers=4)
    layers: Any = module.model.layers
    layers[3].mlp.up_proj.weight = layers[1].mlp.up_proj.weight
    layers[2].input_layernorm.weight = module.model.norm.weight
    layers[0].mlp.up_proj.weight = layers[0].mlp.gate_proj.weight  # within one layer: streamed, once
    before = copy.deepcopy(module)
    kept = layers[1].mlp.up_proj.weight.nbytes
    offload(module, "cpu")
    assert layers[3].mlp.up_proj.weight is layers[1].mlp.up_proj.weight
    assert layers[2].input_layernorm.weight is module.model.norm.weight
    assert layers[0].mlp.up_proj.weight.data_ptr() == layers[0].mlp.gate_proj.weight.data_ptr()
    whole = streamed_bytes(offload(tiny_module("llama", num_hidden_layers=4), "cpu"))
    assert streamed_bytes(module) <= whole - 3 * kept
    tokens = ids(9, 1)[None]
    for _ in range(2):
        assert torch.equal(module(input_ids=tokens).logits, before(input_ids=tokens).logits)


def test_a_pass_that_fails_half_way_does_not_harm_the_next(tiny_module: Build) -> None:
    module = tiny_module("llama", num_hidden_layers=5)
    tokens = ids(9, 1)[None]
    wanted = module(input_ids=tokens).logits
    offload(module, "cpu")
    for stop in (0, 1, 3, 4):

        def fail(*arguments: Any) -> None:
            raise KeyboardInterrupt

        handle = module.model.layers[stop].mlp.register_forward_hook(fail)
        with pytest.raises(KeyboardInterrupt):
            module(input_ids=tokens)
        handle.remove()
        assert torch.equal(module(input_ids=tokens).logits, wanted)


@torch.inference_mode()
def test_modules_made_and_offloaded_in_inference_mode_run_in_it(tiny_module: Build) -> None:
    module = tiny_module("gpt2", n_layer=3)
    tokens = ids(9, 1)[None]
    wanted = module(input_ids=tokens).logits
    offload(module, "cpu")
    for _ in range(2):
        assert torch.equal(module(input_ids=tokens).logits, wanted)


def test_weights_that_are_not_there_are_not_saved(tiny_module: Build, tmp_path: Path) -> None:
    module = offload(tiny_module("llama"), "cpu", name="some/llama")
    with pytest.raises(ModelError, match="^some/llama is offloaded"):
        module.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="is offloaded"):
        module.state_dict()
    assert not list(tmp_path.glob("*.safetensors"))


def test_mixed_types_keep_theirs(tiny_module: Build) -> None:
    module = tiny_module("llama", num_hidden_layers=3)
    for layer in module.model.layers:
        layer.mlp.to(torch.bfloat16)
        layer.mlp.register_forward_pre_hook(lambda part, arguments: (arguments[0].to(torch.bfloat16),))
        layer.mlp.register_forward_hook(lambda part, arguments, output: output.float())
    tokens = ids(9, 1)[None]
    wanted = module(input_ids=tokens).logits
    offload(module, "cpu")
    assert torch.equal(module(input_ids=tokens).logits, wanted)
    assert {p.dtype for p in module.model.layers.parameters()} == {torch.float32, torch.bfloat16}


def test_steps_run_eagerly_and_the_reason_is_told_once_by_name(tiny_module: Build) -> None:
    pytest.importorskip("triton")
    target = TreeModel(offload(tiny_module("llama", num_hidden_layers=3), "cpu"), name="big", kernels=True)
    told: list[str] = []
    engine = Engine(target, notice=told.append)
    for length in (8, 30):
        steps = engine.steps(StepSpec(None), CacheBudget(length), None)
        assert isinstance(steps, EagerSteps)
    assert told == ["big runs eagerly: its weights are streamed from host memory"]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_decoding_is_that_of_the_module_as_it_was(family: str, tiny_module: Build) -> None:
    module = tiny_module(family, **FAMILIES[family])
    draft = TreeModel(tiny_module(family, seed=0))
    request = Request(tuple(ids(11, 3).tolist()), 20)
    wanted = [record.tokens for record in decode_autoregressive(TreeModel(copy.deepcopy(module)), request)]
    target = TreeModel(offload(module, "cpu"))
    assert [record.tokens for record in decode_autoregressive(target, request)] == wanted
    steps = [t for record in decode_speculative(target, draft, TREE, request) for t in record.tokens]
    assert steps == [t for tokens in wanted for t in tokens]


def test_layers_that_are_not_one_list_are_refused_by_name(tiny_module: Build) -> None:
    module = tiny_module("opt", num_hidden_layers=3)
    module.model.decoder.layers = nn.ModuleList(list(module.model.decoder.layers)[:2])
    with pytest.raises(ModelError, match=r"^some/opt \(family opt\) cannot be offloaded: its 3 decoder layers are not one list of modules"):
        offload(module, "cpu", name="some/opt")
    module.model.decoder.layers = nn.ModuleList(nn.Identity() for _ in range(3))
    module.model.decoder.others = nn.ModuleList(nn.Identity() for _ in range(3))
    with pytest.raises(ModelError, match="not one list"):
        offload(module, "cpu")


def test_what_is_moved_already_is_not_offloaded(tiny_module: Build) -> None:
    from accelerate import cpu_offload

    once = offload(tiny_module("llama"), "cpu")
    with pytest.raises(ModelError, match="moved by hooks already"):
        offload(once, "cpu")
    other: Any = cpu_offload(tiny_module("llama"), torch.device("cpu"))
    with pytest.raises(ModelError, match="moved by hooks already"):
        offload(other, "cpu")


def test_memory_that_is_not_there_is_named_before_any_weight_moves(tiny_module: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tiny_module("llama")
    before = [p.data_ptr() for p in module.parameters()]
    monkeypatch.setattr(host_memory, "available_bytes", lambda: 1000)
    with pytest.raises(ModelError, match=r"GiB of host memory to be streamed from, but 0\.0 GiB are available"):
        offload(module, "cpu")
    assert [p.data_ptr() for p in module.parameters()] == before
    assert not streamed_bytes(module)
    with pytest.raises(ModelError, match=r"big needs 6\.0 GiB on cuda:0 for 2 layers at a time and 1\.5 GiB for .*but 7\.0 GiB are free"):
        offloading._require_device("big", torch.device("cuda:0"), 2, 3 << 30, 3 << 29, 7 << 30)
    offloading._require_device("big", torch.device("cuda:0"), 2, 3 << 30, 1 << 30, 7 << 30)


# -- on a GPU -----------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "deepseek_v3"])
def test_on_a_gpu_logits_and_tokens_are_those_of_the_module_as_it_was(family: str, tiny_module: Build) -> None:
    module = tiny_module(family, **FAMILIES[family])
    there = TreeModel(copy.deepcopy(module).to("cuda"), kernels=False)
    wanted = logits_of(there, "cuda")
    target = TreeModel(offload(module, "cuda"))
    assert (target.device.type, target.eager_reason) == ("cuda", "its weights are streamed from host memory")
    assert max(float((a - b).abs().max()) for a, b in zip(logits_of(target, "cuda"), wanted, strict=True)) < 1e-4
    draft = TreeModel(tiny_module(family).to("cuda"))
    request = Request(tuple(ids(11, 3).tolist()), 40)
    tokens = [t for record in decode_autoregressive(there, request) for t in record.tokens]
    engine = Engine(target, draft)
    assert [t for record in decode_autoregressive(target, request, engine=engine) for t in record.tokens] == tokens
    assert [t for record in decode_speculative(target, draft, TREE, request, engine=engine) for t in record.tokens] == tokens


def wide(tiny_module: Build, layers: int = 8) -> PreTrainedModel:
    """A Llama with layers of about 19 MB."""
    return tiny_module("llama", num_hidden_layers=layers, hidden_size=640, intermediate_size=1792, num_attention_heads=8)


@pytest.mark.gpu
@torch.no_grad()
def test_device_memory_holds_two_layers_and_the_rest(tiny_module: Build) -> None:
    wide(tiny_module, layers=1).to("cuda")(input_ids=ids(16, 1, "cuda")[None])  # makes cuBLAS's workspaces
    module = wide(tiny_module)
    layer = sum(p.nbytes for p in module.model.layers[0].parameters())
    rest = sum(p.nbytes for p in module.parameters()) - 8 * layer
    gc.collect()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    offload(module, "cuda")
    for _ in range(2):
        module(input_ids=ids(16, 1, "cuda")[None])
    assert torch.cuda.max_memory_allocated() - before < 2 * layer + rest + layer // 2


@pytest.mark.gpu
@torch.no_grad()
def test_a_layer_arrives_while_the_one_before_it_runs(tiny_module: Build) -> None:
    module = offload(wide(tiny_module), "cuda")
    tokens = ids(4, 1, "cuda")[None]
    module(input_ids=tokens)
    torch.cuda.synchronize()
    streamed: Any = offloading._streamed(module)
    behind = torch.cuda.Event()
    overlapped = []

    def linger(*arguments: Any) -> None:
        torch.cuda._sleep(1 << 31)  # about a second, by far longer than a copy
        behind.record()
        streamed.ring._arrived[1].synchronize()  # layer 3, which waits for layer 1 alone, goes into the second of the slots
        overlapped.append(not behind.query())

    handle = module.model.layers[2].register_forward_pre_hook(linger)
    module(input_ids=tokens)
    handle.remove()
    torch.cuda.synchronize()
    assert overlapped == [True]


@pytest.mark.gpu
def test_timers_do_not_wait_for_copies_under_way() -> None:
    """They would lend the next pass its first layers for nothing."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    device = torch.device("cuda")
    with torch.cuda.stream(side):
        torch.cuda._sleep(1 << 31)
    timer = CudaTimer()
    timer.begin()
    now(device)
    timer.mark("nothing")
    timer.parts()
    assert not side.query()
    side.synchronize()


@pytest.mark.gpu
def test_pinned_memory_is_given_back_with_the_module(tiny_module: Build) -> None:
    module = offload(tiny_module("llama", num_hidden_layers=3), "cuda")
    streamed: Any = offloading._streamed(module)
    host = list(streamed.host)
    assert all(memory.is_pinned() for memory in host)
    del module, streamed
    gc.collect()
    assert not any(memory.is_pinned() for memory in host)
