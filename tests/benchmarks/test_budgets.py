"""The comparison of the chosen budget with others: its budgets, a whole run of a tiny pair, and what the page says of it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import budgets, end_to_end
from benchmarks.budgets import CHOSEN, GUESSED, Candidate, candidates, parse, predictions, row_of
from benchmarks.end_to_end import GROUP, groups_of, measured, run_group
from benchmarks.reporting.budgets import BUDGETS, checks_of
from benchmarks.reporting.run import Run
from tests.benchmarks.test_rules import ORIGIN
from tests.reference.pairs import prompt_set, tiny_pair
from treespec.decoding.engine import _MOST_KEPT
from treespec.decoding.plans import DynamicBudget


@pytest.mark.parametrize("words", ["--inflate", "--small"])
def test_at_least_24_budgets_stand_beside_the_chosen_one(words: str) -> None:
    chosen, guessed = DynamicBudget(20, 6, 12), DynamicBudget(13, 4, 6)
    largest = parse([words]).largest
    found = candidates(chosen, guessed, largest)
    assert found[0] == Candidate(CHOSEN, chosen)
    assert found[1] == Candidate(GUESSED, guessed)
    assert len(found) >= 25
    assert len({one.budget for one in found}) == len({one.name for one in found}) == len(found)
    assert all(one.budget.size <= largest for one in found)
    assert {"SGLang, its default", "SGLang, its default chain", "EAGLE-3, its default"} < {one.name for one in found}
    again = candidates(chosen, chosen, largest)
    assert [one.name for one in again] == [one.name for one in found if one.name != GUESSED], "a budget runs once"


def test_all_budgets_run_in_groups_whose_steps_an_engine_keeps() -> None:
    _, *others = [(one.name, one.budget) for one in candidates(DynamicBudget(20, 6, 12), None, 128)]
    groups = groups_of(others)
    assert [one for group in groups for one in group] == others
    assert groups_of([]) == [[]], "the chosen one runs beside autoregressive decoding all the same"
    assert max(map(len, groups)) + 2 <= GROUP + 2 == _MOST_KEPT


def test_a_limit_that_cannot_be_is_named() -> None:
    with pytest.raises(SystemExit):
        parse(["--small", "--counted", "101"])
    assert parse(["--small", "--counted", "100"]).counted == 100


def options(out: Path | None, *more: str) -> Any:
    asked = ["--small", "--profiled", "3", "--counted", "2", "--prompts", "2", "--gen-len", "10", "--largest", "9"]
    return parse([*asked, *more, *([] if out is None else ["--out", str(out)])])


@pytest.mark.slow
@torch.inference_mode()
def test_a_whole_run_of_a_tiny_pair_chooses_what_it_predicts_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair, prompts = tiny_pair(), prompt_set(5)
    monkeypatch.setattr(budgets, "PROMPT_LEN", 8)
    monkeypatch.setattr(end_to_end, "GROUP", 3)
    out = tmp_path / "b.json"
    figures = budgets.compare(pair, prompts, options(out))
    json.dumps(figures)
    first = figures["rows"][0]
    assert first["name"] == CHOSEN
    assert first["measured"]["over_picked"] == 1
    chosen = {key: figures["choice"][key] for key in ("size", "depth", "width")}
    assert chosen == {key: first[key] for key in chosen}
    assert first["predicted"]["tokens_per_step"] == pytest.approx(figures["choice"]["expected_tokens_per_step"])
    assert first["predicted"]["seconds_per_step"] == pytest.approx(figures["choice"]["predicted_seconds_per_step"])
    assert len(figures["chosen_seconds_per_token"]) == -(-(len(figures["rows"]) - 1) // 3)
    assert set(figures["seconds"]) == {"ranks", "counted", "latency", "decoding"}
    monkeypatch.setattr(end_to_end, "run_group", lambda *rest: pytest.fail("a group that was done ran again"))
    monkeypatch.setattr(budgets, "profile_latency", lambda *rest, **more: pytest.fail("what was profiled was profiled again"))
    again = budgets.compare(pair, prompts, options(out))
    assert again["rows"] == figures["rows"]
    assert again["seconds"].keys() == {"decoding"}
    assert "tokens per step" in BUDGETS.body(Run("b.json", "python -m benchmarks.budgets --small", figures | {"provenance": ORIGIN}))


@pytest.mark.slow
@torch.inference_mode()
def test_counted_steps_are_those_of_decoding_the_same_prompts() -> None:
    """The measured tokens per step are predicted exactly where the prompts are those that were counted."""
    pair, prompts = tiny_pair(), prompt_set(2)
    known = budgets.profiles(pair, prompts, options(None), {})
    model = known.latency.at_context(None, known.latency.held[-1])
    one = Candidate("(6, 3, 2)", DynamicBudget(6, 3, 2))
    (samples,) = run_group(pair, {one.name: one.budget}, prompts, 10, 1).values()
    row = row_of(one, predictions(one.budget, known.counted, model), measured(samples, samples))
    assert row["errors"]["tokens_per_step"] == pytest.approx(0)
    assert row["measured"]["tokens_per_step"] > 1


@pytest.mark.slow
@torch.inference_mode()
def test_what_was_not_counted_or_timed_is_not_predicted() -> None:
    pair, prompts = tiny_pair(), prompt_set(2)
    known = budgets.profiles(pair, prompts, options(None), {})
    model = known.latency.at_context(None, known.latency.held[-1])
    narrow, deep = (predictions(DynamicBudget(*limits), known.counted, model) for limits in ((4, 3, 1), (9, 8, 2)))
    assert narrow["tokens_per_step"] is None
    assert narrow["seconds_per_step"] > 0
    assert narrow["seconds_per_token"] is None
    assert deep["tokens_per_step"] is not None
    assert predictions(DynamicBudget(17, 4, 4), known.counted, model)["seconds_per_step"] is None


def row(name: str, over: float, *, size: int = 16, told: float | None = 3.1) -> dict[str, Any]:
    found: dict[str, Any] = {"tokens_per_step": 3.0, "seconds_per_step": 0.004, "seconds_per_token": 0.004 / 3, "over_picked": over}
    found |= {f"{key}_interval_95": [0.9 * value, 1.1 * value] for key, value in found.items()}
    predicted = {
        "tokens_per_step": told,
        "tokens_interval_95": None,
        "seconds_per_step": 0.0039,
        "seconds_per_token": told and 0.0039 / told,
    }
    one = Candidate(name, DynamicBudget(size, 4, 8))
    return row_of(one, predicted, found)


def data(*rows: dict[str, Any]) -> dict[str, Any]:
    return {
        "rows": list(rows),
        "autoregressive": {"seconds_per_token": 0.004, "predicted_seconds": 0.004},
        "choice": {"compared": 539},
        "chosen_seconds_per_token": [0.00133, 0.00134],
        "settings": {"profiled": 100, "counted": 16, "prompts": 12, "gen_len": 128, "rounds": 1, "largest": 128},
        "unstable": None,
        "seconds": {"ranks": 8.2, "decoding": 61.0},
        "provenance": {**ORIGIN, "models": {"target": "inflated-llama-2-7b", "draft": "inflated-llama-68m"}},
    }


def test_the_page_judges_the_choice_and_shows_predicted_beside_measured() -> None:
    good = data(row(CHOSEN, 1.0), row("(24, 4, 8)", 1.02, size=24), row("SGLang, its default", 0.9, size=8, told=None))
    assert [check.met for check in checks_of(good)] == [True]
    bad = data(row(CHOSEN, 1.0), row("(24, 4, 8)", 1.04, size=24))
    assert [check.met for check in checks_of(bad)] == [False]
    text = BUDGETS.body(Run("budgets.json", "python -m benchmarks.budgets --inflate", bad))
    assert "| lead of the fastest budget over the chosen one | ✗ 4.0 % | missed: 4.0 against at most 3 % |" in " ".join(text.split())
    assert f"| {CHOSEN} (16, 4, 8) | 3.000 | 3.100 | +3.3 % | 4.000 | 3.900 | -2.5 % | 1.333 | 1.000 [0.900, 1.100] |" in text
    assert text.index("| (24, 4, 8) |") < text.index(f"| {CHOSEN} (16, 4, 8) |"), "the fastest comes first"
    text = BUDGETS.body(Run("budgets.json", "python -m benchmarks.budgets --inflate", good))
    assert "| SGLang, its default (8, 4, 8) | 3.000 | | | 4.000 | 3.900 | -2.5 % | 1.333 | 0.900 [0.810, 0.990] |" in text
    assert BUDGETS.headlines(good) == [
        "the chosen budget (16, 4, 8): 3.00 x autoregressive decoding",
        "of 3 budgets run end to end, the fastest, (24, 4, 8), is +2.0 % beside the chosen one",
    ]
    assert BUDGETS.prompts(good) == 12
