"""Every way of drafting and verifying from the command line, on a tiny pair from disk."""

import json
from pathlib import Path
from typing import Any

import pytest

from treespec.evaluation.predicted import Prediction

Pair = tuple[Path, Path]

TREE = [(0, 0), (1, 0), (2,)]
"""Ranks on the way to the leaves: six nodes."""


@pytest.fixture(scope="module")
def growmap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree of branches 3 and 1, with the promise of a profile under swor at temperature 1."""
    from treespec.trees.growmap import GrowMap
    from treespec.trees.tree import SpeculationTree

    path = tmp_path_factory.mktemp("growmap") / "tree.pt"
    promise: dict[str, Any] = {"expected_tokens_per_step": 1.9, "rank_probability": [[0.5, 0.2, 0.1, 0.05]]}
    made_for = {"drafting": "swor", "temperature": 1.0, "top_p": 1.0, "draft_temperature": 1.0}
    GrowMap(SpeculationTree.from_paths(TREE), promise | made_for).write(path)
    return path


@pytest.fixture
def evaluate(run: Any, pair: Pair, rows: Path) -> Any:
    """Run `treeopt evaluate` on the tiny pair."""

    def command(*arguments: object) -> Any:
        models = ["--target", pair[0], "--draft", pair[1], "--device", "cpu"]
        return run("evaluate", *models, "--dataset", rows, "--num-prompts", 3, "--prompt-len", 8, "--gen-len", 16, *arguments)

    return command


def in_json(outcome: Any) -> dict[str, Any]:
    assert outcome.code == 0, outcome.err
    data = outcome.json
    assert isinstance(data, dict)
    return data


def refused(outcome: Any, words: str, code: int = 1) -> None:
    assert (outcome.code, outcome.out) == (code, ""), outcome
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert words in outcome.err


@pytest.mark.parametrize("verifier", ["sequential", "traversal"])
@pytest.mark.parametrize("rule", ["swor", "swr"])
def test_sampled_children_from_end_to_end(evaluate: Any, growmap: Path, rule: str, verifier: str) -> None:
    options = ["--growmap", growmap, "--drafting", rule, "--verifier", verifier, "--temperature", 0.8, "--draft-temperature", 1.0]
    data = in_json(evaluate(*options, "--save-tokens", "--format", "json"))
    assert (data["mode"], data["drafting"], data["verifier"], data["draft_temperature"]) == ("tree", rule, verifier, 1.0)
    assert data["lossless"] == "not-applicable"
    assert data["tokens"] == 3 * 16
    assert data["tokens_per_step"] > 1.05, "some drafted token was accepted"
    again, other = (in_json(evaluate(*options, "--save-tokens", "--seed", s, "--format", "json")) for s in (0, 1))
    assert again["outputs"] == data["outputs"]
    assert other["outputs"] != data["outputs"]


@pytest.mark.parametrize("verifier", ["sequential", "traversal"])
@pytest.mark.parametrize(("rule", "heat"), [("swor", 0), ("swor", 0.001), ("swor", 2), ("swr", 0), ("swr", 2)])
def test_sampled_children_change_no_greedy_output(evaluate: Any, pair: Pair, growmap: Path, rule: str, heat: float, verifier: str) -> None:
    """At draft temperature 0.001 there are fewer tokens to draw than children: the draft's most likely ones take their places."""
    draft = ["--draft", pair[0]] if heat == 2 else []  # the target as its own draft, so that much is accepted
    options = ["--temperature", 0, "--drafting", rule, "--verifier", verifier, "--draft-temperature", heat]
    data = in_json(evaluate("--growmap", growmap, *options, *draft, "--format", "json"))
    assert data["lossless"] == "match"
    assert data["draft_temperature"] == heat
    row = data["observed_acceptance"][0]
    if heat == 2:
        assert sum(row["accepted"][1:]) > 0, "children other than the first are accepted at this heat"


def test_swor_at_draft_temperature_0_is_topk(evaluate: Any, growmap: Path) -> None:
    plain = in_json(evaluate("--growmap", growmap, "--temperature", 0.7, "--drafting", "topk", "--save-tokens", "--format", "json"))
    cold = ["--drafting", "swor", "--draft-temperature", 0]
    same = in_json(evaluate("--growmap", growmap, "--temperature", 0.7, *cold, "--save-tokens", "--format", "json"))
    assert same["outputs"] == plain["outputs"]
    assert same["observed_acceptance"] == plain["observed_acceptance"]


