"""Training losses against sums over single positions in numpy, and their gradients against the textbook's."""

import numpy as np
import pytest
import torch

from treeopt.training import losses
from treeopt.training.losses import IGNORED, Loss, summed_loss

ROWS, VOCABULARY = 11, 7


@pytest.fixture
def case() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draft logits, target logits, labels; three positions do not count."""
    generator = torch.Generator().manual_seed(3)
    draft, target = (3 * torch.randn(ROWS, VOCABULARY, generator=generator) for _ in range(2))
    labels = torch.randint(0, VOCABULARY, (ROWS,), generator=generator)
    labels[[0, 4, 10]] = IGNORED
    return draft, target, labels


def softmax(logits: np.ndarray, temperature: float) -> np.ndarray:
    weights = np.exp(logits.astype(np.float64) / temperature)
    return weights / weights.sum()


def by_hand(loss: Loss, draft: np.ndarray, target: np.ndarray, labels: np.ndarray, temperature: float) -> float:
    """The sum, one probability at a time."""
    total = 0.0
    for d, t, label in zip(draft, target, labels, strict=True):
        if label == IGNORED:
            continue
        if loss == "ce":
            total -= np.log(softmax(d, 1.0)[label])
            continue
        q, p = softmax(d, temperature), softmax(t, temperature)
        total += sum(a * np.log(a / b) for a, b in (zip(p, q, strict=True) if loss == "forward-kl" else zip(q, p, strict=True)))
    return total


@pytest.mark.parametrize("rows_at_once", [1, 4, 64])
@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
@pytest.mark.parametrize("loss", ["ce", "forward-kl", "reverse-kl"])
def test_losses_are_the_sums_over_counted_positions(
    case: tuple[torch.Tensor, ...], loss: Loss, temperature: float, rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "_LOGITS_AT_ONCE", rows_at_once * VOCABULARY)
    draft, target, labels = case
    found = summed_loss(loss, draft, labels, None if loss == "ce" else target, temperature)
    assert float(found) == pytest.approx(by_hand(loss, draft.numpy(), target.numpy(), labels.numpy(), temperature), rel=1e-5)


@pytest.mark.parametrize("rows_at_once", [3, 64])
def test_gradients_are_those_of_the_textbook(case: tuple[torch.Tensor, ...], rows_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """d KL(p, q) = (q - p) / T; d KL(q, p) = q (log q/p - KL(q, p)) / T; d CE = q - onehot; 0 where nothing counts."""
    monkeypatch.setattr(losses, "_LOGITS_AT_ONCE", rows_at_once * VOCABULARY)
    draft, target, labels = case
    temperature, counts = 0.7, (labels != IGNORED)[:, None].numpy()
    p, q = (np.stack([softmax(row, temperature) for row in logits.numpy()]) for logits in (target, draft))
    ratio = np.log(q / p)
    one = np.eye(VOCABULARY)[labels.clamp(min=0).numpy()]
    expected = {
        "forward-kl": (q - p) / temperature,
        "reverse-kl": q * (ratio - (q * ratio).sum(1, keepdims=True)) / temperature,
        "ce": np.stack([softmax(row, 1.0) for row in draft.numpy()]) - one,
    }
    for loss, wanted in expected.items():
        leaf = draft.clone().requires_grad_()
        summed_loss(loss, leaf, labels, None if loss == "ce" else target, temperature).backward()  # type: ignore[arg-type,no-untyped-call]
        assert leaf.grad is not None
        assert np.allclose(leaf.grad.numpy(), wanted * counts, atol=1e-6), loss


def test_a_draft_that_equals_its_target_has_no_divergence_left(case: tuple[torch.Tensor, ...]) -> None:
    draft, _, labels = case
    for loss in ("forward-kl", "reverse-kl"):
        assert float(summed_loss(loss, draft, labels, draft + 5.0)) == pytest.approx(0.0, abs=1e-5)
