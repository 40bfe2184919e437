import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from treeopt.profiles.acceptance import AcceptanceProfile, read_acceptance
from treeopt.profiles.latency import LatencyProfile, LatencySample, read_latency
from treeopt.profiles.level_sums import LevelSums
from treespec.errors import OutputError, ProfileError

ACCEPTANCE: dict[str, Any] = {
    "schema": "treeopt.acceptance",
    "version": 1,
    "drafting": "topk",
    "temperature": 0.0,
    "top_p": 1.0,
    "rank_probability": [0.7, 0.1],
    "none_accepted": 0.2,
    "standard_error": [0.01, 0.002],
    "positions": 640,
    "prompts": 10,
}
LATENCY: dict[str, Any] = {
    "schema": "treeopt.latency",
    "version": 1,
    "target": [{"size": n, "context": c, "seconds": [0.01 * n, 0.03 * n, 0.02 * n]} for c in (256, 1024) for n in (1, 4, 8)],
    "draft": [{"width": w, "context": c, "seconds": [0.001 * w]} for c in (256, 1024) for w in (1, 2)],
    "overhead_seconds": [0.1, 0.3, 0.2],
}


def write(path: Path, data: dict[str, Any]) -> Path:
    path.write_text(json.dumps(data))
    return path


def test_acceptance_round_trip(tmp_path: Path) -> None:
    profile = AcceptanceProfile(
        "topk",
        0.6,
        0.9,
        (0.7, 0.1),
        0.2,
        (0.01, 0.002),
        30,
        2,
        "on-policy",
        ((0.6, 0.1), (0.7, 0.1)),
        ((7.0, 1.0), (14.0, 2.0)),
        (10, 20),
        {"gpu": "none"},
    )
    profile.write(tmp_path / "acceptance.json")
    assert read_acceptance(tmp_path / "acceptance.json") == profile
    assert profile.to_json()["prompt_sums"] == [[7.0, 1.0], [14.0, 2.0]]
    deeper = (LevelSums(((6.0, 1.0), (0.0, 0.0)), (9, 0)),)
    for rows in (((0.7, 0.1), deeper[0].chances), ((0.7, 0.1), deeper[0].chances, (0.0, 0.0))):
        head = replace(profile, by_depth=rows, deeper=deeper)
        head.write(tmp_path / "head.json")
        assert read_acceptance(tmp_path / "head.json") == head
        assert "deeper" not in head.summary()


