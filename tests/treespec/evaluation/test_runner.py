"""The runner: what it decodes, refuses, survives, and how it tells rounding from bugs."""

import itertools
import json
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.reference.pairs import VOCABULARY, prompt_set, tiny_pair
from treespec.data.prompts import PromptSet
from treespec.decoding import timing
from treespec.decoding.drafting import Drafting
from treespec.decoding.loop import Request, decode_autoregressive
from treespec.decoding.plans import DynamicBudget, Plan
from treespec.decoding.rules import Sampling
from treespec.decoding.sampling import distribution
from treespec.errors import CapacityError, ModelError, SettingsError
from treespec.evaluation import runner
from treespec.evaluation.predicted import Prediction
from treespec.evaluation.results import PromptResult
from treespec.evaluation.runner import evaluate
from treespec.evaluation.settings import EvaluationSettings
from treespec.evaluation.ties import closeness
from treespec.trees.placement import Placement
from treespec.trees.tree import SpeculationTree

TREE = SpeculationTree.from_paths([(0, 0, 0), (0, 1), (1, 0)])
SETTINGS = EvaluationSettings(gen_len=12, save_tokens=True)


def expected(prompts: PromptSet, gen_len: int) -> list[tuple[int, ...]]:
    pair = tiny_pair()
    return [tuple(t for r in decode_autoregressive(pair.target, Request(p.ids, gen_len)) for t in r.tokens) for p in prompts]


def test_outputs_are_the_targets_own() -> None:
    prompts = prompt_set()
    report = evaluate(tiny_pair(), TREE, prompts, SETTINGS, predicted=Prediction(1.5, 0.1))
    assert [r.output for r in report.results] == expected(prompts, 12)
    assert report.lossless == "match"
    assert report.tokens == 4 * 12
    assert all(r.steps == len(r.accepted_ranks) < 12 - 1 for r in report.results)
    data = report.to_json()
    assert {"tokens_per_step": 1.5, "seconds_per_step": 0.1}.items() <= data["predicted"].items()
    assert data["tree"]["parents"] == list(TREE.parents)
    assert data["provenance"]["dataset"] == "random[0:4]"


def test_baseline_alone_needs_no_draft() -> None:
    prompts = prompt_set()
    report = evaluate(tiny_pair().alone(), None, prompts, SETTINGS)
    assert report.mode == "baseline"
    assert [r.output for r in report.results] == expected(prompts, 12)
    assert report.tokens_per_step == 1
    assert report.speedup == 1


def test_a_tree_without_a_draft_is_an_error() -> None:
    with pytest.raises(SettingsError, match="pass `draft`"):
        evaluate(tiny_pair().alone(), TREE, prompt_set(), SETTINGS)


@pytest.mark.parametrize("plan", [None, TREE])
def test_a_token_that_a_model_has_no_row_for_is_named(plan: Plan | None) -> None:
    prompts = prompt_set()
    odd = replace(prompts, prompts=(*prompts.prompts, replace(prompts.prompts[0], ids=(5, VOCABULARY))))
    with pytest.raises(ModelError, match="a prompt for the target has token 61, but the model has 61 embedding rows, for ids 0 to 60 only"):
        evaluate(tiny_pair(), plan, odd, SETTINGS)


def test_sampled_runs_reproduce_and_differ_by_seed() -> None:
    settings = replace(SETTINGS, sampling=Sampling(1.0))
    prompts = prompt_set()
    first, again, other = (evaluate(tiny_pair(), TREE, prompts, s).results for s in (settings, settings, replace(settings, seed=1)))
    assert [r.output for r in first] == [r.output for r in again]
    assert [r.output for r in first] != [r.output for r in other]


BREAKDOWNS: list[tuple[Plan, Drafting]] = [
    (TREE, Drafting()),
    (TREE, Drafting("swor", 1.0)),
    (TREE, Drafting("swr", 1.0, "traversal")),
    (DynamicBudget(6, 3, 2), Drafting()),
]


