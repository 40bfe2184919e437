"""The report: figures by hand, intervals that cover, JSON there and back."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from treespec.errors import ProfileError
from treespec.evaluation import figures
from treespec.evaluation.predicted import Prediction
from treespec.evaluation.report import EvaluationReport, read_report
from treespec.evaluation.results import Mismatch, PromptResult
from treespec.files.writing import write_json

ONE = PromptResult(
    row=0,
    name="a",
    tokens=11,
    steps=5,
    seconds=1.0,
    baseline_tokens=11,
    baseline_seconds=2.0,
    accepted_ranks=((0,), (1,), (0,), (0,), (2,)),
)
TWO = PromptResult(
    row=3, name="b", tokens=31, steps=10, seconds=3.0, baseline_tokens=31, baseline_seconds=9.0, output=(4, 5), parts={"drafting": 0.5}
)
REPORT = EvaluationReport("tree", (ONE, TWO), 0.0, Prediction(2.5, 0.25), tree={"size": 5, "depth": 2, "parents": [-1, 0, 0, 0, 1]})


def test_figures_by_hand() -> None:
    assert (REPORT.tokens, REPORT.steps) == (42, 15)
    assert REPORT.tokens_per_step == pytest.approx(40 / 15)
    assert REPORT.seconds_per_token == pytest.approx(4 / 40)
    assert REPORT.baseline_seconds_per_token == pytest.approx(11 / 40)
    assert REPORT.speedup == pytest.approx(11 / 4)
    data = REPORT.to_json()
    assert data["tokens_per_second"] == pytest.approx(10)
    assert data["baseline"] == {
        "tokens_per_second": pytest.approx(40 / 11),
        "seconds_per_token": pytest.approx(11 / 40),
        "prompt_seconds": None,
    }
    assert data["speedup_with_prompts"] is None
    assert data["outputs"] == [[], [4, 5]]
    assert data["breakdown"] == {"drafting": 0.5, "other": 3.5}
    assert data["prompts"] == 2


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    covered = 0
    for seed in range(100):
        random = np.random.default_rng(seed)
        steps = random.integers(20, 40, 40)
        per_step = random.normal(2.5, 0.4, 40).clip(1)
        results = tuple(replace(ONE, tokens=1 + round(s * t), steps=int(s)) for s, t in zip(steps, per_step, strict=True))
        interval = EvaluationReport("tree", results, 0.0).intervals["tokens_per_step"]
        assert interval is not None
        covered += interval[0] <= 2.5 <= interval[1]
    assert 88 <= covered <= 99


def test_one_prompt_has_no_interval_and_no_step_has_no_figure() -> None:
    assert EvaluationReport("tree", (ONE,), 0.0).intervals["speedup"] is None
    ended = replace(ONE, tokens=1, steps=0, seconds=0.0, baseline_tokens=1, baseline_seconds=0.0)
    data = EvaluationReport("tree", (ended,), 0.0).to_json()
    assert data["tokens_per_step"] is None
    assert data["speedup"] is None
    assert data["tokens_per_second"] is None


def test_verdict() -> None:
    wrong = replace(TWO, mismatch=Mismatch(position=3, tree_token=1, baseline_token=2, logit_gap=1e-4))
    assert REPORT.lossless == "match"
    assert replace(REPORT, results=(ONE, wrong)).lossless == "mismatch"
    assert replace(REPORT, results=(ONE, wrong)).to_json()["mismatches"] == 1
    assert replace(REPORT, temperature=0.6).lossless == "not-applicable"
    assert replace(REPORT, mode="baseline").lossless == "not-applicable"


def test_written_reports_read_back_equal(tmp_path: Path) -> None:
    wrong = replace(TWO, mismatch=Mismatch(3, 1, 2, 1e-4))
    promised = Prediction(2.5, 0.25, ((0.5, 0.25), (0.75, 0.0)))
    report = replace(REPORT, results=(ONE, wrong), predicted=promised, settings={"seed": 1})
    report.write(tmp_path / "r.json")
    assert read_report(tmp_path / "r.json") == report


def test_generated_ids_stand_once_in_the_file_and_are_read_from_either_place(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    report = replace(REPORT, results=(replace(ONE, output=(71828, 3)), replace(TWO, output=(31415,))))
    report.write(path)
    assert [path.read_text().count(token) for token in ("71828", "31415")] == [1, 1]
    data = json.loads(path.read_text())
    assert data["outputs"] == [[71828, 3], [31415]]
    assert read_report(path) == report
    results = [{**result, "output": ids} for result, ids in zip(data["results"], data["outputs"], strict=True)]
    write_json(path, data | {"results": results})  # as the first version wrote them
    assert read_report(path) == report
    write_json(path, {key: value for key, value in data.items() if key != "outputs"} | {"results": results})
    assert read_report(path) == report
    write_json(path, data | {"outputs": [[71828, 3]]})
    with pytest.raises(ProfileError, match="has a 'outputs' that cannot be: it has 1 output for 2 results"):
        read_report(path)


def test_reports_without_later_keys_are_still_read(tmp_path: Path) -> None:
    data = REPORT.to_json()
    for key in ("profiled_acceptance", "observed_acceptance", "drafting", "verifier", "draft_temperature"):
        del data[key]
    write_json(tmp_path / "r.json", data)
    assert read_report(tmp_path / "r.json") == REPORT


def test_what_was_accepted_below_visited_nodes() -> None:
    """Five steps: the root (three children) accepts ranks 0 1 0 0 2; its first child has one child, the others none."""
    data = replace(REPORT, predicted=Prediction(rank_probability=((0.5, 0.25),))).to_json()
    assert data["observed_acceptance"] == [
        {"depth": 0, "visits": 5, "accepted": (3, 1, 1), "offered": (5, 5, 5)},
        {"depth": 1, "visits": 5, "accepted": (), "offered": (3,)},
    ]
    assert data["profiled_acceptance"] == ((0.5, 0.25),)
    deep = replace(ONE, accepted_ranks=((), (0, 0), (0,), (0, 0)))
    rows = replace(REPORT, results=(deep,)).observed
    assert [(row.visits, row.accepted, row.offered) for row in rows] == [(4, (3,), (4, 4, 4)), (3, (2,), (3,))]
    grown = replace(REPORT, mode="dynamic", results=(deep,), tree={"size": 5, "depth": 2, "width": 3}).observed
    assert [(row.visits, row.accepted, row.offered) for row in grown] == [(4, (3,), None), (3, (2,), None)]
    assert replace(REPORT, tree=None).observed == ()


def test_ranks_that_lead_out_of_the_tree_are_refused() -> None:
    for ranks in ((3,), (1, 0), (0, 1)):
        with pytest.raises(ProfileError, match="lead out of the report's tree"):
            replace(REPORT, results=(replace(ONE, accepted_ranks=(ranks,)),)).to_json()


def test_drafting_is_said_up_front_but_not_of_the_baseline() -> None:
    settings = {"drafting": "swor", "verifier": "traversal", "draft_temperature": 0.5}
    assert settings.items() <= replace(REPORT, settings=settings).to_json().items()
    assert dict.fromkeys(settings).items() <= replace(REPORT, mode="baseline", settings=settings).to_json().items()


@pytest.mark.parametrize(
    ("mode", "settings", "decided"),
    [
        ("tree", {"drafting": "topk", "verifier": "sequential", "draft_temperature": None}, "matching"),
        ("tree", {"drafting": "swor", "verifier": "traversal", "draft_temperature": 0.0}, "matching"),
        ("tree", {"drafting": "swr", "verifier": "traversal", "draft_temperature": 0.0}, "traversal"),
        ("dynamic", {"drafting": "topk", "verifier": "sequential"}, "matching"),
        ("tree", {}, None),
    ],
)
def test_the_verifier_is_the_one_that_decided(mode: str, settings: dict[str, Any], decided: str | None) -> None:
    tree = {"size": 4, "depth": 2, "width": 2} if mode == "dynamic" else REPORT.tree
    data = replace(REPORT, mode=mode, settings=settings, results=(), tree=tree).to_json()
    assert (data["verifier"], data["settings"]) == (decided, settings)


def test_reports_of_another_version_or_without_results_are_refused(tmp_path: Path) -> None:
    for changes, message in (({"version": 2}, "version 2"), ({"schema": "other"}, "other")):
        write_json(tmp_path / "r.json", {**REPORT.to_json(), **changes})
        with pytest.raises(ProfileError, match=message):
            read_report(tmp_path / "r.json")
    data = REPORT.to_json()
    del data["results"]
    write_json(tmp_path / "r.json", data)
    with pytest.raises(ProfileError, match="results"):
        read_report(tmp_path / "r.json")


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (["mode"], "a forest", "has a 'mode' that cannot be: 'a forest' is no name of a drafter"),
        (["results"], 5, "has a 'results' that cannot be: 5 is no list"),
        (["results", 0], 5, "5 is no object"),
        (["results", 0, "tokens"], 10**400, "tokens: 1000.* is not in 0 to"),
        (["results", 0, "steps"], None, "steps: None is no whole number"),
        (["results", 0, "seconds"], 1e308, r"seconds: 1e\+308 is above 1e\+12 seconds"),
        (["results", 0, "baseline_seconds"], -1, "baseline_seconds: -1 is below 0"),
        (["results", 0, "accepted_ranks", 0], [10**9], r"accepted_ranks: \[1000000000\] holds a rank beyond 1048576"),
        (["results", 0, "accepted_ranks", 0], [3], "r.json: accepted ranks .* lead out of the report's tree"),
        (["results", 1, "mismatch"], {"position": 1}, "mismatch: it lacks 'baseline_token'"),
        (["results", 0, "speed"], 1, "has a 'results' that cannot be: it has the unknown key 'speed'; make the file again"),
        (["predicted", "speed"], 1, "has a 'predicted' that cannot be: it has the unknown key 'speed'"),
        (["results", 0, "name"], "\ud800", "name: .* holds half a surrogate pair, which is no text"),
        (["results", 1, "parts", "drafting"], {}, "parts: {} is no number"),
        (["temperature"], "hot", "'hot' is no number"),
        (["predicted", "tokens_per_step"], 10**400, "tokens_per_step: 1000.* is not finite"),
        (["profiled_acceptance"], [[2]], "is not made of rows of probabilities"),
        (["tree"], {}, "has a 'tree' that cannot be: it has no depth"),
        (["tree", "depth"], "2", "depth: '2' is no whole number"),
        (["tree", "parents"], [0], r"parents: node 0 is the root"),
        (["settings", "draft_temperature"], "1", "draft_temperature: '1' is no number"),
        (["provenance", "models"], 5, "models: 5 is no object"),
    ],
    ids=lambda part: str(part)[:30],
)
def test_damaged_reports_are_refused_in_one_line(tmp_path: Path, place: list[Any], value: object, message: str) -> None:
    data = json.loads(json.dumps(REPORT.to_json()))
    inside = data
    for key in place[:-1]:
        inside = inside[key]
    inside[place[-1]] = value
    (tmp_path / "r.json").write_text(json.dumps(data))
    with pytest.raises(ProfileError, match=message) as caught:
        read_report(tmp_path / "r.json")
    assert "r.json" in str(caught.value)


def test_a_depth_that_nothing_reached_costs_nothing_and_times_near_zero_give_no_rate() -> None:
    grown = replace(REPORT, mode="dynamic", tree={"size": 5, "depth": 10**18, "width": 3})
    assert [row.depth for row in grown.observed] == [0, 1]
    assert replace(REPORT, results=(replace(ONE, seconds=5e-324),)).to_json()["tokens_per_second"] is None


@pytest.mark.parametrize(("tree_token", "baseline_token"), [(None, 7), (7, None), (7, 8)])
def test_a_mismatch_where_one_output_ended_is_read_as_it_was_written(tree_token: int | None, baseline_token: int | None) -> None:
    wrong = replace(TWO, mismatch=Mismatch(4, tree_token, baseline_token, 0.1))
    assert PromptResult.from_json(json.loads(json.dumps(asdict(wrong)))) == wrong


def test_an_ended_output_of_the_first_version_is_read() -> None:
    old = json.loads(json.dumps(asdict(replace(TWO, mismatch=Mismatch(4, 7, 8, 0.1)))))
    old["mismatch"]["baseline_token"] = -1
    assert PromptResult.from_json(old).mismatch == Mismatch(4, 7, None, 0.1)


def test_intervals_are_resampled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    report, draws = replace(REPORT), []
    resample = figures.interval_of
    monkeypatch.setattr(figures, "interval_of", lambda columns, figure: draws.append(figure) or resample(columns, figure))
    assert report.seconds_per_step == report.to_json()["measured_seconds_per_step"]
    report.to_json()
    assert len(draws) == 6


def test_the_speedup_with_prompts_is_that_of_whole_texts(tmp_path: Path) -> None:
    """Both texts of 42 tokens took 4 + 0.5 s with the tree and 11 + 0.2 s without."""
    passes = ((0.3, 0.15), (0.2, 0.05))
    results = tuple(replace(r, prompt_seconds=a, baseline_prompt_seconds=b) for r, (a, b) in zip(REPORT.results, passes, strict=True))
    report = replace(REPORT, results=results)
    assert report.speedup == REPORT.speedup
    assert report.speedup_with_prompts == pytest.approx((11.2 / 42) / (4.5 / 42))
    report.write(tmp_path / "r.json")
    again = read_report(tmp_path / "r.json")
    assert again == report
    data = again.summary()
    assert (data["prompt_seconds"], data["baseline"]["prompt_seconds"]) == pytest.approx((0.25, 0.1))
    low, high = data["intervals_95"]["speedup_with_prompts"]
    assert low <= data["speedup_with_prompts"] <= high
    assert "with them, the draft's too" in str(again)
    assert "with them, the draft's too" not in str(REPORT)
    partly = replace(REPORT, results=(results[0], REPORT.results[1]))
    assert partly.speedup_with_prompts is None
