"""The growmaps that come along are what their profiles make of them, and they are listed as they are."""

import hashlib
import heapq
import json
import math
from pathlib import Path

import pytest

from treeopt import growmap_library
from treeopt.growmap_library import CATALOGUE, UNTIMED_DEPTHS, Entry, build, derive, find, folder, readme, shipped
from treeopt.optimizer.objective import choose
from treeopt.optimizer.search import acceptance_rows, solve
from treeopt.profiles.acceptance import AcceptanceProfile, read_acceptance
from treeopt.profiles.latency import read_latency
from treeopt.profiles.latency_model import LatencyModel
from treespec.errors import GrowMapError, ProfileError
from treespec.files.provenance import Provenance
from treespec.trees.growmap import read_growmap
from treespec.trees.tree import SpeculationTree

PROFILES = folder() / "profiles"
TIMED = {name: entry for name, entry in CATALOGUE.items() if entry.latency is not None}


def close(value):
    """The same plain data with floats compared to twelve digits: other processors may round the last one otherwise."""
    if isinstance(value, dict):
        return {key: close(item) for key, item in value.items()}
    if isinstance(value, list):
        return [close(item) for item in value]
    return pytest.approx(value, rel=1e-12) if isinstance(value, float) else value


def rows_of(entry: Entry) -> list[list[float]]:
    """p[depth][rank] from the profile's file."""
    data = json.loads((PROFILES / f"{entry.acceptance}.acceptance.json").read_text())
    return data.get("by_depth") or [data["rank_probability"]]


def path_sum(tree: SpeculationTree, rows: list[list[float]]) -> float:
    """Expected tokens per step, from every path on its own."""
    return 1 + math.fsum(math.prod(rows[min(depth, len(rows) - 1)][rank] for depth, rank in enumerate(path)) for path in tree.paths)


def seconds(tree: SpeculationTree, latency: str) -> float:
    """Seconds of a step from the profile's file: the next larger measured pass, level by level."""
    data = json.loads((PROFILES / f"{latency}.latency.json").read_text())
    context = min(sample["context"] for sample in data["target"])

    def median(values: list[float]) -> float:
        ordered, half = sorted(values), len(values) // 2
        return ordered[half] if len(values) % 2 else (ordered[half - 1] + ordered[half]) / 2

    def time(what: str, unit: str, nodes: int) -> float:
        _, samples = min((s[unit], s["seconds"]) for s in data[what] if s["context"] == context and s[unit] >= nodes)
        return median(samples)

    drafts = sum(time("draft", "width", width) for width in tree.level_widths[:-1])
    return time("target", "size", tree.size) + drafts + median(data["overhead_seconds"])


# -- every growmap ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_growmap_is_derived_from_its_profile_again(name: str) -> None:
    found, derived = read_growmap(find(name)), derive(CATALOGUE[name])
    assert found.tree.parents == derived.tree.parents
    assert dict(found.metadata) == close(dict(derived.metadata))
    assert found.provenance == derived.provenance


@pytest.mark.parametrize("name", CATALOGUE)
def test_its_promise_follows_from_the_profiles_by_the_definitions(name: str) -> None:
    entry, growmap = CATALOGUE[name], read_growmap(find(name))
    promised, tree = growmap.metadata, growmap.tree
    assert promised["expected_tokens_per_step"] == pytest.approx(path_sum(tree, rows_of(entry)), rel=1e-12)
    assert promised["rank_probability"] == rows_of(entry)
    for kind, used in (("acceptance", entry.acceptance), ("latency", entry.latency)):
        digest = None if used is None else hashlib.sha256((PROFILES / f"{used}.{kind}.json").read_bytes()).hexdigest()
        assert promised.get(f"{kind}_sha256") == digest
    if entry.latency is None:
        assert promised["predicted_seconds_per_step"] is promised["predicted_speedup"] is promised["certified_gap"] is None
    else:
        step = seconds(tree, entry.latency)
        assert promised["predicted_seconds_per_step"] == pytest.approx(step, rel=1e-12)
        assert 1 < promised["predicted_speedup"] < promised["expected_tokens_per_step"]
        assert 0 <= promised["certified_gap"] < 0.1