def test_topk_children_are_matched_whatever_the_verifier(evaluate: Any, growmap: Path, run: Any) -> None:
    plain = ["--growmap", growmap, "--temperature", 0.7, "--drafting", "topk", "--save-tokens", "--format", "json"]
    default, matching = (in_json(evaluate(*plain, "--verifier", verifier)) for verifier in ("sequential", "matching"))
    assert matching["outputs"] == default["outputs"]
    assert matching["observed_acceptance"] == default["observed_acceptance"]
    assert "Children that are not sampled (topk, dynamic trees) are always matched." in " ".join(run("evaluate", "--help").out.split())


def test_dynamic_trees(evaluate: Any, growmap: Path) -> None:
    data = in_json(evaluate("--dynamic", "--size", 9, "--depth", 3, "--width", 4, "--format", "json"))
    assert data["mode"] == "dynamic"
    assert data["tree"] == {"size": 9, "depth": 3, "width": 4}
    assert data["lossless"] == "match"
    assert data["predicted"] == Prediction().to_json()
    outcome = evaluate("--growmap", growmap, "--dynamic", "--temperature", 0, "--format", "json")
    data = in_json(outcome)
    assert data["tree"] == {"size": 6, "depth": 2, "width": 5}, "size and depth of the growmap, twice the mean level"
    assert data["predicted"] == Prediction().to_json()
    assert data["profiled_acceptance"] is None
    assert "prediction does not apply" in outcome.err
    assert "does not hold" not in outcome.err
    assert data["lossless"] == "match"
    data = in_json(evaluate("--growmap", growmap, "--dynamic", "--depth", 1, "--temperature", 0.7, "--format", "json"))
    assert data["tree"] == {"size": 6, "depth": 1, "width": 5}, "what is given on the line wins"
    assert data["lossless"] == "not-applicable"


def test_bad_budgets_are_one_line(evaluate: Any, growmap: Path, tmp_path: Path) -> None:
    refused(evaluate("--dynamic", "--size", 3, "--depth", 3), "pass --size 4 or more, or --depth 2 or less", 2)
    refused(evaluate("--growmap", growmap, "--dynamic", "--depth", 6), "--size 6 is too small for depth 6", 2)
    refused(evaluate("--dynamic", "--size", 9, "--depth", 2, "--width", 3), "pass --size 7 or less, or --width 4 or more", 2)
    refused(evaluate("--dynamic", "--size", 9, "--depth", 2, "--width", 62), "pass --width 61 or less")
    many = ["--dynamic", "--size", 60_000, "--depth", 3]
    refused(evaluate(*many, "--width", 61), "pass --size 184 or less, or --width 20000 or more", 2)
    refused(evaluate(*many, "--width", 20_000), "pass --width 61 or less and --size 184 or less")
    refused(evaluate("--dynamic", "--size", 9_999_999_999, "--depth", 3), "which is above the limit of 65536; pass a smaller --size", 2)
    refused(evaluate("--dynamic", "--size", 9, "--depth", 2, "--max-length", 30), "pass --max-length 33 or more")
    assert list(tmp_path.iterdir()) == []


def test_a_tree_wider_than_the_vocabulary_is_for_replacement_only(evaluate: Any, tmp_path: Path) -> None:
    from treespec.trees.growmap import GrowMap
    from treespec.trees.tree import SpeculationTree

    GrowMap(SpeculationTree.k_ary(62, 1)).write(tmp_path / "wide.pt")
    refused(evaluate("--growmap", "wide.pt"), "a node with 62 children, but the vocabulary has 61 tokens")
    refused(evaluate("--growmap", "wide.pt", "--drafting", "swor", "--temperature", 1), "use a narrower tree")
    data = in_json(evaluate("--growmap", "wide.pt", "--drafting", "swr", "--draft-temperature", 1, "--format", "json"))
    assert data["lossless"] == "match"


