"""Logits processors on trees: outputs are those of `generate` with the same processors, and rejected branches leave no trace."""

import copy
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, RepetitionPenaltyLogitsProcessor

from tests.reference.contract import ScoringContract, SlotModelContract, Subject
from tests.reference.enumeration import Tables, sampled_outcome, target_distribution, total_variation
from tests.reference.tabular import TabularModel, noisy_rule, random_rule
from tests.treespec.models.test_contract import draws
from treespec.decoding.drafting import Drafting
from treespec.decoding.engine import Engine
from treespec.decoding.loop import Request, decode_autoregressive, decode_speculative
from treespec.decoding.plans import DynamicBudget, Plan
from treespec.decoding.rules import Sampling
from treespec.decoding.sampling import distribution, prompt_generator
from treespec.errors import ModelError
from treespec.models.processed import Asking, ProcessedModel, Processor
from treespec.models.processors import as_generate, asked_for, processors_of
from treespec.models.tree_model import TreeModel
from treespec.trees.placement import Placement, Prefix
from treespec.trees.tree import SpeculationTree

Build = Callable[..., PreTrainedModel]
PROMPT = (5, 17, 3, 44, 61, 8, 20, 33, 90, 12, 7)
GEN_LEN = 24
EOS = [2]
PLANS: dict[str, Plan] = {
    "binary": SpeculationTree.k_ary(2, 3),
    "uneven": SpeculationTree.from_paths([(0, 0, 0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 2), (1, 0, 0), (1, 1), (2,), (3,)]),
    "dynamic": DynamicBudget.of(14, 4),
}
MOD = 7


def steered(input_ids: Tensor, scores: Tensor) -> Tensor:
    """A processor of the user's own, which looks at the sum of all tokens and at how many there are."""
    at = (input_ids.sum(-1) + input_ids.shape[1]) % MOD
    scores[:, ::MOD] += at[:, None].to(scores.dtype) / 2  # in place, which `generate` allows
    return scores


def grammar(batch: int, ids: Tensor) -> list[int]:
    """Even tokens follow odd ones and the other way round; asked about a text that breaks the rule, it has no answer."""
    said = ids[len(PROMPT) :].tolist()
    if any((a - b) % 2 == 0 for a, b in pairwise(said)):
        return []
    return [*range((int(ids[-1]) + 1) % 2, 97, 2)]


EARLY = [2, 73]
"""EOS tokens of which one comes soon, where nothing puts it off."""
CASES: dict[str, dict[str, Any]] = {
    "repetition_penalty": {"repetition_penalty": 1.4},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2},
    "bad_words_ids": {"bad_words_ids": [[11], [17, 42], [33, 90], [50, 50]]},
    "suppress_tokens": {"suppress_tokens": [6, 50, 84]},
    "begin_suppress_tokens": {"begin_suppress_tokens": [6, 50]},
    "min_length": {"min_length": len(PROMPT) + 15, "eos_token_id": EARLY},
    "min_new_tokens": {"min_new_tokens": 15, "eos_token_id": EARLY},
    "forced_eos_token_id": {"forced_eos_token_id": 60},
    "sequence_bias": {"sequence_bias": [[[50], -2.0], [[27, 40], 20.0], [[84], 1.0]]},
    "exponential_decay_length_penalty": {"exponential_decay_length_penalty": (5, 1.5)},
    "encoder": {"encoder_repetition_penalty": 1.5, "encoder_no_repeat_ngram_size": 2},
    "several": {"repetition_penalty": 1.2, "no_repeat_ngram_size": 3, "min_new_tokens": 12, "suppress_tokens": [6], "eos_token_id": EARLY},
}


@pytest.fixture(scope="module")
def modules(tiny_module: Build) -> tuple[PreTrainedModel, TreeModel]:
    """A target and a draft that agrees with it often."""
    module = tiny_module("llama")
    noisy = copy.deepcopy(module)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in noisy.parameters():
            parameter += 0.04 * parameter.std() * torch.randn(parameter.shape, generator=generator)
    return module, TreeModel(noisy, name="draft")


def generated(module: PreTrainedModel, **settings: Any) -> list[int]:
    """What transformers writes behind PROMPT."""
    ids = torch.tensor([PROMPT])
    output = module.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=GEN_LEN, do_sample=False, pad_token_id=0, **settings)
    return output[0, len(PROMPT) :].tolist()


def decoded(target: Any, draft: TreeModel, plan: Plan, ends: Sequence[int] = EOS) -> tuple[list[int], int]:
    """What decoding with trees writes, and in how many passes."""
    records = list(decode_speculative(target, draft, plan, Request(PROMPT, GEN_LEN, frozenset(ends))))
    return [t for record in records for t in record.tokens], len(records)