@pytest.mark.parametrize("name", CATALOGUE)
def test_its_name_says_size_and_temperature_and_its_sidecar_is_its_own(name: str) -> None:
    sidecar = json.loads(find(name).with_name(f"{name}.json").read_text())
    assert sidecar["sha256"] == hashlib.sha256(find(name).read_bytes()).hexdigest()
    assert sidecar["metadata"]["name"] == name
    last = name.rpartition("-")[2]
    if last.isdigit():
        assert len(sidecar["parents"]) == int(last)
    heat = name.partition("-T")[2].partition("-")[0]
    assert sidecar["metadata"]["temperature"] == float(heat or 0)
    assert sidecar["metadata"]["drafting"] == ("swor" if heat else "topk")
    nothing_of_this_machine = ("python", "torch", "cpu", "driver", "git_commit", "utc")
    assert all(sidecar["provenance"][key] is None for key in nothing_of_this_machine)


def test_the_folder_holds_what_the_catalogue_names_and_the_profiles_of_it() -> None:
    assert {path.stem for path in folder().glob("*.pt")} == {path.stem for path in folder().glob("*.json")} == set(CATALOGUE)
    named = {f"{entry.acceptance}.acceptance.json" for entry in CATALOGUE.values()} | {f"{e.latency}.latency.json" for e in TIMED.values()}
    assert {path.name for path in PROFILES.iterdir()} == named
    for pair in ("68m_7b", "68m_7b-T0.2", "68m_7b-T0.6", "68m_7b-T1.0", "68m_13b-T0.6", "embedded-h200"):
        assert {f"{pair}-{size}" for size in (16, 32, 64, 128, 256, 512)} <= set(CATALOGUE)


# -- which tree ---------------------------------------------------------------------------------------------------------


def test_the_published_vector_gives_its_check_values() -> None:
    derived = derive(Entry("check", "68m_7b", size=128, max_depth=8))
    assert derived.metadata["expected_tokens_per_step"] == pytest.approx(5.1454, abs=5e-5)
    assert derived.metadata["solver"] == "dp"
    ((*chances,),) = rows_of(CATALOGUE["68m_7b-128"])
    heap, taken = [(-1.0, (), 0)], []  # the likeliest node that can be reached, whatever comes behind it: not exact here
    while len(taken) < 128:
        value, path, rank = heapq.heappop(heap)
        taken.append(-value)
        if len(path) < 8:
            heapq.heappush(heap, (value * chances[0], (*path, 0), 0))
        if path and rank + 1 < len(chances):
            heapq.heappush(heap, (value / chances[rank] * chances[rank + 1], (*path[:-1], rank + 1), rank + 1))
    assert math.fsum(taken) == pytest.approx(5.1449, abs=5e-5)


@pytest.mark.parametrize("name", TIMED)
def test_no_other_depth_and_no_other_size_asked_about_is_faster(name: str) -> None:
    entry, growmap = CATALOGUE[name], read_growmap(find(name))
    rows = acceptance_rows(read_acceptance(PROFILES / f"{entry.acceptance}.acceptance.json"))
    model = read_latency(PROFILES / f"{entry.latency}.latency.json").at_context()
    sizes = [entry.size] if entry.size else [size for size, _ in model.target if size > 1]
    frontier = solve(rows, max(sizes), 16, rows.shape[1])
    best = growmap.metadata["predicted_seconds_per_step"] / growmap.metadata["expected_tokens_per_step"]
    for size in sizes:
        for depth in range(4, 17):
            tree = frontier.tree(size, depth)
            if max(tree.level_widths[:-1]) <= model.largest_width:
                assert best <= seconds(tree, entry.latency or "") / path_sum(tree, rows_of(entry)) * (1 + 1e-12)


