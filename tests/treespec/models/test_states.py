"""The states that a target keeps are those of its module, in every decoder: after a prompt, a tree, and the move of an accepted path."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.reference.states import states_of
from tests.reference.tiny import CONFIGS, known
from treespec.decoding.protocol import FINAL_STATE
from treespec.errors import CapacityError, ModelError
from treespec.models.calling import decoder_layers
from treespec.models.fused import FusedDecoder
from treespec.models.hooked import HookedDecoder
from treespec.models.offload.streaming import offload
from treespec.models.tree_model import TreeModel
from treespec.trees.placement import Placement, Prefix
from treespec.trees.tree import SpeculationTree

Build = Callable[..., PreTrainedModel]
TREE = SpeculationTree.from_branches([[3], [2, 0, 1], [1, 2, 1], [1, 0, 2, 0]])
WIDE = SpeculationTree.from_branches([[2], [4, 4], [4] * 8, [1] * 32]).truncated(70)
PROMPT = 21
STATELESS = ("gemma3n",)
"""Families whose layers pass on several streams."""
FUSED = ("llama", "qwen2-sliding", "qwen3", "mistral")
HOOKED = ("ministral", "gemma2", "gpt2", "opt")


def ids(count: int, seed: int, device: str = "cpu") -> Tensor:
    return torch.randint(3, 97, (count,), generator=torch.Generator().manual_seed(seed)).to(device)


def in_a_tree(tree: SpeculationTree, device: str, *, known: bool) -> Placement:
    prefix = Prefix(torch.tensor([PROMPT], device=device), PROMPT if known else None)
    visible = torch.tensor(tree.ancestor_mask, device=device)
    return Placement(prefix, torch.tensor(tree.depths, device=device), torch.arange(tree.size, device=device), visible)


def require_states_of_a_text_and_a_tree(model: TreeModel, tree: SpeculationTree, *, known: bool) -> None:
    """Prompt in chunks, a tree whose deepest path is then moved, and two tokens more."""
    device, layers = str(model.device), model.module.config.num_hidden_layers
    prompt, nodes = ids(PROMPT, 1, device), ids(tree.size, 2, device)
    model.keep_states((*range(layers + 1), FINAL_STATE))
    model.allocate(PROMPT + tree.size + 4)
    model.prefill(prompt, chunk=8)
    model.forward(nodes, in_a_tree(tree, device, known=known), torch.tensor([2, 0], device=device))
    for node in (0, tree.size // 2, tree.size - 1):
        path = [n for n in range(tree.size) if tree.ancestor_mask[node, n]]
        wanted = states_of(model.module, torch.cat([prompt, nodes[path]]))
        torch.testing.assert_close(model.states[:PROMPT], wanted[:PROMPT], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(model.states[PROMPT + torch.tensor(path)], wanted[PROMPT:], rtol=1e-4, atol=1e-4)
    model.move(Prefix.of(PROMPT, device), torch.tensor(path[1:], device=device), 1)
    model.forward(nodes[:2], Placement.causal(PROMPT + len(path), 2, device))
    wanted = states_of(model.module, torch.cat([prompt, nodes[path], nodes[:2]]))
    torch.testing.assert_close(model.states[: len(wanted)], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", [family for family in CONFIGS if known(family) and family not in STATELESS])
def test_the_module_s_own_passes(family: str, tiny_module: Build) -> None:
    require_states_of_a_text_and_a_tree(TreeModel(tiny_module(family)), TREE, known=True)


def test_hooks_live_as_long_as_a_pass(tiny_module: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    model = TreeModel(tiny_module("llama"))
    model.keep_states((1, 2, FINAL_STATE))
    model.allocate(8)
    model.prefill(ids(8, 1))

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("the pass fails")

    monkeypatch.setattr(model.module.lm_head, "forward", fails)
    with pytest.raises(RuntimeError, match="the pass fails"):
        model.prefill(ids(8, 1))
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.module.modules())


@pytest.mark.parametrize(
    ("family", "tree"),
    [
        *(pytest.param(family, TREE, id=f"{family}-narrow") for family in (*FUSED, *HOOKED)),
        *(pytest.param(family, WIDE, id=f"{family}-wide") for family in (*FUSED, "gemma2")),
    ],
)
def test_passes_by_kernels(family: str, tree: SpeculationTree, tiny_module: Build, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wide passes have launches of their own in fused layers; where hooks stand in a module, attention alone is ours.

    In the interpreter, which is slow, a few rows are wide for all families but one.
    """
    pytest.importorskip("triton")
    if tree is WIDE and device == "cpu" and family in FUSED[1:]:
        monkeypatch.setattr("treespec.models.fused.LARGEST", 4)
        tree = TREE
    model = TreeModel(tiny_module(family).to(device), kernels=True)
    assert type(model.decoder) is (FusedDecoder if family in FUSED else HookedDecoder)
    require_states_of_a_text_and_a_tree(model, tree, known=False)


