"""Every node of a tree gets the logits that its own path gets alone; the plain module is the reference throughout."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from treespec.errors import CapacityError, ModelError
from treespec.models.plain import PlainDecoder
from treespec.models.tree_model import TreeModel
from treespec.trees.placement import Placement, Prefix
from treespec.trees.tree import SpeculationTree

SLIDING = ("qwen2-sliding", "qwen3-sliding", "mistral", "ministral", "gemma2", "gemma3", "gpt_oss", "phi3", "starcoder2", "mixtral")
FULL = ("llama", "qwen2", "qwen3", "gemma", "gpt2", "opt", "gpt_neox", "phi", "falcon", "falcon-new", "olmo2", "qwen3_moe", "deepseek_v3")
BY_TRIAL = ("jais2", "nanochat", "persimmon", "youtu")

TREE = SpeculationTree.from_branches([[3], [2, 0, 1], [1, 2, 1], [1, 0, 2, 0], [1, 1, 0]])
NEXT_TREE = SpeculationTree.from_branches([[2], [2, 1], [1, 0, 2]])
PROMPT = 21
CHUNK = 8
Build = Callable[..., PreTrainedModel]

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@dataclass(frozen=True)
class Step:
    """A tree over committed tokens: where its nodes lie and what they are."""

    tree: SpeculationTree
    tokens: Tensor
    committed: Tensor

    @property
    def length(self) -> int:
        return len(self.committed)

    @property
    def depths(self) -> Tensor:
        return torch.tensor(self.tree.depths, device=self.tokens.device)

    @property
    def place(self) -> Placement:
        device = self.tokens.device
        visible = torch.tensor(self.tree.ancestor_mask, device=device)
        return Placement(Prefix.of(self.length, device), self.depths, torch.arange(self.tree.size, device=device), visible)

    def path(self, node: int) -> list[int]:
        return [int(n) for n in self.tree.ancestor_mask[node].nonzero()[0]]

    def run(self, model: TreeModel, keep: Tensor | None = None) -> Tensor:
        return model.forward(self.tokens, self.place, keep)

    def run_by_levels(self, model: TreeModel) -> Tensor:
        """One pass per level, each no wider than what it may see: how a draft grows a tree."""
        rows = []
        for level in self.tree.levels:
            part, whole = slice(level.start, level.stop), self.place
            place = Placement(whole.prefix, whole.depths[part], whole.offsets[part], whole.visible[part, : level.stop])
            rows.append(model.forward(self.tokens[part], place))
        return torch.cat(rows)

    def alone(self, module: PreTrainedModel) -> Tensor:
        """Each node's logits from its own path through the plain module."""
        return torch.stack([plain(module, torch.cat([self.committed, self.tokens[self.path(node)]])) for node in range(self.tree.size)])

    def accept(self, model: TreeModel, node: int) -> Tensor:
        """Commit the path to `node`; the tokens that are then stored."""
        path = torch.tensor(self.path(node), device=self.tokens.device)
        model.move(self.place.prefix, path, 0)
        return torch.cat([self.committed, self.tokens[path]])


@torch.no_grad()
def plain(module: PreTrainedModel, ids: Tensor) -> Tensor:
    logits: Tensor = module(input_ids=ids[None], use_cache=False).logits[0, -1]
    return logits


def random_ids(count: int, seed: int, device: str = "cpu") -> Tensor:
    return torch.randint(97, (count,), generator=torch.Generator().manual_seed(seed)).to(device)


def first_step(model: TreeModel, device: str = "cpu", capacity: int = 80) -> Step:
    prompt = random_ids(PROMPT, 1, device)
    model.allocate(capacity)
    model.prefill(prompt, chunk=CHUNK)
    return Step(TREE, random_ids(TREE.size, 2, device), prompt)


def difference(got: Tensor, wanted: Tensor) -> float:
    return float((got.float() - wanted.float()).abs().max())


