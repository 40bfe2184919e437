"""Latency profiling: recorded part times replayed through the real profiler."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.reference.pairs import tiny_pair
from treeopt.profiles.latency import read_latency
from treeopt.profiling import bench, grid, latency, shapes
from treeopt.profiling.latency import profile_latency
from treeopt.profiling.settings import LatencySettings, default_sizes, default_widths, dynamic_widths_of
from treespec.decoding.drafting import Drafting
from treespec.decoding.plans import DynamicBudget
from treespec.decoding.rules import Sampling
from treespec.decoding.step_rule import GREEDY
from treespec.errors import CapacityError, ProfileError, SettingsError, TreeError
from treespec.trees.tree import SpeculationTree

SETTINGS = LatencySettings(sizes=(1, 2, 5), widths=(1, 3), contexts=(8, 16), repetitions=5)


def cells_of(settings: LatencySettings, vocabulary: int) -> list[bench.Cell]:
    return bench.cells_of(settings, grid.Grid.of(settings, "cpu", vocabulary), vocabulary)


class RecordedTimer:
    """Says that a draft level takes 3 s, a target pass 10 s, acceptance 0.5 s and the cache 0.25 s."""

    seconds = {"drafting": 3.0, "target": 10.0, "acceptance": 0.5, "cache": 0.25}  # noqa: RUF012

    def begin(self) -> None:
        self.names: list[str] = []

    def mark(self, name: str) -> None:
        self.names.append(name)

    def parts(self) -> list[tuple[str, float]]:
        names, self.names = self.names, []
        return [(name, self.seconds[name]) for name in names]


def test_recorded_times_land_in_the_right_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    timer = RecordedTimer()
    clock = iter(range(0, 10**9, 100))
    monkeypatch.setattr(bench, "timer_for", lambda device: timer)
    monkeypatch.setattr(bench, "now", lambda device: float(next(clock)))  # every step takes 100 s as a whole
    profile = profile_latency(tiny_pair(), SETTINGS)
    assert [(s.nodes, s.context) for s in profile.target] == [(n, c) for c in (8, 16) for n in (1, 2, 5)]
    assert [(s.nodes, s.context) for s in profile.draft] == [(w, c) for c in (8, 16) for w in (1, 3)]
    assert {s.seconds for s in profile.target} == {(10.0,) * 8}, "repetitions are rounded up to whole bursts"
    assert {s.seconds for s in profile.draft} == {(3.0,) * 8}
    assert sorted(set(profile.overhead_seconds)) == [100 - 10 - 6, 100 - 10 - 3], "what is neither draft nor target"


def test_real_times_are_positive_and_raw() -> None:
    profile = profile_latency(tiny_pair(), SETTINGS)
    assert all(second > 0 for s in (*profile.target, *profile.draft) for second in s.seconds)
    assert len(profile.overhead_seconds) == 8 * 2 * 4, "every step with a tree, raw"


def test_an_interrupted_profile_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = tmp_path / "journal"

    def stop(what: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        profile_latency(tiny_pair(), SETTINGS, journal=journal, progress=stop)
    rounds = []
    real = latency._round
    monkeypatch.setattr(latency, "_round", lambda *arguments: rounds.append(1) or real(*arguments))
    assert len(profile_latency(tiny_pair(), SETTINGS, journal=journal).target[0].seconds) == 8
    assert len(rounds) == 1
    assert journal.exists(), "kept until the caller has saved the result"


@pytest.mark.parametrize("changes", [{"sizes": ()}, {"sizes": (0,)}, {"widths": (0, 1)}, {"contexts": (1,)}, {"repetitions": 0}])
def test_settings_that_measure_nothing_are_errors(changes: dict[str, object]) -> None:
    with pytest.raises(SettingsError):
        LatencySettings(**{"sizes": (1,), "widths": (1,), **changes})  # type: ignore[arg-type]


def test_sizes_and_widths_beyond_any_tree_are_named_as_they_were_given() -> None:
    for changes, message in (
        ({"widths": (1, 99_999)}, "`widths` is 1,99999, but it needs whole numbers from 1 to 32767"),
        ({"sizes": (99_999,)}, "`sizes` is 99999, but it needs whole numbers from 1 to 65536"),
    ):
        with pytest.raises(SettingsError, match=message):
            LatencySettings(**{"sizes": (1,), "widths": (1,), **changes})
    SpeculationTree.k_chains(32_767, 2)
    with pytest.raises(TreeError):
        SpeculationTree.k_chains(32_768, 2)


def test_a_context_beyond_the_model_is_an_error() -> None:
    with pytest.raises(CapacityError, match="context 300"):
        profile_latency(tiny_pair(), LatencySettings(sizes=(1,), widths=(1,), contexts=(300,)))


def test_no_root_has_more_children_than_the_vocabulary_has_tokens() -> None:
    pair = tiny_pair()
    known = pair.vocabulary_size
    for changes, message in (
        ({"sizes": (1, known + 2)}, f"`sizes` {known + 2} is more than {known + 1}: .* pass `sizes` of at most {known + 1}"),
        ({"widths": (1, known + 1)}, f"`widths` {known + 1} is more than {known}: .* pass `widths` of at most {known}"),
    ):
        with pytest.raises(ProfileError, match=message):
            profile_latency(pair, LatencySettings(**{"sizes": (1,), "widths": (1,), "contexts": (8,), **changes}))
    most = LatencySettings(sizes=(known + 1,), widths=(known,), contexts=(8,), repetitions=1)
    assert [sample.nodes for sample in profile_latency(pair, most).target] == [1, known + 1]
    assert (default_sizes("cpu", 30)[-1], default_widths("cuda", 30)[-1]) == (28, 24)


@pytest.mark.parametrize("edge", [8, 16, 33])
def test_without_sizes_and_widths_those_that_are_needed_are_measured(edge: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Target passes take twice as long beyond an edge, draft levels always the same."""
    pair = tiny_pair()
    known = pair.vocabulary_size
    real = bench.Bench.burst

    def burst(self: bench.Bench, cell: bench.Cell) -> list[bench.Sample]:
        timer.seconds = RecordedTimer.seconds | {"target": 20.0 if cell.spec.plan is not None and cell.spec.plan.size > edge else 10.0}
        return real(self, cell)

    timer = RecordedTimer()
    monkeypatch.setattr(bench, "timer_for", lambda device: timer)
    monkeypatch.setattr(bench.Bench, "burst", burst)
    profile = profile_latency(pair, LatencySettings(contexts=(4, 8), repetitions=bench.BURST))
    sizes, widths = default_sizes("cpu", known), default_widths("cpu", known)
    after = sizes[sizes.index(edge) + 1]
    assert {edge, after} <= {sample.nodes for sample in profile.target if sample.context == 4} <= set(sizes)
    assert len(profile.target) == 2 * len({sample.nodes for sample in profile.target}) < 2 * 8
    assert {sample.nodes for sample in profile.draft} == {widths[0], widths[-1]}
    assert {len(sample.seconds) for sample in (*profile.target, *profile.draft)} == {bench.BURST}
    model = profile.at_context()
    assert [model.target_seconds(size) for size in sizes] == [10.0 if size <= edge else 20.0 for size in sizes]


