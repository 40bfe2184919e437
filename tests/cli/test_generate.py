"""`treeopt generate` and `treeopt inspect`: from profile files to growmaps that remember their promise."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from treespec.trees.growmap import read_growmap

KEYS = {
    "size",
    "depth",
    "expected_tokens_per_step",
    "predicted_seconds_per_step",
    "predicted_speedup",
    "certified_gap",
    "solver",
    "frontier",
}


def test_a_growmap_keeps_the_chances_of_the_depths_that_it_has(run: Any, profiles: tuple[Path, Path], tmp_path: Path) -> None:
    profile = json.loads(profiles[0].read_text())
    profiles[0].write_text(json.dumps(profile | {"by_depth": [profile["rank_probability"]] * 20_000}))
    assert run("grow", "--acceptance", profiles[0], "--size", 8, "--depth", 3, "-o", "deep.pt").code == 0
    rows = read_growmap(tmp_path / "deep.pt").promise.rank_probability
    assert rows == (tuple(profile["rank_probability"]),) * 3


def test_a_size_and_a_depth_need_no_latency(run: Any, profiles: tuple[Path, Path], tmp_path: Path) -> None:
    outcome = run("generate", "--acceptance", profiles[0], "--size", 5, "--depth", 3, "-o", "tree.pt", "--format", "json")
    assert outcome.code == 0, outcome.err
    data = outcome.json
    assert set(data) >= KEYS
    assert data["size"] == 5
    assert data["depth"] <= 3
    assert data["expected_tokens_per_step"] == pytest.approx(1 + 0.6 + 0.36 + 0.216 + 0.2)
    assert data["predicted_seconds_per_step"] is data["predicted_speedup"] is data["certified_gap"] is data["frontier"] is None
    assert outcome.err == "wrote tree.pt\n"
    assert sorted(p.name for p in tmp_path.glob("tree*")) == ["tree.json", "tree.pt"]


def test_a_context_beyond_the_measured_ones_is_refused_or_marked(run: Any, profiles: tuple[Path, Path], tmp_path: Path) -> None:
    given = ("--acceptance", profiles[0], "--latency", profiles[1], "--context", 4096)
    refused = run("grow", *given)
    assert refused.code == 1
    assert "was not measured at context 4096 or beyond" in refused.err
    assert refused.err.rstrip().endswith("or pass --extrapolate")
    assert run("grow", *given[:-2], "--extrapolate").code == 2
    grown = run("grow", *given, "--extrapolate", "--format", "json")
    assert grown.code == 0, grown.err
    assert "the times at context 4096 are extrapolated from those at 64 and 256: they are no measurement" in grown.err
    assert (grown.json["context"], grown.json["extrapolated_from"]) == (4096, 256)
    metadata = read_growmap(tmp_path / "tree.pt").metadata
    assert (metadata["context"], metadata["extrapolated_from"]) == (4096, 256)
    assert "extrapolated from" in run("inspect", "tree.pt").out
    between = run("grow", *given[:-1], 100, "--extrapolate", "--format", "json")
    assert "the latency was not profiled at context 100: the times at 256, the next larger one, are taken" in between.err
    assert between.json["extrapolated_from"] is None
    data = json.loads(profiles[1].read_text())
    profiles[1].write_text(
        json.dumps(data | {key: [entry for entry in data[key] if entry["context"] == 64] for key in ("target", "draft")})
    )
    alone = run("grow", *given, "--extrapolate")
    assert alone.code == 1
    assert "profile the latency at two contexts or more" in alone.err


def test_the_best_chain_is_recorded_and_shown(run: Any, profiles: tuple[Path, Path], tmp_path: Path) -> None:
    outcome = run("grow", "--acceptance", profiles[0], "--latency", profiles[1])
    assert outcome.code == 0, outcome.err
    chain = read_growmap(tmp_path / "tree.pt").metadata["best_chain"]
    assert f"the best chain has depth {chain['depth']}: {chain['expected_tokens_per_step']:.4f} tokens per step" in outcome.out
    assert "x its tokens per second" in outcome.out
    assert f"depth {chain['depth']}" in run("inspect", "tree.pt").out
    untimed = run("grow", "--acceptance", profiles[0], "--size", 5, "--depth", 3, "-o", "untimed.pt")
    assert "best chain" not in untimed.out
    assert "best_chain" not in read_growmap(tmp_path / "untimed.pt").metadata


def test_a_latency_profile_chooses_the_size(run: Any, profiles: tuple[Path, Path], tmp_path: Path) -> None:
    outcome = run("generate", "--acceptance", profiles[0], "--latency", profiles[1], "--context", 100, "--frontier", "--format", "json")
    assert outcome.code == 0, outcome.err
    data = outcome.json
    assert 1 < data["size"] <= 8
    assert data["predicted_speedup"] > 1
    assert 0 <= data["certified_gap"] < 1
    best = {(p["size"], p["depth"]): p["expected_tokens_per_step"] for p in data["frontier"]}
    assert best[(data["size"], data["depth"])] == pytest.approx(data["expected_tokens_per_step"])
    metadata = json.loads((tmp_path / "tree.json").read_text())["metadata"]
    assert metadata["context"] == 256
    assert metadata["acceptance_sha256"] == hashlib.sha256(profiles[0].read_bytes()).hexdigest()
    assert metadata["latency_sha256"] == hashlib.sha256(profiles[1].read_bytes()).hexdigest()
    assert metadata["predicted_seconds_per_step"] == data["predicted_seconds_per_step"]


def test_tables_are_for_people(run: Any, profiles: tuple[Path, Path]) -> None:
    outcome = run("generate", "--acceptance", profiles[0], "--latency", profiles[1], "--frontier")
    assert outcome.code == 0
    assert "expected tokens per step" in outcome.out
    assert "frontier" in outcome.out
    assert "\x1b" not in outcome.out


def test_limits_reach_the_optimizer(run: Any, profiles: tuple[Path, Path]) -> None:
    arguments = ("generate", "--acceptance", profiles[0], "--latency", profiles[1], "--format", "json")
    assert run(*arguments, "--max-size", 3).json["size"] <= 3
    assert run(*arguments, "--max-depth", 1).json["depth"] == 1
    assert run(*arguments, "--max-branch", 1).json["max_branch"] == 1
    assert run(*arguments, "--solver", "dp").json["solver"] == "dp"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--size", "4"], "--size goes together with --depth"),
        (["--depth", "4"], "--depth goes together with --size"),
        (["--size", "4", "--depth", "0"], "'--depth'"),
        (["--size", "0", "--depth", "2"], "'--size'"),
        ([], "Pass --latency FILE, or --size N --depth D"),
        (["--size", "4", "--depth", "2", "--max-size", "9"], "drop --max-size"),
        (["--size", "4", "--depth", "2", "--context", "64"], "--context picks a context of a latency profile"),
        (["--size", "4", "--depth", "2", "-o", "tree.json"], "pass -o tree.pt"),
    ],
)
def test_options_that_do_not_go_together_are_usage_errors(run: Any, profiles: tuple[Path, Path], options: list[str], words: str) -> None:
    outcome = run("generate", "--acceptance", profiles[0], *options)
    assert outcome.code == 2
    assert words in outcome.err


def test_impossible_limits_are_explained(run: Any, profiles: tuple[Path, Path], tmp_path: Path) -> None:
    outcome = run("generate", "--acceptance", profiles[0], "--size", 9, "--depth", 1)
    assert outcome.code == 1
    assert outcome.err.startswith("error: --size is 9")
    assert outcome.err.count("\n") == 1
    assert not (tmp_path / "tree.pt").exists()


def test_a_size_that_no_growmap_may_have_is_refused_before_the_work(run: Any, profiles: tuple[Path, Path]) -> None:
    outcome = run("generate", "--acceptance", profiles[0], "--size", 10**9, "--depth", 8)
    assert outcome.code == 1
    assert "at most 2048 nodes" in outcome.err


def test_a_profile_of_another_version_or_kind_is_refused(run: Any, profiles: tuple[Path, Path]) -> None:
    newer = profiles[0].with_name("newer.json")
    newer.write_text(profiles[0].read_text().replace('"version": 1', '"version": 2'))
    outcome = run("generate", "--acceptance", newer, "--size", 4, "--depth", 2)
    assert outcome.code == 1
    assert "version 2" in outcome.err
    outcome = run("generate", "--acceptance", profiles[1], "--size", 4, "--depth", 2)
    assert outcome.code == 1
    wanted = "is a latency profile, but an acceptance profile is needed; pass an acceptance profile here; a latency profile goes where"
    assert f"{wanted} --latency is asked for" in outcome.err


def test_an_unwritable_output_fails_before_the_work(run: Any, profiles: tuple[Path, Path]) -> None:
    outcome = run("generate", "--acceptance", profiles[0], "--size", 4, "--depth", 2, "-o", "no/such/folder/tree.pt")
    assert outcome.code == 1
    assert "no/such/folder/tree.pt" in outcome.err
    assert "folder does not exist" in outcome.err


def sequoia_files(folder: Path) -> Path:
    torch = pytest.importorskip("torch")
    torch.save(torch.tensor([0.0, 0.6, 0.2, 0.1, 0.1]), folder / "vector.pt")
    config = {
        "acceptance_rate_vector": "vector.pt",
        "max_depth": 4,
        "max_budget": 8,
        "max_branch": 3,
        "draft_time": 0.0005,
        "target_time": [0.010, 0.0101, 0.0102, 0.0104],
        "valid_budget": [1, 2, 4, 8],
        "dst": "elsewhere.pt",
    }
    path = folder / "config.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    return path


def test_sequoias_own_files_are_taken(run: Any, tmp_path: Path) -> None:
    config = sequoia_files(tmp_path)
    outcome = run("generate", "--sequoia-config", config, "-o", "tree.pt", "--format", "json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["size"] in (1, 2, 4, 8)
    assert outcome.json["depth"] <= 3
    outcome = run("generate", "--acceptance", tmp_path / "vector.pt", "--size", 4, "--depth", 3, "--format", "json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["expected_tokens_per_step"] == pytest.approx(1 + 0.6 + 0.36 + 0.216)
    outcome = run("generate", "--sequoia-config", config, "--size", 4, "--depth", 3)
    assert outcome.code == 2
    assert "drop --depth and --size" in outcome.err


def test_inspect_shows_every_figure_as_grow_did(run: Any, profiles: tuple[Path, Path]) -> None:
    """Names, units and digits are the same."""
    made = run("grow", "--acceptance", profiles[0], "--latency", profiles[1], "--format", "markdown").out
    shown = run("inspect", "tree.pt", "--format", "markdown").out.splitlines()
    rows = [line for line in made.splitlines() if line.startswith("|") and "---" not in line]
    assert len(rows) >= 7
    assert [row for row in rows if row not in shown] == []


def test_inspect_shows_what_generate_wrote(run: Any, profiles: tuple[Path, Path]) -> None:
    made = run("generate", "--acceptance", profiles[0], "--size", 6, "--depth", 3, "--format", "json").json
    for file in ("tree.pt", "tree.json"):
        data = run("inspect", file, "--format", "json").json
        assert {"size", "depth", "max_branch", "level_widths", "paths"} <= set(data)
        assert (data["size"], data["depth"]) == (6, made["depth"])
        assert sum(data["level_widths"]) == 6
        assert data["paths"] == sorted(data["paths"], key=lambda path: (len(path), path))
        assert len(data["paths"]) == 5
        assert data["metadata"]["expected_tokens_per_step"] == pytest.approx(made["expected_tokens_per_step"])
        assert data["tokens_per_step_by_chances"] == pytest.approx(made["expected_tokens_per_step"])
        assert "expected_tokens_per_step" not in data, "what is promised and what chances expect have names of their own"
        assert data["path_probability"][0] == pytest.approx(0.6)


def test_inspect_draws_the_likeliest_nodes(run: Any, profiles: tuple[Path, Path]) -> None:
    run("generate", "--acceptance", profiles[0], "--size", 6, "--depth", 3)
    drawn = run("inspect", "tree.pt").out
    assert drawn.count("── ") == 5
    assert "0  0.6000" in drawn
    few = run("inspect", "tree.pt", "--max-nodes", 3).out
    assert few.count("── ") == 2
    assert "3 more nodes are not drawn" in few


def test_inspect_takes_probabilities_from_a_profile(run: Any, profiles: tuple[Path, Path]) -> None:
    from treespec.trees.growmap import GrowMap
    from treespec.trees.tree import SpeculationTree

    GrowMap(SpeculationTree.from_paths([(0, 0), (1,)]), {}).write("bare.pt")
    assert run("inspect", "bare.pt", "--format", "json").json["path_probability"] is None
    assert "root" in run("inspect", "bare.pt").out
    data = run("inspect", "bare.pt", "--acceptance", profiles[0], "--format", "json").json
    assert data["path_probability"] == pytest.approx([0.6, 0.2, 0.36])


def test_inspect_refuses_a_profile_for_what_is_no_growmap(run: Any, profiles: tuple[Path, Path]) -> None:
    for other, said in ((profiles[1], "has the schema 'treeopt.latency'"), ("--list", "is for one growmap")):
        outcome = run("inspect", other, "--acceptance", profiles[0])
        assert outcome.code == 2
        assert "--acceptance is for" in outcome.err
        assert said in outcome.err


def test_inspect_shows_profiles_and_sequoia_vectors(run: Any, profiles: tuple[Path, Path], tmp_path: Path) -> None:
    data = run("inspect", profiles[0], "--format", "json").json
    assert data["rank_probability"] == [0.6, 0.2, 0.1, 0.0]
    shown = run("inspect", profiles[0]).out
    assert "0.6000" in shown
    assert "no rank accepted: 0.1000; ranks that were never accepted are not shown\n" in shown
    profiles[0].write_text(profiles[0].read_text().replace("0.1, 0.0]", "0.05, 0.05]"))
    assert "no rank accepted: 0.1000\n" in run("inspect", profiles[0]).out
    data = run("inspect", profiles[1], "--format", "json").json
    few = {"interval_95": None, "fastest_seconds": 0.010, "slowest_seconds": 0.011, "samples": 3}
    assert data["target"][0] == {"size": 1, "context": 64, "median_seconds": pytest.approx(0.0101)} | few
    assert data["draft"][0]["median_seconds"] == 0.0005
    assert data["warning"] == "noise cannot be told from 1 sample of a point: take `repetitions` 24 or more"
    assert run("inspect", profiles[1]).out.count("noise cannot be told") == 1
    assert data["overhead_seconds"] == 0.0002
    assert "context 256" in run("inspect", profiles[1]).out
    sequoia_files(tmp_path)
    assert run("inspect", "vector.pt", "--format", "json").json["rank_probability"][0] == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.pt", b"not a zip archive", "is a text, but a .pt file"),
        ("x.json", b"{", "no valid JSON"),
        ("x.json", b"{}", 'JSON without a "schema"'),
        ("x.json", b"7", "it holds a JSON int, not an object"),
        ("x.json", b'{"schema": "other.thing", "version": 1}', "schema 'other.thing'"),
    ],
)
def test_inspect_refuses_what_it_does_not_know(run: Any, tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    outcome = run("inspect", name)
    assert outcome.code == 1
    assert words in outcome.err
    assert outcome.err.count("\n") == 1


def test_options_of_a_growmap_are_refused_where_there_is_none(run: Any, profiles: tuple[Path, Path], tmp_path: Path) -> None:
    import torch

    torch.save(torch.tensor([0.0, 0.6, 0.4]), tmp_path / "vec.pt")
    for shown in (profiles[0], "vec.pt", "--list"):
        for option in (["--max-nodes", 3], ["--acceptance", profiles[0]]):
            outcome = run("inspect", shown, *option)
            assert outcome.code == 2, outcome
            assert f"{option[0]} is for one growmap, and " in outcome.err


@pytest.mark.parametrize("name", ["bad.json", "bad.pt"])
def test_inspect_says_what_to_do_about_a_file_that_it_cannot_read(run: Any, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{")
    outcome = run("inspect", name)
    assert (outcome.code, outcome.err.count("\n")) == (1, 1)
    assert "make it again" in outcome.err


def test_generate_says_what_a_harmful_vector_would_run(run: Any, tmp_path: Path) -> None:
    import torch

    class Harmful:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (Path("ran"),))

    torch.save(Harmful(), tmp_path / "v.pt")
    outcome = run("generate", "--acceptance", "v.pt", "--size", 3, "--depth", 2)
    assert outcome.code == 1
    assert "when loaded; refused: save plain tensors and containers instead" in outcome.err
    assert "asks to run" in outcome.err
    assert not (tmp_path / "ran").exists()


def test_half_a_surrogate_pair_is_no_text(run: Any, profiles: tuple[Path, Path]) -> None:
    profile = json.loads(profiles[0].read_text())
    for odd in ({"method": "\ud800"}, {"prompt_set": {"dataset": "\udfff"}}, {"provenance": {"models": {"\ud800": "x"}}}):
        profiles[0].write_text(json.dumps(profile | odd))
        outcome = run("inspect", profiles[0])
        assert (outcome.code, outcome.out) == (1, ""), odd
        assert "holds half a surrogate pair, which is no text" in outcome.err


def test_a_prediction_that_only_noise_can_give_is_called_so(run: Any, profiles: tuple[Path, Path], tmp_path: Path) -> None:
    assert "noisy" not in run("grow", "--acceptance", profiles[0], "--latency", profiles[1]).err
    data = json.loads(profiles[1].read_text())
    for entry in data["target"]:
        entry["seconds"] = [0.1 if entry["size"] == 1 else 0.02]  # a pass over a tree in a fifth of the time of one over a token
    profiles[1].write_text(json.dumps(data))
    outcome = run("grow", "--acceptance", profiles[0], "--latency", profiles[1])
    assert outcome.code == 0
    assert "the latency profile is noisy: a speed-up of" in outcome.err


def with_samples(path: Path, spread: float) -> None:
    """Give a latency profile samples whose bursts differ by a share."""
    data = json.loads(path.read_text())
    around = [round(1 + spread * (burst - 2.5) / 2.5, 6) for burst in range(6) for _ in range(4)]
    for row in (*data["target"], *data["draft"]):
        row["seconds"] = [row["seconds"][-1] * factor for factor in around]
    data["overhead_seconds"] = [0.0002 * factor for factor in around]
    path.write_text(json.dumps(data))


def test_the_promise_has_intervals_where_the_profiles_have_samples_enough(run: Any, profiles: tuple[Path, Path], tmp_path: Path) -> None:
    with_samples(profiles[1], 0.05)
    arguments = ("grow", "--acceptance", profiles[0], "--latency", profiles[1], "-o", "tree.pt")
    outcome = run(*arguments, "--format", "json")
    assert outcome.err == "wrote tree.pt\n"
    data, promise = outcome.json, read_growmap(tmp_path / "tree.pt").promise
    for key, name in (("expected_", "tokens_per_step"), ("predicted_", "seconds_per_step"), ("predicted_", "speedup")):
        low, high = data["intervals_95"][key + name]
        assert low < data[key + name] < high
        assert getattr(promise, f"{name}_interval") == (low, high)
    assert data["candidates"][0]["intervals_95"] == data["intervals_95"]
    low, high = data["intervals_95"]["predicted_speedup"]
    for shown in (run(*arguments).out, run("inspect", "tree.pt").out):
        assert f"{data['predicted_speedup']:.3f} [{low:.3f}, {high:.3f}]" in shown


def test_noise_in_which_nothing_can_be_told_is_said(run: Any, profiles: tuple[Path, Path]) -> None:
    with_samples(profiles[1], 0.6)
    outcome = run("grow", "--acceptance", profiles[0], "--latency", profiles[1])
    assert outcome.code == 0
    assert "cannot tell whether this tree is faster than plain decoding: its predicted speed-up is" in outcome.err
    assert (
        "the latency profile was taken while the machine did other work, or changed its speed: the median of 14 of 14 points" in outcome.err
    )
    shown = run("inspect", profiles[1])
    assert "the times are unstable: the median of 14 of 14 points" in shown.out


def test_intervals_that_are_none_are_refused(run: Any, profiles: tuple[Path, Path], tmp_path: Path) -> None:
    assert run("grow", "--acceptance", profiles[0], "--size", 4, "--depth", 2, "-o", "tree.pt").code == 0
    sidecar = tmp_path / "tree.json"
    written = sidecar.read_text()
    for odd in ('["a", 2]', "[2, 1]", "[1]", "[-1, 2]", "3"):
        data = json.loads(written)
        data["metadata"]["intervals_95"] = {"expected_tokens_per_step": json.loads(odd)}
        sidecar.write_text(json.dumps(data))
        outcome = run("inspect", "tree.pt")
        assert (outcome.code, "intervals_95" in outcome.err) == (1, True), odd
