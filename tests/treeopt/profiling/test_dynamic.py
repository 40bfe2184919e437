"""The steps of dynamic trees counted along known texts, against those of evaluations with every budget."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.reference.pairs import prompt_set, tiny_pair
from treeopt.profiles.acceptance import read_acceptance
from treeopt.profiles.budget_grid import BudgetGrid
from treeopt.profiling.acceptance import profile_acceptance, trace_acceptance
from treeopt.profiling.settings import AcceptanceSettings
from treespec.decoding.drafting import Drafting
from treespec.decoding.plans import DynamicBudget
from treespec.decoding.rules import Sampling
from treespec.errors import ProfileError, SettingsError
from treespec.evaluation.runner import evaluate
from treespec.evaluation.settings import EvaluationSettings
from treespec.models.tree_model import TreeModel

SETTINGS = AcceptanceSettings(gen_len=12, max_branch=5, batch_size=3)
GRID = BudgetGrid((1, 2, 5), 3, 12)
EOS = frozenset(range(0, 61, 9))


@pytest.mark.parametrize("eos", [frozenset(), EOS])
@pytest.mark.parametrize(("target", "draft"), [(256, 256), (17, 256), (256, 12), (20, 15)])
def test_the_steps_of_every_budget_are_those_of_an_evaluation(eos: frozenset[int], target: int, draft: int) -> None:
    """Prompts have 6 tokens, and up to 12 follow: within the models' positions, or close to their ends."""
    prompts, pair = prompt_set(4), tiny_pair(eos=eos)
    pair.target.max_positions, pair.draft.max_positions = target, draft
    found = profile_acceptance(pair, prompts, SETTINGS, dynamic=GRID).dynamic
    assert found is not None
    budgets = list(found.budgets())
    assert len(budgets) == int(GRID.met.sum()) == sum(min(12, 1 + d * w) - d for w in (1, 2, 5) for d in (1, 2, 3))
    for budget in budgets[bool(eos) * 2 :: 4 if target == draft else 7]:
        report = evaluate(pair, budget, prompts, EvaluationSettings(gen_len=12))
        assert report.lossless == "match"
        assert found.steps_of(budget).tolist() == [result.steps for result in report.results], budget
        assert found.tokens == tuple(result.tokens - 1 for result in report.results)
        estimate = found.tokens_per_step(budget)
        if report.tokens_per_step is None:
            assert estimate is None
        else:
            assert estimate is not None
            assert estimate.mean == pytest.approx(report.tokens_per_step)


def test_a_draft_of_fewer_tokens_proposes_none_beyond_them() -> None:
    pair, prompts = tiny_pair(), prompt_set(3)
    fewer = replace(pair, draft=TreeModel(pair.draft.module, name="fewer", vocabulary=40))
    found = profile_acceptance(fewer, prompts, SETTINGS, dynamic=GRID).dynamic
    assert found is not None
    for budget in (DynamicBudget(6, 2, 5), DynamicBudget(12, 3, 5)):
        report = evaluate(fewer, budget, prompts, EvaluationSettings(gen_len=12))
        assert found.steps_of(budget).tolist() == [result.steps for result in report.results]


def test_progress_goes_on_while_trees_are_grown() -> None:
    seen: list[tuple[int, int]] = []
    profile_acceptance(tiny_pair(), prompt_set(3), SETTINGS, dynamic=GRID, progress=lambda what, done, total: seen.append((done, total)))
    assert {total for _, total in seen} == {24}
    counts = [done for done, _ in seen]
    assert counts == sorted(counts)
    assert {16, 20, 24} <= set(counts), "one step for each text"