@pytest.mark.parametrize("family", [*FULL, *SLIDING, *BY_TRIAL])
def test_every_node_equals_its_path_run_alone(family: str, tiny_module: Build) -> None:
    module = tiny_module(family)
    model = TreeModel(module)
    model.allocate(80)
    prompt = random_ids(PROMPT, 1)
    assert difference(model.prefill(prompt, chunk=CHUNK), plain(module, prompt)) < 1e-5

    step = Step(TREE, random_ids(TREE.size, 2), prompt)
    wanted = step.alone(module)
    other = replace(step, committed=torch.cat([prompt[:-1], prompt[-1:] ^ 1]))
    assert difference(other.alone(module), wanted) > 1e-2, "context hardly matters: the comparison would prove nothing"
    assert difference(step.run(model), wanted) < 1e-5

    committed = step.accept(model, TREE.size - 1)
    after = Step(NEXT_TREE, random_ids(NEXT_TREE.size, 3), committed)
    assert difference(after.run(model), after.alone(module)) < 1e-5


@pytest.mark.parametrize("family", ["llama", "gemma3", "mistral", "gpt2", "opt", "deepseek_v3"])
def test_level_by_level_equals_one_pass(family: str, tiny_module: Build) -> None:
    model = TreeModel(tiny_module(family))
    step = first_step(model)
    assert difference(step.run_by_levels(model), step.run(model)) < 1e-5
    committed = step.accept(model, 5)
    after = Step(NEXT_TREE, random_ids(NEXT_TREE.size, 3), committed)
    assert difference(after.run_by_levels(model), after.alone(model.module)) < 1e-5


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3", "gpt_neox", "falcon", "mixtral"])
def test_eager_attention_is_as_exact(family: str, tiny_module: Build) -> None:
    module = tiny_module(family, attention="eager")
    step = first_step(model := TreeModel(module))
    assert difference(step.run(model), step.alone(module)) < 1e-5


@pytest.mark.parametrize("family", SLIDING)
def test_the_window_matters_here(family: str, tiny_module: Build) -> None:
    model = TreeModel(tiny_module(family))
    step = first_step(model)
    wanted = step.run(model)
    model.family = replace(model.family, window=1000)
    model.decoder = PlainDecoder(model.module, model.family)
    assert difference(step.run(model), wanted) > 1e-2


@pytest.mark.parametrize("family", ["llama", "gemma3", "mistral", "gpt2"])
def test_rows_that_nobody_may_see_do_not_count(family: str, tiny_module: Build) -> None:
    model = TreeModel(tiny_module(family))
    model.allocate(80)
    assert model._cache is not None
    with torch.inference_mode():
        for storage in model._cache.storages.values():
            storage.fill_(1e30)
    step = first_step(model)
    hidden = torch.zeros(TREE.size, 80 - PROMPT, dtype=torch.bool)
    hidden[:, : TREE.size] = step.place.visible
    got = model.forward(step.tokens, replace(step.place, visible=hidden))
    assert difference(got, step.alone(model.module)) < 1e-5


def test_prefill_does_not_depend_on_the_chunk(tiny_module: Build) -> None:
    model = TreeModel(tiny_module("gemma3"))
    model.allocate(40)
    prompt = random_ids(33, 4)
    rows = [model.prefill(prompt, chunk=chunk) for chunk in (1, 7, 33, 512)]
    assert max(difference(row, rows[-1]) for row in rows) < 1e-5


def test_score_is_the_plain_pass(tiny_module: Build) -> None:
    module = tiny_module("mistral")
    ids = random_ids(36, 6).view(3, 12)
    got = TreeModel(module).score(ids, 4)
    with torch.no_grad():
        wanted = module(input_ids=ids).logits[:, 4:]
    assert got.shape == (3, 8, 97)
    assert difference(got, wanted) < 1e-5


@pytest.mark.parametrize("keep_from", [-1, 12])
def test_score_refuses_positions_that_are_not_there(keep_from: int, tiny_module: Build) -> None:
    with pytest.raises(CapacityError, match="12 tokens"):
        TreeModel(tiny_module("llama")).score(torch.zeros(1, 12, dtype=torch.int64), keep_from)


def test_what_a_model_says_of_itself(tiny_module: Build) -> None:
    model = TreeModel(tiny_module("llama"), name="tiny")
    assert (model.name, model.vocabulary_size, model.capacity, model.max_positions) == ("tiny", 97, 0, 128)
    assert (model.device, model.dtype, model.eos_token_ids) == (torch.device("cpu"), torch.float32, frozenset({2}))
    assert not model.module.training


