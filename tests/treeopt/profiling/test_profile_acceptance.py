"""Acceptance profiling against counting token by token, with one plain forward pass per position."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.reference.pairs import prompt_set, tiny_pair
from treeopt.profiling.acceptance import profile_acceptance
from treeopt.profiling.settings import AcceptanceSettings
from treespec.data.prompts import PromptSet
from treespec.decoding.loop import Request, decode_autoregressive
from treespec.decoding.rules import Sampling
from treespec.decoding.sampling import distribution
from treespec.errors import CapacityError, ModelError, ProfileError, SettingsError
from treespec.models.pairs import Pair

SETTINGS = AcceptanceSettings(gen_len=10, max_branch=5, batch_size=3)


@torch.inference_mode()
def counted(pair: Pair, prompts: PromptSet, settings: AcceptanceSettings) -> np.ndarray:
    """Rank sums per prompt and positions (last column), position by position."""
    sampling = settings.sampling
    rows = []
    for prompt in prompts:
        if settings.method == "on-policy":
            request = Request(prompt.ids, settings.gen_len, pair.eos_token_ids)
            text = [t for r in decode_autoregressive(pair.target, request) for t in r.tokens]
        else:
            text = list(prompt.continuation[: settings.gen_len])
        row = np.zeros(settings.max_branch + 1)
        for i in range(1, len(text)):
            ids = torch.tensor([[*prompt.ids, *text[:i]]])
            p = distribution(pair.target.module(input_ids=ids).logits[0, -1], sampling)
            ranked = pair.draft.module(input_ids=ids).logits[0, -1].topk(settings.max_branch).indices
            row[:-1] += p[ranked].double().numpy()
            row[-1] += 1
        rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize("eos", [frozenset(), frozenset(range(0, 61, 9))])
@pytest.mark.parametrize(
    "settings",
    [SETTINGS, replace(SETTINGS, method="teacher-forced"), replace(SETTINGS, method="teacher-forced", sampling=Sampling(0.8, 0.9))],
)
def test_rank_sums_are_those_counted_one_by_one(settings: AcceptanceSettings, eos: frozenset[int]) -> None:
    pair, prompts = tiny_pair(eos=eos), prompt_set(5, 6, continuation=8)
    profile = profile_acceptance(pair, prompts, settings)
    expected = counted(pair, prompts, settings)
    assert np.allclose(profile.prompt_sums, expected[:, :-1], atol=1e-5)
    assert profile.prompt_positions == tuple(expected[:, -1])
    p = expected[:, :-1].sum(0) / expected[:, -1].sum()
    assert np.allclose(profile.rank_probability, p, atol=1e-6)
    assert profile.none_accepted == pytest.approx(1 - p.sum(), abs=1e-6)
    residual = expected[:, :-1] - expected[:, -1:] * p
    assert np.allclose(profile.standard_error, np.sqrt(5 / 4 * (residual**2).sum(0)) / expected[:, -1].sum(), atol=1e-6)
    assert 0 < profile.rank_probability[0] < 1


def test_sampled_continuations_depend_on_seed_and_prompt_not_on_the_batch() -> None:
    settings = replace(SETTINGS, sampling=Sampling(1.0))
    pair, prompts = tiny_pair(), prompt_set(5)
    one = profile_acceptance(pair, prompts, settings)
    assert np.allclose(one.prompt_sums, profile_acceptance(pair, prompts, replace(settings, batch_size=1)).prompt_sums, atol=1e-5)
    assert one.prompt_sums != profile_acceptance(pair, prompts, replace(settings, seed=1)).prompt_sums


def test_an_interrupted_profile_goes_on_where_it_stopped(tmp_path: Path) -> None:
    pair, prompts, journal = tiny_pair(), prompt_set(6), tmp_path / "journal"
    settings = replace(SETTINGS, batch_size=2)
    seen: list[int] = []

    def stop(what: str, done: int, total: int) -> None:
        seen.append(done)
        if done > 2 * settings.gen_len:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        profile_acceptance(pair, prompts, settings, journal=journal, progress=stop)
    assert journal.exists()
    seen.clear()
    resumed = profile_acceptance(pair, prompts, settings, journal=journal, progress=lambda what, done, total: seen.append(done))
    assert [done for done in seen if done <= 2 * settings.gen_len] == [2 * settings.gen_len], "finished batches are not measured again"
    assert resumed.prompt_sums == profile_acceptance(pair, prompts, settings).prompt_sums
    assert journal.exists(), "kept until the caller has saved the result"


def test_what_cannot_be_measured_is_an_error() -> None:
    pair, prompts = tiny_pair(positions=12), prompt_set()
    with pytest.raises(CapacityError, match="need 15 positions, but the target model has 12"):
        profile_acceptance(pair, prompts, SETTINGS)
    with pytest.raises(ProfileError, match="`max_branch` is 62"):
        profile_acceptance(tiny_pair(), prompts, replace(SETTINGS, max_branch=62))
    with pytest.raises(ProfileError, match="no position to measure"):
        profile_acceptance(tiny_pair(), prompts, replace(SETTINGS, method="teacher-forced"))
    for changes in ({"method": "guess"}, {"gen_len": 1}, {"max_branch": 0}, {"draws": 0}):
        with pytest.raises(SettingsError):
            replace(SETTINGS, **changes)
    broken = tiny_pair()
    with torch.no_grad():
        broken.target.module.lm_head.weight[0] = float("nan")
    for method in ("on-policy", "teacher-forced"):
        for damaged, role in ((broken, "target"), (replace(tiny_pair(), draft=broken.target), "draft")):
            with pytest.raises(ModelError, match=f"the {role}'s logits are not finite"):
                profile_acceptance(damaged, prompt_set(2, 6, 8), replace(SETTINGS, method=method))
