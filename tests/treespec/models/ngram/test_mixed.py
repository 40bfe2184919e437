"""N-grams beside a model: every logit against counting in plain Python over what the model says, and decoding with both."""

import copy
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.reference.contract import TREE, ScoringContract, SlotModelContract, Subject
from tests.reference.enumeration import Tables, outcomes_of_every_rule, target_distribution, total_variation
from tests.reference.head_pairs import seen_steps
from tests.reference.ngram import mixed_log_chances
from tests.reference.pairs import VOCABULARY, prompt_set, tiny_pair
from tests.reference.tabular import TabularModel
from tests.treespec.models.ngram.test_draft import CORPUS, DRAFTINGS, PLANS, with_habits
from treeopt.optimizer.replay import replay
from treeopt.profiles.budget_grid import BudgetGrid
from treeopt.profiling.acceptance import profile_acceptance, trace_acceptance
from treeopt.profiling.settings import AcceptanceSettings
from treespec.decoding.drafting import Drafting
from treespec.decoding.engine import Engine
from treespec.decoding.loop import Request, decode_autoregressive, decode_speculative
from treespec.decoding.plans import Plan
from treespec.decoding.rules import Sampling
from treespec.decoding.sampling import distribution
from treespec.errors import ModelError
from treespec.evaluation.runner import evaluate
from treespec.evaluation.settings import EvaluationSettings
from treespec.models.given import pair_of
from treespec.models.making import draft_model
from treespec.models.ngram import LONGEST, in_records
from treespec.models.ngram.draft import NgramDraft
from treespec.models.ngram.mixed import MixedDraft
from treespec.models.ngram.table import NgramTable
from treespec.models.pairs import Pair
from treespec.models.tree_model import TreeModel
from treespec.models.vocabularies import SharedIds
from treespec.trees.placement import Placement, Prefix
from treespec.trees.tree import SpeculationTree

CORPORA = pytest.mark.parametrize("corpus", [None, CORPUS], ids=["text", "corpus"])


def tiny_model() -> TreeModel:
    model = tiny_pair().draft
    assert isinstance(model, TreeModel)
    return model


def table_of(corpus: list[list[int]] | None, vocabulary: int = VOCABULARY) -> NgramTable | None:
    return None if corpus is None else NgramTable.of(corpus, vocabulary)


def mixed_pair() -> Pair:
    return replace(tiny_pair(), draft=MixedDraft(tiny_model(), VOCABULARY))


def wanted_of(module: PreTrainedModel, text: tuple[int, ...], corpus: list[list[int]] | None) -> list[float]:
    """The logits after a text by the reference, where the module itself says what is below."""
    with torch.no_grad():
        chances = module(torch.tensor([text])).logits[0, -1].double().softmax(-1).tolist()
    return mixed_log_chances(text, chances, corpus or ())


class Compared(MixedDraft):
    """Holds each of its logits against those of the reference for the same text, by the bookkeeping of a tabular model."""

    def __init__(self, corpus: list[list[int]] | None) -> None:
        model = tiny_model()
        super().__init__(model, VOCABULARY, table=table_of(corpus))
        self.twin = TabularModel(VOCABULARY, lambda text: wanted_of(model.module, text, corpus))
        self.compared = 0

    def allocate(self, capacity: int) -> None:
        super().allocate(capacity)
        self.twin.allocate(self.capacity)

    def prefill(self, tokens: Tensor, pixels: Tensor | None = None) -> Tensor:
        return self._same(super().prefill(tokens, pixels), self.twin.prefill(tokens))

    def forward(self, tokens: Tensor, place: Placement, keep: Tensor | None = None) -> Tensor:
        return self._same(super().forward(tokens, place, keep), self.twin.forward(tokens, place, keep))

    def move(self, prefix: Prefix, offsets: Tensor, first: int) -> None:
        super().move(prefix, offsets, first)
        self.twin.move(prefix, offsets, first)

    def _same(self, found: Tensor, wanted: Tensor) -> Tensor:
        torch.testing.assert_close(found, wanted, atol=2e-3, rtol=0)
        self.compared += len(found) if found.dim() > 1 else 1
        return found


@pytest.mark.parametrize("plan", ["uneven", "dynamic"])
@CORPORA
def test_every_node_of_every_step_has_the_logits_of_counting(plan: str, corpus: list[list[int]] | None) -> None:
    target, draft = TabularModel(VOCABULARY, with_habits(VOCABULARY)), Compared(corpus)
    request = Request((3, 1, 4, 1, 5, 8, 2, 3, 1, 4), 32)
    wanted = [token for record in decode_autoregressive(target, request) for token in record.tokens]
    records = list(decode_speculative(target, draft, PLANS[plan], request))
    assert [token for record in records for token in record.tokens] == wanted
    accepted = [len(record.accepted) for record in records if record.accepted is not None]
    assert len(set(accepted)) > 1, "steps are of several kinds"
    assert draft.compared > 3 * len(records)


