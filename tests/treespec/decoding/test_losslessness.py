"""Exact losslessness: on tiny vocabularies, all outcomes of a step together have the target's own distribution."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.reference.enumeration import Tables, matched_outcome, matched_samples, sampled_outcome, target_distribution, total_variation
from tests.reference.mutants import MISTAKES, mutant
from treespec.decoding.drafting import Drafting
from treespec.decoding.rules import Sampling
from treespec.decoding.sampling import distribution
from treespec.trees.tree import SpeculationTree

VERIFIERS: tuple[str, ...] = ("sequential", "traversal")
RULES = pytest.mark.parametrize("replacement", [False, True], ids=["swor", "swr"])
EXACT = 1e-12
WARM = Sampling(1.0)
SEVEN = {
    "chain": SpeculationTree.chain(6),
    "binary": SpeculationTree.k_ary(2, 2),
    "three chains": SpeculationTree.k_chains(3, 2),
    "uneven": SpeculationTree.from_paths([(0, 0), (0, 1), (1, 0), (2,)]),
    "deep left": SpeculationTree.from_paths([(0, 0, 0), (0, 1), (1,), (2,)]),
    "deep right": SpeculationTree.from_paths([(0,), (1,), (2, 0, 0), (2, 1)]),
    "late branches": SpeculationTree.from_paths([(0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 1)]),
}


def tables(vocabulary: int, depth: int, seed: int, *, kind: str = "dense", target: Sampling = WARM, draft: float = 1.0) -> Tables:
    """Random models. `kind`: dense; ties (small whole weights, many of them 0); one (a single token each); same (draft = target)."""
    generator = torch.Generator().manual_seed(seed)

    def logits(rows: int) -> torch.Tensor:
        weights = torch.rand(rows, vocabulary, generator=generator, dtype=torch.float64)
        if kind != "dense":
            weights = (weights * 6).floor().sub(2).clamp_min(0)
        first = torch.randint(vocabulary, (rows, 1), generator=generator)
        if kind == "one":
            weights.zero_()
        return weights.scatter(1, first, torch.where(weights.sum(1, keepdim=True) > 0, weights.gather(1, first), 1.0)).log()

    p = [logits(vocabulary**level) for level in range(depth + 1)]
    q = p if kind == "same" else [logits(vocabulary**level) for level in range(depth + 1)]
    return Tables(tuple(distribution(x, target) for x in p), tuple(distribution(x, Sampling(draft)) for x in q))


@st.composite
def cases(draw: st.DrawFn) -> tuple[SpeculationTree, Tables]:
    """A random tree of up to 5 nodes with random models below it."""
    vocabulary = draw(st.integers(3, 5))
    picks = draw(st.lists(st.integers(0, 10**6), min_size=draw(st.sampled_from([0, 2, 3])), max_size=4 if vocabulary < 5 else 3))
    tree = SpeculationTree.from_parents([-1, *(pick % (i + 1) for i, pick in enumerate(picks))])
    kind = draw(st.sampled_from(["dense", "ties", "ties", "one", "same"]))
    target = Sampling(draw(st.sampled_from([1.0, 0.4, 0.0])), draw(st.sampled_from([1.0, 0.6, 1e-9])))
    models = tables(vocabulary, tree.depth, draw(st.integers(0, 10**6)), kind=kind, target=target, draft=draw(st.sampled_from([1.0, 0.3])))
    return tree, models


def nested(tree: SpeculationTree) -> bool:
    """Whether every elder sibling's subtree contains the younger ones', as in chains and complete trees."""
    shapes: dict[int, list[object]] = {}
    for node in reversed(range(tree.size)):
        shapes[node] = [shapes[child] for child in tree.children[node]]

    def contains(larger: object, smaller: object) -> bool:
        assert isinstance(larger, list)
        assert isinstance(smaller, list)
        return len(larger) >= len(smaller) and all(contains(a, b) for a, b in zip(larger, smaller, strict=False))

    return all(contains(shapes[a], shapes[b]) for family in tree.children for a, b in pairwise(family))


@RULES
@settings(max_examples=300)
@given(case=cases())
def test_sampled_trees_emit_the_targets_distribution(replacement: bool, case: tuple[SpeculationTree, Tables]) -> None:
    tree, models = case
    assume(replacement or tree.max_branch <= models.vocabulary)
    found = {verifier: sampled_outcome(tree, models, replacement=replacement, verifier=verifier) for verifier in VERIFIERS}
    for outcome in found.values():
        assert total_variation(outcome.distribution, target_distribution(models, tree.depth + 1)) < EXACT
        assert outcome.mass == pytest.approx(1, abs=EXACT)
    if nested(tree):
        assert found["traversal"].accepted >= found["sequential"].accepted - EXACT


@RULES
def test_traversal_may_accept_less_where_a_younger_sibling_has_the_deeper_subtree(replacement: bool) -> None:
    """The limit of the claim above: traversal looks at the younger sibling's leaf only once the elder one is rejected."""
    tree = SpeculationTree.from_paths([(0, 0), (0, 1, 0)])
    assert not nested(tree)
    differences = []
    for seed in range(40):
        models = tables(3, tree.depth, seed, draft=(1.0, 0.3)[seed % 2])
        found = {verifier: sampled_outcome(tree, models, replacement=replacement, verifier=verifier) for verifier in VERIFIERS}
        for outcome in found.values():
            assert total_variation(outcome.distribution, target_distribution(models, tree.depth + 1)) < EXACT
        differences.append(found["traversal"].accepted - found["sequential"].accepted)
    assert min(differences) < -0.01
    assert sum(differences) > 0, "on average it still accepts more"


