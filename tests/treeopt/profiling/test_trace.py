"""Traces against counting token by token, and replayed steps against those of evaluations."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.reference.pairs import VOCABULARY, prompt_set, tiny_pair
from tests.reference.traces import said
from treeopt.optimizer.replay import replay
from treeopt.profiles.trace import Trace
from treeopt.profiling.acceptance import profile_acceptance, trace_acceptance
from treeopt.profiling.settings import AcceptanceSettings
from treespec.data.prompts import PromptSet
from treespec.decoding.drafting import Drafting
from treespec.decoding.loop import Request, decode_autoregressive
from treespec.decoding.rules import Sampling
from treespec.decoding.sampling import prompt_generator
from treespec.errors import SettingsError
from treespec.evaluation.runner import evaluate
from treespec.evaluation.settings import EvaluationSettings
from treespec.models.pairs import Pair
from treespec.models.tree_model import TreeModel
from treespec.trees.tree import SpeculationTree

SETTINGS = AcceptanceSettings(gen_len=12, max_branch=5, batch_size=3)
EOS = frozenset(range(0, 61, 9))
TREES = [SpeculationTree((-1,)), SpeculationTree.chain(5), SpeculationTree.from_branches([[3], [2, 1, 0], [2, 0, 1], [1, 1, 0]])]


def same(one: Trace, other: Trace) -> None:
    """Equal but for the time in the provenance."""
    left, right = ({**trace.to_json(), "provenance": {**trace.provenance, "utc": None}} for trace in (one, other))
    assert left == right


def check(trace: Trace, pair: Pair, prompts: PromptSet, texts: list[list[int]]) -> None:
    """Every position, by one plain pass of the draft over what stands before it."""
    found = []
    for prompt, text in zip(prompts, texts, strict=True):
        for place in range(1, len(text)):
            with torch.inference_mode():
                logits = pair.draft.module(input_ids=torch.tensor([[*prompt.ids, *text[:place]]])).logits[0, -1]
            found.append(said(logits.tolist(), text[place]))
    ranks, chosen, top = (np.array(column) for column in zip(*found, strict=True))
    np.testing.assert_array_equal(trace.rank, ranks)
    np.testing.assert_allclose(trace.log_probability, chosen, atol=1e-4)
    np.testing.assert_allclose(trace.top_log_probability, top, atol=1e-4)
    assert [(one.tokens, one.eos) for one in trace.texts] == [(len(text), text[-1] in pair.eos_token_ids) for text in texts]


@pytest.mark.parametrize("eos", [frozenset(), EOS])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.8, 0.9)])
def test_a_trace_holds_what_is_counted_one_by_one(sampling: Sampling, eos: frozenset[int]) -> None:
    pair, prompts = tiny_pair(eos=eos), prompt_set(7)
    settings = replace(SETTINGS, sampling=sampling)
    profile, trace = trace_acceptance(pair, prompts, settings)
    texts = []
    for index, prompt in enumerate(prompts):
        request = Request(prompt.ids, 12, eos, sampling)
        texts.append([t for r in decode_autoregressive(pair.target, request, prompt_generator(0, index, "cpu")) for t in r.tokens])
    check(trace, pair, prompts, texts)
    assert (trace.temperature, trace.top_p, trace.gen_len) == (sampling.temperature, sampling.top_p, 12)
    assert (trace.vocabulary_size, trace.pair_sha256) == (VOCABULARY, profile.pair_sha256)
    assert [one.row for one in trace.texts] == list(range(7))
    assert len({one.prompt_sha256 for one in trace.texts}) == 7
    assert profile == replace(profile_acceptance(pair, prompts, settings), provenance=profile.provenance), "the profile is the same"
    assert trace.positions == profile.positions
    if sampling.greedy:
        counts = np.bincount(trace.rank, minlength=VOCABULARY)
        np.testing.assert_array_equal(counts[:5], np.sum(profile.prompt_sums, axis=0))


@pytest.mark.parametrize("tree", TREES, ids=lambda tree: f"{tree.size}")
@pytest.mark.parametrize("eos", [frozenset(), EOS])
@pytest.mark.parametrize(("target", "draft"), [(256, 256), (17, 256), (256, 6), (256, 12), (256, 17), (20, 15)])
def test_the_steps_are_those_of_an_evaluation(tree: SpeculationTree, eos: frozenset[int], target: int, draft: int) -> None:
    """Prompts have 6 tokens, and up to 12 follow: within the models' positions, or close to their ends."""
    prompts, pair = prompt_set(5), tiny_pair(eos=eos)
    pair.target.max_positions, pair.draft.max_positions = target, draft
    report = evaluate(pair, tree, prompts, EvaluationSettings(gen_len=12))
    if draft == 6:  # no position to profile; with a shorter prompt among them there is one
        short = replace(prompts.prompts[0], ids=prompts.prompts[0].ids[:4])
        prompts = replace(prompts, prompts=(short, *prompts.prompts[1:]))
        report = evaluate(pair, tree, prompts, EvaluationSettings(gen_len=12))
    _, trace = trace_acceptance(pair, prompts, SETTINGS)
    found = replay(tree, trace)
    assert report.lossless == "match"
    assert found.steps.tolist() == [result.steps for result in report.results]
    assert found.tokens.tolist() == [result.tokens for result in report.results]
    if report.tokens_per_step is not None:
        assert found.tokens_per_step is not None
        assert found.tokens_per_step.mean == pytest.approx(report.tokens_per_step)
    for accepted, result in zip(found.accepted, report.results, strict=True):
        depths = [len(ranks) for ranks in result.accepted_ranks]
        drafted = accepted[: len(depths)]
        assert drafted[:-1] == tuple(depths[:-1])
        assert drafted[-1:] <= tuple(depths[-1:]), "the end of the text may cut the last step"


