"""Gaps between predicted and measured: silence inside the intervals, outside of them the figure that is off and its likely cause."""

from dataclasses import replace
from typing import Any

import pytest

from treespec.evaluation.predicted import Prediction
from treespec.evaluation.report import EvaluationReport, read_report
from treespec.evaluation.results import PromptResult

CHANCES = ((0.8, 0.1),)
PROMISED = Prediction(2.0, 0.020, CHANCES, 1.6, (1.9, 2.1), (0.019, 0.021), (1.5, 1.7))
"""Autoregressive steps are predicted to take 16 ms: 1.6 x 20 ms / 2."""


def run(*, tokens: float = 2.0, step: float = 0.020, alone: float = 0.016, gen_len: int = 999, **changes: Any) -> EvaluationReport:
    """A report of six prompts of 100 steps that differ by 1 % in all figures."""
    results = []
    for row in range(6):
        factor = 1 + 0.01 * (row - 2.5) / 2.5
        count = 1 + round(100 * tokens * factor)
        each, more = divmod(count - 101, 100)
        steps = ((0,) * (each + 1),) * more + ((0,) * each,) * (100 - more)
        results.append(PromptResult(row, f"{row}", count, 100, step * factor * 100, count, alone * factor * (count - 1), steps))
    tree = {"size": 4, "depth": 2, "parents": [-1, 0, 0, 1]}
    return replace(EvaluationReport("tree", tuple(results), 0.0, PROMISED, tree, settings={"gen_len": gen_len}), **changes)


def notes(report: EvaluationReport) -> list[str]:
    found = report.to_json()["notes"]
    assert isinstance(found, list)
    return found


@pytest.mark.parametrize("changes", [{}, {"tokens": 1.92}, {"step": 0.0208, "alone": 0.0170}, {"tokens": 1.895}])
def test_inside_the_intervals_nothing_is_said(changes: dict[str, float]) -> None:
    assert notes(run(**changes)) == []
    assert "prediction, with 95 % intervals" in str(run(**changes))
    assert "2.000 [1.900, 2.100]" in str(run(**changes))


def test_a_machine_that_became_slower_is_the_cause_if_plain_steps_are_slower_too() -> None:
    (said,) = notes(run(step=0.040, alone=0.030, provenance={"load_average": 3.14, "threads": 2}))
    assert said.startswith(
        "milliseconds per step are 100 % above what was predicted, and the intervals do not meet: autoregressive steps took 1.88 x the predicted "
        "time as well, so the machine was slower than while it was profiled, by other programs or its clock (load average 3.1, with 2 threads of torch)"
    )
    (said,) = notes(run(step=0.010, alone=0.008))
    assert "milliseconds per step are 50 % below what was predicted" in said
    assert "so the machine was faster than while it was profiled, by other programs or its clock; profile the latency" in said


def test_slow_steps_beside_plain_ones_as_predicted_have_another_cause() -> None:
    (said,) = notes(run(step=0.024, alone=0.016, provenance={"load_average": 0.1, "gpu": "some"}))
    assert "20 % above what was predicted, and the intervals do not meet: the passes over the tree took longer than profiled, while" in said
    assert "autoregressive steps took 1.00 x the predicted time: the texts are longer or shorter than the context that was profiled" in said
    assert "load average" not in said, "on a GPU it is not the cause"
    (unknown,) = notes(run(step=0.024, predicted=replace(PROMISED, speedup=None)))
    assert "the passes over the tree took longer than profiled: the texts are" in unknown


def test_a_speed_up_that_is_off_alone_is_told_by_its_parts() -> None:
    (said,) = notes(run(tokens=1.92, step=0.0208, alone=0.014))
    assert said.startswith(
        "the speed-up is 19 % below what was predicted, and the intervals do not meet, though those of the tree's own figures do: tokens per step are "
        "0.96 x, milliseconds per step are 1.04 x and those of autoregressive steps are 0.88 x the predicted ones; profile the latency again"
    )


