"""`profile acceptance --trace` and `treeopt replay`: the steps of trees on known texts, without models."""

import json
from pathlib import Path
from typing import Any

import pytest

from treespec.trees.growmap import GrowMap
from treespec.trees.tree import SpeculationTree

Pair = tuple[Path, Path]
KEYS = {"name", "size", "depth", "steps", "tokens", "tokens_per_step", "interval_95"}


def measured(pair: Pair, rows: Path, *options: object) -> list[object]:
    models = ["--target", pair[0], "--draft", pair[1], "--device", "cpu"]
    return [*models, "--dataset", rows, "--num-prompts", 4, "--prompt-len", 8, "--gen-len", 12, *options]


@pytest.fixture
def traced(run: Any, pair: Pair, rows: Path) -> Any:
    """A trace and its profile in the folder, and two trees."""
    made = run("profile", "acceptance", *measured(pair, rows), "--max-branch", 4, "--trace", "trace.json", "--format", "json")
    assert made.code == 0, made.err
    assert made.err.endswith("wrote acceptance.json\nwrote trace.json\n")
    GrowMap(SpeculationTree.k_ary(2, 3)).write("tree.pt")
    GrowMap(SpeculationTree.chain(3)).write("chain.pt")
    return made.json


def test_the_steps_are_those_of_an_evaluation(run: Any, traced: Any, pair: Pair, rows: Path) -> None:
    replayed = run("replay", "tree.pt", "chain.pt", "--trace", "trace.json", "--format", "json")
    assert (replayed.code, replayed.err) == (0, "")
    data = replayed.json
    assert [tree["name"] for tree in data["trees"]] == ["tree.pt", "chain.pt"]
    assert (data["prompts"], data["positions"], data["gen_len"]) == (4, traced["positions"], 12)
    for found in data["trees"]:
        assert set(found) >= KEYS
        report = run("evaluate", *measured(pair, rows), "--start", 0, "--growmap", found["name"], "--format", "json").json
        assert report["lossless"] == "match"
        assert {key: found[key] for key in ("steps", "tokens", "tokens_per_step")} == {
            key: report[key] for key in ("steps", "tokens", "tokens_per_step")
        }
        low, high = found["interval_95"]
        assert low <= found["tokens_per_step"] <= high
        assert sum(found["steps_by_accepted"]) == found["steps"]
        assert found["predicted_tokens_per_step"] is None


def test_predictions_stand_beside(run: Any, traced: Any, pair: Pair, rows: Path) -> None:
    """Those of a profile, or what a growmap promises for this pair; not what one promises for another."""
    grown = run("grow", "--acceptance", "acceptance.json", "--size", 6, "--depth", 3, "-o", "grown.pt", "--format", "json").json
    table = run("replay", "grown.pt", "68m_7b-16", "--trace", "trace.json")
    assert "predicted" in table.out
    assert "in brackets: 95 % intervals over prompts" in table.out
    data = run("replay", "grown.pt", "68m_7b-16", "--trace", "trace.json", "--format", "json").json["trees"]
    assert [tree["name"] for tree in data] == ["grown.pt", "68m_7b-16"]
    assert [tree["predicted_tokens_per_step"] for tree in data] == [pytest.approx(grown["expected_tokens_per_step"]), None]
    given = ["--trace", "trace.json", "--acceptance", "acceptance.json", "--format", "json"]
    data = run("replay", "tree.pt", "grown.pt", *given).json["trees"]
    p = traced["rank_probability"][:2]
    assert data[0]["predicted_tokens_per_step"] == pytest.approx(1 + sum(p) + sum(p) ** 2 + sum(p) ** 3)
    assert data[1]["predicted_tokens_per_step"] == pytest.approx(grown["expected_tokens_per_step"])
    GrowMap(SpeculationTree.k_chains(5, 1)).write("wide.pt")
    assert run("replay", "wide.pt", *given).json["trees"][0]["predicted_tokens_per_step"] is None, "the profile has four ranks"
    assert "predicted" not in run("replay", "tree.pt", "--trace", "trace.json").out


def test_a_trace_is_inspected(run: Any, traced: Any) -> None:
    shown = run("inspect", "trace.json")
    assert shown.code == 0, shown.err
    assert "draft rank of the target's choice: 44 positions of 4 prompts, topk, temperature 0" in shown.out
    data = run("inspect", "trace.json", "--format", "json").json
    assert [n / data["positions"] for n in data["rank_counts"][:4]] == pytest.approx(traced["rank_probability"])
    refused = run("inspect", "trace.json", "--max-nodes", 3)
    assert (refused.code, "--max-nodes is for one growmap" in refused.err) == (2, True)


def test_a_tree_that_is_deeper_than_the_texts_is_noted(run: Any, traced: Any) -> None:
    GrowMap(SpeculationTree.chain(12)).write("deep.pt")
    found = run("replay", "deep.pt", "chain.pt", "--trace", "trace.json", "--format", "json").json
    assert found["notes"] == [
        "the longest text has 11 tokens behind its first, so no step can have accepted more: longer texts say more of deep.pt"
    ]


