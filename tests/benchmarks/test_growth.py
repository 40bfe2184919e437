"""How solvers grow: the points are those that were asked for, and exponents are slopes."""

import numpy as np
import pytest

from benchmarks.growth import growth, slope
from benchmarks.reporting.growth import GROWTH
from benchmarks.reporting.run import Run
from tests.benchmarks.test_rules import ORIGIN


def test_slopes_of_powers_are_their_exponents() -> None:
    values = np.array([512, 1024, 4096])
    assert slope(values.tolist(), (3e-9 * values**2.5).tolist()) == pytest.approx(2.5)


def test_every_limit_grows_alone_and_the_page_shows_it() -> None:
    found = growth((96, 6, 6), {"size": (48, 96), "depth": (3, 6), "ranks": (3, 6)})
    assert [(row["solver"], row["grows"]) for row in found] == [
        (solver, limit) for solver in ("best-first", "dynamic programme") for limit in ("size", "depth", "ranks")
    ]
    for solver in (found[:3], found[3:]):
        last = [(row["points"][-1]["seconds"], row["points"][-1]["peak_mib"]) for row in solver]
        assert len(set(last)) == 1, "the last table of each limit is the same, and measured once"
        assert all(seconds > 0 and memory > 0 for seconds, memory in last)
    data = {"results": found, "largest": [96, 6, 6], "load_average": [0.5], "provenance": {**ORIGIN, "gpu": None, "cpu": "a CPU"}}
    text = GROWTH.body(Run("growth.json", "python -m benchmarks.growth", data))
    assert text.count("| dynamic programme | ") == 3
    assert "96 nodes, 6 levels and 6 ranks" in text
    assert GROWTH.headlines(data)[1].startswith("dynamic programme: 96 nodes in ")
