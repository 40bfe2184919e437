"""`treeopt grow --trace`: the acceptance model that prompts held out prefer, or one line on why the trace does not fit."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.reference.ranked import alike, in_turns, ranked
from treeopt.pictures.beside import profiles_beside
from treespec.trees.growmap import read_growmap

Profiles = tuple[Path, Path]
EXACT = ("--size", 12, "--depth", 4)


@pytest.fixture
def turns(tmp_path: Path) -> Path:
    """A trace in which depth is everything."""
    rng = np.random.default_rng(0)
    trace = ranked([in_turns(rng, 12) for _ in range(30)])
    trace.write(tmp_path / "turns.json")
    return tmp_path / "turns.json"


@pytest.fixture
def even(tmp_path: Path) -> Path:
    """A trace in which depth tells nothing, with the chances of the hand-written profile."""
    rng = np.random.default_rng(1)
    trace = ranked([alike(rng, [0.6, 0.2, 0.1], 30) for _ in range(20)])
    trace.write(tmp_path / "even.json")
    return tmp_path / "even.json"


def test_a_trace_alone_is_enough(run: Any, turns: Path, tmp_path: Path) -> None:
    outcome = run("grow", "--trace", turns, *EXACT, "-o", "tree.pt", "--format", "json")
    assert outcome.code == 0, outcome.err
    found = outcome.json["acceptance_model"]
    assert found["chosen"] in ("by-depth", "replay")
    assert (found["folds"], found["prompts"]) == (5, 30)
    assert [model["model"] for model in found["models"]] == ["by-rank", "by-depth", "replay"]
    lead = next(model["lead"] for model in found["models"] if model["model"] == found["chosen"])
    assert lead["interval_95"][0] > 1
    said = f"the acceptance model {found['chosen']}"
    assert said in outcome.err
    assert f"its trees were {lead['mean']:.4f} [{lead['interval_95'][0]:.4f}, {lead['interval_95'][1]:.4f}] x as fast" in outcome.err
    assert "gave when replayed on prompts held out; of its tree for all prompts, the chances alone expect" in outcome.err
    growmap = read_growmap(tmp_path / "tree.pt")
    assert growmap.metadata["acceptance_model"] == found
    assert len(growmap.metadata["trace_sha256"]) == 64
    assert "acceptance_sha256" not in growmap.metadata
    assert growmap.promise.tokens_per_step == pytest.approx(5, abs=0.1)
    assert run("inspect", "tree.pt").code == 0
    found_again = profiles_beside(tmp_path / "tree.pt", growmap)
    assert found_again.files == {"trace": turns}, "a page's command to grow the tree again names it"
    turns.unlink()
    assert any("trace of the growmap" in sentence for sentence in profiles_beside(tmp_path / "tree.pt", growmap).missing)


def test_the_models_are_a_table_for_people(run: Any, turns: Path) -> None:
    outcome = run("grow", "--trace", turns, *EXACT, "-o", "tree.pt")
    assert outcome.code == 0, outcome.err
    assert "acceptance models, scored on prompts held out: 30 prompts in 5 folds" in outcome.out
    assert "(taken)" in outcome.out


def test_a_profile_beside_it_is_taken_where_no_richer_model_is_told(run: Any, even: Path, profiles: Profiles, tmp_path: Path) -> None:
    plain = run("grow", "--acceptance", profiles[0], "--latency", profiles[1], "-o", "plain.pt", "--format", "json").json
    assert plain["acceptance_model"] is None
    outcome = run("grow", "--acceptance", profiles[0], "--trace", even, "--latency", profiles[1], "-o", "tree.pt", "--format", "json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["acceptance_model"]["chosen"] == "by-rank"
    assert "neither is told to be faster" in outcome.err
    same = ("size", "depth", "predicted_seconds_per_step", "certified_gap", "solver")
    assert {key: outcome.json[key] for key in same} == {key: plain[key] for key in same}
    held_out = outcome.json["acceptance_model"]["models"][0]["held_out_tokens_per_step"]
    assert outcome.json["expected_tokens_per_step"] == held_out["mean"] != plain["expected_tokens_per_step"]
    assert outcome.json["intervals_95"]["expected_tokens_per_step"] == held_out["interval_95"]
    assert "the chances alone expect" in outcome.err
    for model in outcome.json["acceptance_model"]["models"]:
        assert model["held_out_seconds_per_token"]["mean"] > 0
    drawn = run("grow", "--acceptance", profiles[0], "--trace", even, "--latency", profiles[1], "-o", "tree.pt").out
    assert "tokens per step, replayed on the same texts, and steps of" in " ".join(drawn.split()), "like the tree's, and not by chances"
    assert "x its tokens per second" in " ".join(drawn.split())
    assert (
        read_growmap(tmp_path / "tree.pt").metadata["acceptance_sha256"]
        == read_growmap(tmp_path / "plain.pt").metadata["acceptance_sha256"]
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"temperature": 0.6}, "the acceptance profile is of `temperature` 0, but the trace is of `temperature` 0.6".replace("`", "")),
        ({"provenance": {"models": {"target": "other", "draft": "small"}}}, "is of the target big, but the trace is of the target other"),
        ({"pair_sha256": "ab"}, "of models with the same names and other weights"),
        ({"temperature": 0.6, "drafting": "swor"}, "the trace is of swor, whose children are random"),
    ],
)
def test_a_trace_of_another_pair_or_sampling_is_refused(
    run: Any, profiles: Profiles, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    rng = np.random.default_rng(1)
    ranked([alike(rng, [0.6, 0.2, 0.1], 10) for _ in range(4)], **changes).write(tmp_path / "other.json")
    profile = json.loads(profiles[0].read_text()) | {"pair_sha256": "cd", "provenance": {"models": {"target": "big", "draft": "small"}}}
    profiles[0].write_text(json.dumps(profile))
    outcome = run("grow", "--acceptance", profiles[0], "--trace", "other.json", *EXACT, "-o", "tree.pt")
    assert outcome.code == 1
    assert words in outcome.err.replace("--", "")
    assert len(outcome.err.strip().splitlines()) == 1
    assert not (tmp_path / "tree.pt").exists()


def test_a_trace_of_other_models_than_the_latency_is_refused(run: Any, profiles: Profiles, tmp_path: Path) -> None:
    ranked([[0, 1], [1, 0]], provenance={"models": {"target": "big", "draft": "small"}}).write(tmp_path / "trace.json")
    times = json.loads(profiles[1].read_text()) | {"provenance": {"models": {"target": "other", "draft": "small"}}}
    profiles[1].write_text(json.dumps(times))
    outcome = run("grow", "--trace", "trace.json", "--latency", profiles[1], "-o", "tree.pt")
    assert outcome.code == 1
    assert "the trace is of the target big, but the latency profile is of the target other" in outcome.err


def test_a_rule_without_times_names_the_command_for_the_models_of_the_trace(run: Any, profiles: Profiles, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    texts = [alike(rng, [0.6, 0.2, 0.1], 10) for _ in range(4)]
    ranked(texts, temperature=0.6, provenance={"models": {"target": "big", "draft": "small"}}).write(tmp_path / "warm.json")
    outcome = run("grow", "--trace", "warm.json", "--latency", profiles[1], "-o", "tree.pt")
    assert outcome.code == 1
    assert "--target path/to/big --draft path/to/small" in outcome.err
    assert "--temperature 0.6" in outcome.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--acceptance", "a.json", "--acceptance", "a.json", "--trace", "even.json", "--latency", "l.json"], "pass a single --acceptance"),
        (["--sequoia-config", "a.json", "--trace", "even.json"], "drop --trace"),
        (["--size", "4", "--depth", "2"], "--acceptance FILE is missing (or --trace FILE"),
    ],
)
def test_options_that_do_not_go_together(run: Any, profiles: Profiles, even: Path, options: list[str], words: str) -> None:
    outcome = run("grow", *options, "-o", "tree.pt")
    assert outcome.code == 2
    assert words in outcome.err


def test_a_trace_of_one_prompt_tells_no_models_apart(run: Any, tmp_path: Path) -> None:
    ranked([[0, 1, 0]]).write(tmp_path / "one.json")
    outcome = run("grow", "--trace", "one.json", *EXACT, "-o", "tree.pt")
    assert outcome.code == 1
    assert "the trace has steps of 1 prompt" in outcome.err