@RULES
@pytest.mark.parametrize("name", SEVEN)
@pytest.mark.parametrize("kind", ["dense", "ties", "same"])
def test_trees_of_seven_nodes(name: str, replacement: bool, kind: str) -> None:
    tree = SEVEN[name]
    models = tables(3, tree.depth, 5, kind=kind)
    found = {verifier: sampled_outcome(tree, models, replacement=replacement, verifier=verifier) for verifier in VERIFIERS}
    for outcome in found.values():
        assert total_variation(outcome.distribution, target_distribution(models, tree.depth + 1)) < EXACT
    if nested(tree):
        assert found["traversal"].accepted >= found["sequential"].accepted - EXACT


@pytest.mark.parametrize("verifier", VERIFIERS)
def test_more_branches_than_tokens_are_fine_with_replacement(verifier: str) -> None:
    for kind in ("dense", "ties"):
        tree, models = SpeculationTree.k_ary(6, 1), tables(3, 1, 2, kind=kind)
        outcome = sampled_outcome(tree, models, replacement=True, verifier=verifier)
        assert total_variation(outcome.distribution, target_distribution(models, 2)) < EXACT


@pytest.mark.parametrize("verifier", VERIFIERS)
def test_children_beyond_the_drafts_support_are_accepted_as_often_as_the_target_has_them(verifier: str) -> None:
    first = torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.float64)
    models = Tables((first, first.expand(3, 3)), (torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64),))
    for children, accepted in ((1, 0.3), (2, 0.5), (3, 1.0)):  # token 1, which is drawn; then token 0; then token 2
        outcome = sampled_outcome(SpeculationTree.k_ary(children, 1), models, replacement=False, verifier=verifier)
        assert total_variation(outcome.distribution, target_distribution(models, 2)) < EXACT
        assert outcome.accepted == pytest.approx(accepted)


@settings(max_examples=100)
@given(case=cases())
def test_matching_emits_the_targets_distribution(case: tuple[SpeculationTree, Tables]) -> None:
    tree, models = case
    assume(tree.max_branch <= models.vocabulary)
    outcome = matched_outcome(tree, models)
    assert total_variation(outcome.distribution, target_distribution(models, tree.depth + 1)) < EXACT
    assert outcome.mass == pytest.approx(1, abs=EXACT)


