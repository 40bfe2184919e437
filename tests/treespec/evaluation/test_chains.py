"""Chains beside a tree: which ones run, that their outputs and steps are their own, and what the tree is worth beyond the fastest."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.reference.pairs import prompt_set, tiny_pair
from treespec.decoding.drafting import Drafting
from treespec.decoding.plans import DynamicBudget, Plan
from treespec.decoding.rules import Sampling
from treespec.errors import CapacityError, GrowMapError, ProfileError, SettingsError
from treespec.evaluation.chains import chains_of
from treespec.evaluation.report import EvaluationReport, read_report
from treespec.evaluation.results import ChainResult, PromptResult
from treespec.evaluation.runner import evaluate
from treespec.evaluation.settings import EvaluationSettings
from treespec.files.writing import write_json
from treespec.models.tree_model import TreeModel
from treespec.trees.growmap import GrowMap
from treespec.trees.tree import SpeculationTree

TREE = SpeculationTree.from_paths([(0, 0, 0), (0, 1), (1, 0)])
CHAINS = (SpeculationTree.chain(2), SpeculationTree.chain(3))
SETTINGS = EvaluationSettings(gen_len=12, save_tokens=True)


def run(*chains: tuple[float, float], seconds: float = 1.0, spread: float = 0.01) -> EvaluationReport:
    """A report of eight prompts of 101 tokens, whose tree takes `seconds` and whose chains of depth 1, 2 ... take (seconds, tokens) each."""
    results = []
    for row in range(8):
        factor = 1 + spread * (row - 3.5) / 3.5
        own = tuple(ChainResult(depth, int(tokens), 50, took * factor) for depth, (took, tokens) in enumerate(chains, 1))
        results.append(PromptResult(row, f"{row}", 101, 40, seconds * factor, 101, 2.0 * factor, chains=own))
    return EvaluationReport("tree", tuple(results), 0.0, tree={"size": 4, "depth": 2, "parents": [-1, 0, 0, 1]})


def test_the_best_chain_is_the_growmaps_and_depths_are_those_asked_for() -> None:
    grown = GrowMap(TREE, {"best_chain": {"depth": 5, "expected_tokens_per_step": 3.0, "predicted_seconds_per_step": 0.1}})
    assert chains_of(None, grown) == ()
    assert chains_of("chain", grown) == (SpeculationTree.chain(5),)
    assert chains_of("chain:3,5,3", None) == (SpeculationTree.chain(3), SpeculationTree.chain(5))


@pytest.mark.parametrize("asked", ["", "chains", "chain:", "chain:0", "chain:-1", "chain:3,", "chain:65536", "chain:9999999", "tree"])
def test_other_texts_are_wrong_settings(asked: str) -> None:
    with pytest.raises(SettingsError, match="`against`"):
        chains_of(asked, GrowMap(TREE))


def test_without_a_record_of_the_best_chain_the_error_says_what_to_pass() -> None:
    with pytest.raises(GrowMapError, match="grow it again, or pass `against` chain:DEPTH, as in chain:4"):
        chains_of("chain", GrowMap(TREE))
    with pytest.raises(SettingsError, match="and there is none; pass `against` chain:DEPTH"):
        chains_of("chain", None)


@pytest.mark.parametrize("plan", [TREE, DynamicBudget(6, 3, 2)])
def test_chains_run_as_they_run_alone_and_leave_the_tree_as_it_is(plan: Plan) -> None:
    pair, prompts = tiny_pair(), prompt_set()
    together = evaluate(pair, plan, prompts, SETTINGS, against=CHAINS)
    alone = evaluate(pair, plan, prompts, SETTINGS)
    assert [(r.steps, r.output, r.accepted_ranks) for r in together.results] == [
        (r.steps, r.output, r.accepted_ranks) for r in alone.results
    ]
    assert together.lossless == "match"
    for place, chain in enumerate(CHAINS):
        single = evaluate(pair, chain, prompts, SETTINGS)
        found = [result.chains[place] for result in together.results]
        assert [(one.depth, one.tokens, one.steps, one.mismatch) for one in found] == [
            (chain.depth, r.tokens, r.steps, None) for r in single.results
        ]
        assert all(one.seconds > 0 for one in found)
        assert together.to_json()["chains"][place]["tokens_per_step"] == single.tokens_per_step


def test_sampled_chains_take_their_own_steps() -> None:
    settings = replace(SETTINGS, sampling=Sampling(1.0), drafting=Drafting("swor", verifier="traversal"))
    report = evaluate(tiny_pair(), TREE, prompt_set(), settings, against=CHAINS[:1])
    assert all(1 < result.chains[0].steps < 12 for result in report.results)
    assert all(result.chains[0].mismatch is None for result in report.results), "random outputs are not compared"


def test_every_way_is_first_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    from treespec.evaluation import runner

    order: list[int] = []
    monkeypatch.setattr(runner, "decode_autoregressive", lambda *rest: order.append(0) or real_alone(*rest))
    monkeypatch.setattr(
        runner, "decode_speculative", lambda target, draft, plan, *rest: order.append(plan.size) or real(target, draft, plan, *rest)
    )
    from treespec.decoding.loop import decode_autoregressive as real_alone
    from treespec.decoding.loop import decode_speculative as real

    evaluate(tiny_pair(), TREE, prompt_set(4), SETTINGS, against=CHAINS[:1])
    turns = [tuple(order[place : place + 3]) for place in range(0, len(order), 3)]
    size = TREE.size
    assert turns == [(size, 3, 0)] * 2 + [(0, size, 3), (3, 0, size), (size, 3, 0)], "the first prompt is decoded twice"


def test_a_chain_must_fit_and_needs_a_tree_to_be_held_against() -> None:
    with pytest.raises(CapacityError, match="the tree has 41 nodes"):
        evaluate(tiny_pair(), TREE, prompt_set(1), replace(SETTINGS, max_length=40), against=(SpeculationTree.chain(40),))
    with pytest.raises(SettingsError, match="there is no tree; pass a plan, or drop `against`"):
        evaluate(tiny_pair(), None, prompt_set(1), SETTINGS, against=CHAINS)


def test_other_chains_begin_the_journal_anew(tmp_path: Path) -> None:
    journal = tmp_path / "j"
    first = evaluate(tiny_pair(), TREE, prompt_set(2), SETTINGS, against=CHAINS, journal=journal)
    again = evaluate(tiny_pair(), TREE, prompt_set(2), SETTINGS, against=CHAINS, journal=journal)
    assert again.results == first.results, "nothing was decoded again"
    other = evaluate(tiny_pair(), TREE, prompt_set(2), SETTINGS, against=CHAINS[:1], journal=journal)
    assert [len(result.chains) for result in other.results] == [1, 1]


def test_a_chain_whose_output_is_another_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """The target's logits are spoiled in passes over the chain alone."""
    honest = TreeModel.forward

    def sloppy(self: TreeModel, tokens: Tensor, place: Any, keep: Tensor | None = None) -> Tensor:
        logits = honest(self, tokens, place, keep)
        return torch.neg(logits) if tokens.shape[0] == CHAINS[0].size else logits

    monkeypatch.setattr(TreeModel, "forward", sloppy)
    report = evaluate(tiny_pair(), TREE, prompt_set(2), SETTINGS, against=CHAINS[:1])
    assert report.lossless == "match", "the tree's own outputs are the target's"
    assert "the chain of depth 2 gave other tokens than autoregressive decoding in 2 outputs, by more than rounding" in str(report)


