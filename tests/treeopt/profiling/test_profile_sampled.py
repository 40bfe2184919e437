"""Profiles of sampled drafting: against residuals written out token by token, and against what decoding accepted."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.visited import _p_value, visited_acceptance
from tests.reference.pairs import prompt_set, tiny_pair
from treeopt.profiles.acceptance import read_acceptance
from treeopt.profiling.acceptance import profile_acceptance
from treeopt.profiling.chances import sampled_chances
from treeopt.profiling.settings import AcceptanceSettings
from treespec.decoding.drafting import Drafting
from treespec.decoding.rules import Sampling
from treespec.errors import ProfileError
from treespec.evaluation.runner import evaluate
from treespec.evaluation.settings import EvaluationSettings
from treespec.trees.tree import SpeculationTree

SETTINGS = AcceptanceSettings(gen_len=12, max_branch=4, batch_size=3, sampling=Sampling(1.0))
TREE = SpeculationTree.from_branches([[3], [2, 1, 0], [2, 1, 1]])


def streams(count: int, seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed + i) for i in range(count)]


def rank_chances_by_hand(p: Tensor, q: Tensor, ranks: int, *, replacement: bool) -> np.ndarray:
    """Exact: every sequence of children, with the target's and the draft's distribution renewed after each rejection."""
    found = np.zeros(ranks)
    for children in product(range(len(p)), repeat=ranks):
        target, draft, chance, reached = p.double(), q.double(), 1.0, 1.0
        for rank, token in enumerate(children):
            if draft.sum() <= 0 or draft[token] <= 0:
                chance = 0.0
                break
            draft = draft / draft.sum()
            chance *= float(draft[token])
            accept = min(1.0, float(target[token] / draft[token]))
            # all continuations share this term: they add up to the chance of the children so far
            found[rank] += chance * reached * accept * float(len(p)) ** -(ranks - rank - 1)
            reached *= 1 - accept
            left = (target - draft).clamp_min(0)
            target = left / left.sum() if left.sum() > 0 else target
            if not replacement:
                draft = draft.clone()
                draft[token] = 0
    return found


@pytest.mark.parametrize("replacement", [False, True])
def test_chances_are_those_of_residuals_written_out(replacement: bool) -> None:
    p = torch.tensor([[0.5, 0.3, 0.0, 0.2], [0.25, 0.25, 0.25, 0.25], [0.0, 0.0, 1.0, 0.0]])
    q = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1], [0.4, 0.4, 0.1, 0.1]])
    draws = 40_000
    many = (x.repeat_interleave(draws, 0)[None] for x in (p, q))
    found = sampled_chances(*many, 3, 1, streams(1), replacement=replacement).view(len(p), draws, 3).mean(1).numpy()
    for row in range(len(p)):
        wanted = rank_chances_by_hand(p[row], q[row], 3, replacement=replacement)
        assert np.allclose(found[row], wanted, atol=4 * np.sqrt(0.25 / draws))
        assert wanted[0] == pytest.approx(float(torch.minimum(p[row], q[row]).sum()))


@pytest.mark.parametrize("rule", ["swor", "swr"])
def test_draws_belong_to_the_prompt_not_to_the_batch(rule: str) -> None:
    settings = replace(SETTINGS, drafting=Drafting(rule), draws=3)  # type: ignore[arg-type]
    pair, prompts = tiny_pair(), prompt_set(5)
    one = profile_acceptance(pair, prompts, settings)
    assert np.allclose(one.prompt_sums, profile_acceptance(pair, prompts, replace(settings, batch_size=1)).prompt_sums, atol=1e-4)
    assert one.prompt_sums != profile_acceptance(pair, prompts, replace(settings, seed=1)).prompt_sums
    assert 0 < one.none_accepted < 1
    assert all(error > 0 for error in one.standard_error)


def test_at_temperature_0_swor_is_topk_and_swr_copies_the_argmax() -> None:
    pair, prompts, greedy = tiny_pair(), prompt_set(4), replace(SETTINGS, sampling=Sampling(0.0))
    topk = profile_acceptance(pair, prompts, greedy)
    assert profile_acceptance(pair, prompts, replace(greedy, drafting=Drafting("swor"))).prompt_sums == topk.prompt_sums
    copies = profile_acceptance(pair, prompts, replace(greedy, drafting=Drafting("swr")))
    assert copies.rank_probability == (pytest.approx(topk.rank_probability[0]), 0, 0, 0)


def test_the_draft_has_a_temperature_of_its_own(tmp_path) -> None:  # type: ignore[no-untyped-def]
    pair, prompts, settings = tiny_pair(), prompt_set(4), replace(SETTINGS, drafting=Drafting("swor"), draws=2)
    own = profile_acceptance(pair, prompts, replace(settings, drafting=Drafting("swor", 0.3)))
    assert own.rank_probability != profile_acceptance(pair, prompts, settings).rank_probability
    own.write(tmp_path / "a.json")
    assert read_acceptance(tmp_path / "a.json") == own
    assert (own.draft_temperature, own.draws) == (0.3, 2)


def test_more_ranks_than_tokens_are_for_replacement_only() -> None:
    pair, prompts = tiny_pair(), prompt_set(2)
    wide = replace(SETTINGS, max_branch=70, draws=1)
    assert len(profile_acceptance(pair, prompts, replace(wide, drafting=Drafting("swr"))).rank_probability) == 70
    with pytest.raises(ProfileError, match="`max_branch` is 70"):
        profile_acceptance(pair, prompts, replace(wide, drafting=Drafting("swor")))


@pytest.mark.parametrize("rule", ["topk", "swor", "swr"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_profiled_and_observed_ranks_agree_on_visited_contexts(rule: str, temperature: float) -> None:
    pair, prompts = tiny_pair(), prompt_set(16)
    settings = AcceptanceSettings(Sampling(temperature), Drafting(rule), gen_len=40, max_branch=3, draws=32)
    run = EvaluationSettings(gen_len=40, sampling=settings.sampling, drafting=settings.drafting, save_tokens=True)
    results = evaluate(pair, TREE, prompts, run).results
    found = visited_acceptance(pair, TREE, prompts, results, settings)
    assert found.visits >= 16 * 10
    if temperature == 0:
        assert found.observed == tuple(round(x) for x in found.expected)
        assert found.expected == pytest.approx(found.observed, abs=1e-6)
        assert found.p_value == 1
    else:
        assert found.p_value > 1e-3
    wrong = "swr" if rule == "topk" or (rule, temperature) == ("swor", 0.0) else "topk"
    other = visited_acceptance(pair, TREE, prompts, results, replace(settings, drafting=Drafting(wrong)))
    assert other.p_value < 1e-3, "the profile of another rule fits as well: the test could not fail"


def test_rare_ranks_do_not_fake_a_difference() -> None:
    """Poisson counts, most of them expected far below 1: p-values of true profiles are uniform, and a wrong profile is still seen."""
    expected = np.array([400.0, 60, 20, 8, *[0.3] * 30])
    generator = np.random.default_rng(0)
    found = [_p_value(generator.poisson(expected).astype(float), expected, np.diag(expected)) for _ in range(2000)]
    assert abs(np.mean(np.array(found) < 0.01) - 0.01) < 0.01
    assert abs(np.mean(np.array(found) < 0.1) - 0.1) < 0.03
    wrong = expected * np.array([0.8, 2.0, *[1.0] * 32])
    assert max(_p_value(generator.poisson(wrong).astype(float), expected, np.diag(expected)) for _ in range(50)) < 1e-3
    rare = np.where(np.arange(34) == 20, 0.0, expected)  # rank 20 cannot be accepted, and it was
    assert _p_value(expected, rare, np.diag(rare)) == 0
