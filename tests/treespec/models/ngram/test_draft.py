"""The n-gram draft: every logit against counting in plain Python, and decoding with it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.reference.contract import TREE, ScoringContract, SlotModelContract, Subject
from tests.reference.enumeration import Tables, outcomes_of_every_rule, target_distribution, total_variation
from tests.reference.ngram import log_chances
from tests.reference.pairs import prompt_set, tiny_pair
from tests.reference.tabular import Rule, TabularModel, random_rule
from treeopt.optimizer.replay import replay
from treeopt.profiles.budget_grid import BudgetGrid
from treeopt.profiling.acceptance import profile_acceptance, trace_acceptance
from treeopt.profiling.settings import AcceptanceSettings
from treespec.decoding.drafting import Drafting
from treespec.decoding.loop import Request, decode_autoregressive, decode_speculative
from treespec.decoding.plans import DynamicBudget, Plan
from treespec.decoding.rules import Sampling
from treespec.decoding.sampling import distribution
from treespec.errors import CapacityError
from treespec.evaluation.runner import evaluate
from treespec.evaluation.settings import EvaluationSettings
from treespec.models.ngram import LONGEST
from treespec.models.ngram.draft import NgramDraft
from treespec.models.ngram.table import NgramTable
from treespec.models.tree_model import TreeModel
from treespec.trees.placement import Placement, Prefix
from treespec.trees.tensors import StaticTensors
from treespec.trees.tree import SpeculationTree

VOCABULARY = 9
CORPUS = [
    [3, 1, 4, 1, 5, 8, 2, 6, 5, 3, 5, 8, 0, 7, 0, 3, 2, 3, 8, 4, 6, 2, 6, 4, 3],
    [3, 1, 4, 1, 5, 8, 2, 6, 5, 3, 5, 8, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2],
    [7],
]
PLANS: dict[str, Plan] = {
    "chain": SpeculationTree.chain(6),
    "binary": SpeculationTree.k_ary(2, 3),
    "uneven": SpeculationTree.from_paths([(0, 0, 0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 2), (1, 0, 0), (1, 1), (2,), (3,)]),
    "dynamic": DynamicBudget(8, 4, 4),
}


def draft_of(corpus: list[list[int]] | None, vocabulary: int = VOCABULARY) -> NgramDraft:
    return NgramDraft(vocabulary, table=None if corpus is None else NgramTable.of(corpus, vocabulary))


def with_habits(vocabulary: int, period: int = 11) -> Rule:
    """A target that mostly repeats a loop, and leaves it at some places, so that n-grams are right often but not always."""
    other = random_rule(vocabulary, 5, memory=2)

    def rule(context: tuple[int, ...]) -> list[float]:
        logits = list(other(context))
        if len(context) % 13:
            logits[(3 * len(context) % period) % vocabulary] += 9.0
        return logits

    return rule


class Compared(NgramDraft):
    """Holds each of its logits against those of the reference for the same text, by the bookkeeping of a tabular model."""

    def __init__(self, corpus: list[list[int]] | None) -> None:
        super().__init__(VOCABULARY, table=None if corpus is None else NgramTable.of(corpus, VOCABULARY))
        self.twin = TabularModel(VOCABULARY, lambda text: log_chances(text, VOCABULARY, corpus or ()))
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
        torch.testing.assert_close(found, wanted, atol=2e-4, rtol=0)
        self.compared += len(found) if found.dim() > 1 else 1
        return found


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("corpus", [None, CORPUS], ids=["text", "corpus"])
def test_every_node_of_every_step_has_the_logits_of_counting(plan: str, corpus: list[list[int]] | None) -> None:
    """Through steps that accept and reject, with slots that move."""
    target, draft = TabularModel(VOCABULARY, with_habits(VOCABULARY)), Compared(corpus)
    request = Request((3, 1, 4, 1, 5, 8, 2, 3, 1, 4), 40)
    wanted = [token for record in decode_autoregressive(target, request) for token in record.tokens]
    records = list(decode_speculative(target, draft, PLANS[plan], request))
    assert [token for record in records for token in record.tokens] == wanted
    accepted = [len(record.accepted) for record in records if record.accepted is not None]
    assert len(set(accepted)) > 2, "steps are of several kinds"
    assert draft.compared > 3 * len(records)


@pytest.mark.parametrize("corpus", [None, CORPUS], ids=["text", "corpus"])
def test_the_newest_tokens_are_the_text(corpus: list[list[int]] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of texts that end before the window does, in it and far behind it: scored, and read in a tree whose place the host or only the device knows."""
    monkeypatch.setattr("treespec.models.ngram.draft.WINDOW", 12)
    ids = torch.randint(0, 4, (60,), generator=torch.Generator().manual_seed(5)).tolist()
    draft, tree = draft_of(corpus), SpeculationTree.from_paths([(0,), (1,), (0, 0), (1, 0), (1, 0, 0)])
    tensors = StaticTensors.on(tree, "cpu")

    def wanted(text: list[int]) -> Tensor:
        return torch.tensor(log_chances(text[-12:], VOCABULARY, corpus or ()))

    scores = draft.score(torch.tensor([ids]))[0]
    for place in (0, 5, 11, 12, 13, 40, 59):
        torch.testing.assert_close(scores[place], wanted(ids[: place + 1]), atol=2e-4, rtol=0)
    apart = torch.tensor(log_chances(ids, VOCABULARY, corpus or ())) - scores[59]
    assert float(apart.abs().max()) > 0.1, "a window that loses nothing tests nothing"
    for length in (3, 9, 12, 13, 30):
        for known in (length, None):
            draft.allocate(80)
            draft.prefill(torch.tensor(ids[:length]))
            place = tensors.layout().behind(Prefix(torch.tensor([length]), known))
            found = draft.forward(torch.tensor(ids[length : length + tree.size]), place)
            for node, logits in enumerate(found):
                path = [other for other in range(tree.size) if tree.ancestor_mask[node][other]]
                torch.testing.assert_close(logits, wanted(ids[:length] + [ids[length + other] for other in path]), atol=2e-4, rtol=0)


