"""The audit: its trees, its predictions from halves of a trace, and what the page says of it."""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import audit, audit_figures, audit_picture, end_to_end
from benchmarks.audit_figures import PICKED, Candidate, candidates, joined, once, profile_of, rank_counts, splits, spread
from benchmarks.end_to_end import measured
from benchmarks.reporting.audit import AUDIT, checks_of
from benchmarks.reporting.run import Run
from tests.benchmarks.test_rules import ORIGIN
from tests.reference.pairs import prompt_set, tiny_pair
from treeopt.profiles.acceptance import AcceptanceProfile
from treeopt.profiles.latency import LatencyProfile
from treeopt.profiles.samples import LatencySample
from treeopt.profiles.trace import Trace
from treeopt.profiles.traced_text import TracedText
from treeopt.profiling.acceptance import trace_acceptance
from treeopt.profiling.settings import AcceptanceSettings
from treespec.trees.tree import SpeculationTree


def drawn(texts: int, seed: int, chances: tuple[float, ...] = (0.7, 0.1, 0.05)) -> Trace:
    """A trace whose ranks are drawn position by position."""
    draws = np.random.default_rng(seed)
    rank = draws.choice(len(chances) + 1, texts * 63, p=[*chances, 1 - sum(chances)]).astype(np.uint32)
    top = np.full(len(rank), -0.1, dtype=np.float32)
    known = tuple(TracedText(place, f"{place}", 8, 64, False) for place in range(texts))
    return Trace(known, rank, np.where(rank == 0, top, top - 1).astype(np.float32), top, 64, 100, 0.0, 1.0)


def times(largest: int = 64) -> LatencyProfile:
    sizes = [2**power for power in range(largest.bit_length())]
    target = tuple(LatencySample(size, 128, (0.02 + 0.0001 * size,)) for size in sizes)
    draft = tuple(LatencySample(size, 128, (0.001 + 0.00001 * size,)) for size in sizes)
    return LatencyProfile(target, draft, (0.001,))


ACCEPTANCE = AcceptanceProfile("topk", 0.0, 1.0, (0.6, 0.2, 0.1, 0.05, 0.02), 0.03, (), 100, 5)


def test_the_trees_are_many_fit_and_have_each_kind() -> None:
    found = candidates(ACCEPTANCE, times(256), 128, 256, 40)
    kinds = [one.kind for one in found]
    assert found[0].name == PICKED
    assert {"picked", "best", "chain", "k-ary", "published", "grid"} == set(kinds)
    assert sum(one.audited for one in found) >= 12
    assert kinds.count("grid") + kinds.count("best") >= 40, "the choice is among 40 sizes and depths or more"
    assert all(one.tree.size <= 256 for one in found)
    assert len({one.name for one in found}) == len(found)
    grid = [one.tree for one in found if one.kind == "grid"]
    assert len(set(grid)) == len(grid)
    few = candidates(ACCEPTANCE, times(16), 128, 16, 3)
    assert [one.kind for one in few].count("grid") == 3


def test_spread_keeps_the_ends_and_once_drops_what_is_there() -> None:
    chains = [Candidate(f"{depth}", "grid", SpeculationTree.chain(depth)) for depth in range(1, 10)]
    assert [one.name for one in spread(chains, 3)] == ["1", "5", "9"]
    assert spread(chains, 20) == chains
    assert [one.name for one in once(chains[:2], [*chains[1:3], *chains[2:4]])] == ["3", "4"]


def test_the_profile_of_a_trace_is_the_one_that_was_measured() -> None:
    profile, trace = trace_acceptance(tiny_pair(), prompt_set(5), AcceptanceSettings(gen_len=12, max_branch=6))
    found = profile_of(*rank_counts(trace, 6))
    np.testing.assert_allclose(found.rank_probability, profile.rank_probability)
    np.testing.assert_allclose(found.standard_error, profile.standard_error)
    assert found.positions == profile.positions
    assert joined(trace, trace).positions == 2 * trace.positions


