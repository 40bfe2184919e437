"""Greedy tree decoding against transformers' own `generate`, token for token and step for step, for every family."""

import copy
from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from tests.reference.replay import replay
from tests.reference.shapes import SHAPES
from tests.reference.tiny import CONFIGS, known
from treespec.decoding.drafting import Drafting
from treespec.decoding.engine import Engine
from treespec.decoding.loop import Request, decode_autoregressive, decode_speculative
from treespec.decoding.plans import DynamicBudget, Plan
from treespec.decoding.sampling import prompt_generator
from treespec.models.support import support_of
from treespec.models.tree_model import TreeModel
from treespec.trees.tree import SpeculationTree

Build = Callable[..., PreTrainedModel]
FAMILIES = [
    "llama",
    "qwen2",
    "qwen2-sliding",
    "qwen3",
    "mistral",
    "gemma2",
    "gemma3",
    "gpt2",
    "opt",
    "gpt_neox",
    "phi",
    "falcon",
    "mixtral",
    "deepseek_v3",
]
OTHERS = [family for family in CONFIGS if family not in FAMILIES and known(family)]
"""Families that are compared with fewer trees."""
TREES = {
    "8-chain": SpeculationTree.chain(8),
    "4x4 chains": SpeculationTree.k_chains(4, 4),
    "binary": SpeculationTree.k_ary(2, 3),
    "uneven": SpeculationTree.from_paths([(0, 0, 0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 2), (1, 0, 0), (1, 1), (2,), (3,)]),
}
PROMPT = (5, 17, 3, 44, 61, 8, 20, 33, 90, 12, 7)  # longer than the sliding windows of the tiny models
GEN_LEN = 24


def perturbed(module: PreTrainedModel, noise: float) -> PreTrainedModel:
    """A draft that often, but not always, agrees."""
    draft = copy.deepcopy(module)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in draft.parameters():
            parameter += noise * parameter.std() * torch.randn(parameter.shape, generator=generator) if parameter.numel() > 1 else 0.0
    return draft


def generated(module: PreTrainedModel, length: int) -> list[int]:
    """The continuation of PROMPT by transformers' own greedy decoding; EOS does not stop it."""
    ids = torch.tensor([PROMPT], device=module.device)
    module.generation_config.eos_token_id = None
    output = module.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=length, do_sample=False, pad_token_id=0)
    return output[0, len(PROMPT) :].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_tree_decoding_equals_generate_in_exactly_the_steps_of_the_replay(family: str, tiny_module: Build) -> None:
    module = tiny_module(family)
    noisy = perturbed(module, 0.04)
    expected = generated(module, GEN_LEN + 9)
    target, draft = TreeModel(module, name=family), TreeModel(noisy, name="draft")

    @torch.inference_mode()
    def rank(context: tuple[int, ...], k: int) -> list[int]:
        ranked: list[int] = noisy(input_ids=torch.tensor([context]), use_cache=False).logits[0, -1].topk(k).indices.tolist()
        return ranked

    accepted = set()
    for name, tree in TREES.items():
        records = list(decode_speculative(target, draft, tree, Request(PROMPT, GEN_LEN)))
        assert [t for r in records for t in r.tokens] == expected[:GEN_LEN], name
        counts = [len(r.accepted or ()) for r in records[1:]]
        assert counts == replay(tree, PROMPT, expected, rank, GEN_LEN), name
        accepted |= set(counts)
    assert max(accepted) > 0, "a draft that is never right tests nothing"
    baseline = [t for r in decode_autoregressive(target, Request(PROMPT, GEN_LEN)) for t in r.tokens]
    assert baseline == expected[:GEN_LEN]


@pytest.mark.parametrize("family", OTHERS)
def test_static_and_dynamic_trees_equal_generate_for_every_other_family(family: str, tiny_module: Build) -> None:
    module = tiny_module(family)
    expected = generated(module, GEN_LEN)
    target, draft = TreeModel(module, name=family), TreeModel(perturbed(module, 0.04), name="draft")
    for plan in (TREES["uneven"], DynamicBudget.of(12, 4)):
        records = list(decode_speculative(target, draft, plan, Request(PROMPT, GEN_LEN)))
        assert [t for r in records for t in r.tokens] == expected, plan
        assert len(records) < GEN_LEN, "a draft that is never right tests nothing"


