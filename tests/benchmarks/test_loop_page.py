"""The section of docs/results.md on the loop, from files as `benchmarks.loop` writes them."""

from typing import Any

import pytest

from benchmarks.loop import COMMANDS
from benchmarks.reporting.loop import GOALS, LOOP, checks_of
from benchmarks.reporting.run import Run
from treespec.files.provenance import Provenance

STAGES = {"imports": 4.2, "loading": 6.1, "evaluate": 8.8}


def loop_file(states: tuple[str, ...]) -> dict[str, Any]:
    seconds = {"profile acceptance": 25.0, "profile latency": 40.04, "grow": 4.7, "evaluate": 17.5, "in one process": 43.1, "tune": 82.0}
    runs = {
        state: {
            command: {"seconds": found} | ({"stages": STAGES} if command == "in one process" else {}) for command, found in seconds.items()
        }
        for state in states
    }
    known = {"prompts": 200, "gen_len": 128, "context": 192, "evaluated": 12, "prompts_in_one_process": 100}
    return known | {"runs": runs, "provenance": Provenance.collect(gpu="NVIDIA H200", driver="1", dtype="float16").to_json()}


def body(data: dict[str, Any]) -> str:
    return LOOP.body(Run("loop.json", "python -m benchmarks.loop --folder DIR", data))


def test_goals_are_of_commands_that_are_timed() -> None:
    assert set(GOALS) < set(COMMANDS)


def test_goals_hold_for_a_filled_cache() -> None:
    found = body(loop_file(("empty cache", "filled cache")))
    assert "| profile acceptance | 25.0 | 25.0 | met: at most 25 s |" in found
    assert "| profile latency | 40.0 | ✗ 40.04 | missed: 40.04 against at most 40 s |" in found
    assert "| grow | 4.7 | 4.7 | |" in found
    assert "| - loading | 6.1 | 6.1 | |" in found
    assert found.index("| in one process |") < found.index("| - imports |")
    assert len(checks_of(loop_file(("empty cache", "filled cache")))) == len(GOALS)


@pytest.mark.parametrize("state", ["empty cache", "alone"])
def test_no_goal_holds_elsewhere(state: str) -> None:
    data = loop_file((state,))
    assert checks_of(data) == []
    assert "goal" in body(data)
    assert "met" not in body(data)
    assert "| command | s | goal |" in body(data)
    assert LOOP.headlines(data) == ["the whole loop in one process: 43 s"]


def test_a_cache_that_the_commands_shared_is_said() -> None:
    data = loop_file(("empty cache", "filled cache"))
    said = "found what those above it had left"
    assert said in " ".join(body(data).split())
    assert said not in " ".join(body(data | {"own_caches": True}).split())


def test_commands_that_were_not_run_are_left_out() -> None:
    data = loop_file(("empty cache", "filled cache"))
    for command in ("in one process", "evaluate", "tune"):
        del data["runs"]["filled cache"][command]
    assert "| evaluate | 17.5 | | |" in body(data)
    assert [check.what for check in checks_of(data)] == ["profile acceptance", "profile latency"]
    assert LOOP.headlines(data) == []
