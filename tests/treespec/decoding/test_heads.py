"""Heads as drafts, on tabular models that notice every mistake: they take the very steps of a draft model that says the same."""

import pytest
import torch

from tests.reference.pipelined import PipelinedSteps
from tests.reference.tabular import TabularModel, noisy_rule, random_rule
from tests.reference.tabular_heads import StateTabular, TabularHead, TabularParallelHead
from treespec.decoding.drafting import Drafting
from treespec.decoding.engine import CacheBudget, Engine
from treespec.decoding.heads import reader_of
from treespec.decoding.loop import Request, StepRecord, decode, decode_autoregressive, decode_speculative
from treespec.decoding.plans import DynamicBudget, Plan
from treespec.decoding.protocol import CapturableModel, LevelHead, ParallelHead
from treespec.decoding.rules import Sampling
from treespec.decoding.sampling import prompt_generator
from treespec.decoding.step import StepSpec
from treespec.errors import ModelError, SettingsError
from treespec.models.heads.draft import HeadDraft
from treespec.trees.tree import SpeculationTree

V = 11
RULE, SAID = random_rule(V, 0), noisy_rule(random_rule(V, 0), V, 1, 0.6)
TREE = SpeculationTree.from_branches([[3], [2, 1, 0], [1, 1, 1]])
PLANS: dict[str, tuple[Plan, Drafting]] = {
    "topk": (TREE, Drafting()),
    "swor": (TREE, Drafting("swor")),
    "swr": (TREE, Drafting("swr")),
    "swor traversal": (TREE, Drafting("swor", verifier="traversal")),
    "dynamic": (DynamicBudget(8, 3, 4), Drafting()),
    "deep dynamic": (DynamicBudget(12, 6, 3), Drafting()),
    "chain": (SpeculationTree.chain(5), Drafting()),
    "one level": (SpeculationTree.from_branches([[4]]), Drafting()),
    "root alone": (SpeculationTree((-1,)), Drafting()),
}
WHOLE = pytest.mark.parametrize(("plan", "drafting"), PLANS.values(), ids=PLANS)
SAMPLINGS = pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0, 0.9)], ids=["greedy", "sampled"])


def head_pair(target_ids: torch.Tensor | None = None) -> tuple[StateTabular, HeadDraft, TabularHead]:
    target = StateTabular(V, RULE)
    head = TabularHead(target, SAID, target_ids)
    return target, HeadDraft(head, target), head


def model_pair(target_ids: torch.Tensor | None = None) -> tuple[TabularModel, TabularModel]:
    """A draft model that says what the head says: tokens that it does not know have no chance."""

    def known(context: tuple[int, ...]) -> list[float]:
        return [value if target_ids is None or token in target_ids else -torch.inf for token, value in enumerate(SAID(context))]

    return TabularModel(V, RULE), TabularModel(V, known)


def steps(records: list[StepRecord]) -> list[tuple[tuple[int, ...], tuple[int, ...] | None]]:
    return [(record.tokens, record.accepted) for record in records]


@WHOLE
@SAMPLINGS
@pytest.mark.parametrize("prompt", [(4,), (4, 7), (1, 2, 3, 9, 9, 0, 5)], ids=len)
@pytest.mark.parametrize("known", [None, [9, 0, 3, 5, 1, 7]], ids=["all tokens", "some tokens"])
def test_a_head_takes_the_steps_of_a_model_that_says_the_same(
    plan: Plan, drafting: Drafting, sampling: Sampling, prompt: tuple[int, ...], known: list[int] | None
) -> None:
    request = Request(prompt, 40, sampling=sampling)
    target_ids = None if known is None else torch.tensor(known)
    target, model = model_pair(target_ids)
    wanted = list(decode_speculative(target, model, plan, request, prompt_generator(0, 0, "cpu"), drafting=drafting))
    stated, draft, _ = head_pair(target_ids)
    found = list(decode_speculative(stated, draft, plan, request, prompt_generator(0, 0, "cpu"), drafting=drafting))
    assert steps(found) == steps(wanted)
    assert plan.depth == 0 or max(len(record.accepted or ()) for record in found) > 0, "a head that is never right tests nothing"


