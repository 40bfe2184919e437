"""Draft potential against numpy and scipy, position by position, from one plain forward pass each."""

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax

from tests.reference.pairs import VOCABULARY, prompt_set, tiny_pair
from treeopt.profiles.potential import MEASURES, DraftPotential, PotentialReport, chain_tokens_per_step, read_potential
from treeopt.profiling import potential, texts
from treeopt.profiling.potential import TargetSide, measure_potential
from treeopt.profiling.settings import PotentialSettings
from treespec.data.prompts import Prompt, PromptSet
from treespec.decoding.loop import Request, decode_autoregressive
from treespec.decoding.rules import Sampling
from treespec.decoding.sampling import prompt_generator
from treespec.errors import CapacityError, ModelError, ProfileError, SettingsError
from treespec.models.pairs import Pair
from treespec.models.tree_model import TreeModel

SETTINGS = PotentialSettings(gen_len=8, batch_size=2)


def named(noise: float, name: str) -> TreeModel:
    draft = tiny_pair(noise=noise).draft
    draft.name = name
    return draft


def nucleus(p: np.ndarray, top_p: float) -> np.ndarray:
    """The least set of most likely tokens whose mass reaches top_p, token by token."""
    kept, mass = np.zeros_like(p), 0.0
    for token in np.argsort(-p, kind="stable"):
        if mass >= top_p:
            break
        kept[token] = p[token]
        mass += p[token]
    return kept / kept.sum()


@torch.inference_mode()
def counted(pair: Pair, draft: TreeModel, prompts: PromptSet, settings: PotentialSettings) -> tuple[dict[str, np.ndarray], list[int]]:
    """(per measure the sum of every prompt, positions of every prompt), in float64."""
    sums: dict[str, list[float]] = {name: [] for name in MEASURES}
    positions = []
    for index, prompt in enumerate(prompts):
        text = list(prompt.continuation[: settings.gen_len])
        if settings.method == "on-policy":
            sampling = settings.sampling
            request = Request(prompt.ids, settings.gen_len, pair.eos_token_ids, sampling)
            text = [t for r in decode_autoregressive(pair.target, request, prompt_generator(settings.seed, index, "cpu")) for t in r.tokens]
        found = dict.fromkeys(MEASURES, 0.0)
        for i in range(1, len(text)):
            ids = torch.tensor([[*prompt.ids, *text[:i]]])
            ours, theirs = (m.module(input_ids=ids).logits[0, -1].double().numpy() for m in (pair.target, draft))
            p, q = (softmax(x / (settings.sampling.temperature or 1.0)) for x in (ours, theirs))
            if settings.sampling.temperature:
                p = nucleus(p, settings.sampling.top_p)
            found["kl"] += rel_entr(p, q).sum()
            found["reverse_kl"] += rel_entr(q, p).sum()
            found["total_variation"] += 1 - np.minimum(p, q).sum()
            found["top1_agreement"] += ours.argmax() == theirs.argmax()
            found["greedy_child"] += p[theirs.argmax()] if settings.sampling.temperature else ours.argmax() == theirs.argmax()
        positions.append(max(0, len(text) - 1))
        for name in MEASURES:
            sums[name].append(found[name])
    return {name: np.array(column) for name, column in sums.items()}, positions