def test_the_worth_by_hand() -> None:
    report = run((1.25, 101))
    assert report.beyond_chain is not None
    assert (report.beyond_chain.depth, report.beyond_chain.ratio) == (1, pytest.approx(1.25))
    low, high = report.beyond_chain.interval_95 or (0, 0)
    assert low == pytest.approx(1.25), "on each prompt the quotient is the same, so pairing leaves no error"
    assert high == pytest.approx(1.25)
    assert run((1.25, 101), spread=0.9).intervals["seconds_per_token"] != pytest.approx(0.01), "each way alone is far from certain"
    (chain,) = report.to_json()["chains"]
    assert (chain["depth"], chain["size"], chain["tokens_per_second"]) == (1, 2, pytest.approx(80))
    assert (chain["tokens_per_step"], chain["speedup"]) == (pytest.approx(2), pytest.approx(1.6))


def test_the_fastest_chain_counts() -> None:
    found = run((1.25, 101), (1.1, 101), (1.3, 101)).beyond_chain
    assert found is not None
    assert (found.depth, found.ratio) == (2, pytest.approx(1.1))


def test_the_sentence_says_more_less_or_that_it_cannot_tell() -> None:
    assert run((1.25, 101)).to_json()["notes"] == [
        "beyond a chain, the tree is worth 25.0 %: it gave 1.250 x the tokens per second of the chain of depth 1 (95 % interval 1.250 to 1.250, paired "
        "over 8 prompts)"
    ]
    assert "the tree is worth nothing beyond a chain, which is faster: the tree gave 0.800 x" in str(run((0.8, 101), (0.9, 101)))
    assert "of the fastest of 2 chains, that of depth 1 (95 %" in str(run((0.8, 101), (0.9, 101)))
    report = run((1.0, 101))
    mixed = tuple(replace(r, chains=(replace(r.chains[0], seconds=1.1 if row % 2 else 0.92),)) for row, r in enumerate(report.results))
    assert "this run cannot tell the tree from a chain" in str(replace(report, results=mixed))
    single = replace(report, results=report.results[:1])
    assert "the tree gave 1.000 x the tokens per second of the chain of depth 1; one prompt says nothing of the error" in str(single)
    assert run().to_json()["notes"] == []
    assert run().beyond_chain is None


def test_reports_with_chains_are_read_back(tmp_path: Path) -> None:
    report = evaluate(tiny_pair(), TREE, prompt_set(3), SETTINGS, against=CHAINS)
    report.write(tmp_path / "r.json")
    read = read_report(tmp_path / "r.json")
    assert read.results == report.results
    assert read.to_json() == report.to_json()
    assert "chain of depth 3" in str(read)
    data = report.to_json()
    data["results"][1]["chains"] = data["results"][1]["chains"][:1]
    write_json(tmp_path / "odd.json", data)
    with pytest.raises(ProfileError, match="not all results have the same chains"):
        read_report(tmp_path / "odd.json")
    data["results"][1]["chains"] = [{**asdict(report.results[1].chains[0]), "seconds": -1.0}]
    write_json(tmp_path / "odd.json", data)
    with pytest.raises(ProfileError, match="seconds"):
        read_report(tmp_path / "odd.json")


def test_a_run_without_a_step_has_no_worth() -> None:
    report = evaluate(tiny_pair(), TREE, prompt_set(2), replace(SETTINGS, gen_len=1), against=CHAINS)
    assert report.beyond_chain is None
    assert "no step to measure" in str(report)
