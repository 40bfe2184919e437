"""Comparing: differences by hand, intervals that cover, pairs that are narrower, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import treeopt
from treeopt.comparing.fields import FIELDS
from treeopt.profiles.acceptance import AcceptanceProfile
from treeopt.profiles.intervals import difference, of_mean
from treeopt.profiles.latency import LatencyProfile
from treeopt.profiles.level_sums import LevelSums
from treeopt.profiles.ratio import ratio, ratio_difference
from treeopt.profiles.samples import LatencySample
from treespec.decoding.chosen import ChosenBudget
from treespec.decoding.plans import DynamicBudget
from treespec.errors import ProfileError, SettingsError, TreeoptError
from treespec.evaluation import figures
from treespec.evaluation.report import EvaluationReport
from treespec.evaluation.results import PromptResult
from treespec.files.provenance import Provenance
from treespec.trees.growmap import GrowMap
from treespec.trees.tree import SpeculationTree

RECORD = {
    "models": {"target": "org/big@12ab34c", "draft": "small"},
    "gpu": "GPU one",
    "cpu": "CPU one",
    "dtype": "float16",
    "offloaded": False,
}
ROWS = {"dataset": "stdlib", "start": 0, "end": 8, "prompts": 8, "sha256": "ab" * 32}


def report(seconds: float = 1.0, seed: int = 0, **changes: Any) -> EvaluationReport:
    """A report of eight prompts, some of which are much harder than others, whatever the tree."""
    rng = np.random.default_rng(seed)
    results = []
    for row in range(8):
        hard = 1 + row % 4
        spent = seconds * hard * rng.uniform(0.95, 1.05)
        results.append(PromptResult(row, f"r{row}", 41, 10 * hard, spent, 41, 8.0, prompt_seconds=0.2, baseline_prompt_seconds=0.1))
    tree = {"size": 3, "depth": 2, "parents": [-1, 0, 1]}
    settings = {"top_p": 1.0, "drafting": "topk", "verifier": "sequential", "gen_len": 41, "seed": seed}
    made = EvaluationReport("tree", tuple(results), 0.0, tree=tree, prompts=ROWS, settings=settings, provenance=RECORD)
    return replace(made, **changes)


def profile(chance: float = 0.6, seed: int = 0, prompts: int = 30, **changes: Any) -> AcceptanceProfile:
    """A profile of texts whose ease is their own, so that profiles of the same seed go up and down together."""
    rng = np.random.default_rng(seed)
    first = 50 * np.clip(chance + rng.normal(0, 0.1, prompts), 0, 0.9)
    sums = np.stack([first, 0.1 * (50 - first)], 1)
    chances, errors = ratio(sums, [50] * prompts)
    assert errors is not None
    return AcceptanceProfile(
        **{
            "drafting": "topk",
            "temperature": 0.0,
            "top_p": 1.0,
            "rank_probability": tuple(map(float, chances)),
            "none_accepted": float(1 - chances.sum()),
            "standard_error": tuple(map(float, errors)),
            "positions": 50 * prompts,
            "prompts": prompts,
            "method": "on-policy",
            "prompt_sums": tuple(map(tuple, sums.tolist())),
            "prompt_positions": (50,) * prompts,
            "provenance": RECORD,
            "prompt_set": ROWS,
            "pair_sha256": "cd" * 32,
            **changes,
        }
    )


def times(factor: float = 1.0, sizes: tuple[int, ...] = (1, 4), **changes: Any) -> LatencyProfile:
    """A latency profile whose times are `factor` as long, with bursts enough for intervals."""
    wobble = [1 + 0.01 * (burst % 3) for burst in range(8) for _ in range(4)]

    def sample(nodes: int, seconds: float) -> LatencySample:
        return LatencySample(nodes, 64, tuple(factor * seconds * by for by in wobble))

    target, draft = tuple(sample(n, 0.01 + 0.001 * n) for n in sizes), (sample(1, 0.002),)
    return replace(LatencyProfile(target, draft, tuple(factor * 1e-4 * by for by in wobble), RECORD), **changes)


def grown(size: int = 3, **changes: Any) -> GrowMap:
    """A chain that promises something."""
    metadata = {
        "expected_tokens_per_step": 2.0 + size / 10,
        "predicted_seconds_per_step": 0.01 * size,
        "predicted_speedup": 1.5,
        "temperature": 0.0,
        "drafting": "topk",
        "profiled_dataset": "stdlib",
        "intervals_95": {"expected_tokens_per_step": [1.9 + size / 10, 2.1 + size / 10]},
        **changes,
    }
    return GrowMap(SpeculationTree.chain(size - 1), metadata, Provenance.from_json(RECORD))


def budget(size: int = 8, **changes: Any) -> ChosenBudget:
    """A budget that promises what a growmap does."""
    growmap = grown(size, **changes)
    return ChosenBudget(DynamicBudget(size, 2, 4), growmap.metadata, growmap.provenance)


THINGS: dict[str, Any] = {"evaluation": report(), "acceptance": profile(), "latency": times(), "growmap": grown(), "budget": budget()}


def figure(found: treeopt.Comparison, key: str, **at: int) -> dict[str, Any]:
    return next(one for one in found.summary()["figures"] if one["figure"] == key and at.items() <= one.items())


@pytest.mark.parametrize("kind", THINGS)
def test_a_thing_differs_in_nothing_from_itself(kind: str, tmp_path: Path) -> None:
    path = tmp_path / ("t.pt" if kind == "growmap" else "t.json")
    THINGS[kind].write(path)
    for found in (treeopt.compare(THINGS[kind], THINGS[kind]), treeopt.compare(path, str(path))):
        data = found.summary()
        assert (data["kind"], data["differ"]) == (kind, {})
        for one in data["figures"]:
            assert set(one["differences"]) <= {0.0, None}
            assert set(one["ratios"]) <= {1.0, None}
            assert all(ends is None or ends[0] <= 0 <= ends[1] for ends in one["difference_intervals_95"])
        json.dumps(data, allow_nan=False)
        assert str(found)
    assert len(set(found.names)) == 2


def test_differences_of_reports_by_hand() -> None:
    slow = report(1.5)
    found = treeopt.compare(report(), slow, report(0.5, seed=3))
    one = figure(found, "seconds_per_token")
    assert one["values"] == [r.seconds_per_token for r in (report(), slow, report(0.5, seed=3))]
    assert one["differences"][0] == pytest.approx(0.5 * report().seconds_per_token)
    assert one["ratios"][0] == pytest.approx(1.5)
    assert figure(found, "tokens_per_step")["difference_intervals_95"] == [(0.0, 0.0)] * 2
    assert figure(found, "speedup_with_prompts")["differences"][1] > 0
    assert found.summary()["differ"] == {"seed": [0, 0, 3]}
    assert found.paired == (True, True)
    assert "paired by prompt" in str(found)


def test_a_machine_that_was_not_equally_fast_is_said() -> None:
    """Autoregressive steps of the second run took a tenth longer on every prompt, but for chance."""
    slower = report(results=tuple(replace(r, baseline_seconds=8.8 + 0.1 * (r.row % 3)) for r in report().results))
    said = "the machine was not equally fast"
    assert any(said in note for note in treeopt.compare(report(), slower).notes)
    assert not any(said in note for note in treeopt.compare(report(), report(1.5)).notes)


def test_intervals_of_chances_lie_between_0_and_1() -> None:
    """Of few prompts that differ much, Student's t alone would reach beyond both ends."""
    rare = profile(
        rank_probability=(0.98, 0.01), none_accepted=0.01, standard_error=(0.05, 0.02), prompt_sums=(), prompt_positions=(), prompts=3
    )
    found = treeopt.compare(rare, profile(0.5))
    ends = [figure(found, "rank_probability", rank=rank)["intervals_95"][0] for rank in (0, 1)]
    assert ends == [(pytest.approx(0.98 - 4.302653 * 0.05), 1.0), (0.0, pytest.approx(0.01 + 4.302653 * 0.02))]
    assert all(number not in str(found) for number in ("-0.07", "1.19"))
    assert figure(found, "rank_probability", rank=0)["differences"] == [pytest.approx(0.5 - 0.98, abs=0.1)]