def test_a_token_that_cannot_be_drafted_has_the_last_rank() -> None:
    pair, prompts = tiny_pair(), prompt_set(4)
    fewer = replace(pair, draft=TreeModel(pair.draft.module, name="fewer", vocabulary=40))
    _, whole = trace_acceptance(pair, prompts, SETTINGS)
    _, trace = trace_acceptance(fewer, prompts, SETTINGS)
    assert trace.vocabulary_size == 40
    beyond = trace.rank == 40
    assert 0 < beyond.sum() < len(beyond)
    np.testing.assert_array_equal(np.isneginf(trace.log_probability), beyond)
    assert (trace.rank[~beyond] <= whole.rank[~beyond]).all()
    tree = SpeculationTree.k_ary(3, 3)
    assert replay(tree, trace).steps.tolist() == [r.steps for r in evaluate(fewer, tree, prompts, EvaluationSettings(gen_len=12)).results]


def test_where_logits_tie_ranks_are_those_of_the_children_that_are_drafted() -> None:
    """Logits are multiples of 1/2, as they could be in half precision, so that many tie."""
    pair, prompts = tiny_pair(), prompt_set(12)
    pair.draft.module.lm_head.weight.data = pair.draft.module.lm_head.weight.data.mul(2).round().div(2)
    pair.draft.module.model.norm.register_forward_hook(lambda module, given, hidden: hidden.sign())
    _, trace = trace_acceptance(pair, prompts, SETTINGS)
    for tree in (SpeculationTree.chain(4), SpeculationTree.k_ary(2, 3), SpeculationTree.k_chains(8, 1)):
        report = evaluate(pair, tree, prompts, EvaluationSettings(gen_len=12))
        assert replay(tree, trace).steps.tolist() == [result.steps for result in report.results]


def test_an_interrupted_trace_is_the_same_in_the_end(tmp_path: Path) -> None:
    pair, prompts, journal = tiny_pair(eos=EOS), prompt_set(6), tmp_path / "journal"
    settings = replace(SETTINGS, batch_size=2)

    def stop(what: str, done: int, total: int) -> None:
        if done > 2 * settings.gen_len:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trace_acceptance(pair, prompts, settings, journal=journal, progress=stop)
    measured: list[int] = []
    resumed = trace_acceptance(pair, prompts, settings, journal=journal, progress=lambda what, done, total: measured.append(done))
    assert min(measured) == 2 * settings.gen_len, "the journal gave two batches, which are told of as done"
    _, whole = trace_acceptance(pair, prompts, settings)
    same(replace(resumed[1], provenance=whole.provenance), whole)  # which has the load of the machine


def test_work_without_a_trace_is_other_work(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pair, prompts, journal = tiny_pair(), prompt_set(2), tmp_path / "journal"
    profile_acceptance(pair, prompts, SETTINGS, journal=journal)
    assert trace_acceptance(pair, prompts, SETTINGS, journal=journal)[1].positions == 22
    assert "belongs to other work or other options" in caplog.text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "teacher-forced"}, "`method` is teacher-forced; pass `method` on-policy, or leave `trace` out"),
        ({"drafting": Drafting("swr")}, "`drafting` is swr; pass `drafting` topk, or leave `trace` out"),
        ({"drafting": Drafting("swor"), "sampling": Sampling(0.5)}, "`drafting` is swor; pass"),
    ],
)
def test_texts_that_could_not_be_replayed_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        trace_acceptance(tiny_pair(), prompt_set(2, 6, 8), replace(SETTINGS, **changes))
    greedy = replace(SETTINGS, drafting=Drafting("swor"))  # at draft temperature 0 these children are the most likely ones
    assert trace_acceptance(tiny_pair(), prompt_set(2), greedy)[1].drafting == "topk"


def test_the_fingerprint_of_a_pair_is_that_of_its_models() -> None:
    pair = tiny_pair()
    assert pair.sha256 == tiny_pair().sha256
    assert pair.sha256 != tiny_pair(eos=EOS).sha256
    assert pair.sha256 != replace(pair, draft=TreeModel(pair.draft.module, name="another")).sha256
    loaded = [replace(pair.draft.loaded, digest=digest) for digest in ("a", "b")]
    first, other = (replace(pair, draft=TreeModel(one, name="named")).sha256 for one in loaded)
    assert first != other
    assert first == replace(pair, draft=TreeModel(loaded[0], name="elsewhere")).sha256, "weights are known by their digest alone"
