"""The benchmark of rules: which steps it times, what they are compared with, and what the page says of them."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks import rules
from benchmarks.reporting.rules import RULES, TITLE, before_of, beyond, checks_of, step_name
from benchmarks.reporting.run import Run
from benchmarks.reporting.verdicts import MARK
from treespec.errors import SettingsError

BIG, SMALL = "7B and 68M", "30 layers x 576"
ORIGIN = {
    "gpu": "NVIDIA H200",
    "driver": "1.2.3",
    "utc": "2026-11-29T20:00:00+00:00",
    "python": "3.12.3",
    "torch": "2.11.0",
    "transformers": "5.17.0",
    "dtype": "float16",
    "dataset": None,
    "models": {"target, 7B and 68M": "inflated-llama-2-7b"},
    "git_commit": "0123456789abcdef",
}


def steps(**ms: float) -> dict[str, Any]:
    """Steps by name with their milliseconds, the words of a name joined by underscores."""
    names = {
        "alone": "autoregressive",
        "warm": "autoregressive, T 0.6",
        "topk": "topk (64, 7)",
        "swor": "swor (64, 7) sequential",
        "traversal": "swor (64, 7) traversal",
        "nucleus": "swor (64, 7) sequential, top-p 0.9",
        "twin": "topk (64, 8)",
        "dynamic": "dynamic (64, 8)",
        "small_twin": "topk (64, 6)",
        "small": "dynamic (64, 6)",
    }
    return {names[key]: {"ms": value, "turns": [value] * 3, "twin": rules.twin_of(names[key])} for key, value in ms.items()}


def data(*, before: bool = True) -> dict[str, Any]:
    """A file of results, made by hand: one goal of each kind is missed."""
    now = {
        BIG: steps(alone=3.5, warm=3.51, topk=4.2, swor=4.26, traversal=4.4501, nucleus=4.3, twin=4.25, dynamic=4.3),
        SMALL: steps(small_twin=1.2, small=1.348),
    }
    then = {
        BIG: steps(alone=3.5, warm=3.6, topk=4.2, swor=5.2, traversal=6.5, twin=4.25, dynamic=5.0),
        SMALL: steps(small_twin=1.2, small=2.1),
    }
    found: dict[str, Any] = {"context": 192, "turns": 3, "pairs": now, "provenance": ORIGIN}
    return found | ({"before": {"pairs": then, "provenance": {**ORIGIN, "git_commit": "fedcba9876543210"}}} if before else {})


@pytest.mark.parametrize("pair", list(rules.SHAPES))
def test_every_step_has_a_greedy_twin_that_is_timed_too(pair: str) -> None:
    systems = rules.systems_of(pair, 0.9)
    assert len(systems) == 12
    for name, spec in systems.items():
        twin = systems[rules.twin_of(name)]
        assert twin.sampling.greedy
        assert (twin.plan is None) == (spec.plan is None)
        if spec.plan is not None:
            assert twin.plan is not None
            assert (twin.plan.size, twin.plan.depth) == (spec.plan.size, spec.plan.depth)
    assert {name for name in systems if rules.twin_of(name) == name} == {
        name for name, spec in systems.items() if spec.rule.name == "topk, temperature 0"
    }


def test_figures_of_another_commit_stand_beside_these(tmp_path: Path) -> None:
    path = tmp_path / "before.json"
    path.write_text(json.dumps(data()))
    before = rules.earlier(path)
    assert before.keys() == {"pairs", "provenance"}
    console = Console(width=150)
    with console.capture() as said:
        console.print(rules.table_of(BIG, data()["pairs"][BIG], data()["before"]["pairs"][BIG]))
    (line,) = [line for line in said.get().splitlines() if "traversal" in line]
    assert [cell.strip() for cell in line.split("│")[1:-1]] == ["swor (64, 7) traversal", "4.450", "6.500", "+0.250", ""]
    path.write_text("{}")
    with pytest.raises(SettingsError, match=r"has no `pairs` and `provenance`; pass a file that"):
        rules.earlier(path)


def test_goals_are_judged_before_rounding_and_marked_once_per_row() -> None:
    found = {check.what: check for check in checks_of(data())}
    assert {what: check.met for what, check in found.items()} == {
        "`swor` (64, 7), sequential beyond its greedy twin, 7B and 68M": True,
        "`swor` (64, 7), traversal beyond its greedy twin, 7B and 68M": False,
        "dynamic tree (64, 8) beyond its greedy twin, 7B and 68M": True,
        "dynamic tree (64, 6), 30 layers x 576": False,
    }
    text = RULES.body(Run("rules-h200.json", "python -m benchmarks.rules", data()))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")]
    named = {row[0]: row[1:] for row in rows}
    assert named["`swor` (64, 7), sequential"] == ["4.260", "5.200", "0.060", "1.000", "met: at most 0.15 ms"]
    assert named["`swor` (64, 7), traversal"] == ["4.450", "6.500", f"{MARK}0.2501", "2.300", "missed: 0.2501 against at most 0.25 ms"]
    assert named["`swor` (64, 7), sequential, top-p 0.9"] == ["4.300", "", "0.100", "", ""]
    assert named["autoregressive, temperature 0.6"] == ["3.510", "3.600", "0.010", "0.100", ""]
    assert named["`topk` (64, 7)"] == ["4.200", "4.200", "", "", ""]
    assert named["dynamic tree (64, 6)"] == [f"{MARK}1.348", "2.100", "0.148", "0.900", "missed: 1.348 against at most 1.1 ms"]
    assert all(sum(cell.startswith(MARK) for cell in row) == row[-1].startswith("missed") for row in rows)
    assert "commit `fedcba9876`, on one NVIDIA H200 with driver 1.2.3" in " ".join(text.split())
    assert text.count(f"[{TITLE}](#steps-of-every-rule)") == 2


def test_a_file_without_another_commit_has_its_own_figures_alone() -> None:
    text = RULES.body(Run("rules-h200.json", "python -m benchmarks.rules", data(before=False)))
    assert "before" not in text
    assert "| `swor` (64, 7), sequential | 4.260 | 0.060 | met: at most 0.15 ms |" in text
    assert RULES.headlines(data(before=False))[0] == (
        "7B and 68M, sampled children: 0.060 to 0.250 ms beyond the greedy step of the static tree"
    )
    assert RULES.headlines(data())[-1].endswith("dynamic tree: 0.148 ms beyond the greedy step of the static tree (before: 0.900 ms)")


def test_what_was_not_measured_is_left_empty() -> None:
    known = data()
    assert beyond(known["pairs"][BIG], "swr (64, 7)") is None
    del known["pairs"][BIG]["topk (64, 7)"]
    assert beyond(known["pairs"][BIG], "swor (64, 7) sequential") is None
    assert before_of(data(before=False), BIG) == {}
    assert step_name("autoregressive") == "autoregressive"