@WHOLE
@pytest.mark.parametrize("capacity", [4, 5, 9, 20])
def test_the_last_slots_of_a_cache(plan: Plan, drafting: Drafting, capacity: int) -> None:
    request = Request((1, 2, 3), 40, capacity=capacity)
    target, draft, _ = head_pair()
    wanted = [token for record in decode_autoregressive(target, request) for token in record.tokens]
    assert [t for r in decode_speculative(target, draft, plan, request, drafting=drafting) for t in r.tokens] == wanted


@WHOLE
def test_the_end_of_a_text(plan: Plan, drafting: Drafting) -> None:
    target, draft, _ = head_pair()
    free = [t for r in decode_speculative(target, draft, plan, Request((1, 2, 3), 40), drafting=drafting) for t in r.tokens]
    request = Request((1, 2, 3), 40, frozenset({free[7]}))
    assert [t for r in decode_speculative(target, draft, plan, request, drafting=drafting) for t in r.tokens] == free[
        : free.index(free[7]) + 1
    ]


@WHOLE
@SAMPLINGS
def test_whole_trees_that_are_read_one_step_late(plan: Plan, drafting: Drafting, sampling: Sampling) -> None:
    """As captured steps: trees are never cut, and a step starts before the last is read."""
    request = Request((1, 2), 30, sampling=sampling)
    target, draft, _ = head_pair()
    wanted = list(decode_speculative(target, draft, plan, request, prompt_generator(0, 0, "cpu"), drafting=drafting))
    CacheBudget.of(request.slots(plan.size), plan).allocate(target, draft, captured=True)
    late = PipelinedSteps(StepSpec(plan, sampling, drafting).build(target, draft), 1)
    found = list(decode(late, request, request.slots(plan.size), prompt_generator(0, 0, "cpu"), depth=plan.depth))
    assert [r.tokens for r in found] == [r.tokens for r in wanted]


@WHOLE
@pytest.mark.parametrize("drafted", [2, 4, 9])
def test_the_target_goes_on_alone_behind_the_positions_of_a_head(plan: Plan, drafting: Drafting, drafted: int) -> None:
    request = Request((1, 2, 3), 30, drafted=drafted)
    target, draft, _ = head_pair()
    wanted = [t for r in decode_autoregressive(target, request) for t in r.tokens]
    records = list(decode_speculative(target, draft, plan, request, drafting=drafting))
    assert [t for r in records for t in r.tokens] == wanted
    assert any(record.alone for record in records)


def test_a_step_reads_as_many_tokens_at_the_root_as_one_can_commit() -> None:
    target, draft, head = head_pair()
    records = list(decode_speculative(target, draft, TREE, Request((1, 2, 3), 12)))
    assert head.passes == [2, *[TREE.depth + 1, *TREE.level_widths[1:-1]] * (len(records) - 1)]


def test_texts_follow_one_another_in_one_cache() -> None:
    target, draft, _ = head_pair()
    texts = [list(decode_speculative(target, draft, TREE, Request(prompt, 20))) for prompt in ((1, 2, 3), (9,), (4,) * 12, (1, 2, 3))]
    assert steps(texts[0]) == steps(texts[3])
    assert draft.generation == 2, "the third text is longer"


@SAMPLINGS
@pytest.mark.parametrize("drafting", [Drafting(), Drafting("swor"), Drafting("swr", verifier="traversal")], ids=str)
def test_a_head_of_all_levels_gives_every_node_of_a_level_the_same_children(sampling: Sampling, drafting: Drafting) -> None:
    target = StateTabular(V, RULE)
    rules = [noisy_rule(RULE, V, seed, 0.3) for seed in range(3)]
    draft = HeadDraft(TabularParallelHead(target, rules), target)
    request = Request((1, 2, 3), 40, sampling=sampling)
    records = list(decode_speculative(target, draft, TREE, request, prompt_generator(0, 0, "cpu"), drafting=drafting))
    assert max(len(record.accepted or ()) for record in records) > 0
    if sampling.greedy:
        assert [t for r in records for t in r.tokens] == [t for r in decode_autoregressive(target, request) for t in r.tokens]
    if drafting != Drafting():
        return
    text = [*request.prompt, *(t for r in records for t in r.tokens)]
    length = 3
    for record in records[1:]:  # accepted ranks are those of the product of the levels
        for level, rank in enumerate(record.accepted or ()):
            ranked = sorted(range(V), key=lambda token: -rules[level](tuple(text[:length]))[token])
            assert ranked[rank] == text[length + 1 + level]
        length += len(record.accepted or ()) + 1


