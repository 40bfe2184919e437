"""Predictions of the right rule: `generate` takes the times of its acceptance profile's own steps, or says what to run."""

import json
import shlex
from collections.abc import Callable
from itertools import pairwise
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
    command = "run: treeopt profile latency --target path/to/big --draft path/to/small --temperature 0.6 --top-p 0.9 --drafting swor"
    places = "--context 64,256 --sizes 1,2,4,8 --widths 1,4,8"
    assert f"{command} --draft-temperature 0.4 --verifier traversal {places} -o {profiles[1]}\n" in outcome.err
    assert outcome.err.startswith(f"error: {profiles[1]}: the acceptance profile is of (")
    assert not Path("tree.pt").exists()
    on_hub = {"models": {"target": "some/big@abc", "draft": "embedded-draft"}}
    outcome = run("grow", "--acceptance", made("hub.json", drafting="swor", temperature=0.6, provenance=on_hub), "--latency", profiles[1])
    assert "only; run: treeopt profile latency --target some/big --revision abc --draft embedded-draft " in outcome.err
    cold = made("cold.json", drafting="swor", temperature=0.6, draft_temperature=0.0)
    outcome = run("grow", "--acceptance", cold, "--latency", profiles[1])
    assert "is of (topk, temperature above 0), but" in outcome.err
    assert " --temperature 0.6 --drafting topk --context " in outcome.err, "its children are not random, and swor would time those that are"
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
        assert f"the predicted times are those of ({rule.name})\n" in run("inspect", "tree.pt").out
        assert run("inspect", "tree.pt", "--format", "json").json["timed_rule_name"] == rule.name
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
    shown = run("grow", "--acceptance", warm, "--latency", with_rules(profiles[1], swor=40.0))
    assert (shown.out + shown.err).count("does not pay") == 1
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
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    said = "--verifier traversal needs sampled children, but the acceptance profile is of topk; pass --acceptance of swor or swr, or leave"
    assert said in outcome.err


@pytest.mark.parametrize(
    ("changes", "beside"),
    [({"drafting": "swor"}, False), ({"drafting": "swor"}, True), ({"drafting": "swr"}, False), ({"drafting": "swr"}, True)],
)
def test_shares_of_residual_chains_are_none_of_matching(
    run: Any, profiles: tuple[Path, Path], made: Made, changes: dict[str, Any], beside: bool
) -> None:
    random, likeliest = made("random.json", temperature=0.6, **changes), made("topk.json", temperature=0.6)
    latency = with_rules(profiles[1], swor=1.0, topk=1.0)
    both = ("--acceptance", likeliest) if beside else ()
    outcome = run("grow", "--acceptance", random, *both, "--latency", latency, "--verifier", "matching")
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1)
    assert f"--verifier matching accepts other shares of {changes['drafting']} children" in outcome.err
    assert "pass --acceptance of topk, or another --verifier" in outcome.err
    cold = made("cold.json", drafting="swor", draft_temperature=0.0, temperature=0.6)
    assert run("grow", "--acceptance", cold, "--latency", latency, "--verifier", "matching").code == 0, "nothing is random"


def test_traversal_is_said_to_take_the_tokens_of_sequential(run: Any, profiles: tuple[Path, Path], made: Made) -> None:
    warm, latency = made("warm.json", drafting="swor", temperature=0.6), with_rules(profiles[1], swor=1.0, traversal=1.0)
    grow = ("grow", "--acceptance", warm, "--latency", latency, "--verifier")
    said = "the expected tokens per step are those of sequential acceptance, below which traversal does not fall on this tree\n"
    assert said in run(*grow, "traversal", "--size", 8, "--depth", 3).err
    assert "acceptance" not in run(*grow, "sequential", "--size", 8, "--depth", 3).err
    assert "acceptance" not in run(*grow, "traversal", "--max-branch", 1).err
    assert "acceptance" not in run(*grow, "traversal", "--max-size", 1).err


def test_the_command_names_all_rules_and_all_that_the_file_holds(
    run: Any, pair: tuple[Path, Path], profiles: tuple[Path, Path], made: Made, tmp_path: Path
) -> None:
    folder = tmp_path / "my times"
    folder.mkdir()
    models = ("--target", pair[0], "--draft", pair[1])
    few = ("--sizes", "1,2,4", "--widths", "1,2", "--context", "8,16", "--repetitions", "1", "--dtype", "bfloat16")
    measured = run("profile", "latency", *models, *few, "--dynamic", "--drafting", "swr", "-o", folder / "l.json", "--format", "json")
    assert measured.code == 0, measured.err
    names = {"models": {"target": "target", "draft": "draft"}}
    swor = made("swor.json", drafting="swor", temperature=0.6, provenance=names)
    topk = made("topk.json", temperature=0.6, provenance=names)
    grow = ("grow", "--acceptance", swor, "--acceptance", topk, "--latency", folder / "l.json", "--verifier", "traversal")
    refused = run(*grow)
    assert (refused.code, refused.err.count("\n")) == (1, 1)
    assert "(swor, traversal, temperature above 0)" in refused.err
    assert "(topk, temperature above 0)" in refused.err
    words = shlex.split(refused.err.rpartition("; run: ")[2])
    assert words[:3] == ["treeopt", "profile", "latency"]
    assert words[-2:] == ["-o", str(folder / "l.json")]
    options = dict(pairwise(words))
    assert (options["--context"], options["--dtype"], options["--sizes"]) == ("8,16", "bfloat16", "1,2,4")
    again = [{"path/to/target": str(pair[0]), "path/to/draft": str(pair[1])}.get(word, word) for word in words[1:]]
    done = run(*again, "--repetitions", "1", "--format", "json")
    assert done.code == 0, done.err
    assert {rule["name"] for rule in measured.json["rules"]} <= {rule["name"] for rule in done.json["rules"]}
    assert run(*grow).code == 0