def test_acceptance_of_the_contract_is_enough(tmp_path: Path) -> None:
    profile = read_acceptance(write(tmp_path / "a.json", ACCEPTANCE | {"a key of somebody else's": 1}))
    assert profile == AcceptanceProfile("topk", 0.0, 1.0, (0.7, 0.1), 0.2, (0.01, 0.002), 640, 10)
    assert profile.to_json() == ACCEPTANCE


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"schema": "treeopt.latency"},
            "is a latency profile, but an acceptance profile is needed; pass an acceptance profile here; a latency",
        ),
        ({"version": 2}, "version 2"),
        ({"rank_probability": None}, "has no 'rank_probability'"),
        ({"rank_probability": []}, "rank_probability is empty"),
        ({"rank_probability": [0.7, -0.1]}, r"rank_probability\[1\] is -0.1"),
        ({"rank_probability": [1.1, 0.0]}, r"rank_probability\[0\] is 1.1"),
        ({"rank_probability": [0.7, 0.5], "none_accepted": 0.0}, "adds up to 1.2"),
        ({"rank_probability": [0.7, 0.2]}, "add up to 1.1"),
        ({"rank_probability": "many"}, "'many' is no list"),
        ({"rank_probability": ["0.7"]}, "'0.7' is no number"),
        ({"rank_probability": [10**400]}, "rank_probability"),
        ({"standard_error": [0.1]}, "standard_error has 1 entry for 2 ranks"),
        ({"standard_error": [0.1, -1]}, r"standard_error\[1\]"),
        ({"positions": 1.5}, "1.5 is no whole number"),
        ({"prompts": -1}, "counts"),
        ({"temperature": -1}, "temperature is -1"),
        ({"draft_temperature": -1}, "draft_temperature is -1"),
        ({"top_p": 0}, "top_p is 0"),
        ({"by_depth": [[0.5]]}, r"by_depth\[0\] has 1 rank,"),
        ({"by_depth": [[0.5, 2.0]]}, r"by_depth\[0\]\[1\] is 2.0"),
        ({"by_depth": []}, "by_depth has no row"),
        ({"prompt_sums": [[1.0, 1.0]]}, "prompt_sums has 1 row, prompt_positions 0"),
        ({"prompt_sums": [[1.0]], "prompt_positions": [4]}, r"prompt_sums\[0\]"),
        ({"deeper": [{"sums": [[1.0, 1.0]], "positions": [4]}]}, "deeper has 1 level, but by_depth 0 rows below the first; give one"),
        ({"deeper": [{"sums": [[1.0, 1.0]], "positions": [0]}]}, r"positions of a level are \(0,\), but they must be 0 or more"),
        ({"deeper": [{"sums": [[1.0], [1.0, 2.0]], "positions": [4, 4]}]}, "must hold one finite sum of each rank for each prompt"),
        ({"deeper": [{"sums": [[1.0]]}]}, "positions"),
        ({"deeper": [4]}, "4 is no object"),
        (
            {"by_depth": [[0.5, 0.1]] * 2, "deeper": [{"sums": [[1.0, 1.0]], "positions": [4]}]},
            r"deeper\[0\] must hold one sum for each of 2 ranks and 0 prompts",
        ),
        (
            {"by_depth": [[0.5, 0.1]] * 3, "deeper": [{"sums": [[1.0, 1.0]], "positions": [4]}]},
            "deeper has 1 level, but by_depth 2 rows below the first",
        ),
        ({"drafting": 3}, "3 is no text"),
        ({"drafting": "beam"}, "drafting is 'beam', but it must be one of topk, swor, swr, unknown"),
        ({"provenance": []}, r"\[\] is no object"),
        ({"provenance": {"models": 5}}, "'provenance' that cannot be: models: 5 is no object"),
        ({"provenance": {"models": {"target": None}}}, "models: None is no text"),
        ({"provenance": {"dataset": 3}}, "dataset: 3 is no text"),
        ({"prompt_set": {"dataset": 3}}, "'prompt_set' that cannot be: dataset: 3 is no text"),
        ({"prompt_set": {"row": 10**30}}, "row: 1000.* is not in 0 to"),
    ],
)
def test_acceptance_that_cannot_be_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "a.json", ACCEPTANCE | changes)
    with pytest.raises(ProfileError, match=message) as error:
        read_acceptance(path)
    assert "a.json" in str(error.value)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_none_are_refused(tmp_path: Path, bad: float) -> None:
    profile = AcceptanceProfile("topk", 0.0, 1.0, (0.7,), 0.2, (), 1, 1)
    for field in ("rank_probability", "standard_error"):
        with pytest.raises(ProfileError, match=field):
            replace(profile, **{field: (bad,)})
    with pytest.raises(ProfileError, match="none_accepted"):
        replace(profile, none_accepted=bad)
    (tmp_path / "a.json").write_text(json.dumps(ACCEPTANCE | {"none_accepted": bad}))
    with pytest.raises(ProfileError, match=r"a\.json"):
        read_acceptance(tmp_path / "a.json")


