"""Tokens drawn without replacement in two launches, against the race that defines them, and by their frequencies."""

import pytest
import torch
from torch import Tensor

from treespec.kernels.racing import race, race_by_weight, race_children, reference_race
from treespec.kernels.vocabulary import TILE

pytestmark = [pytest.mark.usefixtures("poison"), pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")]
INF, NAN = float("inf"), float("nan")


def logits_of(rows: int, vocabulary: int, dtype: torch.dtype, device: str, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, vocabulary, generator=generator) * 4).to(dtype).to(device)


def seed_of(number: int, device: str) -> Tensor:
    return torch.tensor([number], device=device)


def agree(logits: Tensor, count: int, temperature: float, seed: int) -> Tensor:
    tokens, largest = race(logits, count, temperature, seed_of(seed, str(logits.device)))
    expected, top = reference_race(logits, count, temperature, seed)
    assert (tokens.shape, tokens.dtype, largest.dtype) == (expected.shape, torch.int64, torch.float32)
    assert tokens.tolist() == expected.tolist()
    assert torch.equal(largest, top)
    return tokens


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("count", [1, 3, 17, 64])
@pytest.mark.parametrize("vocabulary", [5, 1000, TILE + 1])
def test_the_order_is_the_reference_s(vocabulary: int, count: int, dtype: torch.dtype, device: str) -> None:
    agree(logits_of(2, vocabulary, dtype, device), min(count, vocabulary), 0.6, 1 + count)


@pytest.mark.parametrize("temperature", [1e-30, 1e-3, 1.0, 20.0])
def test_every_temperature(temperature: float, device: str) -> None:
    agree(logits_of(2, 5000, torch.float32, device), 8, temperature, 9)


def test_the_size_of_a_model(device: str) -> None:
    agree(logits_of(1, 32_000, torch.float16, device), 24, 0.8, 5)


def test_rows_apart(device: str) -> None:
    """The logits that a draft shares with its target are the first columns of wider rows."""
    agree(logits_of(3, 700, torch.float16, device)[:, :513], 6, 1.0, 2)


def test_a_cold_race_gives_the_most_likely_tokens_in_order(device: str) -> None:
    logits = torch.randperm(3000, generator=torch.Generator().manual_seed(0)).float()[None].to(device)
    assert race(logits, 9, 1e-6, seed_of(3, device))[0].tolist() == logits.topk(9).indices.tolist()


def test_impossible_tokens_come_last(device: str) -> None:
    logits = torch.full((2, 2 * TILE + 10), -INF, device=device)
    logits[0, 7], logits[0, TILE + 3], logits[1, 2 * TILE + 9] = 2.0, 5.0, -4.0
    tokens = race(logits, 3, 1.0, seed_of(0, device))[0].tolist()
    assert set(tokens[0][:2]) == {7, TILE + 3}
    assert tokens[1][0] == 2 * TILE + 9


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_damaged_rows_give_tokens_of_the_vocabulary_and_show_it(bad: float, device: str) -> None:
    logits = logits_of(3, 3000, torch.float32, device)
    logits[1] = bad
    logits[2, 2999] = NAN
    tokens, largest = race(logits, 5, 1.0, seed_of(0, device))
    assert bool(((tokens >= 0) & (tokens < 3000)).all())
    assert largest.isfinite().tolist() == [True, False, False]


def test_children_go_to_their_places_and_nothing_else_is_written(device: str) -> None:
    logits = logits_of(3, 1500, torch.float16, device)
    first, children = torch.tensor([4, 0, 9], device=device), torch.tensor([3, 0, 5], device=device)
    tokens, largest = torch.full((20,), -7, device=device), torch.full((3,), -7.0, device=device)
    race_children(logits, 5, 0.7, seed_of(11, device), (first, children), tokens, largest)
    expected, tops = reference_race(logits, 5, 0.7, 11)
    wanted = [-7] * 20
    wanted[4:7], wanted[9:14] = expected[0, :3].tolist(), expected[2].tolist()
    assert tokens.tolist() == wanted
    assert torch.equal(largest, tops)


def test_frequencies_of_the_reference() -> None:
    """Over many rows, the first token has the distribution of the softmax, and the second that of what is left."""
    chances, rows = torch.tensor([0.5, 0.25, 0.15, 0.1, 0.0]), 1500
    drawn = reference_race(chances.log()[None].expand(rows, -1), 2, 1.0, 1)[0]
    pairs = torch.bincount(drawn[:, 0] * 5 + drawn[:, 1], minlength=25).view(5, 5).double() / rows
    wanted = chances[:, None] * chances / (1 - chances[:, None])
    wanted.fill_diagonal_(0.0)
    assert float((pairs - wanted).abs().max()) < 5 * (0.25 / rows) ** 0.5
    assert float(pairs[4].sum()) == 0


def test_by_weight(device: str) -> None:
    """Weights that are not normalised give the same race as their logarithms."""
    weights = 7 * torch.rand(3, 3000, generator=torch.Generator().manual_seed(0)).to(device) ** 4
    weights[:, ::3] = 0.0
    for seed in range(4):
        expected = reference_race(weights.log(), 1, 1.0, seed)[0]
        assert race_by_weight(weights, seed_of(seed, device)).tolist() == expected[:, 0].tolist()


@pytest.mark.gpu
def test_frequencies() -> None:
    chances, rows = torch.tensor([0.5, 0.25, 0.15, 0.1, 0.0]), 40_000
    logits = chances.log()[None].expand(rows, -1).contiguous().cuda()
    for firsts in (race_by_weight(7 * logits.exp(), seed_of(1, "cuda")).cpu(), race(logits, 2, 1.0, seed_of(2, "cuda"))[0][:, 0].cpu()):
        found = torch.bincount(firsts, minlength=5).double() / rows
        assert float((found - chances).abs().max()) < 5 * (0.25 / rows) ** 0.5
        assert float(found[4]) == 0
