"""Predictions of the right rule: `generate` takes the times of its acceptance profile's own steps, or says what to run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from treespec.decoding.drafting import Drafting
from treespec.decoding.rules import Sampling
from treespec.decoding.step_rule import StepRule
from treespec.trees.growmap import read_growmap

SWOR = StepRule.of(Sampling(0.6), Drafting("swor"))
TRAVERSAL = StepRule.of(Sampling(0.6), Drafting("swor", verifier="traversal"))
TOPK = StepRule.of(Sampling(0.6))
Made = Callable[..., Path]


@pytest.fixture
def made(profiles: tuple[Path, Path]) -> Made:
    """Write variants of the acceptance profile."""

    def make(name: str, **changes: Any) -> Path:
        path = profiles[0].with_name(name)
        path.write_text(json.dumps(json.loads(profiles[0].read_text()) | changes))
        return path

    return make


def with_rules(latency: Path, **milliseconds: float) -> Path:
    """Give the latency profile rules whose steps take so much more than their passes."""
    data = json.loads(latency.read_text())
    trees = [[-1, 0], [-1, 0, 0, 0], [-1, 0, 1, 2], [-1, 0, 0, 1, 1, 2, 2, 3]]
    depths = [1, 1, 3, 3]
    passes = {2: 0.0102, 4: 0.0104, 8: 0.0108}
    levels = [1, 1, 3, 3]
    rules = [{"rule": StepRule().to_json()}]
    for name, more in milliseconds.items():
        rule = {"swor": SWOR, "traversal": TRAVERSAL, "topk": TOPK}[name]
        steps = [
            {"parents": tree, "context": c, "seconds": [passes[len(tree)] + 0.0005 * levels[i] + 1e-3 * more]}
            for c in (64, 256)
            for i, tree in enumerate(trees)
        ]
        own = {"draft": data["draft"]} if rule.drafting == "swor" else {}
        rules.append({"rule": rule.to_json(), **own, "autoregressive_overhead_seconds": [0.0002], "steps": steps})
    assert len(depths) == len(trees)
    path = latency.with_name("rules.json")
    path.write_text(json.dumps(data | {"rules": rules}))
    return path


def test_times_of_another_rule_are_refused_with_the_command(run: Any, profiles: tuple[Path, Path], made: Made) -> None:
    models = {"models": {"target": "big", "draft": "small"}}
    warm = made("warm.json", drafting="swor", temperature=0.6, draft_temperature=0.4, top_p=0.9, provenance=models)
    outcome = run("grow", "--acceptance", warm, "--latency", profiles[1], "--verifier", "traversal")
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (1, "", 1)
    assert (
        "is of (swor, traversal, temperature above 0, top-p below 1), but the latency profile has times of (topk, temperature 0) only"
        in (outcome.err)
    )
    command = "run: treeopt profile latency --target big --draft small --temperature 0.6 --top-p 0.9 --drafting swor"
    assert f"{command} --draft-temperature 0.4 --verifier traversal\n" in outcome.err
    assert not Path("tree.pt").exists()
    exact = run("grow", "--acceptance", warm, "--size", 4, "--depth", 2)
    assert exact.code == 0, "without times there is nothing to refuse"


def test_each_rule_gets_its_own_times_and_the_growmap_says_whose(run: Any, profiles: tuple[Path, Path], made: Made, tmp_path: Path) -> None:
    latency = with_rules(profiles[1], swor=1.0, traversal=2.0)
    warm = made("warm.json", drafting="swor", temperature=0.6)
    seconds = {}
    for verifier, rule in (("sequential", SWOR), ("traversal", TRAVERSAL)):
        arguments = ("--acceptance", warm, "--latency", latency, "--verifier", verifier, "--size", 8, "--depth", 3)
        outcome = run("grow", *arguments, "--format", "json")
        assert outcome.code == 0, outcome.err
        seconds[verifier] = outcome.json["predicted_seconds_per_step"]
        assert outcome.json["rule"] == rule.to_json()
        assert read_growmap(tmp_path / "tree.pt").metadata["timed_rule"] == rule.to_json()
    assert seconds["traversal"] - seconds["sequential"] == pytest.approx(1e-3, rel=1e-3)
    greedy = run("grow", "--acceptance", profiles[0], "--latency", latency, "--format", "json")
    old = run("grow", "--acceptance", profiles[0], "--latency", profiles[1], "--format", "json")
    assert greedy.json == old.json, "greedy predictions are those of the profile's own keys"
    assert "timed_rule" not in read_growmap(tmp_path / "tree.pt").metadata


def test_of_several_acceptance_profiles_the_fastest_is_taken(run: Any, profiles: tuple[Path, Path], made: Made, tmp_path: Path) -> None:
    latency = with_rules(profiles[1], swor=3.0, topk=0.1)
    good, fair = [0.6, 0.2, 0.1, 0.0], [0.55, 0.2, 0.1, 0.0]
    sampled = made("swor.json", drafting="swor", temperature=0.6, rank_probability=good)
    likeliest = made("topk.json", temperature=0.6, rank_probability=fair, none_accepted=0.15)
    both = ("--acceptance", sampled, "--acceptance", likeliest, "--latency", latency)
    outcome = run("grow", *both, "--format", "json")
    assert outcome.code == 0, outcome.err
    rows = outcome.json["candidates"]
    assert [row["rule_name"] for row in rows] == [TOPK.name, SWOR.name], "fewer tokens per step, but faster steps"
    assert outcome.json["rule"] == TOPK.to_json()
    assert rows[0]["predicted_seconds_per_token"] <= rows[1]["predicted_seconds_per_token"]
    assert rows[0]["size"] == outcome.json["size"]
    assert read_growmap(tmp_path / "tree.pt").metadata["drafting"] == "topk"
    shown = run("grow", *both).out
    assert "the best tree of each acceptance profile" in shown
    named = run("grow", *both, "--verifier", "sequential")
    assert named.code == 0, "a verifier counts for the profiles that it goes with"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"temperature": 0.7}, "differ in temperature: 0.6 and 0.7;"),
        ({"top_p": 0.9}, "differ in top_p: 1.0 and 0.9;"),
        ({"provenance": {"models": {"draft": "other"}}}, "differ in draft: small and other;"),
        ({"provenance": {"models": {"target": "other"}}}, "differ in target: big and other;"),
    ],
)
def test_profiles_that_cannot_be_compared_are_refused_by_field(
    run: Any, profiles: tuple[Path, Path], made: Made, changes: dict[str, Any], said: str
) -> None:
    common = {"temperature": 0.6, "provenance": {"models": {"target": "big", "draft": "small"}}}
    one, other = made("one.json", **common), made("other.json", **(common | {"drafting": "swor"} | changes))
    outcome = run("grow", "--acceptance", one, "--acceptance", other, "--latency", with_rules(profiles[1], topk=0.1))
    assert (outcome.code, outcome.err.count("\n")) == (1, 1)
    assert said in outcome.err


def test_a_vector_that_names_no_rule_is_told_which_is_taken(run: Any, profiles: tuple[Path, Path], tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save(torch.tensor([0.0, 0.6, 0.2, 0.1, 0.1]), tmp_path / "vector.pt")
    latency = with_rules(profiles[1], swor=1.0)
    first = run("grow", "--acceptance", "vector.pt", "--latency", latency, "--format", "json")
    assert "the acceptance vector does not say its rule: the times are those of (topk, temperature 0)\n" in first.err
    told = run("grow", "--acceptance", "vector.pt", "--latency", latency, "--verifier", "sequential", "--format", "json")
    assert f"the times are those of ({SWOR.name})\n" in told.err
    assert told.json["rule"] == SWOR.to_json()
    none = run("grow", "--acceptance", "vector.pt", "--latency", latency, "--verifier", "traversal")
    assert none.code == 1
    assert "no rule of the latency profile has --verifier traversal" in none.err


def test_where_speculation_does_not_pay_it_says_so(run: Any, profiles: tuple[Path, Path], made: Made) -> None:
    warm = made("warm.json", drafting="swor", temperature=0.6)
    outcome = run("grow", "--acceptance", warm, "--latency", with_rules(profiles[1], swor=40.0), "--format", "json")
    assert outcome.json["size"] == 1
    assert f"does not pay on this hardware: no tree is faster than autoregressive decoding ({SWOR.name})\n" in outcome.err
    assert "does not pay" not in run("grow", "--acceptance", profiles[0], "--latency", profiles[1]).err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--size", "4", "--depth", "2", "--verifier", "traversal"], "--verifier picks the times of a latency profile"),
        (["--size", "4", "--depth", "2", "--acceptance", "a.json"], "several --acceptance are told apart by their speed"),
        (["--verifier", "magic"], "'--verifier'"),
    ],
)
def test_options_that_do_not_go_together(run: Any, profiles: tuple[Path, Path], options: list[str], words: str) -> None:
    outcome = run("grow", "--acceptance", profiles[0], *options)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert words in outcome.err


def test_a_verifier_that_does_not_go_with_the_drafting_is_refused(run: Any, profiles: tuple[Path, Path]) -> None:
    outcome = run("grow", "--acceptance", profiles[0], "--latency", profiles[1], "--verifier", "traversal")
    assert outcome.code == 1
    assert "--verifier traversal needs sampled children, but topk drafts" in outcome.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--drafting", "topk,magic"], "'magic' is not one of topk, swor, swr"),
        (["--verifier", "upwards"], "'upwards' is not one of sequential, matching, traversal"),
        (["--drafting", "topk", "--verifier", "traversal"], "--verifier traversal needs sampled children"),
        (
            ["--drafting", "swor,swr", "--verifier", "matching", "--drafting", "topk"],
            "--verifier matching needs distinct children, but swr",
        ),
        (["--temperature", "warm"], "'warm' is not a list of numbers such as 0,0.6"),
        (["--temperature", "inf"], "inf is not a finite number"),
        (["--temperature", "-1"], "--temperature is -1.0"),
        (["--top-p", "0,1"], "--top-p is 0.0"),
        (["--draft-temperature", "-1"], "'--draft-temperature'"),
    ],
)
def test_rules_that_nothing_can_be_timed_with_are_usage_errors(run: Any, options: list[str], words: str) -> None:
    outcome = run("profile", "latency", "--target", "embedded-target", "--draft", "embedded-draft", *options)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1), outcome.err
    assert words in outcome.err


def test_profile_latency_times_the_rules_that_are_named(run: Any, pair: tuple[Path, Path], tmp_path: Path) -> None:
    models = ("--target", pair[0], "--draft", pair[1])
    few = ("--sizes", "1,2,4", "--widths", "1,2", "--context", "8", "--repetitions", "1")
    rules = ("--temperature", "0.7,0.6", "--drafting", "topk,swor", "--verifier", "sequential", "--verifier", "traversal", "--dynamic")
    outcome = run("profile", "latency", *models, *few, *rules, "--format", "json")
    assert outcome.code == 0, outcome.err
    assert [rule["name"] for rule in outcome.json["rules"]] == [
        "topk, temperature 0",
        TOPK.name,
        SWOR.name,
        TRAVERSAL.name,
        "dynamic trees, temperature above 0",
    ]
    shown = run("inspect", "latency.json").out
    assert "rest of a step by rule" in shown
    plain = run("profile", "latency", *models, *few, "--draft-temperature", "0.5", "--top-p", "0.9", "--format", "json")
    assert [rule["name"] for rule in plain.json["rules"]] == ["topk, temperature 0"]
    assert "topk drafts the most likely tokens at any draft temperature, so --draft-temperature changes nothing" in plain.err
    assert "at --temperature 0 the most likely token is taken, so --top-p 0.9 changes nothing" in plain.err