def test_a_promise_for_other_drafting_is_pointed_out(evaluate: Any, growmap: Path) -> None:
    swor = ["--growmap", growmap, "--temperature", 1, "--drafting", "swor"]
    assert "does not hold" not in evaluate(*swor).err
    assert (
        "made for --draft-temperature 1 (this run has 0.5): its prediction does not hold here and is not shown"
        in evaluate(*swor, "--draft-temperature", 0.5).err
    )
    assert "made for --drafting swor (this run has topk)" in evaluate(*swor, "--draft-temperature", 0).err
    assert "made for --drafting swor (this run has swr)" in evaluate("--growmap", growmap, "--temperature", 1, "--drafting", "swr").err
    assert "those of sequential acceptance" in evaluate(*swor, "--verifier", "traversal").err
    outcome = evaluate("--growmap", growmap, "--drafting", "topk", "--draft-temperature", 0.5, "--format", "json")
    assert "made for --drafting swor (this run has topk)" in outcome.err
    assert "--draft-temperature changes nothing" in outcome.err
    assert in_json(outcome)["draft_temperature"] is None
    assert in_json(outcome)["predicted"] == Prediction().to_json()


def test_a_revision_of_what_is_not_on_the_hub_is_said_to_change_nothing(evaluate: Any, growmap: Path, run: Any, pair: Pair) -> None:
    outcome = evaluate("--growmap", growmap, "--revision", "main", "--draft-revision", "v2")
    assert outcome.code == 0, outcome.err
    for option, folder in (("--revision main", pair[0]), ("--draft-revision v2", pair[1])):
        assert f"{option} changes nothing: {folder} is not on the hub\n" in outcome.err
    latency = ["profile", "latency", "--sizes", 1, "--widths", 1, "--contexts", 4, "--repetitions", 1, "--draft", "embedded-draft"]
    for command in (latency, ["potential", "--draft", "d", "--dataset", "stdlib"], ["train-draft", "--config", "llama-68m"]):
        assert f"--revision main changes nothing: {pair[0]} is" in run(*command, "--target", pair[0], "--revision", "main").err
    outcome = run("train-draft", "--target", pair[0], "--config", "none", "--draft-revision", "v2")
    assert "--draft-revision v2 changes nothing: there is no --draft\n" in outcome.err


def test_a_baseline_says_that_it_drafts_nothing(evaluate: Any, run: Any, pair: Pair, rows: Path) -> None:
    options = {
        "--draft": "owner/none",
        "--draft-revision": "v2",
        "--drafting": "swor",
        "--draft-temperature": "0.5",
        "--verifier": "traversal",
    }
    plain = ["--mode", "baseline", "--temperature", 1, "--save-tokens", "--format", "json"]
    outcome = evaluate(*plain, *(word for option in options.items() for word in option))
    for option, value in options.items():
        assert f"--mode baseline drafts nothing, so {option} {value} changes nothing\n" in outcome.err
    assert outcome.err.count("changes nothing") == 5
    assert in_json(outcome)["outputs"] == in_json(evaluate(*plain))["outputs"]
    outcome = run("evaluate", "--target", pair[0], "--device", "cpu", "--dataset", rows, "--prompt-len", 8, "--gen-len", 2, *plain)
    assert outcome.code == 0, outcome.err
    assert "changes nothing" not in outcome.err
    alone = evaluate("--mode", "baseline", "--verifier", "traversal", "--temperature", 1)
    assert (alone.code, "so --verifier traversal changes nothing" in alone.err) == (0, True)


def test_greedy_decoding_says_that_top_p_changes_nothing(evaluate: Any, run: Any, pair: Pair, rows: Path, tmp_path: Path) -> None:
    from treespec.trees.growmap import GrowMap
    from treespec.trees.tree import SpeculationTree

    GrowMap(SpeculationTree.from_paths(TREE), {"temperature": 0.0, "top_p": 1.0}).write(tmp_path / "greedy.pt")
    said = "at --temperature 0 the most likely token is taken, so --top-p 0.5 changes nothing\n"
    outcome = evaluate("--growmap", "greedy.pt", "--top-p", 0.5)
    assert said in outcome.err
    assert "does not hold" not in outcome.err
    warm = evaluate("--growmap", "greedy.pt", "--top-p", 0.5, "--temperature", 1)
    assert "changes nothing" not in warm.err
    assert "and --top-p 1 (this run has 0.5): its prediction does not hold" in warm.err
    models = ["--target", pair[0], "--draft", pair[1], "--device", "cpu", "--dataset", rows, "--prompt-len", 8, "--gen-len", 4]
    for command in (["potential"], ["profile", "acceptance"]):
        assert said in run(*command, *models, "--num-prompts", 1, "--top-p", 0.5).err


