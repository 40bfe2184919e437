"""The allotment of minutes: it goes where the squared error falls most, as the closed form says, and not to those that have lost."""

import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from treeopt.optimizer.uncertainty import Certainty
from treeopt.profiles.intervals import Uncertain
from treeopt.tuning.budget import Pilot, allot
from treeopt.tuning.settings import PILOT_PROMPTS, PILOT_REPETITIONS


def pilot(tokens: float, tokens_error: float, times_error: float, acceptance: float = 8.0, latency: float = 24.0) -> Pilot:
    """A pilot whose prompts and samples took a second each, unless said otherwise."""
    certain = Certainty(around(tokens, tokens_error), around(0.1, times_error), around(0.08, times_error))
    made: Any = SimpleNamespace(result=SimpleNamespace(certainty=certain), seconds_per_token=0.1 / tokens)
    return Pilot(made, PILOT_PROMPTS, acceptance, latency)


def around(value: float, error: float) -> Uncertain:
    return Uncertain(value, value * (1 - error), value * (1 + error))


@dataclass(frozen=True)
class Case:
    tokens_error: float
    times_error: float


@pytest.mark.parametrize("case", [Case(0.2, 0.2), Case(0.4, 0.1), Case(0.1, 0.4)])
def test_no_other_way_to_spend_the_time_leaves_a_smaller_error(case: Case) -> None:
    seconds, one = 1000.0, pilot(3.0, case.tokens_error, case.times_error)
    found = allot([one], [1], seconds, 10**6)

    def error(prompts: float, samples: float) -> float:
        return case.tokens_error**2 * PILOT_PROMPTS / prompts + case.times_error**2 * PILOT_REPETITIONS / samples

    assert found.prompts + found.repetitions <= seconds
    spent = error(found.prompts, found.repetitions)
    others = min(error(prompts, seconds - prompts) for prompts in range(1, int(seconds)))
    assert spent <= others * 1.02, "rounding to bursts is all that is lost"


def test_what_is_certain_gets_no_more() -> None:
    found = allot([pilot(3.0, 0.3, 0.0)], [1], 500.0, 10**6)
    assert (found.prompts, found.repetitions) == (500, PILOT_REPETITIONS)
    assert allot([pilot(3.0, 0.3, 0.0)], [1], 500.0, 60).prompts == 60, "no more than there are"


def test_no_time_left_leaves_the_pilots() -> None:
    found = allot([pilot(3.0, 0.3, 0.3)], [1], -5.0, 100)
    assert (found.racing, found.prompts, found.repetitions) == ((0,), PILOT_PROMPTS, PILOT_REPETITIONS)


def test_candidates_that_have_lost_get_nothing_more() -> None:
    fast, close, slow = pilot(3.0, 0.1, 0.05), pilot(2.9, 0.1, 0.05), pilot(1.2, 0.1, 0.05)
    found = allot([slow, close, fast], [1, 1, 1], 1000.0, 10**6)
    assert found.racing == (1, 2)
    alone = allot([slow, fast], [1, 1], 1000.0, 10**6)
    assert alone.racing == (1,)
    assert alone.prompts > found.prompts
    assert math.isclose(fast.tokens_error, 0.1)
