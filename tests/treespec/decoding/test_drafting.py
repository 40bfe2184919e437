"""Drafting: drawn children have exactly the distribution that verification assumes, and every rule states its limits."""

import itertools
import math

import pytest
import torch
from scipy.stats import chisquare

from tests.reference.tabular import TabularModel, noisy_rule, random_rule
from treespec.decoding.drafters.base import DrafterSetup
from treespec.decoding.drafters.static import StaticDrafter
from treespec.decoding.drafting import Drafting
from treespec.decoding.loop import Request, decode_speculative
from treespec.decoding.plans import DynamicBudget
from treespec.decoding.rules import Sampling
from treespec.decoding.sampling import prompt_generator
from treespec.decoding.timing import NoTimer
from treespec.errors import ModelError, SettingsError
from treespec.kernels.plain import draw_children
from treespec.trees.placement import Prefix
from treespec.trees.tree import SpeculationTree

DRAWS = 200_000
Q = torch.tensor([0.4, 0.25, 0.0, 0.2, 0.1, 0.05])
TREE = SpeculationTree.from_paths([(0, 0), (0, 1), (1,), (2, 0, 0)])


def p_value(drawn: torch.Tensor, expected: dict[tuple[int, ...], float]) -> float:
    """Chi-square of how often each row of tokens was drawn; nothing of probability 0 may occur."""
    found, counts = drawn.unique(dim=0, return_counts=True)
    seen = dict(zip(map(tuple, found.tolist()), counts.tolist(), strict=True))
    possible = {row: chance for row, chance in expected.items() if chance > 0}
    assert set(seen) <= set(possible)
    total = sum(possible.values())
    assert total == pytest.approx(1)
    return float(chisquare([seen.get(row, 0) for row in possible], [len(drawn) * chance / total for chance in possible.values()]).pvalue)


def without_replacement(order: tuple[int, ...]) -> float:
    """Probability of an ordered draw without replacement."""
    chance, left = 1.0, 1.0
    for token in order:
        chance *= float(Q[token]) / left
        left -= float(Q[token])
    return chance


def test_the_order_without_replacement_is_that_of_successive_draws() -> None:
    drawn = draw_children(Q.expand(DRAWS, -1), 3, prompt_generator(0, 0, "cpu"), replacement=False)
    expected = {order: without_replacement(order) for order in itertools.permutations(range(len(Q)), 3)}
    assert p_value(drawn, expected) > 1e-3
    swapped = {(b, a, c): chance for (a, b, c), chance in expected.items()}
    assert p_value(drawn, {row: swapped[row] for row in expected}) < 1e-6, "the test must see the order"


def test_draws_with_replacement_are_independent() -> None:
    drawn = draw_children(Q.expand(DRAWS, -1), 3, prompt_generator(0, 1, "cpu"), replacement=True)
    expected = {order: math.prod(float(Q[token]) for token in order) for order in itertools.product(range(len(Q)), repeat=3)}
    assert p_value(drawn, expected) > 1e-3


def test_rows_do_not_share_their_draws() -> None:
    for replacement in (False, True):
        drawn = draw_children(Q.expand(2 * DRAWS, -1), 1, prompt_generator(0, 2, "cpu"), replacement=replacement).view(DRAWS, 2)
        expected = {(a, b): float(Q[a] * Q[b]) for a, b in itertools.product(range(len(Q)), repeat=2)}
        assert p_value(drawn, expected) > 1e-3


def test_tokens_beyond_the_support_come_last_and_siblings_are_distinct() -> None:
    q = torch.tensor([[0.0, 0.7, 0.0, 0.3, 0.0], [0.0, 0.0, 1.0, 0.0, 0.0]])
    for index in range(50):
        logits = torch.tensor([[-1.0, 9.0, -3.0, 9.0, -2.0], [1e4, 0.0, 2e4, -1e4, -torch.inf]])
        drawn = draw_children(q, 5, prompt_generator(1, index, "cpu"), replacement=False, logits=logits)
        assert set(drawn[0, :2].tolist()) == {1, 3}
        assert drawn[0, 2:].tolist() == [0, 4, 2], "the likelier ones first"
        assert drawn[1].tolist() == [2, 0, 1, 3, 4], "the order of the logits"


def test_draws_with_replacement_never_leave_the_support() -> None:
    q = torch.tensor([[0.0, 0.7, 0.0, 0.3, 0.0], [0.0, 0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 1.0]])
    drawn = draw_children(q, 20_000, prompt_generator(1, 0, "cpu"), replacement=True)
    assert [set(row) for row in drawn.tolist()] == [{1, 3}, {2}, {4}]


