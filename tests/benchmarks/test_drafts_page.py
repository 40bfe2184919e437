"""The sections of docs/results.md on drafts, from files as `benchmarks.drafts` writes them."""

from typing import Any

import pytest

from benchmarks.reporting.drafts import DRAFTS, LEVELS, SHORT, short_rows
from benchmarks.reporting.run import Run
from benchmarks.reporting.verdicts import MARK
from treespec.files.provenance import Provenance

RECORD = Provenance.collect(gpu="NVIDIA H200", driver="1", dtype="float16", models={"target": "wide with random weights", "draft": "head"})


def levels(milliseconds: dict[str, float]) -> dict[str, Any]:
    seconds = {nodes: taken / 1e3 for nodes, taken in milliseconds.items()}
    return {"width": 4096, "weight_bytes": 767_590_400, "draft_seconds": seconds, "provenance": RECORD.to_json()}


def flat(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize(("milliseconds", "met", "figure"), [(0.2499, True, "0.250"), (0.2501, False, "0.2501"), (0.396, False, "0.396")])
def test_the_slowest_level_has_the_goal(milliseconds: float, met: bool, figure: str) -> None:
    data = levels({"64": 0.19, "2": 0.17, "16": milliseconds, "1": 0.21})
    (check,) = LEVELS.checks(data)
    assert (check.what, check.met, check.goal.words) == ("slowest level of the head, 16 nodes", met, "at most 0.25 ms")
    text = LEVELS.body(Run("levels.json", "python -m benchmarks.drafts --levels", data))
    table = [line for line in text.splitlines() if line.startswith("|")][2:]
    assert [line.split("|")[1].strip() for line in table] == ["1", "2", "16", "64"], "by number, not as texts"
    assert table[2] == (
        f"| 16 | {figure} | met: at most 0.25 ms |" if met else f"| 16 | {MARK}{figure} | missed: {figure} against at most 0.25 ms |"
    )
    assert table[1] == "| 2 | 0.170 | |"
    assert "for a target of width 4,096. Its weights, `lm_head` included, have 0.77 GB." in flat(text)
    assert "The models are wide with random weights and an EAGLE-3 head with random weights." in flat(text)
    assert LEVELS.headlines(data) == [f"a level takes 0.170 to {milliseconds:.3f} ms"]
    assert LEVELS.title(data) == "Levels of a large EAGLE-3 head on one NVIDIA H200"


def row(draft: str, temperature: float, factor: float, ends: tuple[float, float]) -> dict[str, Any]:
    return {
        "draft": draft,
        "temperature": temperature,
        "rule": "topk",
        "size": 32,
        "depth": 6,
        "first_choice": 0.7012,
        "by_depth": None,
        "expected_tokens_per_step": 3.4,
        "tokens_per_step": 3.3,
        "tokens_per_second": 412.34,
        "speedup": factor,
        "predicted_speedup": 2.2,
        "intervals_95": {"tokens_per_step": [3.0, 3.6], "speedup": [*ends]},
        "lossless": "match",
        "draft_seconds": {"1": 4e-4, "2": 3.4e-4},
        "target_seconds": 5e-3,
    }


def test_drafts_stand_side_by_side_and_what_lost_is_said() -> None:
    rows = [
        row("model", 0.0, 2.1, (2.0, 2.2)),
        row("EAGLE-3 head", 0.0, 2.5, (2.3, 2.6)),
        row("n-grams", 0.6, 0.8, (0.7, 0.9)),
        row("model", 0.6, 0.97, (0.9, 1.1)),
    ]
    known = {"prompts": 8, "profiled_prompts": 64, "gen_len": 128, "models": {}, "provenance": RECORD.to_json()}
    data = {"rows": rows, **known}
    text = DRAFTS.body(Run("drafts.json", "python -m benchmarks.drafts --inflate", data))
    assert "| model | 0 | `topk` | (32, 6) | 0.701 | 3.30 [3.00, 3.60] | 3.40 | 0.340 | 412.3 | 2.10 [2.00, 2.20] | match |" in text
    assert "profiled on 64 prompts, and the fastest tree by its profiles decoded 8 other prompts, 128 tokens each" in flat(text)
    assert "n-grams, temperature 0.6, `topk` (32, 6): speculation lost, with 0.80 [0.70, 0.90] x the speed of" in flat(text)
    assert "may be chance: model, temperature 0.6, `topk` (32, 6), 0.97 [0.90, 1.10] x." in flat(text)
    assert [one.lost for one in DRAFTS.slower(data)] == [True, False]
    assert DRAFTS.headlines(data) == [
        "temperature 0: EAGLE-3 head, 2.50 x autoregressive decoding",
        "temperature 0.6: model, 0.97 x autoregressive decoding",
    ]
    assert (DRAFTS.prompts(data), DRAFTS.checks(data)) == (8, ())
    cells = short_rows({"drafts-cpu.json": data})
    assert [len(row) for row in cells] == [len(SHORT)] * 4
    assert cells[0][1:] == ["model", "0", "0.701", "(32, 6), `topk`", "3.30 [3.00, 3.60]", "0.34", "412", "2.10 [2.00, 2.20]"]
