"""Dynamic trees: node for node those of a slow reference, and decoding with them changes no output."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from tests.reference.growth import grow
from tests.reference.tabular import Rule, TabularModel, noisy_rule, random_rule
from treespec.decoding.drafters.base import DrafterSetup
from treespec.decoding.drafters.dynamic import DynamicDrafter
from treespec.decoding.drafting import Drafting
from treespec.decoding.loop import Request, StepRecord, decode_autoregressive, decode_speculative
from treespec.decoding.plans import DynamicBudget
from treespec.decoding.proposal import Proposal
from treespec.decoding.rules import Sampling
from treespec.decoding.sampling import choose, distribution, prompt_generator
from treespec.decoding.timing import NoTimer
from treespec.errors import ModelError, SettingsError
from treespec.kernels.outcome import ReportLayout
from treespec.kernels.plain import last_matching, settle, top_tokens
from treespec.trees.placement import Prefix

VOCABULARY = 7
PROMPT = (3, 1)
BUDGETS = [DynamicBudget(2, 1, 1), DynamicBudget(5, 4, 1), DynamicBudget(6, 3, 3), DynamicBudget(9, 2, 7), DynamicBudget(4, 3, 2)]
BUDGET = pytest.mark.parametrize("budget", BUDGETS, ids=lambda b: f"{b.size}-{b.depth}-{b.width}")


def sparse(rule: Rule) -> Rule:
    """The same, but every third logit is -inf and the others are rounded: impossible tokens and ties between paths."""
    return lambda context: [-torch.inf if i % 3 == 1 else float(round(x)) for i, x in enumerate(rule(context))]


def uniform(context: tuple[int, ...]) -> list[float]:
    return [0.0] * VOCABULARY


RULES: dict[str, Rule] = {
    "random": random_rule(VOCABULARY, 0),
    "sparse": sparse(random_rule(VOCABULARY, 1)),
    "certain": lambda context: [-torch.inf if i != context[-1] else 0.0 for i in range(VOCABULARY)],
    "uniform": uniform,
}


def setup(draft: TabularModel) -> DrafterSetup:
    return DrafterSetup(draft, draft.device, VOCABULARY, Sampling(), Drafting())


def propose(rule: Rule, budget: DynamicBudget, room: int = 100) -> Proposal:
    draft = TabularModel(VOCABULARY, rule)
    draft.allocate(200)
    draft.prefill(torch.tensor(PROMPT))
    drafter = DynamicDrafter(budget, setup(draft))
    return drafter.propose(torch.tensor([PROMPT[-1], 4]), Prefix.of(len(PROMPT), "cpu"), room, None, NoTimer())


def budgets() -> st.SearchStrategy[DynamicBudget]:
    def of(depth: int, width: int, share: float) -> DynamicBudget:
        return DynamicBudget(depth + 1 + round(share * (depth * width - depth)), depth, width)

    return st.builds(of, st.integers(1, 4), st.integers(1, VOCABULARY), st.floats(0, 1))


@settings(max_examples=150)
@given(budget=budgets(), name=st.sampled_from(sorted(RULES)), room=st.integers(1, 30))
def test_trees_are_those_of_the_reference(budget: DynamicBudget, name: str, room: int) -> None:
    found = propose(RULES[name], budget, room)
    size, depth = min(budget.size, room), min(budget.depth, room - 1)

    def ranked(path: tuple[int, ...]) -> list[tuple[int, float]]:
        logits = torch.tensor([RULES[name]((*PROMPT, *path))])
        tokens = top_tokens(logits, budget.width)[1]
        return list(zip(tokens[0].tolist(), logits.log_softmax(-1)[0, tokens[0]].tolist(), strict=True))

    expected = grow(ranked, 4, size, depth, budget.width)
    paths = [node.path for node in expected]
    tree = found.tree
    assert tree.size == size == len(paths)
    assert found.tokens.tolist() == [4, *(path[-1] for path in paths[1:])]
    assert tree.depths.tolist() == [len(path) for path in paths]
    assert tree.ranks.tolist() == [node.rank for node in expected]
    assert tree.parents.tolist() == [0, *(paths.index(path[:-1]) for path in paths[1:])]
    assert tree.ancestors.tolist() == [[above == path[: len(above)] for above in paths] for path in paths]
    assert tree.depth == depth
    assert found.offsets is not None
    assert found.offsets.tolist() == sorted(set(found.offsets.tolist())), "each node has a slot of its own in the draft"


@given(budget=budgets())
def test_a_parent_wins_a_tie_with_its_child(budget: DynamicBudget) -> None:
    """With a draft that is certain, every node on its path has value 0; with an even one, all nodes of a level tie."""
    for name in ("certain", "uniform"):
        tree = propose(RULES[name], budget).tree
        parents = tree.parents.tolist()
        assert all(parent < node for node, parent in enumerate(parents) if node)
        assert tree.depths.tolist() == [0, *(tree.depths[parent].item() + 1 for parent in parents[1:])]
    assert propose(RULES["certain"], budget).tree.depths.max() == budget.depth
    even = propose(uniform, budget).tree.depths.tolist()
    assert even == [0, *(1 + node // budget.width for node in range(budget.size - 1))], "shallow nodes first"


def text(records: list[StepRecord]) -> list[int]:
    return [token for record in records for token in record.tokens]


def pair(noise: float = 0.5, seed: int = 0) -> tuple[TabularModel, TabularModel]:
    rule = random_rule(VOCABULARY, seed)
    return TabularModel(VOCABULARY, rule), TabularModel(VOCABULARY, noisy_rule(rule, VOCABULARY, seed + 1, noise))


@settings(max_examples=60)
@given(budget=budgets(), seed=st.integers(0, 50), gen_len=st.integers(1, 25), noise=st.sampled_from([0.0, 0.5, 2.0]))
def test_greedy_output_is_the_targets(budget: DynamicBudget, seed: int, gen_len: int, noise: float) -> None:
    target, draft = pair(noise, seed)
    records = list(decode_speculative(target, draft, budget, Request(PROMPT, gen_len)))
    assert text(records) == text(list(decode_autoregressive(target, Request(PROMPT, gen_len))))
    if noise == 0.0:
        assert all(len(record.accepted or ()) > 0 for record in records[1:]), "a perfect draft's first token is always in the tree"
    for record in records[1:-1]:
        assert len(record.tokens) == len(record.accepted or ()) + 1


@BUDGET
def test_passes_and_ranks(budget: DynamicBudget) -> None:
    target, draft = pair()
    records = list(decode_speculative(target, draft, budget, Request(PROMPT, 20)))
    assert draft.passes == [2, *[budget.width] * (budget.depth - 1)] * (len(records) - 1)
    assert target.passes == [budget.size] * (len(records) - 1)
    committed = [*PROMPT, *records[0].tokens]
    for record in records[1:]:
        for rank, token in zip(record.accepted or (), record.tokens, strict=False):
            assert torch.tensor(draft.rule(tuple(committed))).topk(budget.width).indices[rank] == token
            committed.append(token)
        committed += record.tokens[len(record.accepted or ()) :]


@BUDGET
@pytest.mark.parametrize("gen_len", [1, 2, 9])
def test_outputs_have_exactly_gen_len_tokens(budget: DynamicBudget, gen_len: int) -> None:
    for noise in (0.0, 0.5):
        assert len(text(list(decode_speculative(*pair(noise), budget, Request((3,), gen_len))))) == gen_len


@BUDGET
def test_stops_after_any_eos_and_keeps_it(budget: DynamicBudget) -> None:
    target, draft = pair(0.3, 3)
    free = text(list(decode_autoregressive(target, Request((1,), 40))))
    for eos in ({free[0]}, {free[5]}, {free[11], free[7]}):
        stop = next(i for i, token in enumerate(free) if token in eos)
        assert text(list(decode_speculative(target, draft, budget, Request((1,), 40, frozenset(eos))))) == free[: stop + 1]


@BUDGET
@pytest.mark.parametrize("capacity", [2, 3, 4, 6, 13, 20])
def test_never_overruns_the_cache_and_never_drops_a_token(budget: DynamicBudget, capacity: int) -> None:
    target, draft = pair(0.2)
    free = text(list(decode_autoregressive(target, Request(PROMPT, 60))))
    output = text(list(decode_speculative(target, draft, budget, Request(PROMPT, 50, capacity=capacity))))
    assert target.capacity == capacity
    assert output == free[: len(output)]
    assert len(output) == capacity - len(PROMPT) + 1


def test_the_draft_may_be_wider_than_what_is_verified() -> None:
    budget = DynamicBudget(3, 2, VOCABULARY)
    assert budget.candidates == 1 + 2 * VOCABULARY
    target, draft = pair()
    expected = text(list(decode_autoregressive(target, Request(PROMPT, 12))))
    assert text(list(decode_speculative(target, draft, budget, Request(PROMPT, 12)))) == expected
    assert draft.capacity - target.capacity == budget.candidates


@pytest.mark.parametrize("right", [True, False], ids=["as it is", "next token drawn anew"])
def test_two_hundred_thousand_steps_follow_the_target(right: bool) -> None:
    """One tree, so many choices of the target: the next 3 tokens, continued by the target where fewer were emitted."""
    draws, sampling, generator = 200_000, Sampling(1.0), prompt_generator(0, 0, "cpu")
    target = random_rule(VOCABULARY, 2, memory=1)
    found = propose(noisy_rule(target, VOCABULARY, 3, 0.7), DynamicBudget(6, 2, 4))
    logits = torch.tensor([target((token,)) for token in range(VOCABULARY)])
    tokens, tree = found.tokens, found.tree
    choices = choose(logits[tokens].repeat(draws, 1), sampling, generator).view(draws, tree.size)
    fresh = choices if right else choices.roll(1, 0)

    def run(choices: torch.Tensor, fresh: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        last = last_matching(tokens, choices, tree)
        following = fresh.gather(0, last[None])[0]
        outcome = settle(tokens, last, following, tree, torch.zeros(tree.size), torch.zeros(1), torch.zeros(1, dtype=torch.int64))
        return outcome.tokens, outcome.report[ReportLayout(tree.depth).count]

    emitted, count = torch.vmap(run)(choices, fresh)
    assert (count > 0).float().mean() > 0.3
    for place in range(1, 3):
        more = choose(logits[emitted[:, place - 1]], sampling, generator)
        emitted[:, place] = emitted[:, place].where(count >= place, more)
    p = distribution(logits.double(), sampling)
    expected = (p[4][:, None, None] * p[:, :, None] * p).flatten() * draws
    counts = torch.bincount((emitted * torch.tensor([49, 7, 1])).sum(1), minlength=343).double()
    often = expected >= 10
    observed, wanted = [[*x[often].tolist(), float(x[~often].sum())] for x in (counts, expected)]
    found_p = chisquare(observed, [w * sum(observed) / sum(wanted) for w in wanted]).pvalue
    assert found_p > 1e-3 if right else found_p < 1e-6


@pytest.mark.parametrize(
    ("size", "depth", "width", "message"),
    [
        (5, 0, 2, "`depth` is 0, but it must be 1 or more"),
        (5, 2, 0, "`width` is 0, but it must be 1 or more"),
        (4, 4, 2, "`size` 4 is too small for depth 4.*at least 5 nodes.*`size` 5 or more, or `depth` 3 or less"),
        (1, 1, 2, "`size` 1 is too small for depth 1.*; pass `size` 2 or more$"),
        (10, 2, 4, "`size` 10 cannot be filled: 2 levels of width 4 can have 9 nodes.*pass `size` 9 or less, or `width` 5 or more"),
        (
            2_000_000,
            600,
            6667,
            "600 levels of width 6667 can have 4000201 nodes, .* above the limit of 65536; pass a smaller `size`, `depth` or `width`",
        ),
        (6, 3, 10**20, "above the limit of 65536"),
    ],
)
def test_budgets_that_cannot_be_met_are_errors(size: int, depth: int, width: int, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        DynamicBudget(size, depth, width)


def test_a_width_is_chosen_where_none_is_given() -> None:
    assert DynamicBudget.of(33, 8) == DynamicBudget(33, 8, 8)
    assert DynamicBudget.of(2, 1) == DynamicBudget(2, 1, 1)
    assert DynamicBudget.of(33, 8, 5) == DynamicBudget(33, 8, 5)
    for size in range(2, 40):
        for depth in range(1, size):
            assert DynamicBudget.of(size, depth).candidates >= size
    with pytest.raises(SettingsError, match="`depth` is 0"):
        DynamicBudget.of(4, 0)


def test_a_dynamic_tree_needs_topk_and_enough_tokens() -> None:
    with pytest.raises(ModelError, match="`width` is 8, but the vocabulary has 7 tokens; pass `width` 7 or less"):
        DynamicDrafter(DynamicBudget(9, 2, 8), setup(pair()[1]))
    with pytest.raises(ModelError, match="; pass `width` 7 or less and `size` 15 or less"):
        DynamicDrafter(DynamicBudget(16, 2, 8), setup(pair()[1]))
    DynamicDrafter(DynamicBudget(15, 2, 7), setup(pair()[1]))
    for rule in ("swor", "swr"):
        with pytest.raises(SettingsError, match=f"`drafting` {rule} does not go with it; pass `drafting` topk"):
            list(decode_speculative(*pair(), BUDGETS[2], Request(PROMPT, 4), drafting=Drafting(rule)))