@pytest.mark.parametrize(("ids", "wanted"), [(5, {5}), ([5, 7], {5, 7}), (None, set())])
def test_eos_ids_come_from_the_generation_config(ids: int | Sequence[int] | None, wanted: set[int], tiny_module: Build) -> None:
    module = tiny_module("llama")
    assert module.generation_config is not None
    module.generation_config.eos_token_id = ids
    assert TreeModel(module).eos_token_ids == wanted


def test_a_cut_vocabulary_cuts_every_result(tiny_module: Build) -> None:
    module = tiny_module("llama")
    model = TreeModel(module, vocabulary=50)
    step = first_step(model)
    assert model.vocabulary_size == 50
    assert torch.equal(step.run(model), first_step(whole := TreeModel(module)).run(whole)[:, :50])
    assert model.prefill(step.committed).shape == (50,)
    assert model.score(step.committed[None], 20).shape == (1, 1, 50)


def test_more_slots_than_allocated_is_an_error(tiny_module: Build) -> None:
    model = TreeModel(tiny_module("llama"))
    with pytest.raises(CapacityError, match="needs 21 cache slots, but the cache has 0"):
        model.prefill(random_ids(21, 1))
    model.allocate(20)
    with pytest.raises(CapacityError, match="needs 21 cache slots, but the cache has 20"):
        model.prefill(random_ids(21, 1))
    model.allocate(10)
    assert model.capacity == 20, "a larger cache that is there already is kept"
    with pytest.raises(CapacityError, match="0 cache slots"):
        model.allocate(0)
    with pytest.raises(CapacityError, match="empty"):
        model.prefill(random_ids(0, 1))
    with pytest.raises(CapacityError, match="nothing is stored"):
        TreeModel(tiny_module("llama")).move(Prefix.of(1, "cpu"), torch.tensor([1]), 0)


def test_a_prompt_beyond_the_known_positions_is_an_error(tiny_module: Build) -> None:
    model = TreeModel(tiny_module("gpt2"))
    model.allocate(200)
    with pytest.raises(CapacityError, match="129 tokens.* 128 positions"):
        model.prefill(random_ids(129, 1))


def test_other_attention_kernels_are_refused(tiny_module: Build) -> None:
    with pytest.raises(ModelError, match="flex_attention"):
        TreeModel(tiny_module("llama", attention="flex_attention"))


@pytest.mark.gpu
@cuda
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-4), (torch.float16, 0.03)])
@pytest.mark.parametrize("family", [*FULL, *SLIDING])
def test_every_node_equals_its_path_on_cuda(family: str, dtype: torch.dtype, limit: float, tiny_module: Build) -> None:
    module = tiny_module(family).to("cuda", dtype)
    model = TreeModel(module)
    step = first_step(model, "cuda")
    wanted = step.alone(module)
    assert difference(step.run(model), wanted) < limit * max(1.0, float(wanted.float().std()))
    committed = step.accept(model, TREE.size - 1)
    after = Step(NEXT_TREE, random_ids(NEXT_TREE.size, 3, "cuda"), committed)
    wanted = after.alone(module)
    assert difference(after.run(model), wanted) < limit * max(1.0, float(wanted.float().std()))


@pytest.mark.gpu
@cuda
@pytest.mark.parametrize("family", ["llama", "gemma3", "mistral", "gpt2", "opt", "gpt_neox"])
def test_a_pass_never_waits_for_the_device_and_can_be_captured(family: str, tiny_module: Build) -> None:
    """All but Falcon, whose own module waits: it indexes with lists, which are copied to the device each time."""
    module = tiny_module(family).to("cuda")
    model = TreeModel(module)
    step = first_step(model, "cuda")
    tokens, place = step.tokens.clone(), step.place
    path = torch.tensor([5, 6], device="cuda")
    model.forward(tokens, place)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        model.forward(tokens, place)
        model.move(place.prefix, path, 4)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    model.prefill(step.committed, chunk=CHUNK)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = model.forward(tokens, place)
    other = Step(TREE, random_ids(TREE.size, 9, "cuda"), step.committed)
    tokens.copy_(other.tokens)
    graph.replay()
    assert difference(logits, other.alone(module)) < 1e-3