def test_padded_passes_keep_the_states_of_their_tokens_alone(tiny_module: Build, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")

    class Padded:
        def of(self, rows: int) -> int:
            return rows + 10

    model = TreeModel(tiny_module("llama").to(device), kernels=True)
    monkeypatch.setattr("treespec.models.fused.LARGEST", 4)
    monkeypatch.setattr(model.decoder, "padded", True)
    monkeypatch.setattr(model.decoder, "_row_counts", Padded())
    require_states_of_a_text_and_a_tree(model, TREE, known=False)


def test_the_state_that_leaves_the_last_layer_becomes_the_final_one(tiny_module: Build) -> None:
    model = TreeModel(tiny_module("llama"))
    model.keep_states((2, FINAL_STATE))
    model.allocate(PROMPT)
    logits = model.prefill(ids(PROMPT, 1))
    with torch.inference_mode():
        torch.testing.assert_close(model.module.model.norm(model.states[:, 0]), model.states[:, 1])
        torch.testing.assert_close(model.module.lm_head(model.states[-1, 1]), logits)


@pytest.mark.parametrize("family", [family for family in STATELESS if known(family)])
def test_a_family_without_one_stream_is_refused_in_one_line(family: str, tiny_module: Build) -> None:
    model = TreeModel(tiny_module(family), name="the-target")
    with pytest.raises(ModelError, match=rf"the-target \(family {family}.*\) gives no states to a head: ") as caught:
        model.keep_states((2, 3))
    assert "\n" not in str(caught.value)
    assert model.state_layers == ()


@pytest.mark.parametrize("number", [3, -2])
def test_a_state_that_the_target_does_not_have_is_refused(number: int, tiny_module: Build) -> None:
    model = TreeModel(tiny_module("llama"), name="the-target")
    with pytest.raises(ModelError, match=rf"the-target \(family llama\) has states 0 to 2 and -1, but state {number} was asked for; "):
        model.keep_states((1, number))


def test_weights_that_hooks_move_are_refused(tiny_module: Build) -> None:
    model = TreeModel(tiny_module("llama"), name="the-target")
    model.module.hf_device_map = {"": 0}
    with pytest.raises(
        ModelError, match="the-target gives no states to a head, because its weights are moved by hooks; load it on one device"
    ):
        model.keep_states((1,))


def test_other_states_replace_the_cache_and_the_same_ones_do_not(tiny_module: Build) -> None:
    model = TreeModel(tiny_module("llama"), name="the-target")
    with pytest.raises(CapacityError):
        _ = model.states
    model.allocate(8)
    with pytest.raises(ModelError, match="the-target keeps no states; name them with keep_states first"):
        _ = model.states
    before, slot, cache, texts = model.generation, model.slot_bytes, model.cache_bytes, model.texts
    model.keep_states((0, 1, 2))
    assert (model.generation, model.texts) == (before + 1, texts + 1)
    assert (model.slot_bytes - slot) * 8 == model.cache_bytes - cache == model.states.nbytes == 8 * 3 * 48 * 4
    model.keep_states([0, 1, 2])
    model.allocate(4)
    assert model.generation == before + 1
    model.allocate(16)
    assert (model.generation, model.states.shape) == (before + 2, (16, 3, 48))
    model.keep_states(())
    assert (model.generation, model.cache_bytes) == (before + 3, 16 * slot)


def test_a_model_that_keeps_no_states_has_no_hooks_in_its_passes(tiny_module: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    model = TreeModel(tiny_module("llama"))
    model.allocate(8)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a hook was registered")

    for part in (*decoder_layers(model.module), model.module.model):
        monkeypatch.setattr(part, "register_forward_pre_hook", refuse)
        monkeypatch.setattr(part, "register_forward_hook", refuse)
    model.prefill(ids(8, 1))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_offloaded_targets_keep_states_too(family: str, tiny_module: Build) -> None:
    module = tiny_module(family, **({"n_layer": 4} if family == "gpt2" else {"num_hidden_layers": 4}))
    require_states_of_a_text_and_a_tree(TreeModel(offload(module, "cpu", slots=2)), TREE, known=True)