@pytest.mark.parametrize(("pair", "size"), [(pair, size) for pair, sizes in UNTIMED_DEPTHS.items() for size in sizes])
def test_a_depth_without_times_is_that_of_the_longest_published_pass(pair: str, size: int) -> None:
    published = read_latency(PROFILES / "68m_7b-l40.latency.json").at_context()
    (_, target), (_, draft) = published.target[-1], published.draft[-1]
    assert size not in dict(published.target) or "13b" in pair
    stand_in = LatencyModel(published.context, ((size, target),), (*published.draft, (1 << 16, draft)), 0.0, 0.0)
    rows = acceptance_rows(read_acceptance(PROFILES / f"{pair}.acceptance.json"))
    choice = choose(solve(rows, size, 32, rows.shape[1]), stand_in, size)
    assert UNTIMED_DEPTHS[pair][size] == choice.depth == read_growmap(find(f"{pair}-{size}")).tree.depth


# -- names and files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "near"),
    [("68m_7b-65", "68m_7b-64"), ("68m_7b-64.pt", "68m_7b-64"), ("68M_7B-64", "68m_7b-64"), ("embeded-h200", "embedded-h200"), ("xyz", "")],
)
def test_a_name_that_is_not_in_the_catalogue_is_refused(name: str, near: str) -> None:
    with pytest.raises(GrowMapError, match=f"there is no file {name}, and no growmap of that name comes with treeopt") as refused:
        find(name)
    assert (f"did you mean {near}" if near else "check the path") in str(refused.value)
    assert "treeopt inspect --list" in str(refused.value)


def test_the_readme_lists_them_as_they_are() -> None:
    text = (folder() / "README.md").read_text()
    assert text == readme(shipped())
    for name, growmap in shipped().items():
        assert text.count(f"| `{name}` |") == 1
        assert growmap.metadata["source"] in text


def test_build_writes_what_it_derives_and_tells_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some = {name: CATALOGUE[name] for name in ("68m_7b-16", "embedded-h200")}
    monkeypatch.setattr(growmap_library, "CATALOGUE", some)
    lines: list[str] = []
    build(tmp_path / "new", lines.append)
    assert lines == ["1/2 68m_7b-16", "2/2 embedded-h200"]
    made = {path.name for path in (tmp_path / "new").iterdir()}
    assert made == {"README.md", *(f"{name}.{kind}" for name in some for kind in ("pt", "json"))}
    for name in some:
        again, before = read_growmap(tmp_path / "new" / f"{name}.pt"), read_growmap(find(name))
        assert again.tree == before.tree
        assert dict(again.metadata) == close(dict(before.metadata))
    assert (tmp_path / "new" / "README.md").read_text() == readme({name: read_growmap(find(name)) for name in some})


def test_other_profiles_of_the_same_name_make_other_growmaps(tmp_path: Path) -> None:
    ours = {"gpu": "NVIDIA H200", "models": {"target": "t", "draft": "d"}, "dataset": "rows[0:9]", "utc": "2026-01-01T00:00:00+00:00"}
    measured = AcceptanceProfile("topk", 0.0, 1.0, (0.5, 0.3), 0.2, (), positions=90, prompts=9, provenance=ours)
    measured.write(tmp_path / "mine.acceptance.json")
    derived = derive(Entry("mine-4", "mine", size=4, max_depth=3), tmp_path)
    assert derived.tree == SpeculationTree.from_paths([(0,), (1,), (0, 0)])  # 1 + 0.5 + 0.3 + 0.25 against 1.875 of a chain
    assert derived.metadata["source"] == "treeopt on NVIDIA H200"
    assert derived.provenance == Provenance(models={"target": "t", "draft": "d"}, temperature=0.0, top_p=1.0, dataset="rows[0:9]")
    with pytest.raises(ProfileError, match=r"no file .*other\.acceptance\.json"):
        derive(Entry("other-4", "other", size=4, max_depth=3), tmp_path)
