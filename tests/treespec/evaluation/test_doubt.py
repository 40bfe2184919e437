"""A draft is doubted where it hardly ever agrees with the target, and not where it is weak."""

import pytest
import torch

from tests.reference.pairs import VOCABULARY, prompt_set, tiny_pair
from treespec.evaluation.doubt import is_doubtful
from treespec.evaluation.runner import evaluate
from treespec.evaluation.settings import EvaluationSettings
from treespec.trees.tree import SpeculationTree


@pytest.mark.parametrize(
    ("agreed", "positions", "vocabulary", "doubtful"),
    [
        (0, 512, 32_000, True),
        (3, 512, 32_000, True),
        (0, 200, 32_000, False),  # too few to say
        (0, 0, 32_000, False),
        (20, 512, 32_000, False),  # 4 %: which tokens are frequent
        (4_000, 100_000, 128_000, False),
        (1_000, 100_000, 128_000, True),
        (5, 512, 100, True),  # chance
        (30, 512, 100, False),
        (60, 512, 10, False),  # chance, but so is a weak draft
    ],
)
def test_agreement_below_any_weak_drafts_is_doubtful(agreed: float, positions: int, vocabulary: int, doubtful: bool) -> None:
    assert is_doubtful(agreed, positions, vocabulary) is doubtful


@pytest.mark.parametrize("noise", [0.12, None])
def test_a_permuted_draft_is_doubted_and_a_noisy_one_is_not(noise: float | None) -> None:
    pair = tiny_pair(noise or 0.0)
    if noise is None:
        weight = pair.draft.module.lm_head.weight
        with torch.no_grad():
            weight.copy_(weight.roll(1, 0))  # it always chooses the token beside the target's
    report = evaluate(pair, SpeculationTree.k_ary(1, 1), prompt_set(10), EvaluationSettings(gen_len=24))
    assert is_doubtful(*report.first_choices, VOCABULARY) is (noise is None)