def test_where_all_passes_differ_all_sizes_are_measured() -> None:
    sizes = default_sizes("cuda")
    asked: list[int] = []

    def time(some: list[int]) -> dict[int, float]:
        asked.extend(some)
        return {size: float(size) for size in some}

    assert grid.needed(sizes, time, grid.close_sizes) == sizes
    assert len(asked) == len(set(asked)), "nothing is measured twice"
    close = grid.close_widths(1.0)
    assert close(0.01, 0.0113)
    assert not close(0.01, 0.0115)
    assert not grid.close_sizes(1.0, 1.05)
    assert grid.close_sizes(1.0, 0.5), "a larger size that is faster is predicted for the smaller one"


def test_what_was_chosen_is_measured_again_after_an_interruption(tmp_path: Path) -> None:
    journal, settings = tmp_path / "journal", LatencySettings(contexts=(8,), repetitions=2 * bench.BURST)

    def stop(what: str, done: int, total: int) -> None:
        if what == "profiling latency":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        profile_latency(tiny_pair(), settings, journal=journal, progress=stop)
    told: list[str] = []
    profile = profile_latency(tiny_pair(), settings, journal=journal, progress=lambda what, done, total: told.append(what))
    assert set(told) == {"profiling latency"}
    assert {len(sample.seconds) for sample in profile.target} == {2 * bench.BURST}