def test_a_busy_machine_is_said_to_be_one_whatever_was_measured() -> None:
    (said,) = notes(run(provenance={"load_average": 3.14, "cores": 2, "threads": 1}))
    assert said == (
        "the machine was busy (load average 3.1 on 2 cores), so the times and the speed-up are those of a busy machine; this run cannot tell what an "
        "idle one gives"
    )
    for calm in ({"load_average": 2.3, "cores": 2}, {"load_average": 9.0}, {"load_average": 9.0, "cores": 2, "gpu": "some"}):
        assert notes(run(provenance=calm)) == []


def test_the_text_is_the_cause_of_tokens_and_first_choices_show_it() -> None:
    (said,) = notes(run(tokens=1.6))
    assert said.startswith(
        "tokens per step are 20 % below what was predicted, and the intervals do not meet: first choices were accepted at 0.375 of the visited "
        "nodes, where the profile has 0.800; the text of this run is harder to draft for than that of the profile"
    )
    (said,) = notes(run(tokens=2.4, mode="dynamic", tree={"depth": 2, "size": 4, "width": 2}))
    assert "20 % above what was predicted, and the intervals do not meet: the text of this run is easier to draft for" in said


def test_tokens_behind_the_ends_of_texts_are_counted_and_may_be_the_whole_gap() -> None:
    short = [replace(one, tokens=one.tokens - 20, baseline_tokens=one.tokens - 20) for one in run().results]
    cut, gap = notes(run(results=tuple(short), gen_len=181))
    assert cut == (
        "120 accepted tokens lie behind the ends of the texts and do not count (2 of 6 texts ended at `gen_len` 181): "
        "with all of them it is 2.000 tokens per step"
    )
    assert gap == (
        "tokens per step are 10 % below what was predicted, and the intervals do not meet: the accepted tokens behind the ends of the texts "
        "make the difference; longer texts lose fewer"
    )
    assert run(results=tuple(short)).to_json()["tokens_cut"] == 120
    assert run(results=tuple(replace(one, accepted_ranks=()) for one in short)).tokens_cut == 0, "older reports do not tell"


def test_a_speed_up_around_one_tells_nothing() -> None:
    results = [replace(one, seconds=one.seconds * (1.3 if one.row % 2 else 0.7), baseline_seconds=2.0) for one in run().results]
    promised = Prediction(2.0, 0.02, CHANCES)
    (said,) = notes(run(results=tuple(results), predicted=promised))
    assert said.startswith("this run cannot tell whether the tree is faster than plain decoding: the 95 % interval of the speed-up holds 1")
    assert notes(run(results=tuple(results), predicted=promised, tree={"size": 1, "depth": 0, "parents": [-1]})) == []


def test_what_is_not_promised_or_has_no_interval_is_no_gap() -> None:
    for promised in (Prediction(), Prediction(9.0, 9.0), replace(PROMISED, seconds_per_step=None)):
        assert notes(run(step=0.040, alone=0.080, predicted=promised)) == []
    assert notes(run(tokens=1.2, mode="baseline")) == []
    one = run(tokens=1.6).results[:1]
    (said,) = notes(run(results=one))
    assert "tokens per step are 21 % below" in said, "a single prompt stands for itself"


def test_a_report_keeps_its_prediction_with_the_intervals(tmp_path) -> None:
    report = run(tokens=1.6)
    report.write(tmp_path / "r.json")
    again = read_report(tmp_path / "r.json")
    assert again == report
    assert again.predicted.autoregressive_seconds == pytest.approx(0.016)
    assert notes(again) == notes(report)
    assert str(again) == str(report)


@pytest.mark.parametrize("odd", [0.0, 5e-324, 1e308])
def test_figures_that_nobody_measured_or_promised_break_nothing(odd: float) -> None:
    """Files may hold anything: such a gap is one or is none, but a report of it can be shown."""
    ends = (odd, odd)
    for name in ("tokens_per_step", "seconds_per_step", "speedup"):
        promised = replace(PROMISED, **{name: odd, **({} if name == "speedup" else {f"{name}_interval": ends})})
        for seconds in (1.0, 5e-324):
            results = tuple(replace(one, seconds=seconds, baseline_seconds=seconds) for one in run().results)
            assert str(run(results=results, predicted=promised))
    ended = tuple(replace(one, tokens=1, accepted_ranks=((),) * one.steps) for one in run().results)
    assert str(run(results=ended, predicted=PROMISED))