def test_the_same_prompts_give_narrower_intervals() -> None:
    """The prompts differ by a factor of four in difficulty and the trees by a tenth in time."""
    apart = replace(report(1.1, seed=1), prompts={**ROWS, "sha256": "ef" * 32})
    paired, unpaired = (treeopt.compare(report(), other) for other in (report(1.1, seed=1), apart))
    ends = [figure(found, "seconds_per_token")["difference_intervals_95"][0] for found in (paired, unpaired)]
    assert (paired.paired, unpaired.paired) == ((True,), (False,))
    assert ends[0][0] > 0 > ends[1][0]
    assert any("count as independent" in note for note in unpaired.notes)
    for seeds in ((0, 0), (0, 1)):
        other = profile(0.65, seeds[1], prompt_set={**ROWS, "sha256": f"{seeds[1]:064}"})
        found = treeopt.compare(profile(0.6, 0, prompt_set={**ROWS, "sha256": f"{seeds[0]:064}"}), other)
        low, high = figure(found, "rank_probability", rank=0)["difference_intervals_95"][0]
        assert (high - low < 0.01) == (seeds[0] == seeds[1])
        assert low < 0.05 < high + 0.005


def test_levels_of_heads_are_compared_by_their_first_choice() -> None:
    """The second head is right a fifth more often at the second level of every prompt, which differ much; the last level of both proposes nothing."""
    ease = np.random.default_rng(2).uniform(0.2, 1.0, 30)

    def head(factor: float, sha256: str, *, old: bool = False) -> AcceptanceProfile:
        second = LevelSums(tuple((20 * factor * own, 1.0) for own in ease), (49,) * 30)
        plain = profile(prompt_set={**ROWS, "sha256": sha256})
        rows = (plain.rank_probability, second.chances, (0.0, 0.0))
        return replace(plain, by_depth=rows, deeper=() if old else (second,))

    one, *others = head(1.0, "ab" * 32), head(1.2, "ab" * 32), head(1.2, "cd" * 32), head(1.2, "ab" * 32, old=True)
    paired, unpaired, unknown = (figure(treeopt.compare(one, other), "by_depth", level=2) for other in others)
    assert paired["differences"] == unpaired["differences"] == unknown["differences"] == [pytest.approx(0.2 * 20 * ease.mean() / 49)]
    assert paired["difference_intervals_95"][0][0] > 0 > unpaired["difference_intervals_95"][0][0]
    assert unknown["difference_intervals_95"] == [None]
    levels = [found["level"] for found in treeopt.compare(*others[:1], one).summary()["figures"] if found["figure"] == "by_depth"]
    assert levels == [2]
    assert not [found for found in treeopt.compare(one, profile(prompt_set=ROWS)).summary()["figures"] if found["figure"] == "by_depth"]