def test_halves_of_like_texts_agree_and_those_of_unlike_ones_do_not() -> None:
    """Positions are drawn alike and texts are long, so the sum of products is right but for the ends of texts."""
    tree = SpeculationTree.k_ary(2, 2)
    (alike,) = splits([tree], drawn(60, 0), 3, 50)
    assert alike["splits"] == 50
    assert alike["met"] >= 45
    assert abs(alike["bias"]) < 0.05
    assert alike["held"] < alike["agreed"] <= alike["met"]
    assert min(alike["agreed"], alike["agreed_by_replay"]) >= 45
    assert abs(alike["bias_by_replay"]) < 0.02
    (chain,) = splits([SpeculationTree.chain(12)], drawn(60, 0, (0.95,)), 1, 50)
    assert chain["bias"] > 0.03, "accepted tokens behind the ends of texts are predicted and do not count"
    assert abs(chain["bias_by_replay"]) < 0.01


def test_measured_figures_by_hand() -> None:
    found = measured([[40, 10, 1.0], [20, 10, 1.0]], [[40, 20, 2.0], [20, 5, 1.0]])
    assert found["tokens_per_step"] == pytest.approx(3)
    assert found["seconds_per_token"] == pytest.approx(2 / 60)
    assert found["over_picked"] == pytest.approx(1.5)
    assert measured([[40, 10, 1.0]] * 3, [[40, 10, 1.0]] * 3)["over_picked_interval_95"] == pytest.approx((1, 1))


def options(out: Path | None) -> argparse.Namespace:
    known = {"profiled": 4, "prompts": 2, "gen_len": 10, "rounds": 1, "largest": 8, "choices": 4, "splits": 10, "small": True}
    return argparse.Namespace(**known, out=out)


@pytest.mark.slow
@torch.inference_mode()
def test_the_whole_audit_of_a_tiny_pair_replays_exactly_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair, prompts = tiny_pair(), prompt_set(6)
    monkeypatch.setattr(audit_figures, "PUBLISHED", ())
    monkeypatch.setattr(audit, "PROMPT_LEN", 8)
    monkeypatch.setattr(end_to_end, "GROUP", 3)
    figures = audit.audit(pair, prompts, options(tmp_path / "a.json"))
    json.dumps(figures)
    assert [row["replay_error"] for row in figures["rows"]] == [0.0] * len(figures["rows"])
    assert figures["rows"][0]["measured"]["over_picked"] == 1
    assert all(row["splits"]["splits"] == 10 for row in figures["rows"] if row["audited"])
    assert len(figures["picked_seconds_per_token"]) == -(-(len(figures["rows"]) - 1) // 3) > 1
    assert figures["autoregressive"]["tokens_per_step"] == 1
    monkeypatch.setattr(end_to_end, "run_group", lambda *rest: pytest.fail("a group that was done ran again"))
    again = audit.audit(pair, prompts, options(tmp_path / "a.json"))
    assert again["rows"] == figures["rows"]
    assert "tokens per second" in AUDIT.body(Run("a.json", "python -m benchmarks.audit --small", figures | {"provenance": ORIGIN}))


@pytest.mark.slow
@torch.inference_mode()
def test_an_audit_that_was_stopped_goes_on_with_the_group_that_was_not_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_figures, "PUBLISHED", ())
    monkeypatch.setattr(audit, "PROMPT_LEN", 8)
    monkeypatch.setattr(end_to_end, "GROUP", 3)
    run, ran = end_to_end.run_group, []

    def stopped(pair: Any, plans: Any, *rest: Any) -> Any:
        ran.append(tuple(plans))
        if len(ran) == 2:
            raise KeyboardInterrupt
        return run(pair, plans, *rest)

    monkeypatch.setattr(end_to_end, "run_group", stopped)
    with pytest.raises(KeyboardInterrupt):
        audit.audit(tiny_pair(), prompt_set(6), options(tmp_path / "a.json"))
    monkeypatch.setattr(audit, "profile_latency", lambda *rest, **more: pytest.fail("what was profiled was profiled again"))
    figures = audit.audit(tiny_pair(), prompt_set(6), options(tmp_path / "a.json"))
    assert ran[2] == ran[1] != ran[0], "the first group was kept"
    assert len(ran) == 1 + len(figures["picked_seconds_per_token"])
    assert [end_to_end.ALONE in names for names in ran] == [True] + [False] * (len(ran) - 1)
    assert all(names[0] == PICKED for names in ran)