@pytest.mark.parametrize("case", CASES)
def test_what_a_generation_config_asks_for_is_what_generate_does(case: str, modules: tuple[PreTrainedModel, TreeModel]) -> None:
    module, draft = modules
    settings = {"eos_token_id": EOS, **CASES[case]}
    ends = settings["eos_token_id"]
    module.generation_config = GenerationConfig(eos_token_id=ends)
    plain = generated(module)
    module.generation_config = GenerationConfig(**settings)
    expected, model = generated(module), TreeModel(module, name="target")
    assert expected != plain, "a case that changes nothing tests nothing"
    assert set(asked_for(model)) == set(settings) - {"eos_token_id"}
    steps = []
    for name, plan in PLANS.items():
        target = as_generate(model, PROMPT, GEN_LEN)
        assert isinstance(target, ProcessedModel)
        tokens, count = decoded(target, draft, plan, ends)
        assert tokens == expected, name
        steps.append(count)
    assert min(steps) < len(expected), "a draft that is never right tests nothing"
    baseline = decode_autoregressive(as_generate(model, PROMPT, GEN_LEN), Request(PROMPT, GEN_LEN, frozenset(ends)))
    assert [t for record in baseline for t in record.tokens] == expected


def test_a_model_whose_config_asks_for_nothing_is_left_as_it_is(modules: tuple[PreTrainedModel, TreeModel]) -> None:
    module, _ = modules
    module.generation_config = GenerationConfig(repetition_penalty=1.0, min_length=0, do_sample=True, top_k=20, num_beams=1)
    model = TreeModel(module)
    assert as_generate(model, PROMPT, GEN_LEN) is model
    module.generation_config = GenerationConfig(min_length=40)  # without an EOS there is nothing to put off
    model = TreeModel(module)
    assert as_generate(model, PROMPT, GEN_LEN) is model


@pytest.mark.parametrize("case", [{"repetition_penalty": -1.0}, {"bad_words_ids": [[-4]]}, {"no_repeat_ngram_size": "x"}])
def test_settings_that_transformers_refuses_are_named(case: dict[str, Any], modules: tuple[PreTrainedModel, TreeModel]) -> None:
    model = TreeModel(modules[0], name="target")
    config = GenerationConfig()
    for key, value in case.items():
        setattr(config, key, value)
    model.module.generation_config = config
    with pytest.raises(ModelError, match=rf"^target: {next(iter(case))} of the generation config is .*; correct it$"):
        processors_of(model, PROMPT, GEN_LEN)


@pytest.mark.parametrize("plan", PLANS)
def test_a_processor_of_the_users_own_and_a_grammar_are_exact(plan: str, modules: tuple[PreTrainedModel, TreeModel]) -> None:
    module, draft = modules
    module.generation_config = GenerationConfig(eos_token_id=None, pad_token_id=0)
    model = TreeModel(module, name="target")
    own = ProcessedModel(model, [steered])
    tokens, count = decoded(own, draft, PLANS[plan], [])
    assert tokens == generated(module, logits_processor=LogitsProcessorList([steered]))
    assert count < GEN_LEN
    from transformers import PrefixConstrainedLogitsProcessor

    ruled = ProcessedModel(model, [PrefixConstrainedLogitsProcessor(grammar, 1)])
    assert decoded(ruled, draft, PLANS[plan], [])[0] == generated(module, prefix_allowed_tokens_fn=grammar)


def test_only_what_generate_could_ask_is_asked(modules: tuple[PreTrainedModel, TreeModel]) -> None:
    """Nothing behind a token that is ruled out, behind an EOS, or beyond the last token."""
    module, draft = modules
    module.generation_config = GenerationConfig(eos_token_id=EOS, pad_token_id=0)
    asked: list[tuple[int, ...]] = []

    def listening(input_ids: Tensor, scores: Tensor) -> Tensor:
        asked.append(tuple(input_ids[0].tolist()))
        return scores.index_fill(1, torch.tensor([11, 50]), -torch.inf)

    expected = generated(module, logits_processor=LogitsProcessorList([listening]))
    there = set(asked)
    asked.clear()
    longest = len(PROMPT) + GEN_LEN
    target = ProcessedModel(TreeModel(module), [listening], Asking(frozenset(EOS), longest))
    assert decoded(target, draft, PLANS["uneven"])[0] == expected
    said = [text[len(PROMPT) :] for text in asked]
    assert there <= set(asked)
    assert len(set(asked)) > len(there), "drafted texts were asked about too"
    assert not any({11, 50, *EOS} & set(text) for text in said)
    assert max(map(len, asked)) < longest