def test_default_cells_lie_on_both_sides_of_tile_edges() -> None:
    for device, edge in (("cpu", 16), ("cuda", 64)):
        assert {edge, edge + 1} <= set(default_sizes(device))
        assert {16, 17} <= set(default_widths(device))


RULES = replace(
    SETTINGS,
    contexts=(8,),
    repetitions=1,
    samplings=(Sampling(0.6),),
    draftings=(Drafting(), Drafting("swor"), Drafting("swor", verifier="traversal"), Drafting("swr")),
    dynamic=True,
)


def test_every_rule_is_timed_once_and_greedy_steps_always_are(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = cells_of(RULES, 30)
    assert len({(cell.context, cell.spec, cell.whole) for cell in cells}) == len(cells)
    names = ["topk, temperature 0", "topk, temperature above 0", "swor, sequential, temperature above 0"]
    names += ["swor, traversal, temperature above 0", "swr, sequential, temperature above 0", "dynamic trees, temperature above 0"]
    assert [rule.name for rule in RULES.rules] == names
    plain = cells_of(SETTINGS, 30)
    assert [cell.spec.plan.size for cell in plain if cell.spec.plan is not None and cell.width is None and not cell.whole] == [2, 5, 2, 5]
    assert {cell.rule for cell in plain if cell.whole} == {GREEDY}
    assert plain == cells_of(replace(SETTINGS, samplings=(Sampling(),), draftings=(Drafting("swor"),)), 30), "at 0 they are the same"


def test_dynamic_levels_are_of_the_widths_that_are_asked_for() -> None:
    assert dynamic_widths_of((14, 16, 128), "cuda", 1000) == [14, 16]
    assert dynamic_widths_of(default_widths("cuda"), "cuda", 1 << 16) == [2, 4, 8, 12, 16, 24, 32, 48, 64]
    assert dynamic_widths_of((128,), "cuda", 1000) == [128]
    with pytest.raises(CapacityError, match="context 230 needs 274 positions"):
        profile_latency(tiny_pair(), replace(RULES, contexts=(230,)))


def test_the_times_of_every_rule_are_kept_raw_and_predict_its_steps(tmp_path: Path) -> None:
    profile = profile_latency(tiny_pair(), RULES)
    assert profile.held == tuple(RULES.rules)
    for entry in profile.rules:
        assert entry.steps, entry.rule.name
        assert all(len(step.seconds) == bench.BURST for step in entry.steps)
        assert bool(entry.root) == (entry.rule.mode == "dynamic")
        assert bool(entry.draft) == (entry.rule.drafting != "topk" or entry.rule.mode == "dynamic"), "topk's levels are the profile's own"
        assert len(entry.autoregressive_overhead_seconds) == (0 if entry.rule == GREEDY else bench.BURST), (
            "greedy ones are the profile's own"
        )
    profile.write(tmp_path / "latency.json")
    assert read_latency(tmp_path / "latency.json") == profile
    tree = SpeculationTree.from_branches([[2], [1, 1]])
    for rule in profile.held[:-1]:
        assert profile.at_context(8, rule).step_seconds(tree) > 0
    assert profile.at_context(8, profile.held[-1]).dynamic_seconds(5, 2, 3) > 0


class Clock:
    """A clock by which a step takes 10 s per target pass, 3 s per draft level, and a rest of 1 s and 0.5 s per child of the widest family."""

    def __init__(self) -> None:
        self.time = 0.0

    def advance(self, plan: SpeculationTree | DynamicBudget | None) -> None:
        self.time += 10.0 + (1.0 if plan is None else 3.0 * plan.depth + 1.0)
        if isinstance(plan, SpeculationTree) and plan.size > 1:
            self.time += 0.5 * plan.max_branch


def test_a_planted_rest_is_found_from_whole_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(bench, "timer_for", lambda device: RecordedTimer())
    monkeypatch.setattr(bench, "now", lambda device: clock.time)
    real = bench.Bench.burst

    def burst(self: bench.Bench, cell: bench.Cell) -> list[bench.Sample]:
        steps = self.steps[cell.spec, cell.whole]
        launch = type(steps).launch
        monkeypatch.setattr(steps, "launch", lambda room: (launch(steps, room), clock.advance(cell.spec.plan)), raising=False)
        return real(self, cell)

    monkeypatch.setattr(bench.Bench, "burst", burst)
    settings = LatencySettings((1, 2, 4, 8, 16), (1, 2, 4, 8), (8,), 1, samplings=(Sampling(1.0),), draftings=(Drafting("swor"),))
    profile = profile_latency(tiny_pair(), settings)
    model = profile.at_context(8, profile.held[1])
    for tree in (SpeculationTree.k_ary(2, 2), SpeculationTree.chain(7), SpeculationTree.from_branches([[5], [1, 0, 0, 0, 0], [4]])):
        assert model.step_seconds(tree) == pytest.approx(10 + 3 * tree.depth + 1 + 0.5 * tree.max_branch, rel=1e-6)
    assert model.autoregressive_seconds() == pytest.approx(11)


def test_shapes_are_typical_and_within_what_is_measured() -> None:
    for device in ("cpu", "cuda"):
        sizes, widths = default_sizes(device), default_widths(device)
        trees = shapes.typical_trees(sizes, max(widths), 32_000)
        assert 6 <= len(trees) <= 10
        assert {tree.size for tree in trees} <= set(sizes)
        assert max(tree.size for tree in trees) == max(sizes)
        assert max(tree.max_branch for tree in trees) <= 64
        assert any(tree.max_branch == 1 and tree.depth > 4 for tree in trees), "a chain"
        budgets = shapes.typical_budgets(sizes, widths)
        assert len(budgets) >= 5
        assert {budget.width for budget in budgets} <= set(widths)
        for width in widths:
            tree = shapes.level_of(width, sampled=True)
            assert tree.level_widths[-2] == width
            assert tree.max_branch <= 32
            assert shapes.level_budget(width).width == width
    assert shapes.typical_trees((1,), 1, 30) == ()
    assert shapes.typical_budgets((1, 2), (1,)) == (DynamicBudget(2, 1, 1),)


@pytest.mark.parametrize("sizes", [(1, 2), (2, 3), (1, 64)])
@pytest.mark.parametrize("widths", [(1,), (2,), (1, 3)])
def test_few_sizes_and_widths_are_enough_for_every_rule(sizes: tuple[int, ...], widths: tuple[int, ...]) -> None:
    found = {cell.rule for cell in cells_of(replace(RULES, sizes=sizes, widths=widths), 100) if cell.whole}
    assert found == set(RULES.rules)
    with pytest.raises(ProfileError, match=r"`sizes` is 1, but steps of \(topk, temperature above 0\) are timed with trees"):
        profile_latency(tiny_pair(), replace(RULES, sizes=(1,)))


def test_whole_greedy_steps_are_of_trees_that_the_models_have_positions_for() -> None:
    """A step goes on for a few steps behind the context, so deep trees do not fit behind a long one; then the overhead stands for the rest."""
    settings = replace(SETTINGS, sizes=(1, 2, 8, 64), widths=(1, 8, 32), contexts=(200,))
    depths = [
        {
            cell.spec.plan.depth
            for cell in bench.cells_of(settings, grid.Grid.of(settings, "cpu", 100), 100, most)
            if cell.whole and cell.spec.plan
        }
        for most in (1000, 220, 208, 202)
    ]
    assert max(depths[0]) > 2
    assert (depths[1], depths[2], depths[3]) == ({1, 4}, {1}, set())
    profile = profile_latency(tiny_pair(), replace(SETTINGS, contexts=(252,)))
    assert profile.rules[0].steps == ()
    assert profile.at_context(252).rest is None


@pytest.mark.gpu
def test_rules_are_timed_on_captured_steps() -> None:
    said: list[str] = []
    profile = profile_latency(tiny_pair(device="cuda"), RULES, notice=said.append)
    assert not said
    assert all(second > 0 for entry in profile.rules for step in entry.steps for second in step.seconds)


@pytest.mark.gpu
def test_cuda_parts_sum_to_no_more_than_the_whole() -> None:
    profile = profile_latency(tiny_pair(device="cuda"), SETTINGS)
    assert all(second > 0 for s in (*profile.target, *profile.draft) for second in s.seconds)
    assert torch.tensor(profile.overhead_seconds).ge(0).all()
