"""The sentences of a page name the source of every prediction and speak of intervals only where there are some."""

from dataclasses import replace
from typing import Any

import pytest

from treeopt.pictures import evaluations, facts, sentences
from treeopt.profiles.latency import LatencyProfile
from treeopt.profiles.samples import LatencySample
from treespec.evaluation.drawing import speeds
from treespec.trees.growmap import GrowMap
from treespec.trees.tree import SpeculationTree

REPLAYED = "the tokens per step that trees grown in the same way gave when replayed on prompts held out"


def held_out(grown: GrowMap) -> GrowMap:
    """A growmap that promises what was replayed, as `tune` makes it."""
    return replace(grown, metadata={**grown.metadata, "acceptance_model": {"chosen": "by-rank", "models": [{}]}})


def of_samples(*samples: int) -> LatencyProfile:
    """A latency profile with so many samples at sizes 1, 2, 4 ..."""
    target = tuple(LatencySample(1 << at, 64, (0.01,) * count) for at, count in enumerate(samples))
    return LatencyProfile(target, (LatencySample(1, 64, (0.001,) * samples[0]),), (0.0005,) * samples[0])


def test_the_speed_up_that_is_promised_is_told_from_the_one_of_chances(found: dict[str, Any]) -> None:
    grown, report = found["growmap"], found["report"]
    figure = f"{grown.promise.speedup:.2f} x"
    said = sentences.speedups(held_out(grown))
    assert "are no promise" in said
    assert said.endswith(f"The growmap promises {figure}, from {REPLAYED}.")
    assert sentences.promised(report, held_out(grown)) == [f"A speed-up of 1.80 x was promised, from {REPLAYED}."]
    said = sentences.speedups(grown)
    assert "no promise" not in said
    assert said.endswith(f"What the growmap promises, {figure}, comes from the same chances.")
    assert sentences.promised(report, grown) == [
        "A speed-up of 1.80 x was promised, from the chances of the ranks in the acceptance profile."
    ]
    assert sentences.promised(report, None) == ["A speed-up of 1.80 x was promised."]
    assert REPLAYED in " ".join(sentences.prediction(evaluations.pairs(report), held_out(grown), None, None))


def test_nothing_is_promised_where_no_growmap_promises() -> None:
    for grown in (None, GrowMap(SpeculationTree.chain(2)), GrowMap(SpeculationTree((-1,)), {"expected_tokens_per_step": 1.0})):
        assert sentences.grounds(grown) is None
        assert "promise" not in sentences.speedups(grown)


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        ((24, 24), "Median times with 95 % intervals."),
        ((4, 24), "Median times, with 95 % intervals where a point has 24 samples or more: fewer are too few."),
        ((4, 8), "Median times without 95 % intervals: 8 samples of a point are too few, for it takes 24."),
        ((1,), "Median times without 95 % intervals: 1 sample of a point is too few, for it takes 24."),
    ],
)
def test_times_of_too_few_samples_are_said_to_have_no_interval(samples: tuple[int, ...], said: str) -> None:
    assert sentences.latency(of_samples(*samples), starred=False).startswith(f"{said} A size between")


def test_the_star_is_spoken_of_where_there_is_one() -> None:
    assert [("star" in sentences.latency(of_samples(24), starred=starred)) for starred in (True, False)] == [True, False]


def test_predictions_without_an_interval_say_why(found: dict[str, Any]) -> None:
    report, acceptance, latency = found["report"], found["acceptance"], found["latency"]
    whole = " ".join(sentences.prediction(evaluations.pairs(report), None, acceptance, latency))
    assert "Brackets hold 95 % intervals, those of measured figures over the prompts." in whole
    alone = " ".join(sentences.prediction(evaluations.pairs(replace(report, results=report.results[:1])), None, acceptance, latency))
    assert "Brackets hold 95 % intervals. One prompt is too few" in alone
    assert "no 95 % interval" not in whole
    bare = replace(report, predicted=replace(report.predicted, seconds_per_step_interval=None, speedup_interval=None))
    said = sentences.prediction(evaluations.pairs(bare), None, acceptance, of_samples(4, 4))[-1]
    assert said == (
        "There is no 95 % interval of the predicted ms per step and speed-up: the latency profile has 4 samples of a point, which are too few, "
        "for it takes 24."
    )
    none = replace(bare, predicted=replace(bare.predicted, tokens_per_step_interval=None), results=report.results[:1])
    pairs = evaluations.pairs(none)
    said = " ".join(sentences.prediction(pairs, None, replace(acceptance, prompts=1), latency))
    assert "Brackets" not in said
    assert "One prompt is too few for 95 % intervals of what was measured." in said
    assert said.endswith(
        "of the predicted tokens per step, ms per step and speed-up: the acceptance profile has 1 prompt, which is too few."
    )
    assert "intervals" not in evaluations.prediction(pairs).inline("prediction")
    assert sentences.prediction(pairs, None, None, None)[-1].endswith(": the growmap has none.")
    *_, tokens, times = sentences.prediction(pairs, None, None, of_samples(4))
    assert tokens == "There is no 95 % interval of the predicted tokens per step: the growmap has none."
    assert "4 samples" in times
    assert "no 95 %" not in " ".join(sentences.prediction(pairs, GrowMap(SpeculationTree((-1,))), acceptance, latency))


def test_one_prompt_has_no_intervals_and_the_page_says_so(found: dict[str, Any]) -> None:
    report, acceptance = found["report"], found["acceptance"]
    one = replace(report, results=report.results[:1])
    assert sentences.speeds(speeds(one.summary())) == "decoding 1 prompt; one prompt is too few for 95 % intervals"
    assert sentences.speeds(speeds(report.summary())).endswith("95 % intervals over prompts")
    assert any("; one prompt is too few for 95 % intervals." in line for line in facts.headline(one, None, None)[2])
    assert any("; brackets hold 95 % intervals over prompts." in line for line in facts.headline(report, None, None)[2])
    alone = replace(acceptance, prompts=1, standard_error=())
    assert "One prompt is too few for 95 % intervals." in sentences.acceptance(alone, None)
    assert "Bars are 95 % intervals" in sentences.acceptance(acceptance, None)
    assert "95 %" not in sentences.acceptance(replace(alone, prompts=0), None)
    kinds = replace(report, results=tuple(replace(r, category=r.name) for r in report.results))
    table = facts.categories(None, kinds)
    assert table is not None
    assert sentences.categories(table) == "One prompt of a category is too few for a 95 % interval."


def test_names_of_parameters_become_words() -> None:
    assert sentences.in_words("ended at `gen_len` 32; take `repetitions` 24 or more, or more `repetitions`") == (
        "ended at the limit of 32 tokens; take 24 repetitions or more, or more repetitions"
    )
    assert (
        sentences.in_words("`max_size` 4 and `top_p` 0.9 of `treeopt grow --size 4`")
        == "max size 4 and top-p 0.9 of `treeopt grow --size 4`"
    )


def test_rows_and_solvers_are_told_in_words(found: dict[str, Any]) -> None:
    report = replace(found["report"], provenance={"models": {}, "dataset": "stdlib[4:12]"})
    grown = replace(found["growmap"], metadata={**found["growmap"].metadata, "solver": "dp", "smoothing": "none"})
    told = dict(facts.facts(None, None, grown, report, None))
    assert told["evaluated on"].startswith("stdlib, rows 4 to 11: 3 prompts")
    assert told["tree found by"] == "dynamic programming, without smoothing"