@CORPORA
def test_whole_texts_are_scored_as_step_by_step(corpus: list[list[int]] | None) -> None:
    model = tiny_model()
    draft = MixedDraft(model, VOCABULARY, table=table_of(corpus))
    texts = torch.randint(0, VOCABULARY, (2, 200), generator=torch.Generator().manual_seed(2))
    texts[0, 110:] = texts[0, 20:110].clone()
    scores = draft.score(texts, 4)
    assert scores.shape == (2, 196, VOCABULARY)
    for text, found in zip(texts, scores, strict=True):
        draft.allocate(201)
        alone = [draft.prefill(text[:5])]
        for place in range(5, 200):
            alone.append(draft.forward(text[place : place + 1], Placement.causal(place, 1, "cpu"))[0])
        torch.testing.assert_close(found, torch.stack(alone), atol=2e-3, rtol=0)
    for place in (4, 5, 125, 199):
        wanted = torch.tensor(wanted_of(model.module, tuple(texts[0, : place + 1].tolist()), corpus))
        torch.testing.assert_close(scores[0, place - 4], wanted, atol=2e-3, rtol=0)


def test_the_model_speaks_alone_where_nothing_was_seen_and_the_text_where_it_repeats() -> None:
    model = tiny_model()
    draft = MixedDraft(model, VOCABULARY)
    new = torch.arange(12)[None]
    torch.testing.assert_close(draft.score(new)[0, -1], model.score(new)[0, -1].log_softmax(-1), atol=1e-4, rtol=0)
    repeated = torch.tensor([[*range(20, 32)] * 8])
    assert torch.equal(draft.score(repeated)[0, 40:-1].argmax(-1), repeated[0, 41:])
    assert not torch.equal(model.score(repeated)[0, 40:-1].argmax(-1), repeated[0, 41:])


def test_a_token_that_the_model_does_not_know_can_be_proposed() -> None:
    shared = SharedIds(VOCABULARY, others=(7,))
    model = draft_model(tiny_model().loaded, "part", shared, VOCABULARY + 4)
    draft = MixedDraft(model, VOCABULARY + 4)
    text = torch.tensor([[5, 9, 63, 12, 7, 30] * 6])
    logits = draft.score(text)
    assert logits.shape == (1, 36, VOCABULARY + 4)
    assert bool(logits.isfinite().all())
    assert torch.equal(logits[0, 20:-1].argmax(-1), text[0, 21:])
    assert float(logits[0, 3, 63].exp()) < 1e-30
    assert draft.unknown == ()


class TestContract(SlotModelContract, ScoringContract):
    @pytest.fixture(params=["text", "corpus"])
    def subject(self, request: pytest.FixtureRequest) -> Subject:
        table = table_of(None if request.param == "text" else [list(range(VOCABULARY)) * 2])
        tokens = torch.randperm(VOCABULARY, generator=torch.Generator().manual_seed(3))
        draft = MixedDraft(tiny_model(), VOCABULARY, table=table)
        return Subject(draft, tokens[:9], tokens[9 : 9 + TREE.size + 4], on_device=False, tolerance=2e-3)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_greedy_outputs_are_those_of_generate(family: str, tiny_module: Callable[..., PreTrainedModel]) -> None:
    module = tiny_module(family)
    other = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.04 * parameter.std() * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    target, draft = TreeModel(module, name=family), MixedDraft(TreeModel(other, name="other"), 97)
    prompt = (5, 17, 3, 44, 61, 8, 20, 33, 90, 12, 7)
    module.generation_config.eos_token_id = None
    ids = torch.tensor([prompt])
    written = module.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False, pad_token_id=0)
    for plan in PLANS.values():
        for drafting in DRAFTINGS[: 1 if plan.drafter == "dynamic" else None]:
            generator = torch.Generator().manual_seed(0)
            records = decode_speculative(target, draft, plan, Request(prompt, 40), generator, drafting=drafting)
            assert [token for record in records for token in record.tokens] == written[0, len(prompt) :].tolist()


