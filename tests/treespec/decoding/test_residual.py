"""The residual chain of many nodes at once, against one node at a time as the papers state it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.reference.chains import plain_chain
from treespec.decoding.verifiers.residual import residual_chain

RULES = pytest.mark.parametrize("replacement", [False, True], ids=["swor", "swr"])


def rows(draw: st.DrawFn, count: int, vocabulary: int) -> torch.Tensor:
    """Distributions of small whole weights: zeros and ties are frequent, one-token supports occur."""
    weights = st.lists(st.sampled_from([0, 0, 1, 1, 2, 5]), min_size=vocabulary, max_size=vocabulary).filter(any)
    found = torch.tensor([draw(weights) for _ in range(count)], dtype=torch.float64)
    return found / found.sum(1, keepdim=True)


@st.composite
def families(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, list[int]]:
    """(p, q, tokens, weight, active): nodes with fewer and fewer children; p equals q now and then."""
    vocabulary, nodes = draw(st.integers(2, 5)), draw(st.integers(1, 3))
    p = rows(draw, nodes, vocabulary)
    q = p.clone() if draw(st.booleans()) else rows(draw, nodes, vocabulary)
    counts = sorted((draw(st.integers(0, vocabulary)) for _ in range(nodes)), reverse=True)
    tokens = torch.tensor([draw(st.permutations(range(vocabulary))) for _ in range(nodes)])[:, : counts[0]]
    weight = torch.tensor([draw(st.sampled_from([1.0, 0.5, 0.03, 0.0])) for _ in range(nodes)], dtype=torch.float64)
    return p, q, tokens, weight, [sum(count > rank for count in counts) for rank in range(counts[0])]


@RULES
@given(family=families(), repeat=st.booleans())
def test_chains_are_those_of_the_papers(
    replacement: bool, family: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, list[int]], repeat: bool
) -> None:
    p, q, tokens, weight, active = family
    if replacement and repeat:
        tokens = tokens[:, :1].expand_as(tokens)
    found = residual_chain(p, q, tokens, active, weight, replacement=replacement)
    rest = torch.addcmul(p, q, found.cut[:, None], value=-1).clamp_min(0)
    for row in range(len(p)):
        count = sum(rows > row for rows in active)
        if not replacement:
            rest[row, [token for token in tokens[row, :count].tolist() if q[row, token] == 0]] = 0
        expected = plain_chain(p[row].tolist(), q[row].tolist(), tokens[row, :count].tolist(), float(weight[row]), replacement=replacement)
        certain = False
        for rank, chance in enumerate(expected.accept):
            if not certain:  # what follows a child that is surely accepted never happens
                assert float(found.accept[row, rank]) == pytest.approx(chance, abs=1e-12)
            certain |= chance >= 1 - 1e-12
        if not certain and expected.weight > 1e-9:
            assert (rest[row] / rest[row].sum()).tolist() == pytest.approx(expected.residual, abs=1e-9)
            assert float(found.weight[row]) == pytest.approx(expected.weight, abs=1e-9)


@RULES
@given(family=families())
def test_no_weights_are_weights_of_one(
    replacement: bool, family: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, list[int]]
) -> None:
    p, q, tokens, weight, active = family
    bare = residual_chain(p, q, tokens, active, None, replacement=replacement)
    ones = residual_chain(p, q, tokens, active, torch.ones_like(weight), replacement=replacement)
    assert torch.equal(bare.accept, ones.accept)
    assert torch.equal(bare.cut, ones.cut)


@RULES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(family=families())
def test_chances_stay_chances_in_every_precision(
    replacement: bool, dtype: torch.dtype, family: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, list[int]]
) -> None:
    p, q, tokens, weight, active = family
    found = residual_chain(p.to(dtype), q.to(dtype), tokens, active, weight.to(dtype), replacement=replacement)
    for value in (found.accept, found.weight):
        assert value.dtype == dtype
        assert ((value >= 0) & (value <= 1)).all()  # and no NaN
    assert found.cut.isfinite().all()
    rest = torch.addcmul(p.to(dtype), q.to(dtype), found.cut[:, None], value=-1).clamp_min(0)
    assert (rest.sum(1) > 0).all(), "something is always left to draw from"


def test_inputs_are_left_alone() -> None:
    p, q = torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([[0.2, 0.7, 0.1]])
    weight = torch.tensor([0.5])
    residual_chain(p, q, torch.tensor([[1, 0]]), [1, 1], weight, replacement=False)
    assert p.tolist() == torch.tensor([[0.5, 0.3, 0.2]]).tolist()
    assert q.tolist() == torch.tensor([[0.2, 0.7, 0.1]]).tolist()
    assert weight.tolist() == [0.5]


def test_little_mass_behind_a_confident_draft_stays_exact_in_float32() -> None:
    """The second child carries all of what is left of the draft, however little that is."""
    small = 1e-6
    q = torch.tensor([[1 - 3 * small, small, 2 * small]])
    p = torch.tensor([[0.1, 0.6, 0.3]])
    found = residual_chain(p, q, torch.tensor([[0, 1, 2]]), [1, 1, 1], None, replacement=False)
    exact = residual_chain(p.double(), q.double(), torch.tensor([[0, 1, 2]]), [1, 1, 1], None, replacement=False)
    assert found.accept[0].tolist() == pytest.approx(exact.accept[0].tolist(), abs=1e-4)


def test_the_mass_behind_a_very_sharp_draft_is_exact() -> None:
    """Children of almost all of q's mass: what is left, 3e-18, is beyond what subtracting from 1 could tell."""
    q = torch.tensor([[1.0, 1e-6, 1e-12, 2e-18, 1e-18]], dtype=torch.float64)
    p = torch.tensor([[0.0, 0.0, 0.0, 0.25, 0.75]], dtype=torch.float64)
    chain = residual_chain(p, q, torch.tensor([[0, 1, 2, 3]]), (1, 1, 1, 1), None, replacement=False)
    assert chain.accept[0].tolist() == pytest.approx([0, 0, 0, 0.25 / (2 / 3)], rel=1e-5)  # earlier rejections take 2e-6 off p
    rest = (p - chain.cut[:, None] * q).clamp_min(0)[0]
    assert (rest / rest.sum()).tolist() == pytest.approx([0, 0, 0, 0, 1])