def row(name: str, over: float, *, audited: bool = True, replay: float = 0.0, seconds: float = 0.01, held: int = 95) -> dict[str, Any]:
    found = {"tokens_per_step": 2.0, "seconds_per_step": 0.01, "seconds_per_token": 0.005, "over_picked": over}
    found |= {f"{key}_interval_95": [0.9 * value, 1.1 * value] for key, value in found.items()}  # type: ignore[dict-item]
    return {
        "name": name,
        "kind": "best",
        "audited": audited,
        "size": 8,
        "depth": 2,
        "parents": [],
        "predicted": {"tokens_per_step": 2.1, "tokens_interval_95": [1.9, 2.3], "seconds_per_step": 0.01, "seconds_per_token": 0.0051},
        "replayed_tokens_per_step": 2.0,
        "measured": found,
        "replay_error": replay,
        "inside": True,
        "inside_by_replay": True,
        "seconds_per_token_error": seconds,
        "seconds_per_token_error_by_replay": seconds / 2,
        **(
            {
                "splits": {
                    "held": held - 10,
                    "agreed": held,
                    "met": 99,
                    "splits": 100,
                    "bias": 0.02,
                    "agreed_by_replay": held,
                    "bias_by_replay": 0.01,
                }
            }
            if audited
            else {}
        ),
    }


def data(*rows: dict[str, Any]) -> dict[str, Any]:
    settings = {"profiled": 100, "prompts": 16, "gen_len": 128, "rounds": 1, "largest": 512, "choices": 40, "splits": 100}
    return {
        "rows": list(rows),
        "settings": settings,
        "picked_seconds_per_token": [0.005, 0.0052],
        "unstable": None,
        "provenance": {**ORIGIN, "models": {"target": "inflated-llama-2-7b", "draft": "inflated-llama-68m"}},
    }


def test_the_page_judges_each_goal() -> None:
    good = data(row(PICKED, 1.0), row("best of 8", 1.015), row("2-ary", 0.8, audited=False))
    assert [check.met for check in checks_of(good)] == [True] * 6
    bad = data(row(PICKED, 1.0, replay=-0.02), row("best of 8", 1.03, seconds=-0.06, held=80))
    assert [check.met for check in checks_of(bad)] == [False, False, False, False, True, False]
    text = AUDIT.body(Run("audit.json", "python -m benchmarks.audit --inflate", bad))
    assert "Those of a replay of the profiled prompts hold 2 of 2." in " ".join(text.split())
    assert "| largest error of replayed tokens per step | ✗ 2.00 % | missed: 2.00 against at most 1 % |" in text
    assert "| largest error of predicted seconds per token, by replay | 3.0 % | met: at most 5 % |" in text
    assert text.count("missed: 87.5 against at least 90 % of halves") == 2, "by chances of ranks, and by replay"
    assert "| best of 8 (8, 2) | 200.0 | 1.030 [0.927, 1.133] | 2.000 |" in text
    assert text.index("best of 8 (8, 2) | 200.0") < text.index(f"{PICKED} (8, 2) | 200.0"), "the fastest comes first"
    assert "of 2 trees run end to end, the fastest, best of 8, is +3.0 % beside the picked one" in AUDIT.headlines(bad)[2]
    assert AUDIT.prompts(bad) == 16


def test_the_picture_shows_every_tree_and_every_kind_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = data(
        row(PICKED, 1.0) | {"kind": "picked"}, row("best of 8", 1.015), row("2-ary", 0.8, audited=False) | {"kind": "k-ary", "size": 64}
    )
    figure, _ = audit_picture.picture(shown)._figure()
    predictions, speeds = figure.axes
    assert [text.get_text() for text in predictions.get_legend().get_texts()] == ["best of a size", "the picked tree"]
    assert [text.get_text() for text in speeds.get_legend().get_texts()] == ["best of a size", "k-ary", "the picked tree"]
    drawn_points = {(float(x), float(y)) for line in speeds.lines for x, y in line.get_xydata() if line.get_marker() != "None"}
    assert drawn_points == {(8, 1.0), (8, 1.015), (64, 0.8)}
    (tmp_path / "a.json").write_text(json.dumps(shown))
    for name, sign in (("a.svg", b"<svg"), ("a.png", b"\x89PNG")):
        monkeypatch.setattr("sys.argv", ["audit_picture", str(tmp_path / "a.json"), str(tmp_path / name)])
        audit_picture.main()
        assert sign in (tmp_path / name).read_bytes()[:1024]