def damaged(change: Any) -> None:
    data = json.loads(Path("trace.json").read_text())
    change(data)
    Path("trace.json").write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("arguments", "change", "words"),
    [
        (
            ["tree.pt", "wide.pt"],
            None,
            "wide.pt: the tree has a node with 62 children, but the vocabulary has 61 tokens; use a narrower tree",
        ),
        (["tree.pt"], lambda data: data.update(drafting="swr"), "the trace is of swr, whose children are random"),
        (["tree.pt"], lambda data: data.update(sha256="0"), "trace.json has other columns than were written"),
        (["tree.pt"], lambda data: data["texts"]["tokens"].pop(), "trace.json has a 'texts' that cannot be"),
        (["tree.pt"], lambda data: data.update(schema="treeopt.latency"), "trace.json is a latency profile, but a trace is needed"),
        (["tree.pt"], lambda data: data.update(pair_sha256="0"), ""),
        (["acceptance.json"], None, "acceptance.json is an acceptance profile, but a growmap is needed; `treeopt grow` makes one of it"),
        (["trace.json"], None, "trace.json is a trace, but a growmap is needed"),
    ],
)
def test_what_cannot_be_replayed_is_explained_in_one_line(run: Any, traced: Any, arguments: list[str], change: Any, words: str) -> None:
    GrowMap(SpeculationTree.k_chains(62, 1)).write("wide.pt")
    if change is not None:
        damaged(change)
    outcome = run("replay", *arguments, "--trace", "trace.json")
    if not words:  # the pair is that of no profile, which nobody asked for
        assert outcome.code == 0
        outcome = run("replay", *arguments, "--trace", "trace.json", "--acceptance", "acceptance.json")
        words = "models with the same names and other weights; pass a profile of the same models"
    assert (outcome.code, outcome.out) == (1, "")
    assert words in outcome.err
    assert outcome.err.count("\n") == 1


def test_texts_without_a_step_are_explained(run: Any, traced: Any) -> None:
    def cut(data: dict[str, Any]) -> None:
        data["texts"] |= {"tokens": [1] * 4, "eos": [True] * 4}
        data["columns"] = dict.fromkeys(data["columns"], "")
        data["sha256"] = "75a11da44c802486bc6f65640aa48a730f0f684c5c07a42ba3cd1735eb3fb070"  # of two line ends

    damaged(cut)
    outcome = run("replay", "tree.pt", "--trace", "trace.json")
    assert outcome.code == 1
    assert "the trace has no step to replay: every text ended with its first token; profile other prompts" in outcome.err
    assert run("inspect", "trace.json").code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--trace", "trace.json"], "Missing argument 'TREE...'"),
        (["tree.pt"], "Missing option '--trace'"),
        (["tree.pt", "--trace", "none.json"], "'none.json' does not exist"),
        (["68m_7b-6", "--trace", "trace.json"], "no growmap of that name comes with treeopt; did you mean"),
    ],
)
def test_missing_files_are_wrong_usage(run: Any, traced: Any, arguments: list[str], words: str) -> None:
    outcome = run("replay", *arguments)
    assert outcome.code == 2
    assert words in outcome.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["--trace", "t.json", "--method", "teacher-forced"],
            "but --method is teacher-forced; pass --method on-policy, or leave --trace out",
        ),
        (
            ["--trace", "t.json", "--drafting", "swor", "--temperature", 0.6],
            "but --drafting is swor; pass --drafting topk, or leave --trace out",
        ),
        (["--trace", "./acceptance.json"], "--trace and -o both name acceptance.json; give the trace a file of its own"),
    ],
)
def test_a_trace_that_could_not_be_replayed_is_wrong_usage(run: Any, pair: Pair, rows: Path, options: list[object], words: str) -> None:
    outcome = run("profile", "acceptance", *measured(pair, rows), *options)
    assert outcome.code == 2
    assert words in outcome.err
    assert not Path("acceptance.json").exists()


def test_a_trace_replaces_traces_alone(run: Any, pair: Pair, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("mine.json").write_text("{}")
    outcome = run("profile", "acceptance", *measured(pair, rows), "--trace", "mine.json")
    assert outcome.code == 1
    assert "mine.json would be overwritten but is no treeopt.trace file" in outcome.err
    outcome = run("profile", "acceptance", *measured(pair, rows), "--trace", "none/t.json")
    assert "folder does not exist" in outcome.err
    assert not Path("acceptance.json").exists()


def test_an_interrupted_trace_goes_on_where_it_stopped(run: Any, pair: Pair, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import treeopt.profiling.acceptance as module

    measure, calls = module._measure, []

    def interrupted(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measure(*arguments, **options)

    monkeypatch.setattr(module, "_measure", interrupted)
    command = ["profile", "acceptance", *measured(pair, rows), "--batch-size", 1]
    assert run(*command, "--trace", "trace.json").code == 130
    assert [path.name for path in Path().iterdir()] == ["acceptance.json.journal"], "nothing is written by halves"
    assert run(*command, "--trace", "trace.json").code == 0
    assert len(calls) == 3 + 2  # two of the four batches were already done
    assert run(*command, "--trace", "again.json", "-o", "other.json").code == 0
    resumed, whole = (json.loads(Path(name).read_text()) for name in ("trace.json", "again.json"))
    assert resumed.pop("provenance")["models"] == whole.pop("provenance")["models"]
    assert resumed == whole
    assert sorted(path.name for path in Path().iterdir()) == ["acceptance.json", "again.json", "other.json", "trace.json"]
