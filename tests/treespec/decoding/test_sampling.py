"""Sampling: distributions against a scalar reference, streams, limits."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from treespec.decoding.rules import Sampling
from treespec.decoding.sampling import choose, distribution, prompt_generator
from treespec.errors import TreeoptError
from treespec.kernels.plain import top_tokens


def reference(logits: list[float], temperature: float, top_p: float) -> list[float]:
    weights = [math.exp((x - max(logits)) / temperature) for x in logits]
    probabilities = [w / sum(weights) for w in weights]
    order = sorted(range(len(logits)), key=lambda i: -probabilities[i])
    kept, mass = [], 0.0
    for token in order:
        if mass < top_p:
            kept.append(token)
        mass += probabilities[token]
    total = sum(probabilities[t] for t in kept)
    return [probabilities[t] / total if t in kept else 0.0 for t in range(len(logits))]


@given(
    st.lists(st.floats(-5, 5).map(lambda x: round(x, 2)), min_size=1, max_size=8, unique=True),
    st.sampled_from([0.2, 0.6, 1.0, 3.0]),
    st.sampled_from([1e-9, 0.3, 0.87, 1.0]),
)
def test_distribution_is_temperature_then_top_p(logits: list[float], temperature: float, top_p: float) -> None:
    found = distribution(torch.tensor([logits], dtype=torch.float64), Sampling(temperature, top_p))[0]
    assert found.tolist() == pytest.approx(reference(logits, temperature, top_p), abs=1e-12)


def test_greedy_is_the_first_largest_logit() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0], [2.0, -math.inf, 0.0]])
    assert distribution(logits, Sampling()).tolist() == [[0, 1, 0], [1, 0, 0]]
    assert choose(logits, Sampling(), None).tolist() == [1, 0]


def test_impossible_tokens_are_never_drawn() -> None:
    logits = torch.tensor([[0.0, -math.inf, 1.0, -math.inf]]).expand(2000, 4)
    drawn = choose(logits, Sampling(1.0), prompt_generator(0, 0, "cpu"))
    assert set(drawn.tolist()) == {0, 2}
    one = choose(torch.randn(50, 9, generator=torch.Generator().manual_seed(0)), Sampling(1.0, 1e-6), prompt_generator(0, 0, "cpu"))
    assert one.tolist() == torch.randn(50, 9, generator=torch.Generator().manual_seed(0)).argmax(-1).tolist()


def test_streams_depend_on_seed_and_prompt_alone() -> None:
    def first(seed: int, index: int) -> float:
        return float(torch.rand((), generator=prompt_generator(seed, index, "cpu")))

    assert first(0, 1) == first(0, 1)
    assert len({first(s, i) for s in range(4) for i in range(4)}) == 16


@pytest.mark.parametrize(("temperature", "top_p"), [(-0.1, 1.0), (math.nan, 1.0), (math.inf, 1.0), (1.0, 0.0), (1.0, 1.1), (1.0, math.nan)])
def test_limits(temperature: float, top_p: float) -> None:
    with pytest.raises(TreeoptError, match="must"):
        Sampling(temperature, top_p)


@pytest.mark.parametrize("temperature", [1e-320, 1e-40, 1e-20, 1e-8])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_tiny_temperatures_become_greedy_not_nan(temperature: float, dtype: torch.dtype) -> None:
    logits = torch.tensor([[3.0, 2.0, float("-inf")], [-60000.0, 60000.0, 0.0], [1.0, 1.0, 0.0]], dtype=dtype)
    found = distribution(logits, Sampling(temperature))
    assert found.tolist() == [[1, 0, 0], [0, 1, 0], [0.5, 0.5, 0]]


def test_huge_temperatures_become_uniform_not_nan() -> None:
    assert distribution(torch.tensor([0.0, 1.0, float("-inf")]), Sampling(1e39)).tolist() == [0.5, 0.5, 0]


@given(seed=st.integers(0, 10**6), vocabulary=st.integers(2, 40), levels=st.integers(1, 12), data=st.data())
def test_on_the_cpu_the_largest_are_those_of_a_stable_sort(seed: int, vocabulary: int, levels: int, data: st.DataObject) -> None:
    """Most logits tie, so that which tokens are the largest, and in which order, is decided by ties."""
    count = data.draw(st.integers(1, vocabulary))
    logits = torch.randint(levels, (3, vocabulary), generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16)
    logits[0, seed % vocabulary] = data.draw(st.sampled_from([1.0, float("inf"), float("-inf"), float("nan")]))
    values, tokens = top_tokens(logits, count)
    ordered = logits.sort(dim=-1, descending=True, stable=True)
    torch.testing.assert_close(tokens, ordered.indices[:, :count])
    torch.testing.assert_close(values, ordered.values[:, :count], equal_nan=True)