@pytest.mark.parametrize("paired", [True, False])
def test_bootstrapped_differences_cover(paired: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 200 pairs of runs, some 95 of 100 intervals hold the true difference of seconds per step, 0.2; chance leaves 87 or more."""
    monkeypatch.setattr(figures, "_RESAMPLES", 400)
    rng, held = np.random.default_rng(5), 0
    for _ in range(200):
        ease = rng.normal(0, 0.3, 40)
        eases = ease, ease if paired else rng.normal(0, 0.3, 40)
        runs = [
            {"steps": (steps := rng.integers(20, 60, 40).astype(float)), "seconds": steps * (mean + own + rng.normal(0, 0.05, 40))}
            for mean, own in zip((1.0, 1.2), eases, strict=True)
        ]
        ends = figures.difference_interval(runs[1], runs[0], figures.seconds_per_step, paired=paired)
        assert ends is not None
        held += ends[0] <= 0.2 <= ends[1]
    assert held >= 174


def test_differences_of_paired_means_cover() -> None:
    rng, held = np.random.default_rng(6), 0
    for _ in range(400):
        counts, ease = rng.integers(20, 60, 25), rng.normal(0, 0.15, 25)
        sums = [counts * (mean + ease + rng.normal(0, 0.03, 25)) for mean in (0.5, 0.55)]
        error = ratio_difference(sums[1], counts.tolist(), sums[0], counts.tolist())
        means = [own.sum() / counts.sum() for own in sums]
        low, high = of_mean(means[1] - means[0], error, 25)
        held += low <= 0.05 <= high
    assert 360 <= held <= 398


def test_the_error_of_one_mean_is_that_of_its_difference_from_nothing() -> None:
    rng = np.random.default_rng(7)
    counts, sums = rng.integers(5, 50, 12).tolist(), rng.uniform(0, 5, 12)
    _, errors = ratio(sums[:, None], counts)
    assert errors is not None
    assert ratio_difference(sums, counts, np.zeros(12), counts) == pytest.approx(float(errors[0]))
    assert ratio_difference(sums, counts, sums, counts) == 0


def test_independent_differences_of_medians_by_hand() -> None:
    assert difference(5.0, (2.0, 9.0), 10.0, (7.0, 14.0)) == (-10.0, 0.0)
    found = treeopt.compare(times(), times(2.0, sizes=(1, 4, 8)))
    one = figure(found, "target_seconds", size=4, context=64)
    assert one["ratios"] == [pytest.approx(2.0)]
    low, high = one["difference_intervals_95"][0]
    assert 0 < low < one["differences"][0] < high
    assert {(f["figure"], f.get("size")) for f in found.summary()["figures"]} == {
        ("target_seconds", 1),
        ("target_seconds", 4),
        ("draft_seconds", None),
        ("overhead_seconds", None),
    }
    assert "1 point is not in all profiles and left out" in found.notes


def test_growmaps_are_held_against_each_other() -> None:
    found = treeopt.compare(grown(3), grown(5))
    assert figure(found, "size")["differences"] == [2]
    assert figure(found, "expected_tokens_per_step")["difference_intervals_95"][0] == pytest.approx(
        (0.2 - 0.1 * 2**0.5, 0.2 + 0.1 * 2**0.5)
    )
    assert figure(found, "predicted_seconds_per_token")["values"] == pytest.approx([0.03 / 2.3, 0.05 / 2.5])
    assert "of the 2 paths of the first tree, 2 are in the others, in their order" in found.notes


def test_budgets_are_held_against_each_other_and_not_against_growmaps(tmp_path: Path) -> None:
    found = treeopt.compare(budget(8), budget(9, drafting="topk", context=64))
    assert found.kind == "budget"
    assert [figure(found, key)["differences"] for key in ("size", "depth", "width")] == [[1], [0], [0]]
    assert figure(found, "expected_tokens_per_step")["values"] == pytest.approx([2.8, 2.9])
    assert figure(found, "predicted_seconds_per_token")["values"] == pytest.approx([0.08 / 2.8, 0.09 / 2.9])
    assert found.differ == {"context": (None, 64)}
    assert any("of budgets that are made from the same profiles, they are too wide" in note for note in found.notes)
    budget().write(tmp_path / "budget.json")
    with pytest.raises(ProfileError, match=r"budget.json is a budget of dynamic trees and B is a growmap, which have no figures in common"):
        treeopt.compare(tmp_path / "budget.json", grown())
    with pytest.raises(ProfileError, match="A and B differ in temperature: 0 and 0.6"):
        treeopt.compare(budget(), budget(temperature=0.6))


OTHER: dict[str, tuple[Any, Any, str, str]] = {
    "target": (report(), report(provenance={**RECORD, "models": {"target": "org/huge", "draft": "small"}}), "big", "huge"),
    "draft": (times(), times(provenance={**RECORD, "models": {"target": "org/big", "draft": "tiny"}}), "small", "tiny"),
    "weights": (profile(), profile(pair_sha256="ef" * 32), "cdcdcdcdcdcd", "efefefefefef"),
    "device": (times(), times(provenance={**RECORD, "gpu": "GPU two"}), "GPU one", "GPU two"),
    "engine": (times(), times(engine="vllm"), "treeopt", "vllm"),
    "batch": (times(engine="vllm"), times(engine="vllm", batch=4), "1", "4"),
    "threads": (
        report(provenance={**RECORD, "gpu": None, "threads": 2}),
        report(provenance={**RECORD, "gpu": None, "threads": 4}),
        "2",
        "4",
    ),
    "dtype": (report(), report(provenance={**RECORD, "dtype": "float32"}), "float16", "float32"),
    "offloaded": (report(), report(provenance={**RECORD, "offloaded": True}), "False", "True"),
    "tensor_parallel": (report(), report(provenance={**RECORD, "tensor_parallel": 2}), "1", "2"),
    "temperature": (grown(), grown(temperature=0.6), "0", "0.6"),
    "top_p": (profile(temperature=0.6), profile(temperature=0.6, top_p=0.9), "1", "0.9"),
    "method": (profile(), profile(method="teacher-forced"), "on-policy", "teacher-forced"),
    "dataset": (report(), report(prompts={**ROWS, "dataset": "cnn"}), "stdlib", "cnn"),
}


@pytest.mark.parametrize("field", FIELDS)
def test_what_must_not_be_mixed_is_refused_by_name(field: str) -> None:
    one, other, first, second = OTHER[field]
    with pytest.raises(ProfileError) as refused:
        treeopt.compare(one, other)
    assert f"A and B differ in {field}: {first} and {second};" in str(refused.value)
    assert f"`across` {field}" in str(refused.value)
    assert "\n" not in str(refused.value)
    found = treeopt.compare(one, other, across=[field])
    assert [f"{value:g}" if isinstance(value, float) else str(value) for value in found.differ[field]] == [first, second]


def test_sampling_that_does_not_matter_is_not_looked_at() -> None:
    """Greedy decoding has no nucleus, revisions are not names, and a processor does not matter beside a GPU."""
    models = {"target": "org/big@99999999", "draft": "small"}
    other = report(provenance={**RECORD, "models": models, "cpu": "CPU two", "threads": 9}, settings={**report().settings, "top_p": 0.5})
    assert treeopt.compare(report(), other).figures


def test_what_is_not_known_is_said() -> None:
    found = treeopt.compare(report(), report(provenance={}))
    assert "B does not say its target, draft and device: whether it may be compared is not known" in found.notes


def test_rows_are_named_by_the_first_and_the_last_one() -> None:
    other = profile(0.6, 0, prompt_set={**ROWS, "start": 8, "end": 16, "sha256": "ef" * 32})
    assert treeopt.compare(profile(0.6, 0), other).differ["rows"] == ("0 to 7", "8 to 15")


def test_things_that_are_not_of_one_kind_are_refused_in_a_line(tmp_path: Path) -> None:
    cases: list[tuple[list[Any], type[TreeoptError], str]] = [
        ([report(), profile()], ProfileError, "A is a report of an evaluation and B is an acceptance profile"),
        ([times(), times(), grown()], ProfileError, "A is a latency profile and C is a growmap"),
        ([report()], SettingsError, "there is nothing to compare: given is 1 of the 2 or more that are needed; pass another"),
        ([report(), 3], SettingsError, "B is of the type int"),
        ([report(), tmp_path / "trace.json"], ProfileError, "trace.json is a trace, but compared are growmaps"),
        ([report(), tmp_path / "text.txt"], ProfileError, "text.txt is no file of treeopt"),
    ]
    (tmp_path / "trace.json").write_text('{"schema": "treeopt.trace", "version": 1}')
    (tmp_path / "text.txt").write_text("a text")
    for things, kind, said in cases:
        with pytest.raises(kind) as refused:
            treeopt.compare(*things)
        assert said in str(refused.value)
        assert "\n" not in str(refused.value)
    with pytest.raises(SettingsError, match="one of target, draft"):
        treeopt.compare(report(), report(), across=["colour"])


def test_an_acceptance_vector_is_compared_too(tmp_path: Path) -> None:
    import torch

    torch.save(torch.tensor([0.0, 0.6, 0.2, 0.2]), tmp_path / "v.pt")
    found = treeopt.compare(profile(), tmp_path / "v.pt")
    one = figure(found, "rank_probability", rank=0)
    assert one["values"][1] == pytest.approx(0.6)
    assert one["difference_intervals_95"] == [None]