def test_missing_file_and_unwritable_output(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="no file"):
        read_acceptance(tmp_path / "none.json")
    with pytest.raises(ProfileError, match="no file"):
        read_acceptance(tmp_path / "none.pt")
    with pytest.raises(OutputError):
        AcceptanceProfile("topk", 0.0, 1.0, (0.7,), 0.3, (), 1, 1).write(tmp_path / "no" / "folder.json")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_vector_with_none_column(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.save(torch.tensor([0.0, 0.5, 0.25, 0.125, 0.125], dtype=dtype), tmp_path / "v.pt")
    profile = read_acceptance(tmp_path / "v.pt")
    assert profile.rank_probability == (0.5, 0.25, 0.125)
    assert profile.none_accepted == 0.125
    assert (profile.temperature, profile.top_p, profile.standard_error) == (None, None, ())


@pytest.mark.parametrize(("total", "with_none"), [(1.0004, True), (0.9996, True), (0.999, True), (0.9, False)])
def test_the_sum_tells_vectors_apart(tmp_path: Path, total: float, with_none: bool) -> None:
    torch.save(torch.tensor([0.0, 0.7, 0.1, total - 0.8], dtype=torch.float64), tmp_path / "v.pt")
    profile = read_acceptance(tmp_path / "v.pt")
    assert len(profile.rank_probability) == (2 if with_none else 3)
    assert profile.none_accepted == pytest.approx(total - 0.8 if with_none else 1 - total)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("last", [0.07, 0.19])
@pytest.mark.parametrize("ranks", [2, 3, 32])
def test_a_vector_in_half_precision_keeps_its_none(tmp_path: Path, dtype: torch.dtype, last: float, ranks: int) -> None:
    """Its numbers add up to 1 within the rounding of the type only, below or above."""
    weights = [0.5**k for k in range(ranks)]
    values = [0.0, *((1 - last) * w / sum(weights) for w in weights), last]
    torch.save(torch.tensor(values, dtype=torch.float64).to(dtype), tmp_path / "v.pt")
    profile = read_acceptance(tmp_path / "v.pt")
    assert len(profile.rank_probability) == ranks
    assert profile.none_accepted == pytest.approx(last, rel=2e-2)


@pytest.mark.parametrize(
    ("values", "none"),
    [
        ([0, 0.6, 0.2, 0.05, 0.02, 0.09], 0.09),  # rounded to two digits: no rank exceeds the one before it by so much
        ([0, 0.6, 0.2, 0.05, 0.02, 0.01], 0.12),
        ([0, 0.8, 0.15, 0.02, 0.001, 0.002], 0.027),  # ranks of few samples do
        ([0, 0.6, 0.1, 0.2], 0.1),
    ],
)
def test_a_rough_vector_is_told_apart_by_its_last_number(tmp_path: Path, values: list[float], none: float, caplog: Any) -> None:
    torch.save(torch.tensor(values, dtype=torch.float64), tmp_path / "v.pt")
    assert read_acceptance(tmp_path / "v.pt").none_accepted == pytest.approx(none)
    assert ("is taken for the chance that none of 4 ranks is accepted" in caplog.text) == (none == values[-1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(3, 3), r"tensor of shape \[3, 3\]"),
        (torch.tensor([0, 1]), "torch.int64"),
        (torch.zeros(1), r"shape \[1\]"),
        ({"p": 1}, "a dict"),
        (torch.tensor([0.5, 0.5]), "starts with 0.5"),
        (torch.tensor([0.0, 0.9, 0.9]), "adds up to 1.8"),
        (torch.tensor([0.0, math.nan]), r"rank_probability\[0\] is nan"),
    ],
)
def test_tensors_that_are_no_vector(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "v.pt")
    with pytest.raises(ProfileError, match=message):
        read_acceptance(tmp_path / "v.pt")


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("ran-code"),))


def test_pickles_never_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(Harmful(), "v.pt")
    with pytest.raises(ProfileError, match="v.pt asks to run .* when loaded; refused"):
        read_acceptance("v.pt")
    assert not Path("ran-code").exists()
    Path("w.pt").write_bytes(b"not a tensor at all")
    with pytest.raises(ProfileError, match="w.pt is a text, but a .pt file"):
        read_acceptance("w.pt")


def test_latency_round_trip(tmp_path: Path) -> None:
    profile = LatencyProfile((LatencySample(1, 256, (0.5, 0.25)),), (LatencySample(1, 256, (0.1,)),), (0.0,), {"gpu": "none"})
    profile.write(tmp_path / "latency.json")
    assert read_latency(tmp_path / "latency.json") == profile
    assert read_latency(write(tmp_path / "l.json", LATENCY)).to_json() == LATENCY


def test_prediction_takes_the_next_larger_measured(tmp_path: Path) -> None:
    model = read_latency(write(tmp_path / "l.json", LATENCY)).at_context(256)
    assert [model.target_seconds(n) for n in (1, 2, 4, 5, 8)] == pytest.approx([0.02, 0.08, 0.08, 0.16, 0.16])
    assert [model.draft_seconds(w) for w in (1, 2)] == pytest.approx([0.001, 0.002])
    assert model.overhead_seconds == 0.2
    assert (model.largest_size, model.largest_width) == (8, 2)
    np.testing.assert_allclose(model.target_table(9), [np.inf, 0.02, 0.08, 0.08, 0.08, 0.16, 0.16, 0.16, 0.16, np.inf])
    np.testing.assert_allclose(model.level_table(3), [np.inf, 0.001, 0.002, np.inf])
    with pytest.raises(ProfileError, match="tree size 9 is beyond 8"):
        model.target_seconds(9)
    with pytest.raises(ProfileError, match="draft level width 3 is beyond 2"):
        model.draft_seconds(3)
    with pytest.raises(ProfileError, match="tree size 0"):
        model.target_seconds(0)