@pytest.mark.parametrize(
    "settings",
    [
        SETTINGS,
        replace(SETTINGS, method="on-policy"),
        replace(SETTINGS, sampling=Sampling(0.7)),
        replace(SETTINGS, sampling=Sampling(0.7), method="on-policy", seed=3),
        replace(SETTINGS, sampling=Sampling(1.3, 0.8)),
    ],
)
@pytest.mark.parametrize("eos", [frozenset(), frozenset(range(0, VOCABULARY, 9))])
def test_sums_are_those_counted_one_by_one(settings: PotentialSettings, eos: frozenset[int]) -> None:
    pair, prompts = tiny_pair(eos=eos), prompt_set(5, 6, continuation=7)
    drafts = [named(0.05, "near"), named(0.2, "far")]
    report = measure_potential(pair.alone(), drafts, prompts, settings)
    for measured, draft in zip(report.drafts, drafts, strict=True):
        expected, positions = counted(pair, draft, prompts, settings)
        assert report.positions == tuple(positions)
        for name in MEASURES:
            sums = measured.sums[name]
            if name == "reverse_kl" and settings.sampling.top_p < 1:
                assert sums is None
                assert np.isinf(expected[name]).any(), "that is why"
            else:
                assert sums is not None
                assert np.allclose(sums, expected[name], rtol=1e-4, atol=1e-5), name
        assert 0.01 < report.estimate(measured, "kl").mean < 10


def test_drafts_are_ranked_by_their_distance_whatever_their_order() -> None:
    pair, prompts = tiny_pair(), prompt_set(6, 6, continuation=8)
    drafts = [named(noise, f"noise {noise}") for noise in (0.05, 0.3, 0.01)]
    report = measure_potential(pair, drafts, prompts, SETTINGS)
    assert [draft.draft for draft in report.ranked] == ["noise 0.01", "noise 0.05", "noise 0.3"]
    figures = report.to_json()["drafts"]
    assert [draft["draft"] for draft in figures] == ["noise 0.01", "noise 0.05", "noise 0.3"]
    means = [draft["kl"]["mean"] for draft in figures]
    assert means == sorted(means)
    assert [draft["kl_above_best"]["mean"] for draft in figures] == pytest.approx([mean - means[0] for mean in means])
    for draft in figures:
        assert draft["kl"]["mean"] > 0
        for name in ("total_variation", "top1_agreement", "greedy_child"):
            assert 0 <= draft[name]["mean"] <= 1
        assert draft["total_variation"]["mean"] <= math.sqrt(draft["kl"]["mean"] / 2), "Pinsker's inequality, by Jensen's also of means"


@pytest.mark.parametrize("temperature", [0.0, 0.6])
def test_a_model_is_at_no_distance_from_itself(temperature: float) -> None:
    pair = tiny_pair()
    report = measure_potential(pair, [pair.target], prompt_set(4, 6, continuation=8), replace(SETTINGS, sampling=Sampling(temperature)))
    [draft] = report.drafts
    for name, value in (("kl", 0.0), ("reverse_kl", 0.0), ("total_variation", 0.0), ("top1_agreement", 1.0)):
        assert report.estimate(draft, name).mean == value
    implied = report.to_json()["drafts"][0]["implied"]["sampled_child"]
    assert [(point["chain"], point["tokens_per_step"]) for point in implied["tokens_per_step"]] == [(1, 2), (2, 3), (4, 5), (8, 9)]