def test_rules_that_one_command_cannot_time_go_into_a_file_beside(run: Any, profiles: tuple[Path, Path], made: Made) -> None:
    data = json.loads(with_rules(profiles[1], swor=1.0).read_text())
    cold = StepRule.of(Sampling(0.6), Drafting("swr", 0.0))
    data["rules"].append(data["rules"][1] | {"rule": cold.to_json()})
    profiles[1].write_text(json.dumps(data))
    outcome = run("grow", "--acceptance", made("swr.json", drafting="swr", temperature=0.6), "--latency", profiles[1])
    assert outcome.code == 1
    assert "--temperature 0.6 --drafting swr --context" in outcome.err
    assert outcome.err.endswith(f"-o {profiles[1].with_name('l-more.json')}\n")


@pytest.mark.parametrize(
    ("schema", "folder", "file", "proposed"),
    [
        ("treeopt.tuning", ".", "tuned/latency.json", "tuned-latency.json"),
        ("treeopt.tuning", ".", "./tuned/../tuned/candidates/2/latency.json", "tuned-candidates-2-latency.json"),
        ("treeopt.tuning", "tuned", "latency.json", "../tuned-latency.json"),
        ("treeopt.tuning", "tuned/candidates", "2/latency.json", "../../tuned-candidates-2-latency.json"),
        ("another", ".", "tuned/latency.json", "tuned/latency.json"),
    ],
)
def test_times_for_a_profile_of_a_tuning_run_go_beside_its_folder(
    schema: str,
    folder: str,
    file: str,
    proposed: str,
    run: Any,
    profiles: tuple[Path, Path],
    made: Made,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    warm = made("warm.json", drafting="swor", temperature=0.6)
    (tmp_path / "tuned" / "candidates" / "2").mkdir(parents=True)
    (tmp_path / "tuned" / "manifest.json").write_text(json.dumps({"schema": schema, "version": 1}))
    monkeypatch.chdir(tmp_path / folder)
    Path(file).write_bytes(profiles[1].read_bytes())
    for given, wanted in ((file, proposed), (tmp_path / folder / file, tmp_path / folder / proposed)):
        outcome = run("grow", "--acceptance", warm, "--latency", given)
        assert (outcome.code, outcome.err.count("\n")) == (1, 1)
        output = outcome.err.rpartition(" -o ")[2].rstrip("\n")
        assert Path(output).is_absolute() == Path(given).is_absolute()
        assert Path(output).resolve() == Path(wanted).resolve()


def test_profiles_of_different_models_are_refused(run: Any, profiles: tuple[Path, Path], made: Made) -> None:
    latency = made("a2.json", provenance={"models": {"target": "hub/big@abc", "draft": "small"}})
    times = json.loads(profiles[1].read_text())
    grow = ("grow", "--acceptance", latency, "--latency", profiles[1])
    profiles[1].write_text(json.dumps(times | {"provenance": {"models": {"target": "big", "draft": "small@def"}, "dtype": "float16"}}))
    assert run(*grow).code == 0, "folders are known by their last part"
    profiles[1].write_text(json.dumps(times | {"provenance": {"models": {"target": "big", "draft": "other"}}}))
    outcome = run(*grow)
    assert (outcome.code, outcome.err.count("\n")) == (1, 1)
    assert "is of the draft small, but the latency profile is of the draft other;" in outcome.err


def test_a_vector_takes_the_temperature_of_the_profiles_beside_it(
    run: Any, profiles: tuple[Path, Path], made: Made, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    torch.save(torch.tensor([0.0, 0.6, 0.2, 0.1, 0.1]), tmp_path / "vector.pt")
    warm, latency = made("warm.json", temperature=0.6), with_rules(profiles[1], topk=1.0)
    outcome = run("grow", "--acceptance", "vector.pt", "--acceptance", warm, "--latency", latency, "--format", "json")
    assert outcome.code == 0, outcome.err
    assert "vector.pt does not say its temperature: temperature 0.6 is assumed, as in the others\n" in outcome.err
    assert {row["rule_name"] for row in outcome.json["candidates"]} == {TOPK.name}
    assert {row["acceptance"] for row in outcome.json["candidates"]} == {"vector.pt", str(warm)}
    assert read_growmap(tmp_path / "tree.pt").metadata["temperature"] == 0.6
    none = run("grow", "--acceptance", "vector.pt", "--acceptance", warm, "--latency", profiles[1])
    assert none.code == 1
    assert "no rule of the latency profile is at temperature 0.6" in none.err
    assert "--temperature 0.6 --drafting topk --context" in none.err
    cold = made("cold.json", drafting="swor", temperature=0.0, draft_temperature=0.0)
    none = run("grow", "--acceptance", "vector.pt", "--acceptance", cold, "--latency", profiles[1], "--verifier", "traversal")
    assert none.code == 1
    assert "has --verifier traversal at temperature 0; profile the latency of that rule too" in none.err
    assert "run: " not in none.err, "nothing is verified so at temperature 0, so no command can time it"


def test_a_profile_without_greedy_steps_gets_a_command_for_them(run: Any, profiles: tuple[Path, Path]) -> None:
    data = json.loads(with_rules(profiles[1], topk=1.0).read_text())
    profiles[1].write_text(json.dumps(data | {"rules": data["rules"][1:]}))
    outcome = run("grow", "--acceptance", profiles[0], "--latency", profiles[1])
    assert "run: treeopt profile latency --target TARGET --draft DRAFT --temperature 0.6 --drafting topk --context" in outcome.err
    profiles[1].write_text(json.dumps(data | {"rules": []}))
    assert run("grow", "--acceptance", profiles[0], "--latency", profiles[1]).code == 0, "older files have none but greedy steps"


def test_a_profile_that_is_given_twice_counts_once(run: Any, profiles: tuple[Path, Path]) -> None:
    twice = run("grow", "--acceptance", profiles[0], "--acceptance", profiles[0], "--latency", profiles[1], "--format", "json")
    assert twice.code == 0
    assert f"the acceptance profile {profiles[0]} was given twice and counts once\n" in twice.err
    assert len(twice.json["candidates"]) == 1


def test_a_fit_that_misses_its_own_steps_is_called_noisy(run: Any, profiles: tuple[Path, Path], made: Made) -> None:
    warm, latency = made("warm.json", temperature=0.6), with_rules(profiles[1], topk=1.0)
    grow = ("grow", "--acceptance", warm, "--latency", latency)
    assert "noisy" not in run(*grow).err
    data = json.loads(latency.read_text())
    for place, step in enumerate(data["rules"][1]["steps"]):
        step["seconds"] = [0.02 if place % 2 else 0.004]
    latency.write_text(json.dumps(data))
    assert f"the latency profile is noisy for ({TOPK.name}): what is fitted to its steps misses their times by " in run(*grow).err
    data["rules"][1]["steps"] = data["rules"][1]["steps"][:1] + data["rules"][1]["steps"][4:5]
    latency.write_text(json.dumps(data))
    assert "holds too few steps of (topk, temperature above 0): 1 different ones, to which 3 numbers are to be fitted" in run(*grow).err


def test_a_speedup_without_autoregressive_steps_says_so(run: Any, profiles: tuple[Path, Path]) -> None:
    data = json.loads(profiles[1].read_text())
    data["target"] = [entry for entry in data["target"] if entry["size"] > 1]
    profiles[1].write_text(json.dumps(data))
    outcome = run("grow", "--acceptance", profiles[0], "--latency", profiles[1])
    assert "the speed-up compares with a pass of 2 nodes, because autoregressive steps were not timed" in outcome.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--drafting", "topk,magic"], "'magic' is not one of topk, swor, swr"),
        (["--verifier", "upwards"], "'upwards' is not one of sequential, matching, traversal"),
        (["--drafting", "topk", "--verifier", "traversal"], "--verifier traversal needs sampled children"),
        (
            ["--drafting", "swor,swr", "--verifier", "matching", "--drafting", "topk"],
            "tokens sampled from the draft with replacement; pass --drafting topk or --drafting swor, or --verifier sequential",
        ),
        (["--temperature", "warm"], "'warm' is not a list of numbers such as 0,0.6"),
        (["--temperature", "inf"], "inf is not a finite number"),
        (["--temperature", "-1"], "--temperature is -1.0"),
        (["--top-p", "0,1"], "'--top-p': 0 is not above 0 and up to 1; 1 keeps every token"),
        (["--top-p", "much"], "'much' is not a list of numbers above 0 and up to 1 such as 0.9,1"),
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
    assert outcome.json["target"][0]["size"] == 1
    cold = run("profile", "latency", *models, "--sizes", "2", *few[2:], "--drafting", "topk, swor", "--format", "json")
    assert "at draft temperature 0, --drafting swor drafts the most likely tokens: its steps are those of topk\n" in cold.err
    assert [entry["size"] for entry in cold.json["target"]] == [1, 2], "size 1 is always timed"
    plain = run("profile", "latency", *models, *few, "--draft-temperature", "0.5", "--top-p", "0.9", "--format", "json")
    assert [rule["name"] for rule in plain.json["rules"]] == ["topk, temperature 0"]
    assert "topk drafts the most likely tokens at any draft temperature, so --draft-temperature changes nothing" in plain.err
    assert "at --temperature 0 the most likely token is taken, so --top-p 0.9 changes nothing" in plain.err