def test_times_beyond_the_contexts_go_on_along_a_line_where_it_is_asked_for() -> None:
    """Attention of a context that is twice as long: at 1024 passes take 4 ms longer than at 256, so at 1792 another 4 ms."""

    def times(context: int, *seconds: float) -> tuple[LatencySample, ...]:
        return tuple(LatencySample(nodes, context, (value,) * 24) for nodes, value in zip((1, 8), seconds, strict=True))

    target, draft = times(256, 0.010, 0.020) + times(1024, 0.014, 0.024), times(256, 0.001, 0.002) + times(1024, 0.0012, 0.0015)
    profile = LatencyProfile(target, draft, (0.003,) * 24, extrapolates=True)
    model = profile.at_context(1792)
    assert model.context == 1792
    np.testing.assert_allclose([seconds for _, seconds in model.target], [0.018, 0.028])
    np.testing.assert_allclose([seconds for _, seconds in model.draft], [0.0014, 0.0015], err_msg="no time falls")
    assert model.overhead_seconds == 0.003
    assert profile.at_context(1024) == replace(profile, extrapolates=False).at_context(1024), "measured contexts are left alone"
    with pytest.raises(ProfileError, match="cannot be extrapolated from those at 256 alone; profile the latency at two contexts or more"):
        LatencyProfile(times(256, 1, 2), times(256, 1, 2), (0.1,), extrapolates=True).at_context(300)


def test_ends_of_extrapolated_times_hold_the_lines_through_all_ends() -> None:
    def times(context: int, low: float, high: float) -> LatencySample:
        return LatencySample(4, context, tuple(np.linspace(low, high, 24)))

    target, draft = (times(100, 1.0, 1.2), times(200, 2.0, 2.2)), (times(100, 1.0, 1.0), times(200, 1.0, 1.0))
    profile = LatencyProfile(target, draft, (0.1,) * 24, extrapolates=True)
    low, high = profile.ends(300) or (None, None)
    assert low is not None
    assert high is not None
    near, far = target[0].interval, target[1].interval
    assert near is not None
    assert far is not None
    assert low.target_seconds(4) == pytest.approx(2 * far[0] - near[1])
    assert high.target_seconds(4) == pytest.approx(2 * far[1] - near[0])
    assert low.target_seconds(4) < profile.at_context(300).target_seconds(4) < high.target_seconds(4)