def tables(corpus: list[list[int]] | None, depth: int, vocabulary: int = 3) -> Tables:
    """A random target beside a random model with n-grams, after a text: their distributions after every path of tokens."""
    draft, text = NgramDraft(vocabulary, table=table_of(corpus, vocabulary), beside=True), [0, 1, 2, 0, 1, 1, 2, 0, 1]
    generator = torch.Generator().manual_seed(4)
    p, q = [], []
    for length in range(depth + 1):
        paths = (
            torch.cartesian_prod(*[torch.arange(vocabulary)] * length).view(-1, length) if length else torch.zeros(1, 0, dtype=torch.int64)
        )
        texts = torch.cat([torch.tensor(text).expand(len(paths), -1), paths], dim=1)
        said = torch.randn(len(paths), 1, vocabulary, generator=generator)
        logits = draft.score(texts, texts.shape[1] - 1, below=said)[:, 0]
        assert not torch.allclose(logits.softmax(-1), said[:, 0].softmax(-1), atol=1e-2)
        q.append(distribution(logits.double(), Sampling(1.0)))
        p.append(torch.rand(len(paths), vocabulary, generator=generator, dtype=torch.float64).add(0.05))
        p[-1] /= p[-1].sum(-1, keepdim=True)
    return Tables(tuple(p), tuple(q))


@pytest.mark.parametrize("corpus", [None, [[0, 1, 2, 1, 0, 2, 2, 1, 0, 1]]], ids=["text", "corpus"])
@pytest.mark.parametrize(
    "tree", [SpeculationTree.chain(3), SpeculationTree.from_paths([(0, 0), (0, 1), (1, 0), (2,)])], ids=["chain", "tree"]
)
def test_all_outcomes_together_have_the_targets_distribution(tree: SpeculationTree, corpus: list[list[int]] | None) -> None:
    models = tables(corpus, tree.depth)
    wanted = target_distribution(models, tree.depth + 1)
    for outcome in outcomes_of_every_rule(tree, models):
        assert total_variation(outcome.distribution, wanted) < 1e-12
        assert outcome.accepted > 0.1


REPEATED = [3 * place % 11 for place in range(40)]


def habitual(corpus: list[list[int]] | None) -> Any:
    """A target whose texts repeat themselves, and the model with n-grams beside it."""
    return SimpleNamespace(
        target=TabularModel(VOCABULARY, with_habits(VOCABULARY)), draft=MixedDraft(tiny_model(), VOCABULARY, table=table_of(corpus))
    )


@pytest.mark.parametrize("rule", ["swor", "swr"])
@CORPORA
def test_sampled_children_come_with_the_distributions_of_the_mixture(rule: str, corpus: list[list[int]] | None) -> None:
    """Row by row, those of the reference, and those of the draft's own logits over the same text; not those of the model alone."""
    pair, tree, apart = habitual(corpus), SpeculationTree.from_branches([[3], [2, 1, 0], [1, 0, 1]]), 0
    model = pair.draft.model
    for step in seen_steps(pair, tree, REPEATED, 5, Drafting(rule, 0.7), Sampling(1.0)):
        q = step.proposal.q
        assert q is not None
        assert q.shape == (tree.levels[-1].start, VOCABULARY)
        for node, (row, (path, logits)) in enumerate(zip(q, step.nodes, strict=True)):
            text = (*step.text, *path)
            own = pair.draft.score(torch.tensor([text]), len(text) - 1)[0, -1]
            torch.testing.assert_close(row, (logits / 0.7).softmax(-1), atol=1e-5, rtol=0)
            torch.testing.assert_close(row, (own / 0.7).softmax(-1), atol=1e-4, rtol=0)
            torch.testing.assert_close(row, (torch.tensor(wanted_of(model.module, text, corpus)) / 0.7).softmax(-1), atol=1e-3, rtol=0)
            alone = (model.score(torch.tensor([text]), len(text) - 1)[0, -1] / 0.7).softmax(-1)
            apart += total_variation(row, alone) > 0.1
            assert bool((row[step.proposal.tokens[[*tree.children[node]]]] > 0).all())
    assert apart > 5, "where the n-grams say nothing, nothing is tested"


def test_children_are_drawn_from_the_distribution_that_comes_with_them() -> None:
    """Of 1,600 children below one root, as many are each token as its chance says, by Pearson's test; the model's own chances do not pass it."""
    pair, tree, drawn = habitual(None), SpeculationTree.from_branches([[16]]), torch.zeros(VOCABULARY)
    for seed in range(100):
        (step,) = seen_steps(pair, tree, REPEATED, 1, Drafting("swr", 0.7), Sampling(1.0), seed=seed)
        assert step.proposal.q is not None
        q = step.proposal.q[0]
        drawn += step.proposal.tokens[1:].bincount(minlength=VOCABULARY)
    alone = (pair.draft.model.score(torch.tensor([step.text]), len(step.text) - 1)[0, -1] / 0.7).softmax(-1)
    misses = []
    for chances in (q, alone):
        often = chances * drawn.sum() >= 5
        kinds = int(often.sum())
        seen, said = (torch.cat([rows[often], rows[~often].sum()[None]]) for rows in (drawn, chances * drawn.sum()))
        misses.append((float(((seen - said) ** 2 / said).sum()) - kinds) / (2 * kinds) ** 0.5)
    assert abs(misses[0]) < 5 < misses[1], "in standard deviations of its distribution"


