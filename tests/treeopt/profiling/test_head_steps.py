"""Steps of heads that are counted on known texts, replayed from a trace or along growths, against those of evaluations."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.reference.head_pairs import LEVELS, PARALLEL, bound, head_pair
from tests.reference.pairs import prompt_set
from treeopt.optimizer.replay import replay
from treeopt.profiles.budget_grid import BudgetGrid
from treeopt.profiles.trace import read_trace
from treeopt.profiles.traced import acceptance_of
from treeopt.profiling.acceptance import profile_acceptance, trace_acceptance
from treeopt.profiling.settings import AcceptanceSettings
from treespec.errors import ProfileError
from treespec.evaluation.runner import evaluate
from treespec.evaluation.settings import EvaluationSettings
from treespec.trees.tree import SpeculationTree

GEN_LEN = 11
SETTINGS = AcceptanceSettings(gen_len=GEN_LEN, max_branch=5, batch_size=3)
EVALUATION = EvaluationSettings(gen_len=GEN_LEN)
EOS = frozenset(range(0, 61, 9))
TREES = [
    SpeculationTree.chain(LEVELS),
    SpeculationTree.from_branches([[6], [3, 1, 1, 0, 0, 2], [2, 1, 0, 1, 0, 0, 1], [1, 0, 0, 1, 0]]),
    SpeculationTree.k_ary(9, 2),
]
KINDS = ["eagle3 official", "eagle official", "medusa", "dflash official"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("eos", "positions"), [(frozenset(), None), (EOS, None), (frozenset(), 18)])
def test_replayed_steps_are_those_of_an_evaluation(kind: str, eos: frozenset[int], positions: int | None, tmp_path: Path) -> None:
    made, prompts = head_pair(kind, "llama", tmp_path), prompt_set(4)
    if positions is not None:
        made.target.max_positions = positions
    pair, _ = bound(made, eos)
    _, trace = trace_acceptance(pair, prompts, SETTINGS)
    accepted = 0
    for tree in TREES:
        report = evaluate(pair, tree, prompts, EVALUATION)
        found = replay(tree, trace)
        assert found.steps.tolist() == [result.steps for result in report.results]
        assert found.tokens.tolist() == [result.tokens for result in report.results]
        for own, result in zip(found.accepted, report.results, strict=True):
            depths = [len(ranks) for ranks in result.accepted_ranks]
            assert own[: len(depths)][:-1] == tuple(depths[:-1])
            accepted = max([accepted, *own])
    assert accepted > 1 or positions, "steps that accept at most one token do not tell one level from another"


@pytest.mark.parametrize("kind", KINDS)
def test_the_levels_of_a_trace_are_those_of_the_profile(kind: str, tmp_path: Path) -> None:
    pair, draft = bound(head_pair(kind, "llama", tmp_path), EOS)
    profile, trace = trace_acceptance(pair, prompt_set(6), SETTINGS)
    counts = trace.rank_counts(5)
    assert trace.levels == draft.scored_levels == (LEVELS if kind in PARALLEL else 8)
    np.testing.assert_array_equal(counts[0, :, :5], profile.prompt_sums)
    assert profile.by_depth is not None
    made = acceptance_of(trace, 5)
    assert made.by_depth is not None
    np.testing.assert_allclose(made.by_depth, profile.by_depth[: len(made.by_depth)], atol=1e-12)
    assert len(made.by_depth) == len(profile.by_depth) - (kind in PARALLEL), "below the last of all levels, no token has a chance"
    trace.write(tmp_path / "trace.json")
    back = read_trace(tmp_path / "trace.json")
    np.testing.assert_array_equal(back.ranks_by_depth, trace.ranks_by_depth)
    assert back.to_json() == trace.to_json()


def test_a_tree_below_the_levels_of_a_trace_is_refused(tmp_path: Path) -> None:
    pair, _ = bound(head_pair("medusa", "llama", tmp_path))
    _, trace = trace_acceptance(pair, prompt_set(2), SETTINGS)
    words = r"the tree has a depth of 5, but the trace is of a head and has 4 levels.* take a tree of depth 4 or less"
    with pytest.raises(ProfileError, match=words):
        replay(SpeculationTree.chain(LEVELS + 1), trace)


def test_an_interrupted_trace_of_a_head_is_the_same_in_the_end(tmp_path: Path) -> None:
    pair, _ = bound(head_pair("eagle3 official", "llama", tmp_path), EOS)
    prompts, settings, journal = prompt_set(4), replace(SETTINGS, batch_size=2), tmp_path / "journal"

    def stop(what: str, done: int, total: int) -> None:
        if done > GEN_LEN:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trace_acceptance(pair, prompts, settings, journal=journal, progress=stop)
    _, resumed = trace_acceptance(pair, prompts, settings, journal=journal)
    _, whole = trace_acceptance(pair, prompts, settings)
    assert replace(resumed, provenance={}).to_json() == replace(whole, provenance={}).to_json()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("eos", "positions"), [(frozenset(), None), (EOS, 18)])
def test_the_steps_of_every_budget_are_those_of_an_evaluation(
    kind: str, eos: frozenset[int], positions: int | None, tmp_path: Path
) -> None:
    made, prompts, grid = head_pair(kind, "llama", tmp_path), prompt_set(4), BudgetGrid((1, 2, 5), 5, 14)
    if positions is not None:
        made.target.max_positions = positions
    pair, _ = bound(made, eos)
    profile = profile_acceptance(pair, prompts, SETTINGS, dynamic=grid)
    found = profile.dynamic
    assert found is not None
    assert found.grid.max_depth == (LEVELS if kind in PARALLEL else 5), "no tree is deeper than the levels that a head proposes at once"
    for budget in list(found.budgets())[KINDS.index(kind) :: 12 if positions is None else 18]:
        report = evaluate(pair, budget, prompts, EVALUATION)
        assert found.steps_of(budget).tolist() == [result.steps for result in report.results], budget
        assert found.tokens == tuple(result.tokens - 1 for result in report.results)
    assert profile.by_depth == profile_acceptance(pair, prompts, SETTINGS).by_depth, "the rest of the profile is the same"
