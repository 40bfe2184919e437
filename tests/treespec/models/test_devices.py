"""Two devices in one process: nobody sets the current device, and every pass runs with its model's own as the current one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.reference.pairs import tiny_pair
from treespec.decoding.engine import Engine
from treespec.decoding.loop import Request, decode_autoregressive, decode_speculative
from treespec.kernels.device import on
from treespec.models import loading
from treespec.models.loading import load_model
from treespec.models.tree_model import TreeModel
from treespec.trees.placement import Placement, Prefix
from treespec.trees.tree import SpeculationTree

Build = Callable[..., PreTrainedModel]
SECOND = torch.device("cuda", 1)
TREE = SpeculationTree.from_branches([[3], [2, 1, 0], [1, 1, 1]])


@pytest.fixture
def current(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The devices that are current one within the other; `torch.cuda.set_device` fails."""
    stack: list[object] = []

    @contextmanager
    def device(chosen: object) -> Iterator[None]:
        stack.append(chosen)
        yield
        stack.pop()

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "set_device", lambda chosen: pytest.fail(f"set_device({chosen})"))
    return stack


def test_a_cuda_device_is_current_within_the_context_alone(current: list[object]) -> None:
    with on(SECOND):
        assert current == [SECOND]
        with on(torch.device("cpu")):
            assert current == [SECOND]
    assert not current


def test_loading_leaves_the_current_device_alone(
    current: list[object], tmp_path: Path, tiny_module: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_module("llama").save_pretrained(tmp_path)
    monkeypatch.setattr(loading, "_device", lambda device, offload=False: SECOND)
    monkeypatch.setattr(PreTrainedModel, "to", lambda module, where: module)
    places: list[object] = []
    real = AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(
        AutoModelForCausalLM, "from_pretrained", lambda path, device_map, **options: (places.append(device_map), real(path, **options))[1]
    )
    asked: list[list[object]] = []
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: asked.append([*current]) or True)
    assert load_model(str(tmp_path), device="cuda:1").module.dtype == torch.bfloat16
    assert asked == [[SECOND]], "the second device is asked for its types"
    assert places == [{"": SECOND}], "weights are read straight to it"
    assert not current


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_every_pass_runs_on_the_models_own_device(family: str, current: list[object], tiny_module: Build) -> None:
    module = tiny_module(family)
    model = TreeModel(module)
    seen: list[list[object]] = []
    module.register_forward_pre_hook(lambda module, arguments: seen.append([*current]))
    decoder_move = model.decoder.move
    model.decoder.move = lambda *arguments: (seen.append([*current]), decoder_move(*arguments))[1]  # type: ignore[method-assign]
    model.device = SECOND
    ids = torch.arange(6)

    def alone(call: Callable[[], object]) -> None:
        seen.clear()
        call()
        assert seen
        assert all(stack == [SECOND] for stack in seen)
        assert not current

    alone(lambda: model.score(ids[None]))
    model._shapes = TreeModel(module)._probe()  # it makes tensors on the model's device, which is not really there
    model._slot_positions = torch.zeros(16, dtype=torch.int64)
    model.device = torch.device("cpu")
    model.allocate(16)
    model.device = SECOND
    alone(lambda: model.prefill(ids, chunk=4))
    alone(lambda: model.forward(ids[:2], Placement.causal(6, 2, "cpu")))
    alone(lambda: model.move(Prefix.of(6, "cpu"), torch.tensor([1]), 0))


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA GPUs")
@pytest.mark.parametrize("captured", [True, False])
def test_pairs_on_two_devices_take_turns(captured: bool) -> None:
    """Each decodes what it does alone, captured and eagerly, and the current device stays what it was."""
    request = Request((1, 2, 3, 4), 24)
    pairs = [tiny_pair(device=f"cuda:{index}") for index in (0, 1)]
    engines = [Engine(pair.target, pair.draft, notice=pytest.fail) if captured else None for pair in pairs]
    wanted = [token for record in decode_autoregressive(tiny_pair().target, request) for token in record.tokens]
    for _ in range(2):
        for pair, engine in zip(pairs, engines, strict=True):
            records = decode_speculative(pair.target, pair.draft, TREE, request, engine=engine)
            assert [token for record in records for token in record.tokens] == wanted
            assert torch.cuda.current_device() == 0


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA GPUs")
def test_a_model_is_loaded_to_the_second_device_and_the_first_stays_current(tmp_path: Path, tiny_module: Build) -> None:
    tiny_module("llama").save_pretrained(tmp_path)
    model = TreeModel(load_model(str(tmp_path), device="cuda:1", dtype="float32"))
    assert torch.cuda.current_device() == 0
    assert not model.eager_reason
    model.allocate(16)
    found = model.prefill(torch.arange(6, device=SECOND))
    assert torch.allclose(found.cpu(), TreeModel(tiny_module("llama")).score(torch.arange(6)[None])[0, -1], atol=1e-3)
