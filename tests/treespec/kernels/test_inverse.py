"""Tokens drawn with replacement in two launches, against the inverse distribution that defines them."""

import pytest
import torch
from torch import Tensor

from treespec.kernels.inverse import draw_children, reference_inverse
from treespec.kernels.vocabulary import TILE

pytestmark = [pytest.mark.usefixtures("poison"), pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")]
INF, NAN = float("inf"), float("nan")


def drawn(logits: Tensor, count: int, temperature: float, seed: int) -> tuple[Tensor, Tensor]:
    rows, device = logits.shape[0], logits.device
    first = torch.arange(rows, device=device) * count
    children = torch.full((rows,), count, device=device)
    tokens, largest = torch.full((rows * count,), -7, device=device), torch.full((rows,), -7.0, device=device)
    draw_children(logits, count, temperature, torch.tensor([seed], device=device), (first, children), tokens, largest)
    return tokens.view(rows, count), largest


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("temperature", [1e-3, 0.6, 2.0])
@pytest.mark.parametrize("vocabulary", [1, 5, 1000, TILE + 1])
def test_the_tokens_are_the_reference_s(vocabulary: int, temperature: float, dtype: torch.dtype, device: str) -> None:
    logits = (torch.randn(3, vocabulary, generator=torch.Generator().manual_seed(1)) * 3).to(dtype).to(device)
    tokens, largest = drawn(logits, 9, temperature, 77)
    assert tokens.tolist() == reference_inverse(logits, 9, temperature, 77).tolist()
    assert torch.equal(largest, logits.float().amax(-1))


def test_only_children_are_written(device: str) -> None:
    logits = torch.randn(3, 300, device=device)
    tokens, largest = torch.full((9,), -7, device=device), torch.zeros(3, device=device)
    ranges = torch.tensor([5, 0, 1], device=device), torch.tensor([2, 0, 3], device=device)
    draw_children(logits, 3, 1.0, torch.tensor([5], device=device), ranges, tokens, largest)
    expected = reference_inverse(logits, 3, 1.0, 5).tolist()
    assert tokens.tolist() == [-7, *expected[2], -7, *expected[0][:2], -7, -7]


def test_tokens_without_weight_are_never_drawn(device: str) -> None:
    logits = torch.full((1, 3 * TILE), -INF, device=device)
    logits[0, TILE + 5], logits[0, 3 * TILE - 1] = 0.0, 1.0
    found = set(drawn(logits, 40, 1.0, 3)[0].flatten().tolist())
    assert found == {TILE + 5, 3 * TILE - 1}


def test_frequencies_of_the_reference() -> None:
    chances = torch.tensor([0.5, 0.3, 0.15, 0.05, 0.0])
    tokens = reference_inverse(chances.log()[None], 4000, 1.0, 12)
    found = torch.bincount(tokens[0], minlength=5).double() / 4000
    assert float((found - chances).abs().max()) < 5 * (0.25 / 4000) ** 0.5
    assert float(found[4]) == 0


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_damaged_rows_give_tokens_of_the_vocabulary_and_show_it(bad: float, device: str) -> None:
    logits = torch.randn(2, 2500, device=device)
    logits[1] = bad
    tokens, largest = drawn(logits, 4, 1.0, 1)
    assert bool(((tokens >= 0) & (tokens < 2500)).all())
    assert largest.isfinite().tolist() == [True, False]