def test_profiled_ranks_stand_beside_observed_ones(evaluate: Any, run: Any, growmap: Path, tmp_path: Path) -> None:
    outcome = evaluate("--growmap", growmap, "--temperature", 1, "--drafting", "swor")
    assert outcome.code == 0, outcome.err
    table = outcome.out.partition("accepted rank by depth, share of the visited nodes that had such a child")[2]
    profiled = next(line for line in table.splitlines() if "profiled" in line)
    assert [cell.strip() for cell in profiled.split("│")[3:6]] == ["0.5000", "0.2000", "0.1000"]
    data = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert data["profiled_acceptance"] == [[0.5, 0.2, 0.1, 0.05]]
    for row in data["observed_acceptance"]:
        assert sum(row["accepted"]) <= row["offered"][0] <= row["visits"]
    root = data["observed_acceptance"][0]
    assert root["visits"] == data["steps"]
    assert root["offered"] == [data["steps"]] * 3
    assert run("inspect", "report.json").out == outcome.out
    outcome = evaluate("--dynamic", "--size", 6, "--depth", 2)
    assert "share of the visited nodes\n" in outcome.out
    assert "profiled" not in outcome.out


@pytest.mark.parametrize("plan", [["--growmap"], ["--dynamic", "--growmap"], ["--drafting", "swr", "--temperature", 1, "--growmap"]])
def test_the_breakdown_names_five_parts_that_sum_to_the_whole(evaluate: Any, growmap: Path, tmp_path: Path, plan: list[object]) -> None:
    outcome = evaluate("--breakdown", *plan, growmap)
    assert outcome.code == 0, outcome.err
    data = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert list(data["breakdown"]) == ["drafting", "target", "acceptance", "cache", "other"]
    assert sum(data["breakdown"].values()) == pytest.approx(sum(r["seconds"] for r in data["results"]))
    table = outcome.out.partition(f"breakdown of {data['steps']} steps")[2]
    rows = {cells[1].strip(): cells[2:5] for line in table.splitlines() if len(cells := line.split("│")) == 6}
    assert list(rows) == [*data["breakdown"], "all"]
    assert float(rows["target"][1]) == pytest.approx(1e3 * data["breakdown"]["target"] / data["steps"], abs=1e-3)
    assert rows["all"][2].strip() == "100.0"


def test_the_breakdown_of_the_baseline_is_its_own(evaluate: Any) -> None:
    outcome = evaluate("--mode", "baseline", "--breakdown")
    assert outcome.code == 0, outcome.err
    assert "breakdown of 45 steps" in outcome.out
    assert "accepted rank" not in outcome.out
    assert "drafting" not in outcome.out


@pytest.mark.parametrize("rule", ["swor", "swr"])
def test_profiles_of_sampled_drafting(run: Any, pair: Pair, rows: Path, rule: str) -> None:
    models = ["--target", pair[0], "--draft", pair[1], "--device", "cpu"]
    texts = ["--dataset", rows, "--num-prompts", 3, "--prompt-len", 8, "--gen-len", 8, "--max-branch", 4]
    sampling = ["--temperature", 1, "--drafting", rule, "--draft-temperature", 0.5, "--draws", 3]
    data = in_json(run("profile", "acceptance", *models, *texts, *sampling, "--format", "json"))
    assert (data["drafting"], data["draft_temperature"], data["draws"]) == (rule, 0.5, 3)
    assert 0 < sum(data["rank_probability"]) < 1
    assert sum(data["rank_probability"]) + data["none_accepted"] == pytest.approx(1)
    assert run("generate", "--acceptance", "acceptance.json", "--size", 4, "--depth", 2).code == 0
    swept = ["--dataset", rows, "--num-prompts", 2, "--prompt-len", 8, "--gen-len", 4, "--growmap", "tree.pt"]
    outcome = run("evaluate", *models, *swept, "--temperature", 1, "--drafting", rule, "--draft-temperature", 0.5)
    assert outcome.code == 0, outcome.err
    assert "does not hold" not in outcome.err
    assert "profiled" in outcome.out
