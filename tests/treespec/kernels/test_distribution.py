"""Distributions of rows, with temperature and top-p, against sorts."""

import pytest
import torch
from torch import Tensor

from treespec.kernels.distribution import distribution, reference_distribution
from treespec.kernels.vocabulary import TILE

pytestmark = [pytest.mark.usefixtures("poison"), pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")]
INF, NAN = float("inf"), float("nan")


def logits_of(rows: int, vocabulary: int, device: str, *, levels: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random logits; with `levels`, of so few values per unit that many are equal."""
    drawn = torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(vocabulary)) * 4
    return ((drawn * levels).round() / levels if levels else drawn).to(dtype).to(device)


def agree(logits: Tensor, temperature: float, top_p: float = 1.0) -> Tensor:
    found, largest = distribution(logits, temperature, top_p)
    expected = reference_distribution(logits, temperature, top_p)
    assert (found.shape, found.dtype) == (expected.shape, torch.float32)
    assert torch.equal(found > 0, expected > 0)
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=1e-9)
    torch.testing.assert_close(found.sum(1), torch.ones_like(largest), rtol=1e-5, atol=0)
    assert torch.equal(largest, logits.float().amax(-1))
    return found


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("vocabulary", [1, 5, 1000, TILE, TILE + 1])
def test_softmax(vocabulary: int, dtype: torch.dtype, device: str) -> None:
    for temperature in (0.6, 3.0):
        agree(logits_of(3, vocabulary, device, dtype=dtype), temperature)


@pytest.mark.parametrize("temperature", [1e-30, 1e-3, 1e30])
def test_extreme_temperatures(temperature: float, device: str) -> None:
    agree(logits_of(2, 100, device), temperature)


@pytest.mark.parametrize("levels", [0, 3])
@pytest.mark.parametrize("top_p", [0.95, 0.5, 0.01, 1e-9, 1e-300])
@pytest.mark.parametrize("vocabulary", [1, 5, 1000, 9000])
def test_the_nucleus(vocabulary: int, top_p: float, levels: int, device: str) -> None:
    """Among equal probabilities at the edge, the smaller tokens stay."""
    agree(logits_of(2, vocabulary, device, levels=levels), 1.0, top_p)


def test_a_nucleus_of_equals(device: str) -> None:
    found = agree(torch.zeros(1, 5000, device=device), 1.0, 0.30005)
    assert found.nonzero()[:, 1].tolist() == list(range(1501))


def test_impossible_tokens(device: str) -> None:
    logits = torch.full((1, 2 * TILE), -INF, device=device)
    logits[0, 3], logits[0, 17] = 1.0, 2.0
    assert agree(logits, 1.0).nonzero()[:, 1].tolist() == [3, 17]


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_damage_shows_in_the_largest_logit(bad: float, device: str) -> None:
    logits = logits_of(2, 2500, device)
    logits[1] = bad
    for top_p in (1.0, 0.5):
        found, largest = distribution(logits, 1.0, top_p)
        assert largest.isfinite().tolist() == [True, False]
        torch.testing.assert_close(found[0], reference_distribution(logits[:1], 1.0, top_p)[0], rtol=2e-5, atol=1e-9)