def proposed(rule: str, temperature: float, target: float = 1.0, branches: int = 3, seed: int = 0) -> torch.Tensor:
    """Tokens of one tree of two levels on seven tokens."""
    draft = TabularModel(7, random_rule(7, 3))
    draft.allocate(120)
    draft.prefill(torch.tensor([1, 2]))
    drafter = StaticDrafter(
        SpeculationTree.k_ary(branches, 2), DrafterSetup(draft, draft.device, 7, Sampling(target), Drafting(rule, temperature))
    )
    return drafter.propose(torch.tensor([2, 4]), Prefix.of(2, "cpu"), 110, prompt_generator(seed, 0, "cpu"), NoTimer()).tokens


def test_at_draft_temperature_0_swor_is_topk_and_swr_is_copies_of_the_argmax() -> None:
    topk = proposed("topk", 0.0)
    assert proposed("swor", 0.0).tolist() == topk.tolist()
    copies = proposed("swr", 0.0).tolist()
    assert copies[1:4] == [topk[1]] * 3
    assert copies[4:] == [topk[4]] * 9
    assert proposed("swor", 1.0).tolist() != topk.tolist(), "a warm draft draws"


def test_every_level_is_one_draft_pass_for_every_rule() -> None:
    for rule in ("topk", "swor", "swr"):
        target, draft = TabularModel(7, random_rule(7, 0)), TabularModel(7, random_rule(7, 1))
        request = Request((1, 2), 12, sampling=Sampling(1.0))
        records = list(decode_speculative(target, draft, TREE, request, prompt_generator(0, 0, "cpu"), drafting=Drafting(rule)))
        assert draft.passes == [2, *TREE.level_widths[1:-1]] * (len(records) - 1)


@pytest.mark.parametrize(
    "drafting", [Drafting("swor"), Drafting("swor", 0.5), Drafting("swor", verifier="traversal"), Drafting("swor", 0.0)], ids=str
)
def test_at_temperature_0_swor_takes_the_steps_of_topk(drafting: Drafting) -> None:
    """With a greedy target and a warm draft, outputs agree but the children are drawn; at draft temperature 0, steps agree too."""
    rule = random_rule(7, 5)

    def steps(chosen: Drafting) -> list[tuple[int, ...]]:
        target, draft = TabularModel(7, rule), TabularModel(7, noisy_rule(rule, 7, 6, 0.7))
        return [
            r.tokens for r in decode_speculative(target, draft, TREE, Request((1, 2), 40), prompt_generator(0, 0, "cpu"), drafting=chosen)
        ]

    found, expected = steps(drafting), steps(Drafting())
    assert [t for tokens in found for t in tokens] == [t for tokens in expected for t in tokens]
    if drafting.temperature != 0.5:
        assert found == expected


def test_settings_that_make_no_sense_are_errors() -> None:
    with pytest.raises(SettingsError, match="`drafting` is 'best', but it must be one of topk, swor, swr"):
        Drafting("best")
    with pytest.raises(SettingsError, match="`verifier` is 'random'"):
        Drafting("swor", verifier="random")
    for temperature in (-0.1, math.nan, math.inf):
        with pytest.raises(SettingsError, match="`draft_temperature` is .* 0 or a positive number"):
            Drafting("swor", temperature)
    with pytest.raises(SettingsError, match="`verifier` traversal needs sampled children, but topk drafts the draft's most likely tokens"):
        Drafting("topk", verifier="traversal")
    with pytest.raises(SettingsError, match="`verifier` matching needs distinct children, but swr drafts"):
        Drafting("swr", verifier="matching")
    with pytest.raises(
        SettingsError, match="`dynamic` drafts tokens that are not sampled, so `drafting` swor does not go with it; pass `drafting` topk"
    ):
        Drafting("swor").require(DynamicBudget(8, 3, 4))


@pytest.mark.parametrize("rule", ["topk", "swor"])
def test_distinct_children_need_enough_tokens(rule: str) -> None:
    with pytest.raises(ModelError, match="8 children, but the vocabulary has 7 tokens"):
        proposed(rule, 1.0, branches=8)


def test_copies_need_no_distinct_tokens() -> None:
    assert len(proposed("swr", 1.0, branches=9)) == 1 + 9 + 81