def test_a_dynamic_tree_of_all_levels_at_once() -> None:
    target = StateTabular(V, RULE)
    draft = HeadDraft(TabularParallelHead(target, [noisy_rule(RULE, V, seed, 0.3) for seed in range(3)]), target)
    request = Request((1, 2, 3), 40)
    found = list(decode_speculative(target, draft, DynamicBudget(9, 3, 6), request))
    assert [t for r in found for t in r.tokens] == [t for r in decode_autoregressive(target, request) for t in r.tokens]
    assert max(len(record.accepted or ()) for record in found) > 0


def test_a_plan_that_is_too_deep_for_a_head_of_all_levels_is_refused() -> None:
    target = StateTabular(V, RULE)
    draft = HeadDraft(TabularParallelHead(target, [RULE, RULE]), target)
    for plan in (TREE, DynamicBudget(8, 3, 4)):
        with pytest.raises(ModelError, match=r"^the-heads proposes 2 levels, but the tree has a depth of 3; take one of depth 2 or less$"):
            StepSpec(plan).build(target, draft)


def test_a_plan_with_more_siblings_than_draft_tokens_is_refused() -> None:
    target, draft, _ = head_pair(torch.tensor([1, 3]))
    for plan in (TREE, DynamicBudget(8, 3, 4)):
        with pytest.raises(ModelError, match="2 tokens"):
            StepSpec(plan).build(target, draft)
    StepSpec(TREE, drafting=Drafting("swr")).build(target, draft)


def test_a_head_with_tokens_that_its_target_lacks_is_refused() -> None:
    target = StateTabular(V, RULE)
    with pytest.raises(ModelError, match=r"the-head \(kind tabular\) proposes the token 11, but its target has the tokens 0 to 10"):
        HeadDraft(TabularHead(target, SAID, torch.tensor([1, 11])), target)


def test_a_text_with_pictures_is_refused() -> None:
    target, draft, _ = head_pair()
    for other in (draft, HeadDraft(TabularParallelHead(target, [RULE, RULE]), target)):
        other.allocate(9)
        with pytest.raises(ModelError, match="the-heads? is a head, which reads no pictures"):
            reader_of(other, 2).begin(torch.tensor([1, 2]), torch.zeros(1, 3, 4, 4))


def test_a_tree_without_a_draft_is_refused_as_before() -> None:
    with pytest.raises(SettingsError, match="a tree needs a draft model"):
        StepSpec(TREE).build(StateTabular(V, RULE))


def test_heads_are_told_apart_and_can_be_captured() -> None:
    target, draft, head = head_pair()
    heads = TabularParallelHead(target, [RULE])
    assert isinstance(head, LevelHead)
    assert not isinstance(head, ParallelHead)
    assert isinstance(heads, ParallelHead)
    assert not isinstance(heads, LevelHead)
    assert isinstance(draft, CapturableModel)
    said: list[str] = []
    engine = Engine(target, draft, said.append)
    assert len([t for r in decode_speculative(target, draft, TREE, Request((1, 2), 9), engine=engine) for t in r.tokens]) == 9
    assert said == ["StateTabular runs eagerly: it is no CapturableModel"], "the target's reason, not the head's"


def test_two_heads_share_a_target_in_turn() -> None:
    target, first, _ = head_pair()
    second = HeadDraft(TabularParallelHead(target, [noisy_rule(RULE, V, seed, 0.3) for seed in range(3)]), target)
    wanted = [t for r in decode_autoregressive(target, Request((1, 2, 3), 20)) for t in r.tokens]
    for draft in (first, second, first):
        target.allocate(1)
        draft.allocate(1)
        assert target.state_layers == draft.head.state_layers
        assert [t for r in decode_speculative(target, draft, TREE, Request((1, 2, 3), 20)) for t in r.tokens] == wanted
