"""Latency profiling: recorded part times replayed through the real profiler."""

from pathlib import Path

import pytest
import torch

from tests.reference.pairs import tiny_pair
from treeopt.profiling import bench, latency
from treeopt.profiling.latency import profile_latency
from treeopt.profiling.settings import LatencySettings, default_sizes, default_widths
from treespec.errors import CapacityError, ProfileError, SettingsError, TreeError
from treespec.trees.tree import SpeculationTree

SETTINGS = LatencySettings(sizes=(1, 2, 5), widths=(1, 3), contexts=(8, 16), repetitions=5)


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
    assert profile_latency(pair, most).target[0].nodes == known + 1
    assert (default_sizes("cpu", 30)[-1], default_widths("cuda", 30)[-1]) == (28, 24)


def test_without_sizes_and_widths_the_devices_defaults_are_measured() -> None:
    pair = tiny_pair()
    known = pair.vocabulary_size
    profile = profile_latency(pair, LatencySettings(contexts=(8,), repetitions=1))
    assert tuple(sample.nodes for sample in profile.target) == default_sizes("cpu", known)
    assert tuple(sample.nodes for sample in profile.draft) == default_widths("cpu", known)


def test_default_cells_lie_on_both_sides_of_tile_edges() -> None:
    for device, edge in (("cpu", 16), ("cuda", 64)):
        assert {edge, edge + 1} <= set(default_sizes(device))
        assert {16, 17} <= set(default_widths(device))


@pytest.mark.gpu
def test_cuda_parts_sum_to_no_more_than_the_whole() -> None:
    profile = profile_latency(tiny_pair(device="cuda"), SETTINGS)
    assert all(second > 0 for s in (*profile.target, *profile.draft) for second in s.seconds)
    assert torch.tensor(profile.overhead_seconds).ge(0).all()
