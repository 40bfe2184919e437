"""Decoding: exact outputs, exact step counts, stops; on models that notice every misplaced slot."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from tests.reference.replay import replay
from tests.reference.tabular import TabularModel, noisy_rule, random_rule
from treespec.decoding.loop import Request, clip, decode_autoregressive, decode_speculative
from treespec.decoding.rules import Sampling
from treespec.decoding.sampling import distribution, prompt_generator
from treespec.errors import CapacityError, ModelError, SettingsError
from treespec.trees.tree import SpeculationTree

VOCABULARY = 7
TREES = [
    SpeculationTree((-1,)),
    SpeculationTree.chain(4),
    SpeculationTree.k_ary(2, 3),
    SpeculationTree.k_chains(3, 3),
    SpeculationTree.from_paths([(0, 0, 0, 0), (0, 1), (1, 0), (2,), (0, 0, 1)]),
    SpeculationTree.from_paths([(0, 0), (1, 0, 0, 0, 0)]),
]


def pair(seed: int = 0, noise: float = 0.7) -> tuple[TabularModel, TabularModel]:
    rule = random_rule(VOCABULARY, seed)
    return TabularModel(VOCABULARY, rule), TabularModel(VOCABULARY, noisy_rule(rule, VOCABULARY, seed + 1, noise))


def text(records) -> list[int]:  # type: ignore[no-untyped-def]
    return [token for record in records for token in record.tokens]


trees = st.lists(st.integers(0, 10**6), max_size=11).map(
    lambda picks: SpeculationTree.from_parents([-1, *(p % (i + 1) for i, p in enumerate(picks))])
)


@settings(max_examples=60, deadline=None)
@given(
    tree=trees.filter(lambda t: t.max_branch <= VOCABULARY),
    seed=st.integers(0, 50),
    gen_len=st.integers(1, 25),
    noise=st.sampled_from([0.0, 0.5, 2.0]),
)
def test_greedy_output_is_the_targets_and_steps_are_those_of_the_replay(
    tree: SpeculationTree, seed: int, gen_len: int, noise: float
) -> None:
    target, draft = pair(seed, noise)
    prompt = (1, 2, 3)
    records = list(decode_speculative(target, draft, tree, Request(prompt, gen_len)))
    continuation = text(decode_autoregressive(target, Request(prompt, gen_len + tree.depth + 1)))
    assert text(records) == continuation[:gen_len]

    def rank(context: tuple[int, ...], k: int) -> list[int]:
        return torch.tensor(draft.rule(context)).topk(k).indices.tolist()

    assert [len(r.accepted) for r in records[1:]] == replay(tree, prompt, continuation, rank, gen_len)


@pytest.mark.parametrize("tree", TREES)
def test_one_draft_pass_per_level_above_the_last(tree: SpeculationTree) -> None:
    target, draft = pair()
    records = list(decode_speculative(target, draft, tree, Request((1, 2), 20)))
    widths = [2, *tree.level_widths[1:-1]] if tree.depth else []  # the root's level reads the token before it as well
    assert draft.passes == widths * (len(records) - 1)
    assert target.passes == [tree.size] * (len(records) - 1)


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("gen_len", [1, 2, 9])
def test_outputs_have_exactly_gen_len_tokens(tree: SpeculationTree, gen_len: int) -> None:
    target, draft = pair(noise=0.0)
    assert len(text(decode_speculative(target, draft, tree, Request((3,), gen_len)))) == gen_len


@pytest.mark.parametrize("tree", TREES)
def test_stops_after_any_eos_and_keeps_it(tree: SpeculationTree) -> None:
    target, draft = pair(3, 0.3)
    free = text(decode_autoregressive(target, Request((1,), 40)))
    for eos in ({free[0]}, {free[5]}, {free[11], free[7]}):
        stop = next(i for i, token in enumerate(free) if token in eos)
        request = Request((1,), 40, eos_token_ids=frozenset(eos))
        assert text(decode_speculative(target, draft, tree, request)) == free[: stop + 1]
        assert text(decode_autoregressive(target, request)) == free[: stop + 1]


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("capacity", [2, 3, 6, 13, 20])
def test_never_overruns_the_cache_and_never_drops_a_token(tree: SpeculationTree, capacity: int) -> None:
    target, draft = pair(noise=0.2)
    free = text(decode_autoregressive(target, Request((1, 2), 60)))
    output = text(decode_speculative(target, draft, tree, Request((1, 2), 50, capacity=capacity)))
    assert target.capacity == capacity
    assert output == free[: len(output)]
    assert len(output) == capacity - 2 + 1  # every slot after the prompt holds one token, and the last one is not stored


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("drafted", range(1, 30))
def test_a_draft_is_never_asked_behind_its_last_position(tree: SpeculationTree, drafted: int) -> None:
    """Prompt and text have 22 tokens: the last trees would reach beyond them. The target's cache keeps its room for whole trees."""
    target, draft = pair(noise=0.2)
    known = draft.rule

    def rule(context: tuple[int, ...]) -> Sequence[float]:
        assert len(context) <= drafted
        return known(context)

    draft.rule = rule
    output = text(decode_speculative(target, draft, tree, Request((1, 2), 20, drafted=drafted)))
    assert output == text(decode_autoregressive(target, Request((1, 2), 20)))