SETTINGS = AcceptanceSettings(gen_len=40, max_branch=5, batch_size=3)


def test_traces_and_profiles_count_the_steps_of_decoding() -> None:
    prompts, pair = prompt_set(4), mixed_pair()
    profile, trace = trace_acceptance(pair, prompts, SETTINGS, dynamic=BudgetGrid((1, 3), 3, 8))
    alone = profile_acceptance(tiny_pair(), prompts, SETTINGS)
    assert profile.rank_probability != alone.rank_probability
    tree = SpeculationTree.from_branches([[3], [2, 1, 0], [2, 0, 1], [1, 1, 0]])
    report = evaluate(pair, tree, prompts, EvaluationSettings(gen_len=40))
    assert report.lossless == "match"
    assert replay(tree, trace).steps.tolist() == [result.steps for result in report.results]
    assert profile.dynamic is not None
    for budget in list(profile.dynamic.budgets())[::7]:
        report = evaluate(pair, budget, prompts, EvaluationSettings(gen_len=40))
        assert profile.dynamic.steps_of(budget).tolist() == [result.steps for result in report.results]


@pytest.mark.parametrize("rule", ["swor", "swr"])
def test_sampled_children_are_profiled_and_decoded(rule: str) -> None:
    pair, prompts = mixed_pair(), prompt_set(3)
    sampling, drafting = Sampling(0.7), Drafting(rule)
    profile = profile_acceptance(pair, prompts, replace(SETTINGS, sampling=sampling, drafting=drafting))
    assert 0 < profile.rank_probability[0] < 1
    report = evaluate(pair, SpeculationTree.k_chains(3, 3), prompts, EvaluationSettings(gen_len=40, sampling=sampling, drafting=drafting))
    assert report.tokens_per_step is not None
    assert 1 < report.tokens_per_step < 4


def test_records_name_both_and_tell_them_from_each_alone() -> None:
    pair = mixed_pair()
    facts = pair.describe()["draft"]
    assert facts["name"] == "tiny-draft+ngram"
    assert facts["beside"] == {"name": "ngram", "kind": "ngram", "longest": LONGEST, "corpus": None}
    assert facts["parameters"] == tiny_pair().describe()["draft"]["parameters"]
    assert pair.provenance()["models"] == {"target": "tiny", "draft": "tiny-draft+ngram"}
    assert "tiny-draft+ngram, float32 on cpu" in repr(pair)
    assert len({pair.sha256, tiny_pair().sha256, replace(tiny_pair(), draft=NgramDraft(VOCABULARY)).sha256}) == 3
    folder = MixedDraft(TreeModel(tiny_model().loaded, name="/models/small"), VOCABULARY)
    assert (folder.name, folder.describe()["name"]) == ("/models/small+ngram", "small+ngram")
    assert in_records("a/small+ngram+3f21c0a97be4") == ("a/small", True, True)
    assert in_records("small+ngram") == ("small", True, False)
    assert in_records("ngram") == ("", True, False)
    assert in_records("small+ngrams") == ("small+ngrams", False, False)


def test_modules_have_ngrams_beside_them_where_they_are_asked_for(tiny_module: Callable[..., PreTrainedModel]) -> None:
    target, draft = tiny_module("llama"), copy.deepcopy(tiny_module("llama"))
    pair = pair_of(target, draft, ngrams=True)
    assert isinstance(pair.draft, MixedDraft)
    pair.release()
    with pytest.raises(ModelError, match="`ngrams` are counted beside a draft; pass its module"):
        pair_of(target, "ngram", ngrams=True)  # type: ignore[call-overload]
    with pytest.raises(ModelError, match=r"`corpus` is counted for n-grams; pass `ngrams` True"):
        pair_of(target, draft, corpus=["answers.txt"])


@pytest.mark.gpu
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@CORPORA
@torch.inference_mode()
def test_captured_steps_are_eager_steps(corpus: list[list[int]] | None, plan: Plan) -> None:
    """Greedily, token for token and step for step, from prompt to prompt and beyond what was captured first."""
    pair = tiny_pair(device="cuda")
    assert isinstance(pair.draft, TreeModel)
    draft = MixedDraft(pair.draft, VOCABULARY, table=table_of(corpus))
    engine = Engine(pair.target, draft)
    for prompt, gen_len in (((5, 9, 2, 7), 40), ((1, 2), 25), ((3,) * 30, 60), ((5, 9, 2, 7), 40)):
        request = Request(prompt, gen_len)
        wanted = list(decode_speculative(pair.target, draft, plan, request))
        found = list(decode_speculative(pair.target, draft, plan, request, engine=engine))
        assert engine.eager() is None
        assert [record.tokens for record in found] == [record.tokens for record in wanted]
        assert [record.accepted for record in found] == [record.accepted for record in wanted]