def test_where_values_tie_trees_are_those_that_decode() -> None:
    """Logits are multiples of 1/2, as they could be in half precision, so that many tie."""
    pair, prompts = tiny_pair(), prompt_set(5)
    pair.draft.module.lm_head.weight.data = pair.draft.module.lm_head.weight.data.mul(2).round().div(2)
    pair.draft.module.model.norm.register_forward_hook(lambda module, given, hidden: hidden.sign())
    found = profile_acceptance(pair, prompts, SETTINGS, dynamic=GRID).dynamic
    assert found is not None
    for budget in list(found.budgets())[::4]:
        report = evaluate(pair, budget, prompts, EvaluationSettings(gen_len=12))
        assert found.steps_of(budget).tolist() == [result.steps for result in report.results], budget


def test_the_rest_of_the_profile_is_the_same_and_the_file_holds_all(tmp_path: Path) -> None:
    pair, prompts = tiny_pair(eos=EOS), prompt_set(4)
    plain = profile_acceptance(pair, prompts, SETTINGS)
    profile, trace = trace_acceptance(pair, prompts, SETTINGS, dynamic=GRID)
    assert replace(profile, dynamic=None, provenance=plain.provenance) == plain
    assert profile.dynamic is not None
    assert profile.dynamic.tokens == tuple(one.tokens - 1 for one in trace.texts)
    profile.write(tmp_path / "acceptance.json")
    back = read_acceptance(tmp_path / "acceptance.json").dynamic
    assert back is not None
    assert (back.grid, back.tokens) == (profile.dynamic.grid, profile.dynamic.tokens)
    np.testing.assert_array_equal(back.steps, profile.dynamic.steps)
    assert profile.summary()["dynamic"] == {"widths": (1, 2, 5), "max_depth": 3, "max_size": 12}


def test_an_interrupted_measurement_is_the_same_in_the_end(tmp_path: Path) -> None:
    pair, prompts, journal = tiny_pair(eos=EOS), prompt_set(4), tmp_path / "journal"
    settings = replace(SETTINGS, batch_size=2)

    def stop(what: str, done: int, total: int) -> None:
        if done > 2 * settings.gen_len:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        profile_acceptance(pair, prompts, settings, dynamic=GRID, journal=journal, progress=stop)
    measured: list[int] = []
    found = profile_acceptance(
        pair, prompts, settings, dynamic=GRID, journal=journal, progress=lambda what, done, total: measured.append(done)
    )
    whole = profile_acceptance(pair, prompts, settings, dynamic=GRID)
    assert min(measured) >= 2 * settings.gen_len, "the first batch is not measured again"
    assert found.dynamic is not None
    assert whole.dynamic is not None
    np.testing.assert_array_equal(found.dynamic.steps, whole.dynamic.steps)


def test_what_cannot_be_counted_is_refused() -> None:
    pair, prompts = tiny_pair(), prompt_set(2)
    with pytest.raises(SettingsError, match="`dynamic` counts on the target's own choices, but `method` is teacher-forced"):
        profile_acceptance(pair, prompts, replace(SETTINGS, method="teacher-forced"), dynamic=GRID)
    sampled = replace(SETTINGS, drafting=Drafting("swor"), sampling=Sampling(0.6))
    with pytest.raises(
        SettingsError, match="`dynamic` is of steps whose children are the draft's most likely tokens, but `drafting` is swor"
    ):
        profile_acceptance(pair, prompts, sampled, dynamic=GRID)
    with pytest.raises(SettingsError, match="`widths` begins with 100, but the vocabulary has"):
        profile_acceptance(pair, prompts, SETTINGS, dynamic=BudgetGrid((100,), 2, 8))
    with pytest.raises(SettingsError, match="each is measured once"):
        BudgetGrid((2, 2))
    found = profile_acceptance(pair, prompts, SETTINGS, dynamic=GRID).dynamic
    assert found is not None
    with pytest.raises(
        ProfileError, match=r"dynamic trees of 9 nodes, depth 3 and width 4 were not measured, only widths 1, 2, 5, depths up to 3"
    ):
        found.tokens_per_step(DynamicBudget(9, 3, 4))
    with pytest.raises(ProfileError, match="a step makes 1 to depth"):
        replace(found, steps=found.steps * 50)