@pytest.mark.parametrize("corpus", [None, CORPUS], ids=["text", "corpus"])
def test_whole_texts_are_scored_as_step_by_step(corpus: list[list[int]] | None) -> None:
    draft = draft_of(corpus)
    texts = torch.randint(0, VOCABULARY, (2, 300), generator=torch.Generator().manual_seed(2))
    texts[0, 150:] = texts[0, 20:170].clone()
    scores = draft.score(texts, 4)
    assert scores.shape == (2, 296, VOCABULARY)
    for text, found in zip(texts, scores, strict=True):
        draft.allocate(301)
        alone = [draft.prefill(text[:5])]
        for place in range(5, 300):
            alone.append(draft.forward(text[place : place + 1], Placement.causal(place, 1, "cpu"))[0])
        assert torch.equal(found, torch.stack(alone))
    for place in (4, 5, 160, 299):
        wanted = torch.tensor(log_chances(texts[0, : place + 1].tolist(), VOCABULARY, corpus or ()))
        torch.testing.assert_close(scores[0, place - 4], wanted, atol=2e-4, rtol=0)


@pytest.mark.parametrize("corpus", [None, CORPUS], ids=["text", "corpus"])
def test_logits_are_a_distribution_over_all_tokens(corpus: list[list[int]] | None) -> None:
    text = torch.tensor([CORPUS[0] * 4 + [1] * 30])
    chances = draft_of(corpus).score(text).exp()
    torch.testing.assert_close(chances.sum(-1), torch.ones(1, text.shape[1]))
    assert bool((chances > 0).all())