def test_a_rejected_branch_leaves_no_trace(modules: tuple[PreTrainedModel, TreeModel]) -> None:
    """After any tree that was read and dropped, the same path has the same scores as in a fresh model, bit for bit."""
    model = TreeModel(modules[0])

    def scores(*dropped: list[int]) -> Tensor:
        target = ProcessedModel(model, [steered, RepetitionPenaltyLogitsProcessor(1.3)])
        target.allocate(48)
        target.prefill(torch.tensor(PROMPT))
        for tokens in dropped:
            target.forward(torch.tensor(tokens), Placement.causal(len(PROMPT), len(tokens), "cpu"))
        kept = target.forward(torch.tensor([30, 31, 32]), Placement.causal(len(PROMPT), 3, "cpu"))
        target.move(Prefix.of(len(PROMPT), "cpu"), torch.tensor([2]), 1)  # 32 is accepted behind 30
        return torch.cat([kept, target.forward(torch.tensor([33]), Placement.causal(len(PROMPT) + 2, 1, "cpu"))])

    clean = scores()
    assert torch.equal(scores([40, 41, 42, 43, 44], [50, 51]), clean)


class Counting:
    """A processor that keeps a state."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.calls += 1
        return scores + torch.arange(scores.shape[-1]) * (self.calls % 3)


class Following:
    """A processor that answers by the text of the call before: the same when asked twice in a row, but not after another text."""

    def __init__(self) -> None:
        self.before = self.now = -1

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if int(input_ids[0, -1]) != self.now:
            self.before, self.now = self.now, int(input_ids[0, -1])
        return scores.index_fill(1, torch.tensor([self.before % 97]), -9.0)


@pytest.mark.parametrize("processor", [Counting(), Following()])
def test_a_processor_that_changes_its_mind_is_named(processor: Processor, modules: tuple[PreTrainedModel, TreeModel]) -> None:
    target = ProcessedModel(TreeModel(modules[0]), [steered, processor])
    with pytest.raises(ModelError, match=rf"^the logits processor {type(processor).__name__} gives other scores .* it keeps a state"):
        decoded(target, modules[1], PLANS["uneven"])


def failing(input_ids: Tensor, scores: Tensor) -> Tensor:
    raise KeyError(7)


def cutting(input_ids: Tensor, scores: Tensor) -> Tensor:
    return scores[:, :5]


def silent(input_ids: Tensor, scores: Tensor) -> Any:
    scores[:] = 0.0


def forbidding(input_ids: Tensor, scores: Tensor) -> Tensor:
    return torch.full_like(scores, -torch.inf)


@pytest.mark.parametrize(
    ("processor", "said"),
    [
        (failing, r"failing fails after 11 tokens: KeyError: 7$"),
        (silent, r"silent returns a NoneType; let it return the scores$"),
        (cutting, r"cutting turns scores of \[1, 97\] into \[1, 5\]$"),
        (forbidding, r"rule out every token after 11 tokens \(forbidding\)"),
    ],
)
def test_processors_that_cannot_go_on_are_named(processor: Processor, said: str, modules: tuple[PreTrainedModel, TreeModel]) -> None:
    with pytest.raises(ModelError, match=said):
        decoded(ProcessedModel(TreeModel(modules[0]), [processor]), modules[1], PLANS["binary"])


def test_an_engine_runs_it_eagerly_and_says_so(modules: tuple[PreTrainedModel, TreeModel]) -> None:
    said: list[str] = []
    target = ProcessedModel(TreeModel(modules[0], name="target"), [steered, RepetitionPenaltyLogitsProcessor(1.3)])
    engine = Engine(target, modules[1], said.append)
    assert len(list(decode_speculative(target, modules[1], PLANS["binary"], Request(PROMPT, 4), engine=engine))) > 1
    assert said == ["target runs eagerly: logits processors run path by path (steered, RepetitionPenaltyLogitsProcessor)"]


# -- the contract of every model --------------------------------------------------------------------------------------


class TestProcessed(SlotModelContract, ScoringContract):
    @pytest.fixture
    def subject(self, tiny_module: Build) -> Subject:
        model = ProcessedModel(TreeModel(tiny_module("gemma3")), [steered, RepetitionPenaltyLogitsProcessor(1.3)])
        return Subject(model, **draws("cpu"), on_device=False)


# -- distributions ----------------------------------------------------------------------------------------------------

VOCABULARY = 4
TREE = SpeculationTree.from_paths([(0, 0), (0, 1), (1,)])


def no_pairs(input_ids: Tensor, scores: Tensor) -> Tensor:
    """No token follows itself, and the one that the sum points at is made likelier."""
    scores = scores.scatter(1, input_ids[:, -1:], -torch.inf)
    return scores.scatter_add(1, input_ids.sum(-1, keepdim=True) % VOCABULARY, torch.ones(len(scores), 1))


def processed_tables(seed: int) -> tuple[Tables, ProcessedModel]:
    """The target's distributions behind every tuple of tokens after the prompt (0,) and the root 1, by the definition, and a draft's."""
    rule = random_rule(VOCABULARY, seed, memory=9)
    worse = noisy_rule(rule, VOCABULARY, seed + 1, 1.0)
    p, q = [], []
    for depth in range(TREE.depth + 1):
        texts = [(0, 1)]
        for _ in range(depth):
            texts = [(*text, token) for text in texts for token in range(VOCABULARY)]
        scores = [no_pairs(torch.tensor([text]), torch.tensor([rule(text)])) for text in texts]
        p.append(torch.cat(scores).softmax(-1).double())
        q.append(torch.tensor([worse(text) for text in texts]).softmax(-1).double())
    return Tables(tuple(p), tuple(q)), ProcessedModel(TabularModel(VOCABULARY, rule), [no_pairs])


def read_tables(model: ProcessedModel, tables: Tables) -> Tables:
    """The same tables as the model gives them, node by node of all trees; where no step can come, what the model gave."""
    found = [torch.full_like(table, torch.nan) for table in tables.p]
    device = torch.device("cpu")
    place = Placement(Prefix.of(1, device), torch.tensor(TREE.depths), torch.arange(TREE.size), torch.tensor(TREE.ancestor_mask))
    for drafted in torch.cartesian_prod(*[torch.arange(VOCABULARY)] * (TREE.size - 1)):
        model.allocate(16)
        model.prefill(torch.tensor([0]))
        tokens = torch.cat([torch.tensor([1]), drafted])
        rows = distribution(model.forward(tokens, place), Sampling(1.0)).double()
        for node, depth in enumerate(TREE.depths):
            path = tokens[torch.tensor(TREE.ancestor_mask)[node]][1:].tolist()
            code = 0
            for token in path:
                code = code * VOCABULARY + token
            known = found[depth][code]
            assert bool(known.isnan().all()) or torch.allclose(known, rows[node]), "other branches change nothing"
            found[depth][code] = rows[node]
    return Tables(tuple(found), tables.q)


@pytest.mark.parametrize("replacement", [False, True])
@pytest.mark.parametrize("verifier", ["sequential", "traversal"])
@pytest.mark.parametrize("seed", [0, 5])
def test_sampled_trees_emit_the_processed_distribution(seed: int, verifier: str, replacement: bool) -> None:
    tables, model = processed_tables(seed)
    outcome = sampled_outcome(TREE, read_tables(model, tables), replacement=replacement, verifier=verifier)
    assert outcome.mass == pytest.approx(1)
    assert outcome.accepted > 0.2
    assert total_variation(outcome.distribution, target_distribution(tables, TREE.depth + 1)) < 1e-6
    plain = Tables(tuple(table.flip(1) for table in tables.p), tables.q)
    assert total_variation(outcome.distribution, target_distribution(plain, TREE.depth + 1)) > 0.1, "another target is told apart"


RUNS: list[tuple[Plan, Drafting]] = [(TREE, Drafting()), (DynamicBudget(4, 2, 2), Drafting())]
RUNS += [(TREE, Drafting("swor")), (TREE, Drafting("swr")), (TREE, Drafting("swor", verifier="traversal"))]


@pytest.mark.parametrize(("plan", "drafting"), RUNS, ids=lambda x: f"{x.rule}-{x.verifier}" if isinstance(x, Drafting) else x.drafter)
def test_whole_runs_follow_the_processed_distribution(plan: Plan, drafting: Drafting) -> None:
    from scipy.stats import chisquare

    tables, target = processed_tables(3)
    draft = TabularModel(VOCABULARY, noisy_rule(random_rule(VOCABULARY, 3, memory=9), VOCABULARY, 4, 1.0))
    counts = torch.zeros(VOCABULARY**3)
    for index in range(1000):
        request = Request((0, 1), 3, sampling=Sampling(1.0))
        records = decode_speculative(target, draft, plan, request, prompt_generator(3, index, "cpu"), drafting=drafting)
        a, b, c = (token for record in records for token in record.tokens)
        counts[(a * VOCABULARY + b) * VOCABULARY + c] += 1
    wanted = target_distribution(tables, 3) * counts.sum()
    assert not counts[wanted < 1e-9].any()
    often = wanted > 8
    observed = [*counts[often].tolist(), float(counts[~often].sum())]
    expected = [*wanted[often].tolist(), float(wanted[~often].sum())]
    assert float(chisquare(observed, [e * sum(observed) / sum(expected) for e in expected]).pvalue) > 1e-3
