"""Progress in words: what is counted, how fast it goes on, and how long it takes still; and --quiet, which has none of it."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from treeopt.cli import progress
from treeopt.cli.rates import UNITS, Pace, duration

ROOT = Path(__file__).parents[2]


def pace(unit: str = "prompt") -> tuple[Pace, SimpleNamespace]:
    """A pace, and the clock that it reads."""
    clock = SimpleNamespace(now=100.0)
    return Pace(unit, lambda: clock.now), clock


def test_rate_and_time_left_are_those_of_the_clock() -> None:
    found, clock = pace()
    assert found.told(1, 9) == "1/9 prompts"
    clock.now += 2
    assert found.told(2, 9) == "2/9 prompts, 2.0 s/prompt, 14 s left"
    clock.now += 1
    assert found.told(7, 9) == "7/9 prompts, 2.0 prompts/s, 1 s left"
    clock.now += 1
    assert found.told(9, 9) == "9/9 prompts, 2.0 prompts/s"
    one, _ = pace("pass")
    assert one.told(1, 1) == "1/1 pass"
    assert pace("reply")[0].told(0, 2) == "0/2 replies"


def test_what_a_journal_had_already_says_nothing_of_the_pace() -> None:
    found, clock = pace()
    for done in range(1, 51):
        clock.now += 1e-5
        assert found.told(done, 60) == f"{done}/60 prompts"
    clock.now += 3
    assert found.told(51, 60) == "51/60 prompts, 3.0 s/prompt, 27 s left"


def test_the_pace_follows_the_machine() -> None:
    found, clock = pace()
    for done in range(100):
        clock.now += 0.1
        found.told(done, 1000)
    for done in range(100, 140):
        clock.now += 2
        told = found.told(done, 1000)
    assert told.startswith("139/1000 prompts, 2.0 s/prompt, 29 min left")


def test_every_stage_of_the_library_has_a_unit() -> None:
    """The stages are found in the sources, where they tell their progress."""
    sources = [path.read_text() for room in ("treespec", "treeopt") for path in (ROOT / room).rglob("*.py")]
    told = {stage for text in sources for stage in re.findall(r'(?:progress\(|partial\(progress, )"([^"]+)"', text)}
    assert told == set(UNITS)


def test_long_times_are_in_minutes_and_hours() -> None:
    assert [duration(seconds) for seconds in (0, 89, 91, 5399, 5401)] == ["1 s", "89 s", "2 min", "90 min", "1.5 h"]


@pytest.mark.parametrize("at", ["front", "end"])
def test_quiet_leaves_results_and_errors(at: str, run: Any, profiles: tuple[Path, Path]) -> None:
    words = ["grow", "--acceptance", profiles[0], "--latency", profiles[1], "--format", "json"]
    outcome = run(*(["--quiet", *words] if at == "front" else [*words, "--quiet"]))
    assert (outcome.code, outcome.err) == (0, "")
    assert json.loads(outcome.out)["size"] >= 1
    said = "noise in the latency profile cannot be told from 1 sample of a point, and its times have no intervals"
    remedy = "`treeopt profile latency --repetitions 24` or more tells it"
    assert run(*words).err == f"wrote tree.pt, in place of an earlier one\n{said}; {remedy}\n", "it is said once"
    refused = run("inspect", "none.json", "--quiet")
    assert (refused.code, refused.err.count("\n")) == (2, 1)


def test_quiet_progress_tells_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for quiet, told in ((False, "evaluating: 1/1 prompt\n"), (True, "")):
        monkeypatch.setattr(progress, "is_quiet", lambda quiet=quiet: quiet)
        with progress.Progress() as shown:
            shown("evaluating", 1, 1)
        assert capsys.readouterr().err == told


def test_texts_of_training_are_written_token_by_token() -> None:
    for name in ("texts", "held-out texts"):
        assert Pace.of(f"writing {name}").told(1, 256) == "1/256 tokens"