def test_what_followed_the_longest_context_comes_first_and_the_newest_wins() -> None:
    draft = draft_of(None, 50)
    longest = [*range(20, 28), 1, 9, 7, 2, 9, 7, 3, *range(20, 28)]
    assert int(draft.score(torch.tensor([longest]))[0, -1].argmax()) == 1
    twice = [9, 7, 2, 30, 9, 7, 3, 31, 9, 7]
    assert draft.score(torch.tensor([twice]))[0, -1].topk(2).indices.tolist() == [3, 2]
    beyond = [5, *range(20, 20 + LONGEST), 1, 6, *range(20, 20 + LONGEST), 2, 5, *range(20, 20 + LONGEST)]
    assert int(draft.score(torch.tensor([beyond]))[0, -1].argmax()) == 2, "tokens further back are not looked at"


def test_a_corpus_is_known_before_the_text_repeats_anything() -> None:
    text = torch.tensor([[3, 1, 4, 1, 5, 8]])
    without, beside = (draft_of(corpus).score(text)[0] for corpus in (None, CORPUS))
    assert int(beside[-1].argmax()) == 2
    assert int(without[-1].argmax()) != 2


def subject_of(corpus: list[list[int]] | None) -> Subject:
    tokens = torch.randperm(90, generator=torch.Generator().manual_seed(3))
    return Subject(draft_of(corpus, 97), tokens[:9], tokens[9 : 9 + TREE.size + 4], on_device=True)


class TestContract(SlotModelContract, ScoringContract):
    @pytest.fixture(params=["text", "corpus"])
    def subject(self, request: pytest.FixtureRequest) -> Subject:
        return subject_of(None if request.param == "text" else [list(range(97)) * 2])


def test_a_pass_beyond_the_slots_is_refused() -> None:
    draft = draft_of(None)
    with pytest.raises(CapacityError, match="0 slots were asked for, but a draft needs at least 1"):
        draft.allocate(0)
    draft.allocate(4)
    with pytest.raises(CapacityError, match="ngram: the pass needs 5 slots, but there are 4; allocate more first"):
        draft.prefill(torch.arange(5))
    with pytest.raises(CapacityError, match="the prompt is empty"):
        draft.prefill(torch.arange(0))
    draft.prefill(torch.arange(4))
    with pytest.raises(CapacityError, match="the pass needs 5 slots"):
        draft.forward(torch.arange(1), Placement.causal(4, 1, "cpu"))
    with pytest.raises(CapacityError, match="logits from position 3 on were asked for, but the rows have 3 tokens"):
        draft.score(torch.arange(3)[None], 3)


FAMILIES = ["llama", "mistral", "gemma3", "gpt2"]
DRAFTINGS = [Drafting(), Drafting("swor", 1.0), Drafting("swor", 1.0, "traversal"), Drafting("swr", 1.0)]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_outputs_are_those_of_generate(family: str, tiny_module: Callable[..., PreTrainedModel]) -> None:
    module = tiny_module(family)
    target, draft = TreeModel(module, name=family), draft_of(None, 97)
    prompt = (5, 17, 3, 44, 61, 8, 20, 33, 90, 12, 7)
    module.generation_config.eos_token_id = None
    ids = torch.tensor([prompt])
    written = module.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=48, do_sample=False, pad_token_id=0)
    for plan in PLANS.values():
        for drafting in DRAFTINGS[: 1 if plan.drafter == "dynamic" else None]:
            generator = torch.Generator().manual_seed(0)
            records = decode_speculative(target, draft, plan, Request(prompt, 48), generator, drafting=drafting)
            assert [token for record in records for token in record.tokens] == written[0, len(prompt) :].tolist()


def tables(corpus: list[list[int]] | None, depth: int, vocabulary: int = 3) -> Tables:
    """A random target beside the n-gram draft, after a text: their distributions after every path of tokens."""
    draft, text = draft_of(corpus, vocabulary), [0, 1, 2, 0, 1, 1, 2, 0, 1]
    generator = torch.Generator().manual_seed(4)
    p, q = [], []
    for length in range(depth + 1):
        paths = (
            torch.cartesian_prod(*[torch.arange(vocabulary)] * length).view(-1, length) if length else torch.zeros(1, 0, dtype=torch.int64)
        )
        texts = torch.cat([torch.tensor(text).expand(len(paths), -1), paths], dim=1)
        q.append(distribution(draft.score(texts, texts.shape[1] - 1)[:, 0].double(), Sampling(1.0)))
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