def test_context_is_exact_or_the_next_larger(tmp_path: Path) -> None:
    profile = read_latency(write(tmp_path / "l.json", LATENCY))
    assert profile.contexts == (256, 1024)
    assert [profile.at_context(c).context for c in (None, 1, 256, 257, 1024)] == [256, 256, 256, 1024, 1024]
    with pytest.raises(
        ProfileError, match="context 1025 or beyond, only at 256, 1024; profile it there, ask for at most 1024, or pass `extrapolate`"
    ):
        profile.at_context(1025)
    alone = replace(profile, target=tuple(sample for sample in profile.target if sample.context == 256))
    with pytest.raises(ProfileError, match="only at 256; profile it there, or ask for at most 256$"):  # one point is no line to extrapolate
        alone.at_context(1025)
    short_draft = replace(profile, draft=(LatencySample(1, 512, (0.1,)),))
    assert short_draft.at_context(256).draft == ((1, 0.1),)
    with pytest.raises(ProfileError, match="the draft was not measured at context 1024"):
        short_draft.at_context(1024)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 7}, "version 7"),
        ({"target": []}, "target holds no measurement"),
        ({"draft": []}, "draft holds no measurement"),
        ({"overhead_seconds": []}, "overhead_seconds has no samples"),
        ({"overhead_seconds": [-0.1]}, "-0.1 seconds"),
        ({"target": [{"size": 1, "context": 4, "seconds": []}]}, "no samples"),
        ({"target": [{"size": 1, "context": 4, "seconds": [0.0]}]}, "0.0 seconds"),
        ({"target": [{"size": 0, "context": 4, "seconds": [1.0]}]}, "size 0"),
        ({"target": [{"size": 1, "context": 4, "seconds": [1.0]}] * 2}, "twice"),
        ({"target": [{"size": 1, "seconds": [1.0]}]}, "an entry without context"),
        ({"draft": [{"width": 1.5, "context": 4, "seconds": [1.0]}]}, "1.5 is no whole number"),
        ({"draft": {"width": 1}}, "is no list"),
        ({"overhead_seconds": [1e308]}, r"overhead_seconds has a sample of 1e\+308 seconds, but it takes 0 to 1e\+12; measure again"),
        ({"target": [{"size": 1, "context": 4, "seconds": [1e308]}]}, r"size 1 at context 4 has a sample of 1e\+308 seconds"),
        ({"draft": [{"width": 1, "context": 4, "seconds": [5e-324]}]}, "has a sample of 5e-324 seconds, but it takes 1e-12 to"),
        ({"autoregressive_overhead_seconds": [1e308]}, "autoregressive_overhead_seconds has a sample of"),
        ({"provenance": {"gpu": 5}}, "'provenance' that cannot be: gpu: 5 is no text"),
        ({"batc": 16}, "has the key 'batc', of which nothing is known; write 'batch' if that is meant, or drop it"),
        ({"engin": "sglang"}, "has the key 'engin', .* write 'engine'"),
    ],
)
def test_latency_that_cannot_be_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        read_latency(write(tmp_path / "l.json", LATENCY | changes))


def test_what_people_add_to_a_latency_file_is_passed_over(tmp_path: Path) -> None:
    assert read_latency(write(tmp_path / "l.json", LATENCY | {"note": "measured at night"})) == read_latency(
        write(tmp_path / "m.json", LATENCY)
    )


def test_profiles_hold_no_more_than_trees_have_nodes(tmp_path: Path) -> None:
    most = 1 << 16
    AcceptanceProfile("topk", 0.0, 1.0, (1e-9,) * most, 0.3, (), 1, 1)
    with pytest.raises(ProfileError, match="rank_probability has 65,537 ranks, but a tree has at most 65,536 nodes; keep the first ranks"):
        AcceptanceProfile("topk", 0.0, 1.0, (1e-9,) * (most + 1), 0.3, (), 1, 1)
    many = tuple(LatencySample(n + 1, 8, (0.1,)) for n in range(most + 1))
    with pytest.raises(ProfileError, match="target holds 65,537 measurements, but at most 65,536 are read"):
        LatencyProfile(many, many[:1], (0.1,))
    torch.save(torch.zeros(most + 3), tmp_path / "v.pt")
    with pytest.raises(ProfileError, match="has 65,539 numbers, but an acceptance vector has at most 65,536 ranks"):
        read_acceptance(tmp_path / "v.pt")


def test_a_profile_of_very_many_sizes_is_shown_within_seconds() -> None:
    """Its contexts are found once, and not for the name of every size: that would take a minute."""
    many = tuple(LatencySample(n + 1, 8, (0.1,)) for n in range(30_000))
    started = time.process_time()
    assert len(LatencyProfile(many, many, (0.1,)).points) == 60_000
    assert time.process_time() - started < 10


def test_the_search_stays_within_what_a_growmap_may_have(tmp_path: Path) -> None:
    """Profiles of 60,000 ranks and sizes: a search over all of them would take minutes and gigabytes."""
    from treeopt.growmap_making import generate

    ranks = tuple(0.9 * 0.5 ** min(k, 60) / 2 for k in range(60_000))
    AcceptanceProfile("topk", 0.0, 1.0, ranks, 0.1, (), 1, 1).write(tmp_path / "a.json")
    sizes = tuple(LatencySample(n, 8, (0.1,)) for n in (1, 8, 60_000))
    LatencyProfile(sizes, tuple(LatencySample(n, 8, (0.01,)) for n in (1, 60_000)), (0.0,)).write(tmp_path / "l.json")
    tree = generate(tmp_path / "a.json", latency=tmp_path / "l.json").growmap.tree
    assert 1 < tree.size <= 2048
