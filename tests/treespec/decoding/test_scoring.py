"""Scores of whole texts: a model without any of its own is read slot by slot."""

import pytest
import torch

from tests.reference.pairs import tiny_pair
from tests.reference.tabular import TabularModel, random_rule
from treespec.decoding.protocol import ScoringModel
from treespec.decoding.scoring import score

TEXTS = torch.tensor([[1, 2, 3, 4], [5, 0, 2, 2]])


@pytest.mark.parametrize("keep_from", [0, 1, 3])
def test_a_model_without_scores_is_read_slot_by_slot(keep_from: int) -> None:
    rule = random_rule(7, 0)
    model = TabularModel(7, rule)
    assert not isinstance(model, ScoringModel)
    expected = [[rule(tuple(text[: i + 1])) for i in range(keep_from, 4)] for text in TEXTS.tolist()]
    assert torch.equal(score(model, TEXTS, keep_from), torch.tensor(expected))


@torch.inference_mode()
def test_slots_give_the_scores_of_a_model_that_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_pair().target
    assert isinstance(model, ScoringModel)
    own = score(model, TEXTS, 1)
    monkeypatch.setattr("treespec.decoding.scoring.ScoringModel", TabularModel)  # whose instance the model is not
    assert torch.allclose(score(model, TEXTS, 1), own, atol=1e-4)