@pytest.mark.parametrize("name", ["binary", "uneven"])
@pytest.mark.parametrize("kind", ["dense", "ties"])
def test_matching_emits_the_targets_distribution_for_sampled_children(name: str, kind: str) -> None:
    """As long as they are distinct: verification never looks at what they were drawn from."""
    tree = {"binary": SpeculationTree.k_ary(2, 1), "uneven": SpeculationTree.from_paths([(0, 0), (1,)])}[name]
    models = tables(3, tree.depth, 4, kind=kind)
    outcome = matched_samples(tree, models)
    assert total_variation(outcome.distribution, target_distribution(models, tree.depth + 1)) < EXACT
    assert outcome.mass == pytest.approx(1, abs=EXACT)
    assert outcome.accepted > 0


def test_which_rules_sample_and_which_match() -> None:
    warm, greedy = Sampling(0.7), Sampling(0.0)
    assert [Drafting("swor").samples(s) for s in (warm, greedy)] == [True, False]  # greedy swor is topk: matching
    assert [Drafting("swor", temperature=0.0).samples(s) for s in (warm, greedy)] == [False, False]
    assert [Drafting("swor", temperature=0.5).samples(s) for s in (warm, greedy)] == [True, True]
    assert [Drafting("swr").samples(s) for s in (warm, greedy)] == [True, True]
    assert [Drafting("topk").samples(s) for s in (warm, greedy)] == [False, False]


@settings(max_examples=100)
@given(case=cases(), draft=st.sampled_from([0.0, 0.5]))
def test_copies_of_the_drafts_argmax_are_lossless(case: tuple[SpeculationTree, Tables], draft: float) -> None:
    tree, models = case
    sharp = Tables(models.p, tuple(distribution(q.log(), Sampling(draft)) for q in models.q))
    for verifier in VERIFIERS:
        outcome = sampled_outcome(tree, sharp, replacement=True, verifier=verifier)
        assert total_variation(outcome.distribution, target_distribution(models, tree.depth + 1)) < EXACT


@RULES
@settings(max_examples=100)
@given(case=cases(), pick=st.integers(0, 10**6))
def test_a_tree_that_contains_another_accepts_no_less(replacement: bool, case: tuple[SpeculationTree, Tables], pick: int) -> None:
    larger, models = case
    youngest = [n for n in range(1, larger.size) if not larger.children[n] and n == larger.children[larger.parents[n]][-1]]
    assume(youngest and (replacement or larger.max_branch <= models.vocabulary))
    without = youngest[pick % len(youngest)]
    smaller = SpeculationTree.from_paths([path for node, path in enumerate(larger.paths, 1) if node != without])
    accepted = [sampled_outcome(t, models, replacement=replacement, verifier="sequential").accepted for t in (smaller, larger)]
    assert accepted[1] >= accepted[0] - EXACT
    if larger.max_branch <= models.vocabulary:
        assert matched_outcome(larger, models).accepted >= matched_outcome(smaller, models).accepted - EXACT


@RULES
@settings(max_examples=100)
@given(case=cases())
def test_float32_agrees_with_float64(replacement: bool, case: tuple[SpeculationTree, Tables]) -> None:
    tree, models = case
    assume(replacement or tree.max_branch <= models.vocabulary)
    for verifier in VERIFIERS:
        fine = sampled_outcome(tree, models, replacement=replacement, verifier=verifier)
        coarse = sampled_outcome(tree, models.to(torch.float32), replacement=replacement, verifier=verifier)
        assert total_variation(coarse.distribution, fine.distribution) < 1e-6
        assert math.isclose(coarse.accepted, fine.accepted, abs_tol=3e-6)


@pytest.mark.parametrize(("mistake", "replacement", "verifier"), MISTAKES)
def test_mistakes_are_seen(mistake: str, replacement: bool, verifier: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"treespec.decoding.verifiers.{verifier}.residual_chain", mutant(mistake))
    tree = SpeculationTree.from_paths([(0, 0), (0, 1), (1,), (2,)])
    models = tables(4, tree.depth, 0)
    outcome = sampled_outcome(tree, models, replacement=replacement, verifier=verifier)
    assert total_variation(outcome.distribution, target_distribution(models, tree.depth + 1)) > 1e-3