@pytest.mark.parametrize(("plan", "drafting"), BREAKDOWNS)
def test_a_breakdown_charges_every_part_what_it_took(plan: Plan, drafting: Drafting, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that is one second later whenever it is read: a part takes a second for each of its marks, and so does a step's start."""
    clock = itertools.count()
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: float(next(clock))))
    report = evaluate(tiny_pair(), plan, prompt_set(), replace(SETTINGS, breakdown=True, drafting=drafting))
    steps, prompts = report.steps, len(report.results)
    parts = {"drafting": plan.depth * steps, "target": steps, "acceptance": steps, "cache": steps, "other": steps + prompts}
    assert report.breakdown == parts
    assert list(report.breakdown) == list(parts)
    assert sum(r.seconds for r in report.results) == sum(parts.values())


def test_prompt_passes_are_timed_apart_from_steps_the_drafts_with_the_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that only the prompt passes move: the target's by 3 s, the draft's by 1 s."""
    clock = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: clock.seconds))
    pair = tiny_pair()
    for model, cost in ((pair.target, 3.0), (pair.draft, 1.0)):

        def passing(*given: object, prefill: Any = model.prefill, cost: float = cost) -> Tensor:
            clock.seconds += cost
            return prefill(*given)

        monkeypatch.setattr(model, "prefill", passing)
    report = evaluate(pair, TREE, prompt_set(), SETTINGS)
    assert {(r.prompt_seconds, r.baseline_prompt_seconds) for r in report.results} == {(4.0, 3.0)}
    assert {(r.seconds, r.baseline_seconds) for r in report.results} == {(0.0, 0.0)}
    assert report.speedup_with_prompts == pytest.approx(3 / 4)


def test_dynamic_trees_draft_nothing_but_the_most_likely_tokens() -> None:
    with pytest.raises(SettingsError, match="pass `drafting` topk"):
        evaluate(tiny_pair(), DynamicBudget(6, 3, 2), prompt_set(1), replace(SETTINGS, drafting=Drafting("swor", 1.0)))


@pytest.mark.parametrize("rule", ["swor", "swr"])
@pytest.mark.parametrize("verifier", ["sequential", "traversal"])
def test_sampled_children_leave_greedy_outputs_alone(rule: str, verifier: str) -> None:
    prompts, drafting = prompt_set(), Drafting(rule, 1.5, verifier)
    report = evaluate(tiny_pair(), TREE, prompts, replace(SETTINGS, drafting=drafting))
    assert [r.output for r in report.results] == expected(prompts, 12)
    assert report.lossless == "match"
    assert sum(sum(row.accepted[1:]) for row in report.observed) > 0, "children other than the first were accepted"
    described = report.to_json()
    assert (described["drafting"], described["verifier"], described["draft_temperature"]) == (rule, verifier, 1.5)


def test_children_beyond_the_drafts_support_are_the_most_likely_ones() -> None:
    """At a draft temperature this low one token has all the mass: siblings after it are the draft's next choices, and are accepted too."""
    pair, prompts, cold = tiny_pair(), prompt_set(), Sampling(0.001)
    pair.draft.allocate(8)
    support = distribution(pair.draft.prefill(torch.tensor(prompts.prompts[0].ids)), cold) > 0
    assert int(support.sum()) < TREE.max_branch
    for temperature in (0.0, 1.0):
        settings = replace(SETTINGS, sampling=Sampling(temperature), drafting=Drafting("swor", cold.temperature))
        report = evaluate(pair, TREE, prompts, settings)
        assert report.tokens == 4 * 12
        assert sum(sum(row.accepted[1:]) for row in report.observed) > 0
        if temperature == 0:
            assert [r.output for r in report.results] == expected(prompts, 12)
            assert report.steps == evaluate(pair, TREE, prompts, SETTINGS).steps


def test_dynamic_trees_leave_greedy_outputs_alone() -> None:
    prompts = prompt_set()
    report = evaluate(tiny_pair(), DynamicBudget(7, 3, 3), prompts, SETTINGS)
    assert [r.output for r in report.results] == expected(prompts, 12)
    assert (report.mode, report.tree) == ("dynamic", {"size": 7, "depth": 3, "width": 3})
    assert all(row.offered is None for row in report.observed)
    assert report.observed[0].visits == report.steps


