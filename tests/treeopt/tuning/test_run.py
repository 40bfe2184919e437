"""`treeopt.tune`: a whole run, the best of several candidates, going on after a kill at any moment, and folders that are refused."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import treeopt
from treeopt.profiles.latency import LatencyProfile
from treeopt.profiling.acceptance import profile_acceptance
from treeopt.profiling.latency import profile_latency
from treeopt.profiling.settings import AcceptanceSettings
from treeopt.tuning import folder, run, stages
from treeopt.tuning.folder import FILES, Folder
from treeopt.tuning.prompts import divided
from treeopt.tuning.result import basis, candidates_table
from treeopt.tuning.settings import PILOT_REPETITIONS, TuneSettings
from treespec.decoding.rules import Sampling
from treespec.errors import OutputError, SettingsError
from treespec.models.info import ModelInfo, fitting
from treespec.models.pairs import Pair, load_drafts


@pytest.fixture(scope="session")
def finished(pair: Any, prompts: Any, toy: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole run, to be copied."""
    out = tmp_path_factory.mktemp("finished") / "out"
    treeopt.tune(pair, prompts, out, **toy)
    return out


@pytest.fixture(autouse=True)
def _one_page(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw the pictures of a page in whole runs alone: they take as long as all else in a toy run."""
    if request.function is not test_a_whole_run_leaves_its_files_and_its_prompts_are_disjoint:
        monkeypatch.setattr(run, "page", lambda **shown: f"a page of {', '.join(shown)}")


def digests(out: Path) -> dict[str, str]:
    return {name: record["sha256"] for name, record in json.loads((out / "manifest.json").read_text())["files"].items()}


def test_a_whole_run_leaves_its_files_and_its_prompts_are_disjoint(pair: Any, prompts: Any, toy: Any, tmp_path: Path) -> None:
    result = treeopt.tune(pair, prompts, tmp_path / "out", **toy)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(FILES)
    assert 'id="candidates"' not in (tmp_path / "out" / "page.html").read_text(), "there is one"
    assert result.report.lossless == "match"
    assert result.growmap.tree.size <= 4
    assert "expected tokens/s" in str(result)
    assert f"{sum(result.seconds.values()):.0f} s, not counting interrupted work (profile acceptance " in str(result)
    profiled, evaluated = result.acceptance.prompt_set, result.report.prompts
    assert profiled is not None
    assert (profiled["prompts"], evaluated["prompts"]) == (8, 2)
    assert profiled["end"] <= evaluated["start"]
    growmap = treeopt.read_growmap(tmp_path / "out" / "tree.pt")
    assert growmap.tree == result.growmap.tree
    trace = treeopt.read_trace(tmp_path / "out" / "trace.json")
    assert len(trace.texts) == 8
    held_out = growmap.metadata["acceptance_model"]
    assert [held_out["chosen"], held_out["prompts"]] == ["by-rank", 8]
    promised = 1.0 if growmap.tree.size == 1 else held_out["models"][0]["held_out_tokens_per_step"]["mean"]
    assert result.report.to_json()["predicted"]["tokens_per_step"] == promised, "not the sum of products"
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["finished"] is True
    assert set(manifest["files"]) == set(FILES) - {"manifest.json"}
    before = digests(tmp_path / "out")
    again = treeopt.tune(pair, prompts, tmp_path / "out", **toy)
    assert digests(tmp_path / "out") == before, "nothing is measured twice"
    assert again.summary() == result.summary()


def test_the_best_of_several_drafts_rules_and_temperatures_is_chosen(
    pair: Any, prompts: Any, toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: dict[str, Any] = {}

    def page(**given: Any) -> str:
        shown.update(given)
        return "a page"

    monkeypatch.setattr(run, "page", page)
    worse = load_drafts(pair, [fitting(ModelInfo.of("embedded-target"), ModelInfo.of("embedded-target"))])[0]
    slow = Pair(pair.target, pair.tokenizer, pair.eos_token_ids, pair.pictures, draft=worse)
    result = treeopt.tune([slow, pair], prompts, tmp_path, temperature=[0, 0.6], drafting=["topk", "swor"], **toy)
    assert [len(result.scores), len({score.name for score in result.scores})] == [6, 6]
    speeds = [score.tokens_per_second for score in result.scores]
    assert speeds == sorted(speeds, reverse=True)
    assert {score.candidate.draft for score in result.scores} == {1, 2}
    assert all(score.compared_on == 2 for score in result.scores)
    chosen = result.chosen.candidate
    assert result.report.temperature == chosen.sampling.temperature
    assert result.acceptance.temperature == chosen.sampling.temperature
    assert any("differ in temperature" in sentence for sentence in result.notes)
    rows = json.loads((tmp_path / "manifest.json").read_text())["prompts"]
    spans = sorted((rows[what]["start"], rows[what]["end"]) for what in ("choose", "profile", "evaluate"))
    assert all(before[1] <= after[0] for before, after in pairwise(spans)), "no row is in two of them"
    assert shown["candidates"] == candidates_table(result.scores), "the page has the rows of the terminal, those that lost among them"
    assert shown["candidate_notes"][0] == basis(result.scores)
    assert set(shown["candidate_notes"]) <= set(result.notes), "the terminal explains its table too"
    assert any("differ in temperature" in sentence for sentence in shown["candidate_notes"])
    sources = json.loads((tmp_path / "manifest.json").read_text())["files"]["page.html"]["made_of"]
    assert {name.split("/")[1] for name in sources if name.endswith("choice.json")} == {"1", "2"}


def test_the_draft_that_is_the_target_has_every_token_accepted(pair: Any, prompts: Any, toy: Any, tmp_path: Path) -> None:
    """A comparison on other prompts finds what is known beforehand: of a perfect draft, all tokens of a chain."""
    same = load_drafts(pair, [fitting(ModelInfo.of("embedded-target"), ModelInfo.of("embedded-target"))])[0]
    perfect = Pair(pair.target, pair.tokenizer, pair.eos_token_ids, pair.pictures, draft=same)
    result = treeopt.tune([perfect, pair], prompts, tmp_path, **toy)
    score = next(score for score in result.scores if score.candidate.draft == 1)
    assert score.tokens_per_step == pytest.approx(score.generated.result.tree.depth + 1)


class Killed(BaseException):
    """Stands for a kill: nothing after it runs, but for what ends with the process."""


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("stage", ["profiling acceptance", "profiling latency", "evaluating"])
def test_a_run_that_is_interrupted_goes_on_and_chooses_the_same(pair: Any, prompts: Any, toy: Any, tmp_path: Path, stage: str) -> None:
    seen: list[str] = []

    def progress(what: str, done: int, total: int) -> None:
        seen.append(what)
        if what.startswith(stage) and done >= total / 2:
            raise Killed

    several = {**toy, "temperature": [0, 0.6]}
    greedy = AcceptanceSettings(gen_len=8, max_branch=4, batch_size=2)
    two = TuneSettings(samplings=(Sampling(), Sampling(0.6)), choose_prompts=2, evaluate_prompts=2)
    undisturbed = profile_acceptance(pair, divided(prompts, None, two, 1)[1], greedy)
    with pytest.raises(Killed):
        treeopt.tune(pair, prompts, tmp_path / "out", **several, progress=progress)
    before = digests(tmp_path / "out")
    assert any(path.name.endswith(".journal") for path in (tmp_path / "out").rglob("*.journal")), "the batch before is kept"
    result = treeopt.tune(pair, prompts, tmp_path / "out", **several)
    after = digests(tmp_path / "out")
    seconds = json.loads((tmp_path / "out" / "manifest.json").read_text())["seconds"]
    assert set(seconds.values()) == {4.0}, "every stage has the time of the run that finished it"
    assert before.items() <= after.items(), "what was finished stays"
    assert not list((tmp_path / "out").rglob("*.journal"))
    np.testing.assert_allclose(
        treeopt.read_acceptance(tmp_path / "out/candidates/1/topk-t0/acceptance.json").rank_probability, undisturbed.rank_probability
    )
    assert sorted(score.candidate.sampling.temperature for score in result.scores) == [0, 0.6]
    speeds = [score.tokens_per_second for score in result.scores]
    assert speeds == sorted(speeds, reverse=True), (
        "which of the two is faster is a matter of measured times, which a busy machine turns round"
    )


SCRIPT = """
import os, signal, sys
import treeopt
pair = treeopt.load_pair("embedded-target", "embedded-draft")
prompts = treeopt.load_prompts("stdlib", pair, num_prompts=10, prompt_len=16)
calls = 0
def progress(what, done, total):
    global calls
    calls += 1
    if calls == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
treeopt.tune(pair, prompts, sys.argv[1], gen_len=8, max_branch=4, sizes=[1, 2, 4], widths=[1, 2], repetitions=4, choose_prompts=2,
             evaluate_prompts=2, batch_size=2, progress=progress)
"""


@pytest.mark.parametrize("calls", [12, 37, 39])
def test_kill_9_loses_no_more_than_a_batch(pair: Any, prompts: Any, toy: Any, tmp_path: Path, finished: Path, calls: int) -> None:
    died = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path / "out"), str(calls)], capture_output=True, text=True, env=os.environ)
    assert died.returncode == -signal.SIGKILL, died.stderr
    done: list[tuple[str, int]] = []
    result = treeopt.tune(pair, prompts, tmp_path / "out", **toy, progress=lambda what, count, total: done.append((what, count)))
    whole = treeopt.read_acceptance(finished / "acceptance.json")
    np.testing.assert_allclose(result.acceptance.prompt_sums, whole.prompt_sums)
    assert result.report.lossless == "match"
    assert len(done) < 45, "the journals were taken up"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, 0) for name in ("choose_prompts", "evaluate_prompts", "max_branch", "draws", "repetitions", "max_size", "max_depth")),
        *((name, -1) for name in ("context", "seed", "batch_size", "gen_len", "sizes", "widths")),
        *((name, 2.5) for name in ("choose_prompts", "gen_len", "context", "max_size", "max_depth", "sizes", "batch_size")),
        *((name, "2") for name in ("evaluate_prompts", "gen_len", "draws", "widths", "minutes")),
    ],
)
def test_what_must_be_a_whole_number_is_named(pair: Any, prompts: Any, tmp_path: Path, name: str, value: Any) -> None:
    with pytest.raises(SettingsError, match=f"^`{name}` is "):
        treeopt.tune(pair, prompts, tmp_path / "out", **{name: value})
    assert not (tmp_path / "out").exists()


def test_trees_that_no_latency_will_reach_are_refused_before_anything_is_measured(
    pair: Any, prompts: Any, toy: Any, tmp_path: Path
) -> None:
    largest = max(toy["sizes"])
    with pytest.raises(
        SettingsError, match=f"`max_size` is 999, but the largest tree that is timed here has {largest} nodes; ask for at most {largest}"
    ):
        treeopt.tune(pair, prompts, tmp_path / "out", **{**toy, "max_size": 999})
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_folder_of_other_settings_is_refused_with_the_first_field_that_differs(
    pair: Any, prompts: Any, toy: Any, tmp_path: Path, finished: Path
) -> None:
    shutil.copytree(finished, tmp_path / "out")
    for other, said in (
        (
            {"gen_len": 9},
            "was made with `gen_len` 8, but this run has 9; pass another `output`, or remove that folder, or take them from its",
        ),
        ({"temperature": 0.6}, "was made with `temperature` 0, but this run has 0.6"),
        ({"minutes": 5}, "was made with `minutes` none, but this run has 5"),
    ):
        with pytest.raises(OutputError, match=said):
            treeopt.tune(pair, prompts, tmp_path / "out", **{**toy, **other})
    with pytest.raises(OutputError, match="was made with `dataset` stdlib"):
        treeopt.tune(pair, treeopt.load_prompts("stdlib", pair, num_prompts=9, prompt_len=16), tmp_path / "out", **toy)


@pytest.mark.parametrize(
    ("part", "field", "said"),
    [
        ("versions", "treeopt", "was made with treeopt 0.0.1, but this run has"),
        ("machine", "processor", "was made with processor 0.0.1, but this run has"),
        ("models", "draft 1", "was made with other models: draft 1 0.0.1, but this run has"),
        ("prompts", "profile", "was made with other prompts: profile 0.0.1, but this run has"),
    ],
)
def test_another_version_machine_model_or_text_is_refused(
    pair: Any, prompts: Any, toy: Any, tmp_path: Path, finished: Path, part: str, field: str, said: str
) -> None:
    shutil.copytree(finished, tmp_path / "out")
    path = tmp_path / "out" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["made_with"][part][field] = "0.0.1"
    path.write_text(json.dumps(manifest))
    with pytest.raises(OutputError, match=said):
        treeopt.tune(pair, prompts, tmp_path / "out", **toy)


def test_a_manifest_of_another_version_and_folders_of_others_are_refused(tmp_path: Path) -> None:
    (tmp_path / "tree.pt").write_text("mine")
    with pytest.raises(OutputError, match=r"holds tree.pt, but no manifest.json: no run of this kind made it; pass another `output`"):
        Folder(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"schema": "treeopt.tuning", "version": 2}))
    with pytest.raises(OutputError, match="version 2, but this treeopt reads version 1; pass another `output`, or remove that folder$"):
        Folder(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"schema": "treeopt.tuning", "version": 1}))
    with pytest.raises(OutputError, match="is damaged"):
        Folder(tmp_path)


def test_a_file_that_was_changed_is_refused_and_one_that_was_removed_is_made_again(
    pair: Any, prompts: Any, toy: Any, tmp_path: Path, finished: Path
) -> None:
    shutil.copytree(finished, tmp_path / "out")
    report, before = tmp_path / "out" / "report.json", digests(tmp_path / "out")
    report.write_text(report.read_text() + "\n")
    with pytest.raises(OutputError, match=r"report.json was changed since this run made it; remove it"):
        treeopt.tune(pair, prompts, tmp_path / "out", **toy)
    report.unlink()
    (tmp_path / "out" / "acceptance.json").unlink()
    treeopt.tune(pair, prompts, tmp_path / "out", **toy)
    after = digests(tmp_path / "out")
    assert {name for name in before if before[name] != after[name]} >= {"acceptance.json", "tree.pt", "report.json"}, (
        "what was made of it too"
    )
    assert before["latency.json"] == after["latency.json"]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock of stages by which each takes 4 seconds, on every machine."""
    ticks = itertools.count(step=4.0)
    monkeypatch.setattr(folder, "perf_counter", lambda: next(ticks))


@pytest.fixture
def machine(clock: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is always equally fast, by its clock and in every pass that is timed."""

    def timed(*given: Any, **more: Any) -> LatencyProfile:
        found = profile_latency(*given, **more)
        target = tuple(replace(one, seconds=(0.010 + 0.001 * one.nodes,) * len(one.seconds)) for one in found.target)
        draft = tuple(replace(one, seconds=(0.001,) * len(one.seconds)) for one in found.draft)
        return LatencyProfile(target, draft, (0.0005,) * len(found.overhead_seconds), found.provenance)

    monkeypatch.setattr(stages, "profile_latency", timed)


@pytest.mark.usefixtures("machine")
def test_minutes_are_spent_and_what_was_decided_is_kept(pair: Any, toy: Any, tmp_path: Path) -> None:
    """Of the 24 s, 12 were spent on the pilot's three stages, and some 0.5 s are left aside for decoding; a prompt takes 4 s / 8."""
    many = treeopt.load_prompts("stdlib", pair, num_prompts=42, prompt_len=16)
    result = treeopt.tune(pair, many, tmp_path / "out", **{**toy, "minutes": 0.4})
    decided = json.loads((tmp_path / "out" / "manifest.json").read_text())["notes"]["allotment"]
    assert decided["prompts"] > 8, "there was time for more than the pilot"
    assert decided == {"racing": [0], "prompts": 23, "repetitions": PILOT_REPETITIONS}, (
        "passes that always take the same need no more samples"
    )
    assert result.acceptance.prompts == decided["prompts"]
    assert any("the budget of 0.4 min was spent on" in sentence for sentence in result.notes)
    treeopt.tune(pair, many, tmp_path / "out", **{**toy, "minutes": 0.4})
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["notes"]["allotment"] == decided
    short = treeopt.tune(pair, many, tmp_path / "short", **{**toy, "minutes": 0.001})
    assert short.acceptance.prompts == 8, "the pilot is all there was time for"


def test_pairs_of_several_targets_are_refused(pair: Any, prompts: Any, tmp_path: Path) -> None:
    other = treeopt.load_pair("embedded-target", "embedded-draft")
    with pytest.raises(SettingsError, match="`pairs` must be a Pair, or several of one loaded target"):
        treeopt.tune([pair, other], prompts, tmp_path)