def test_sampled_output_is_reproducible_and_follows_the_targets_distribution() -> None:
    target, draft = pair(1, 0.5)
    sampling = Sampling(temperature=1.0, top_p=0.9)
    tree = SpeculationTree.from_paths([(0, 0), (0, 1), (1,)])

    def run(i: int) -> list[int]:
        return text(decode_speculative(target, draft, tree, Request((2,), 3, sampling=sampling), prompt_generator(0, i, "cpu")))

    assert [run(i) for i in range(20)] == [run(i) for i in range(20)]
    draws = 3000
    counts: dict[tuple[int, ...], int] = {}
    for i in range(draws):
        output = tuple(run(i)[:2])
        counts[output] = counts.get(output, 0) + 1

    def p(context: tuple[int, ...]) -> torch.Tensor:
        return distribution(torch.tensor(target.rule(context), dtype=torch.float64), sampling)

    expected = {(a, b): float(p((2,))[a] * p((2, a))[b]) for a in range(VOCABULARY) for b in range(VOCABULARY)}
    assert set(counts) <= {output for output, chance in expected.items() if chance > 0}
    likely = [output for output, chance in expected.items() if chance * draws >= 5]
    observed = [counts.get(o, 0) for o in likely]
    wanted = [expected[o] * draws for o in likely]
    scale = sum(observed) / sum(wanted)  # the few draws outside the likely outcomes are left out
    assert sum(observed) > 0.9 * draws
    assert chisquare(observed, [w * scale for w in wanted]).pvalue > 1e-3


def test_logits_that_are_not_finite_are_an_error() -> None:
    _, draft = pair()
    for bad in (float("nan"), float("inf")):
        broken = TabularModel(VOCABULARY, lambda context, bad=bad: [bad if len(context) > 4 else 0.0] * VOCABULARY)
        with pytest.raises(ModelError, match=r"not finite at position [34]"):
            list(decode_speculative(broken, draft, SpeculationTree.chain(1), Request((1, 2, 3), 9)))
        with pytest.raises(ModelError, match=r"not finite at position [34]"):
            list(decode_autoregressive(broken, Request((1, 2, 3), 9)))


def test_a_draft_whose_logits_are_not_finite_is_an_error() -> None:
    target, _ = pair()
    for level in (3, 4):  # the root's level, the one below
        broken = TabularModel(VOCABULARY, lambda context, level=level: [float("nan") if len(context) > level else 0.0] * VOCABULARY)
        with pytest.raises(ModelError, match="the draft's logits are not finite"):
            list(decode_speculative(target, broken, SpeculationTree.chain(3), Request((1, 2, 3), 9)))


def test_requests_that_cannot_be_met_are_errors() -> None:
    with pytest.raises(CapacityError, match="empty"):
        Request((), 4)
    with pytest.raises(SettingsError, match="`gen_len` is 0, but it must be 1 or more"):
        Request((1,), 0)
    with pytest.raises(CapacityError, match="3 tokens, but the cache has 2 slots"):
        Request((1, 2, 3), 4, capacity=2)
    target, draft = pair()
    with pytest.raises(ModelError, match="8 children, but the vocabulary has 7"):
        list(decode_speculative(target, draft, SpeculationTree.k_ary(8, 1), Request((1,), 4)))


def test_clip_keeps_the_first_eos() -> None:
    assert clip([4, 5, 6], 2, frozenset()) == [4, 5]
    assert clip([4, 5, 6], 3, frozenset({5, 6})) == [4, 5]