def test_a_mismatch_is_found_and_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    pair, prompts = tiny_pair(), prompt_set(2)
    target = pair.target
    honest = target.forward

    def sloppy(tokens: Tensor, place: Placement, keep: Tensor | None = None) -> Tensor:
        logits = honest(tokens, place, keep)
        return -logits if tokens.shape[0] == TREE.size and int(place.positions[0]) >= 10 else logits

    monkeypatch.setattr(target, "forward", sloppy)
    report = evaluate(pair, TREE, prompts, SETTINGS)
    assert report.lossless == "mismatch"
    truth = expected(prompts, 12)
    for result, right, prompt in zip(report.results, truth, prompts, strict=True):
        assert result.mismatch is not None
        position = result.mismatch.position
        assert result.output[:position] == right[:position]
        assert (result.mismatch.tree_token, result.mismatch.baseline_token) == (result.output[position], right[position])
        logits = target.module(input_ids=torch.tensor([[*prompt.ids, *right[:position]]])).logits[0, -1].detach()
        best = logits.topk(2).values
        assert result.mismatch.logit_gap == pytest.approx(float(best[0] - best[1]), abs=1e-4)
        assert not result.mismatch.tie
    assert (report.mismatches, report.ties) == (2, 0)


def test_outputs_that_part_where_all_logits_are_equal_are_ties(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes over a tree and over one token round equal logits apart: which token is the largest then says nothing."""
    pair, prompts = tiny_pair(), prompt_set(4)
    with torch.no_grad():
        pair.target.module.lm_head.weight.fill_(0.37)
    honest = pair.target.forward

    def rounded(tokens: Tensor, place: Placement, keep: Tensor | None = None) -> Tensor:
        logits = honest(tokens, place, keep)
        return torch.nextafter(logits, logits + torch.arange(VOCABULARY) % 7) if tokens.shape[0] == TREE.size else logits

    monkeypatch.setattr(pair.target, "forward", rounded)
    report = evaluate(pair, TREE, prompts, SETTINGS)
    assert (report.lossless, report.mismatches, report.ties) == ("ties", 0, 4)
    assert report.to_json()["ties"] == 4
    for result in report.results:
        assert result.mismatch is not None
        assert result.mismatch.tie
        assert result.mismatch.logit_gap <= (result.mismatch.tolerance or 0) < 1e-3
    assert [PromptResult.from_json(json.loads(json.dumps(asdict(r)))) for r in report.results] == list(report.results)


@pytest.mark.parametrize("share", [0.5, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_tie_is_as_close_as_rounding_in_the_type_of_the_weights(dtype: torch.dtype, share: float) -> None:
    """Logits that are further apart are none, and neither is a token of a smaller logit beside two that are close."""
    target = type(tiny_pair().target)(tiny_pair().target.module.to(dtype))
    found = closeness(target, [1, 2, 3], [])
    logits = target.score(torch.tensor([[1, 2, 3]]), 2)[0, 0].float()
    assert found.logit_gap == pytest.approx(float(logits.topk(2).values.diff().abs()))
    epsilon = torch.finfo(dtype).eps
    assert 2 * epsilon * float(logits.std()) < found.tolerance < 200 * epsilon * float(logits.abs().max())
    order = logits.sort(descending=True).indices.tolist()
    weight = target.module.lm_head.weight
    with torch.no_grad():  # the second best logit comes so close to the best
        weight[order[1]] = weight[order[0]] * (1 - share * found.tolerance / float(logits[order[0]]))
    near = closeness(target, [1, 2, 3], order[:2])
    if dtype == torch.float32:
        assert near.tie == (share < 1)
    assert not closeness(target, [1, 2, 3], [order[0], order[-1]]).tie
    assert not closeness(target, [1, 2, 3], [order[0], None]).tie


COLD = [("swor", "sequential"), ("swor", "traversal"), ("topk", "sequential"), ("swr", "sequential")]


def test_a_top_p_that_leaves_one_token_is_compared_too() -> None:
    narrow = evaluate(tiny_pair(), TREE, prompt_set(), replace(SETTINGS, sampling=Sampling(1.0, 1e-9)))
    assert narrow.lossless == "match"


@pytest.mark.parametrize(("rule", "verifier"), COLD)
@pytest.mark.parametrize("temperature", [1e-30, 1e-5])
def test_where_softmax_leaves_one_token_decoding_is_greedy(rule: str, verifier: str, temperature: float) -> None:
    prompts, drafting = prompt_set(), Drafting(rule, None, verifier)
    greedy, cold = (
        evaluate(tiny_pair(), TREE, prompts, replace(SETTINGS, sampling=Sampling(t), drafting=drafting)) for t in (0.0, temperature)
    )
    assert [r.output for r in cold.results] == expected(prompts, 12)
    assert [r.accepted_ranks for r in cold.results] == [r.accepted_ranks for r in greedy.results]
    assert cold.lossless == "match"


def test_where_softmax_leaves_several_tokens_outputs_are_not_compared() -> None:
    pair = tiny_pair()
    with torch.no_grad():
        pair.target.module.lm_head.weight[1::2] = pair.target.module.lm_head.weight[:-1:2]
    report = evaluate(pair, TREE, prompt_set(), replace(SETTINGS, sampling=Sampling(1e-5), drafting=Drafting("swor")))
    assert report.lossless == "not-applicable"


PLANS = [(TREE, Drafting()), (TREE, Drafting("swor", 0.7)), (DynamicBudget(6, 3, 2), Drafting()), (SpeculationTree((-1,)), Drafting())]


@pytest.mark.parametrize(("plan", "drafting"), PLANS)
@pytest.mark.parametrize("positions", [4, 6, 7, 8, 12, 16, 17, 30])
def test_behind_the_positions_of_the_draft_the_target_goes_on_alone(plan: Plan, drafting: Drafting, positions: int) -> None:
    """Prompts have 6 tokens, and 12 follow. A draft of 4 or 6 positions drafts nothing; one of 17 always."""
    prompts, pair = prompt_set(), tiny_pair()
    pair.draft.max_positions = positions
    report = evaluate(pair, plan, prompts, replace(SETTINGS, drafting=drafting))
    assert [r.output for r in report.results] == expected(prompts, 12)
    assert report.lossless == "match"
    for result in report.results:
        assert result.steps == len(result.accepted_ranks) + result.undrafted
    if positions <= 6:
        assert (report.undrafted, report.observed) == (4 * 11, ())
    elif positions < 17:
        assert 0 < report.undrafted <= 4 * (18 - positions)
    else:
        assert report.undrafted == 0
    assert report.to_json()["tokens_without_draft"] == report.undrafted


def test_what_does_not_fit_is_refused_with_the_remedy() -> None:
    with pytest.raises(CapacityError, match=r"leaves room for 2 .* pass `max_length` 25 or more"):
        evaluate(tiny_pair(), TREE, prompt_set(), replace(SETTINGS, max_length=20))
    with pytest.raises(
        CapacityError, match=r"^`max_length` 5 is too short for \d+ prompt and \d+ generated tokens; pass `max_length` \d+ or more$"
    ):
        evaluate(tiny_pair(), None, prompt_set(), replace(SETTINGS, max_length=5))
    with pytest.raises(
        CapacityError, match="need 17 positions, but the target model has 16; pass `gen_len` 11 or less, or `prompt_len` 5 or"
    ):
        evaluate(tiny_pair(positions=16), TREE, prompt_set(), SETTINGS)
    assert evaluate(tiny_pair(positions=6), TREE, prompt_set(), replace(SETTINGS, gen_len=1)).tokens == 4, "the last token needs none"
    assert evaluate(tiny_pair(positions=17), TREE, prompt_set(), SETTINGS).lossless == "match", (
        "the last trees are cut to the positions there are"
    )


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (DynamicBudget(20, 2, VOCABULARY + 1), f"`width` is {VOCABULARY + 1}, but the vocabulary has {VOCABULARY} tokens"),
        (SpeculationTree.k_chains(VOCABULARY + 1, 1), f"a node with {VOCABULARY + 1} children, but the vocabulary has {VOCABULARY} tokens"),
    ],
)
def test_trees_of_more_tokens_than_there_are_are_refused_before_anything_is_allocated(plan: Plan, message: str) -> None:
    pair = tiny_pair()
    with pytest.raises(ModelError, match=message):
        evaluate(pair, plan, prompt_set(), SETTINGS)
    assert pair.target.capacity == 0


def test_unfinished_work_of_another_rule_is_not_taken_up(tmp_path: Path) -> None:
    done: list[int] = []
    prompts, journal = prompt_set(2), tmp_path / "journal"
    for drafting in (Drafting("swor", 1.0), Drafting("swor", 1.0, "traversal"), Drafting("swor", 0.5), Drafting("swr", 1.0)):
        evaluate(
            tiny_pair(),
            TREE,
            prompts,
            replace(SETTINGS, drafting=drafting),
            journal=journal,
            progress=lambda what, index, total: done.append(index),
        )
    assert done == [1, 2] * 4


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, journal = prompt_set(), tmp_path / "journal"

    def stop(what: str, done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(tiny_pair(), TREE, prompts, SETTINGS, journal=journal, progress=stop)
    decoded: list[int] = []
    both = runner._Run._decode_all
    monkeypatch.setattr(
        runner._Run, "_decode_all", lambda run, prompt, index, *more: (decoded.append(index), both(run, prompt, index, *more))[1]
    )
    report = evaluate(tiny_pair(), TREE, prompts, SETTINGS, journal=journal)
    assert decoded == [3]
    assert [r.output for r in report.results] == expected(prompts, 12)
    assert journal.exists(), "kept until the caller has saved the result"


def test_every_way_takes_a_few_steps_before_the_first_prompt_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[str, int]] = []

    def counting(name: str, decode: Any) -> Any:
        def counted(*arguments: Any) -> Any:
            steps = 0
            try:
                for record in decode(*arguments):
                    steps += 1
                    yield record
            finally:
                taken.append((name, steps))

        return counted

    monkeypatch.setattr(runner, "decode_autoregressive", counting("plain", runner.decode_autoregressive))
    monkeypatch.setattr(runner, "decode_speculative", counting("tree", runner.decode_speculative))
    monkeypatch.setattr(runner, "_WARM_UP", 2)
    prompts = prompt_set()
    evaluate(tiny_pair(), TREE, prompts, SETTINGS)
    assert taken[:2] == [("tree", 3), ("plain", 3)], "the first token and two steps each, trees first"
    assert [steps for name, steps in taken[2:] if name == "plain"] == [SETTINGS.gen_len] * len(prompts)


def test_half_precision_reports_the_logit_gap_of_each_divergence(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every token has a twin with the same logit, and passes over trees round them apart: outputs differ, and all gaps are small."""
    pair = tiny_pair(device=device)
    pair.target.module.half()
    pair.draft.module.half()
    halves = replace(pair, target=type(pair.target)(pair.target.module), draft=type(pair.draft)(pair.draft.module))
    weight = halves.target.module.lm_head.weight
    with torch.no_grad():
        weight[1::2] = weight[:-1:2]
    honest = halves.target.forward

    def rounded(tokens: Tensor, place: Placement, keep: Tensor | None = None) -> Tensor:
        logits = honest(tokens, place, keep)
        apart = torch.arange(VOCABULARY, device=logits.device) % 2 * 0.02
        return logits + apart.to(logits.dtype) if tokens.shape[0] == TREE.size else logits

    monkeypatch.setattr(halves.target, "forward", rounded)
    report = evaluate(halves, TREE, prompt_set(16), SETTINGS)
    gaps = [r.mismatch.logit_gap for r in report.results if r.mismatch is not None]
    assert len(gaps) >= 8
    assert max(gaps) < 0.1
    assert (report.lossless, report.ties) == ("ties", len(gaps))