@pytest.mark.parametrize("method", ["teacher-forced", "on-policy"])
def test_figures_depend_on_neither_batches_nor_blocks(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pair, prompts = tiny_pair(), prompt_set(5, 6, continuation=8)
    settings = replace(SETTINGS, method=method, sampling=Sampling(1.0), batch_size=4)
    whole = measure_potential(pair, [named(0.1, "d")], prompts, settings)
    single = measure_potential(pair, [named(0.1, "d")], prompts, replace(settings, batch_size=1))
    monkeypatch.setattr(texts, "LOGITS_AT_ONCE", 2 * 14 * VOCABULARY)
    blocks = measure_potential(pair, [named(0.1, "d")], prompts, settings)
    for other in (single, blocks):
        assert other.positions == whole.positions
        for name in MEASURES:
            assert np.allclose(np.array(other.drafts[0].sums[name]), np.array(whole.drafts[0].sums[name]), atol=1e-5)


def test_the_target_reads_each_batch_once_for_all_drafts(monkeypatch: pytest.MonkeyPatch) -> None:
    pair, prompts = tiny_pair(), prompt_set(6, 6, continuation=8)
    score, read = pair.target.score, []

    def counting(ids: torch.Tensor, keep_from: int = 0, pixels: None = None) -> torch.Tensor:
        read.append(len(ids))
        return score(ids, keep_from)

    monkeypatch.setattr(pair.target, "score", counting)
    measure_potential(pair, [named(noise, str(noise)) for noise in (0.1, 0.2, 0.3)], prompts, SETTINGS)
    assert read == [2, 2, 2]


def test_an_interrupted_measurement_goes_on_where_it_stopped(tmp_path: Path) -> None:
    pair, prompts, journal = tiny_pair(), prompt_set(6, 6, continuation=8), tmp_path / "journal"
    drafts = [named(0.05, "a"), named(0.1, "b")]
    seen: list[int] = []

    def stop(what: str, done: int, total: int) -> None:
        seen.append(done)
        if done == 2 * SETTINGS.gen_len:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_potential(pair, drafts, prompts, SETTINGS, journal=journal, progress=stop)
    measure, fresh = potential._measure, []

    def counting(*arguments: Any) -> Any:
        fresh.append(1)
        return measure(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(potential, "_measure", counting)
        resumed = measure_potential(pair, drafts, prompts, SETTINGS, journal=journal)
    assert len(fresh) == 1, "two of the three batches were done"
    assert resumed.drafts == measure_potential(pair, drafts, prompts, SETTINGS).drafts
    assert journal.exists(), "kept until the caller has saved the result"
    measure_potential(pair, drafts[::-1], prompts, SETTINGS, journal=journal)
    assert journal.with_name("journal.old").exists(), "other drafts are other work"


@pytest.mark.parametrize("temperature", [1e-20, 1e-3, 1.0])
@pytest.mark.parametrize("top_p", [0.5, 1.0])
def test_chances_too_small_for_a_float_give_no_nan(temperature: float, top_p: float) -> None:
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (1e4 * torch.randn(2, 3, VOCABULARY, generator=generator) for _ in range(2))
    settings = replace(SETTINGS, sampling=Sampling(temperature, top_p))
    for target, draft in ((ours, theirs), (ours, ours), (ours, -ours), (ours.half(), theirs.half())):
        for measured in TargetSide.of(target, settings).against(draft):
            assert measured is None or bool(measured.isfinite().all())


def test_chains_are_the_geometric_sum() -> None:
    for chance in (0.0, 0.3, 0.75):
        for length in (1, 2, 5):
            assert chain_tokens_per_step(chance, length) == pytest.approx((1 - chance ** (length + 1)) / (1 - chance))


def report_of(sums: list[float], positions: list[int]) -> PotentialReport:
    draft = DraftPotential("d", dict.fromkeys(MEASURES, tuple(sums)))
    return PotentialReport((draft,), tuple(positions), "teacher-forced", 0.0, 1.0, 8, 0)


def test_intervals_treat_prompts_as_the_units() -> None:
    estimate = (report := report_of([1.0, 2.0, 6.0], [10, 10, 10])).estimate(report.drafts[0], "kl")
    assert estimate.mean == pytest.approx(0.3)
    assert estimate.standard_error == pytest.approx(np.std([0.1, 0.2, 0.6], ddof=1) / math.sqrt(3))
    reach = 4.302653 * estimate.standard_error  # Student's t, two degrees of freedom
    assert estimate.interval_95 == pytest.approx((0.3 - reach, 0.3 + reach))
    alone = (report := report_of([3.0], [10])).estimate(report.drafts[0], "kl")
    assert (alone.mean, alone.standard_error, alone.interval_95) == (0.3, None, None)


def test_a_report_survives_its_file(tmp_path: Path) -> None:
    pair, prompts = tiny_pair(), prompt_set(4, 6, continuation=8)
    drafts = [named(0.1, "/somewhere/deep/run-1/draft"), named(0.2, "/somewhere/deep/run-2/draft")]
    report = measure_potential(pair, drafts, prompts, replace(SETTINGS, sampling=Sampling(0.8, 0.9)))
    report.write(tmp_path / "potential.json")
    assert read_potential(tmp_path / "potential.json").to_json() == report.to_json()
    assert [draft.draft for draft in report.drafts] == ["draft (1)", "draft (2)"]
    assert "somewhere" not in (tmp_path / "potential.json").read_text()
    assert report.to_json()["prompt_set"]["dataset"] == "random"
    for old, new, words in (('"kl": [', '"kl": [1.0, ', "one sum for each of"), ('"drafts"', '"drifts"', "has no 'drafts'")):
        (tmp_path / "broken.json").write_text((tmp_path / "potential.json").read_text().replace(old, new))
        with pytest.raises(ProfileError, match=words):
            read_potential(tmp_path / "broken.json")
    data = json.loads((tmp_path / "potential.json").read_text())
    for name, huge, words in (
        ("greedy_child", 1e308, "draft .*: greedy_child must have one sum for each of .* prompts, at most 1 per position"),
        ("kl", -1e308, "kl must have .* at most 1e[+]30 per position"),
    ):
        broken = copy.deepcopy(data)
        broken["drafts"][1]["sums"][name][0] = huge
        (tmp_path / "broken.json").write_text(json.dumps(broken))
        with pytest.raises(ProfileError, match=words):
            read_potential(tmp_path / "broken.json")
    (tmp_path / "broken.json").write_text(json.dumps(data | {"prompt_positions": [10**400] * len(report.positions)}))
    with pytest.raises(ProfileError, match="has a 'prompt_positions' that cannot be: 1000.* is not in 0 to"):
        read_potential(tmp_path / "broken.json")


def test_a_token_that_a_model_has_no_row_for_is_named() -> None:
    pair = tiny_pair()
    odd = replace(prompt_set(), prompts=(Prompt(0, "odd", (5, 6), (7, VOCABULARY)),))
    with pytest.raises(ModelError, match="a text for the target has token 61, but the model has 61 embedding rows"):
        measure_potential(pair, (pair.draft,), odd, PotentialSettings(gen_len=4))


def test_what_cannot_be_measured_is_an_error() -> None:
    pair, prompts, draft = tiny_pair(), prompt_set(3, 6, continuation=8), named(0.1, "d")
    with pytest.raises(ModelError, match="at least one draft"):
        measure_potential(pair, [], prompts, SETTINGS)
    with pytest.raises(CapacityError, match="the draft d model has 5 positions, but prompts of 6 tokens need 7 or more"):
        small = tiny_pair(positions=5).draft
        assert small is not None
        small.name = "d"
        measure_potential(pair, [small], prompts, SETTINGS)
    with pytest.raises(ProfileError, match="no position to measure.*`method` on-policy"):
        measure_potential(pair, [draft], prompt_set(3), SETTINGS)
    for changes in ({"method": "guess"}, {"gen_len": 1}, {"batch_size": 0}):
        with pytest.raises(SettingsError):
            replace(SETTINGS, **changes)
    broken = tiny_pair()
    with torch.no_grad():
        broken.target.module.lm_head.weight[0] = float("nan")
    for target, other, role in ((broken, draft, "target"), (pair, broken.target, "draft")):
        with pytest.raises(ModelError, match=f"the {role}'s logits are not finite"):
            measure_potential(target, [other], prompts, SETTINGS)


@pytest.mark.parametrize("cold", [1e-30, 1e-320])
def test_temperatures_that_no_report_holds_are_refused_beforehand(cold: float) -> None:
    with pytest.raises(SettingsError, match=r"pass 1e-20 or more, or 0 for greedy decoding"):
        PotentialSettings(sampling=Sampling(cold))
    PotentialSettings(sampling=Sampling(1e-20))
