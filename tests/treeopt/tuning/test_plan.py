"""What a plan estimates beforehand, held against what the work then does."""

import math
from dataclasses import replace
from typing import Any

import pytest

from tests.reference.pairs import VOCABULARY, tiny_pair
from treeopt.profiling.bench import Bench, cells_of
from treeopt.profiling.grid import Grid
from treeopt.profiling.latency import profile_latency
from treeopt.tuning.plan import ModelSize, Plan, Speed, _Estimate
from treeopt.tuning.settings import TuneSettings
from treespec.models.tree_model import TreeModel

SETTINGS = TuneSettings(gen_len=16, sizes=(1, 2, 8), widths=(1, 2, 4), repetitions=10)
PLAN = Plan(("topk",), 4, 0, 2, 8, 16, 16, (1, 2, 8), (1, 2, 4), 10, None, None, None)


def latency_seconds(target: int, draft: int, speed: Speed, settings: TuneSettings = SETTINGS) -> float:
    """Return the estimate for models of so many layers and no weights."""
    known = settings.latency(8)
    cells = cells_of(known, Grid.of(known, "cpu", VOCABULARY), VOCABULARY)
    sizes = ModelSize(0, target, 0), [ModelSize(0, draft, 0)]
    return _Estimate(PLAN, *sizes, 4, speed, settings, cells, "cpu").stages()["profile latency"]


def test_the_passes_of_the_latencies_are_those_that_are_run(monkeypatch: pytest.MonkeyPatch) -> None:
    pair, passes = tiny_pair(), {"tiny": 0, "tiny-draft": 0}
    forward = TreeModel.forward

    def counted(model: TreeModel, *given: Any, **named: Any) -> Any:
        passes[model.name] += 1
        return forward(model, *given, **named)

    begin = Bench.prepare

    def uncounted(bench: Bench, *given: Any) -> None:  # texts are read before bursts begin
        before = dict(passes)
        begin(bench, *given)
        passes.update(before)

    monkeypatch.setattr(TreeModel, "forward", counted)
    monkeypatch.setattr(Bench, "prepare", uncounted)
    profile_latency(pair, SETTINGS.latency(8))
    layer = Speed(math.inf, math.inf, 1.0)
    assert passes == {"tiny": latency_seconds(1, 0, layer), "tiny-draft": latency_seconds(0, 1, layer)}
    assert min(passes.values()) > 100


def test_steps_that_are_captured_take_time_to_capture() -> None:
    known = SETTINGS.latency(8)
    assert latency_seconds(1, 1, Speed(math.inf, math.inf, 0.0, capture_seconds=1.0)) == len(
        cells_of(known, Grid.of(known, "cpu", VOCABULARY), VOCABULARY)
    )


def test_of_sizes_that_are_searched_half_count() -> None:
    layer = Speed(math.inf, math.inf, 1.0)
    open_ = replace(SETTINGS, sizes=None, widths=None)
    known = open_.latency(8)
    cells = cells_of(known, Grid.of(known, "cpu", VOCABULARY), VOCABULARY)
    whole = sum(cell.whole for cell in cells)
    assert latency_seconds(1, 0, layer, open_) == 3 * 5 * (whole + (len(cells) - whole) / 2)


def test_a_small_layer_of_this_machine_is_timed() -> None:
    speed = Speed.of("cpu")
    assert 1e-5 < speed.layer_seconds < 1
    assert speed.capture_seconds == 0
    assert min(speed.bytes_per_second, speed.flops) > 1e6