SETTINGS = AcceptanceSettings(gen_len=40, max_branch=5, batch_size=3)
GRID = BudgetGrid((1, 3), 3, 8)


def test_traces_and_profiles_count_the_steps_of_decoding() -> None:
    prompts, pair = prompt_set(5), replace(tiny_pair(), draft=NgramDraft(61))
    profile, trace = trace_acceptance(pair, prompts, SETTINGS, dynamic=GRID)
    assert 0 < profile.rank_probability[0] < 1
    for tree in (SpeculationTree.chain(5), SpeculationTree.from_branches([[3], [2, 1, 0], [2, 0, 1], [1, 1, 0]])):
        report = evaluate(pair, tree, prompts, EvaluationSettings(gen_len=40))
        assert report.lossless == "match"
        assert replay(tree, trace).steps.tolist() == [result.steps for result in report.results]
        assert report.tokens_per_step is not None
        assert report.tokens_per_step > 1
    assert profile.dynamic is not None
    for budget in list(profile.dynamic.budgets())[::5]:
        report = evaluate(pair, budget, prompts, EvaluationSettings(gen_len=40))
        assert profile.dynamic.steps_of(budget).tolist() == [result.steps for result in report.results]


@pytest.mark.parametrize("rule", ["swor", "swr"])
def test_sampled_children_are_profiled_and_decoded(rule: str) -> None:
    pair, prompts = replace(tiny_pair(), draft=NgramDraft(61)), prompt_set(4)
    sampling, drafting = Sampling(0.7), Drafting(rule)
    profile = profile_acceptance(pair, prompts, replace(SETTINGS, sampling=sampling, drafting=drafting))
    assert 0 < profile.rank_probability[0] < 1
    report = evaluate(pair, SpeculationTree.k_chains(3, 3), prompts, EvaluationSettings(gen_len=40, sampling=sampling, drafting=drafting))
    assert report.tokens_per_step is not None
    assert 1 < report.tokens_per_step < 4


def test_records_name_the_draft_and_tell_corpora_apart() -> None:
    pair = replace(tiny_pair(), draft=NgramDraft(61))
    facts: dict[str, Any] = pair.describe()["draft"]
    assert facts == {"name": "ngram", "kind": "ngram", "longest": LONGEST, "corpus": None}
    assert pair.provenance()["models"] == {"target": "tiny", "draft": "ngram"}
    assert "ngram, float32 on cpu" in repr(pair)
    assert pair.sha256 != tiny_pair().sha256
    assert pair.notes == ()
    pair.release()


def test_a_table_holds_what_followed_each_context() -> None:
    table = NgramTable.of(CORPUS, VOCABULARY)
    keys = table.keys.numpy()
    assert (np.diff(keys) > 0).all()
    contexts = torch.tensor([[1, -1, *[-1] * (LONGEST - 2)], [1] * LONGEST, [7, *[-1] * (LONGEST - 1)], [8, 5, 3, *[-1] * (LONGEST - 3)]])
    tokens, counts = table.look_up(contexts)
    assert tokens.shape == counts.shape == (4, LONGEST, 32)
    assert list(zip(tokens[0, 0, :4].tolist(), counts[0, 0, :4].tolist(), strict=True)) == [(1, 11), (4, 2), (5, 2), (2, 1)]
    assert counts[0, 1:].sum() == 0, "there is no older token"
    assert [int(each) for each in counts[1].sum(-1)] == [16, *range(11, 11 - LONGEST + 1, -1)]
    assert list(zip(tokens[2, 0, :2].tolist(), counts[2, 0, :2].tolist(), strict=True)) == [(0, 1), (0, 0)], "texts end where they end"
    assert counts[3].sum(-1).tolist() == [5, 4, 2, 0, 0, 0, 0, 0]