@pytest.mark.gpu
@pytest.mark.parametrize("family", [*FAMILIES, *OTHERS])
def test_tree_decoding_equals_generate_on_cuda(family: str, tiny_module: Build) -> None:
    module = tiny_module(family)
    draft = TreeModel(perturbed(module, 0.04).to("cuda"), name="draft")
    target = TreeModel(module.to("cuda"), name=family)
    expected = generated(target.module, GEN_LEN)
    captured = Engine(target, draft)
    plans: dict[str, Plan] = {**TREES, "dynamic": DynamicBudget(14, 4, 5), "wide": DynamicBudget(70, 3, 40)}
    for engine in (None, captured):
        for name, plan in plans.items():
            records = decode_speculative(target, draft, plan, Request(PROMPT, GEN_LEN), engine=engine)
            assert [t for r in records for t in r.tokens] == expected, (name, engine)
        assert [t for r in decode_autoregressive(target, Request(PROMPT, GEN_LEN), engine=engine) for t in r.tokens] == expected
    assert (captured.eager() is None) == support_of(module.config).captured, captured.eager()


DRAFTINGS = [
    Drafting("topk"),
    Drafting("swor"),
    Drafting("swr"),
    Drafting("swr", verifier="traversal"),
    Drafting("swor", temperature=0.7),
    Drafting("swor", temperature=0.7, verifier="traversal"),
    Drafting("swr", temperature=0.7, verifier="traversal"),
]


def outputs(
    target: TreeModel, draft: TreeModel, plan: Plan, drafting: Drafting, length: int, engine: Engine | None = None
) -> list[tuple[int, ...]]:
    """Committed tokens per step."""
    generator = prompt_generator(0, 0, target.device)
    records = decode_speculative(target, draft, plan, Request(PROMPT, length), generator, drafting=drafting, engine=engine)
    return [record.tokens for record in records]


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_of_the_study_decodes_what_generate_does_under_every_rule(shape: str, tiny_module: Build) -> None:
    module, tree = tiny_module("llama"), SHAPES[shape]
    target, draft = TreeModel(module, name="llama"), TreeModel(perturbed(module, 0.04), name="draft")
    expected = generated(module, 16)
    steps = {}
    for drafting in DRAFTINGS:
        steps[drafting] = outputs(target, draft, tree, drafting, 16)
        assert [t for tokens in steps[drafting] for t in tokens] == expected, drafting
    assert steps[DRAFTINGS[1]] == steps[DRAFTINGS[0]], "greedy swor is topk, step for step"
    assert steps[DRAFTINGS[2]] == steps[DRAFTINGS[3]], "copies of the argmax are accepted or not, whoever asks"
    assert len(steps[DRAFTINGS[2]]) >= len(steps[DRAFTINGS[0]])
    assert len(steps[DRAFTINGS[0]]) < 16, "a draft that is never right tests nothing"


@pytest.mark.parametrize("shape", SHAPES)
def test_dynamic_trees_of_every_shapes_budget_decode_what_generate_does(shape: str, tiny_module: Build) -> None:
    module, tree = tiny_module("llama"), SHAPES[shape]
    target, draft = TreeModel(module, name="llama"), TreeModel(perturbed(module, 0.04), name="draft")
    expected = generated(module, 24)
    budgets = [DynamicBudget.of(tree.size, tree.depth), DynamicBudget(tree.size, tree.depth, min(tree.size - 1, 97))]
    for budget in budgets:
        found = outputs(target, draft, budget, Drafting(), 24)
        assert [t for tokens in found for t in tokens] == expected, budget
        assert len(found) < 24


@pytest.mark.gpu
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_decodes_what_generate_does_on_cuda(shape: str, tiny_module: Build) -> None:
    module, tree = tiny_module("llama"), SHAPES[shape]
    draft = TreeModel(perturbed(module, 0.04).to("cuda"), name="draft")
    target = TreeModel(module.to("cuda"), name="llama")
    expected = generated(target.module, 16)
    captured = Engine(target, draft)
    plans: list[tuple[Plan, Drafting]] = [(tree, drafting) for drafting in DRAFTINGS]
    for plan, drafting in [*plans, (DynamicBudget.of(tree.size, tree.depth), Drafting())]:
        for engine in (None, captured):
            found = outputs(target, draft, plan, drafting, 16, engine)
            assert [t for tokens in found for t in tokens] == expected, (plan, drafting, engine)
