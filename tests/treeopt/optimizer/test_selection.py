"""The choice of an acceptance model: by prompts that were held out, and never by noise."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pytest

from tests.reference.ranked import MISSED, alike, in_turns, ranked
from treeopt.optimizer import selection
from treeopt.optimizer.fitting import BY_DEPTH, BY_RANK, BY_REPLAY, MODELS, Fit, Search, fits
from treeopt.optimizer.replay import replay
from treeopt.optimizer.search import optimize
from treeopt.optimizer.selection import Selection, select, select_for
from treeopt.optimizer.visits import folds_of
from treeopt.profiles.trace import Trace
from treeopt.profiles.traced import acceptance_of
from treespec.errors import ProfileError
from treespec.trees.tree import SpeculationTree

FORKED_CHAIN = sorted([(0,), (0, 0), (0, 0, 0), *((0, 0, 0, rank) for rank in range(8))])


def of_size(size: int, depth: int, ranks: int = 10) -> Search:
    return Search(partial(optimize, size=size, depth=depth), lambda tree: 1.0, (), ranks, ranks)


def chosen(trace: Trace, size: int = 12, depth: int = 4) -> Selection:
    return select(trace, of_size(size, depth), timed=False)


def test_a_source_in_which_depth_is_everything_is_found() -> None:
    """Chances by rank lead to a bush, chances by depth to the tree that takes all five tokens of a round."""
    rng = np.random.default_rng(0)
    found = chosen(ranked([in_turns(rng, 12) for _ in range(30)]))
    by_rank, best = found.candidates[0], found.chosen
    assert best.model in (BY_DEPTH, BY_REPLAY)
    assert sorted(best.fit.tree.paths) == FORKED_CHAIN
    assert best.tokens_per_step.mean == pytest.approx(5)
    lead = best.lead_over(by_rank)
    assert lead.interval_95 is not None
    assert lead.interval_95[0] > 1.2
    assert lead.mean == pytest.approx(5 / by_rank.tokens_per_step.mean)
    assert f"the acceptance model {best.model} " in str(found.sentence)
    assert f"{lead.mean:.4f} [" in str(found.sentence)


def test_chances_by_depth_alone_find_it_too() -> None:
    rng = np.random.default_rng(1)
    trace = ranked([in_turns(rng, 12) for _ in range(30)])
    fit = fits(trace, of_size(12, 4))[BY_DEPTH]
    assert sorted(fit.tree.paths) == FORKED_CHAIN
    assert fit.nats is not None
    assert fit.nats > 0.3
    assert fit.result.expected_tokens_per_step == pytest.approx(5, abs=0.1)


def test_where_depth_tells_nothing_noise_prefers_no_richer_model() -> None:
    """Each richer model has to beat an interval of 95 %, so of 12 such sources one at most is taken for richer."""
    wrong = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        found = chosen(ranked([alike(rng, [0.6, 0.15, 0.08, 0.04, 0.02], 40) for _ in range(20)]))
        wrong += found.chosen.model != BY_RANK
        if found.chosen.model == BY_RANK:
            assert "neither is told to be faster" in str(found.sentence)
    assert wrong <= 1


def test_prompts_held_out_have_no_part_in_the_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each fold's trees come from the other prompts alone: whatever the texts that are held out say, they stay the same."""
    rng = np.random.default_rng(3)
    texts = [alike(rng, [0.5, 0.2, 0.1], 30) for _ in range(12)]
    prompts = [f"{number:016}" for number in (0, 1, 2, 0, 3, 4, 5, 5, 6, 7, 8, 9)]
    trace = ranked(texts, prompts)
    seen: list[tuple[list[str], dict[str, SpeculationTree]]] = []

    def spied(part: Trace, search: Search, models: Sequence[str]) -> dict[str, Fit]:
        found = fits(part, search, models)
        seen.append(([one.prompt_sha256 for one in part.texts], {model: fit.tree for model, fit in found.items()}))
        return found

    monkeypatch.setattr(selection, "fits", spied)
    first = chosen(trace)
    folds = folds_of(trace, 5)
    assert sorted(place for fold in folds for place in fold) == list(range(12))
    for fold, (used, _) in zip(folds, seen[:5], strict=True):
        held_out = {prompts[place] for place in fold}
        assert not held_out & set(used)
        assert set(prompts) == held_out | set(used)
    trees = [by_model for _, by_model in seen]
    for turn, fold in enumerate(folds):
        seen.clear()
        other = [[1, 2, MISSED] * 10 if place in fold else text for place, text in enumerate(texts)]
        second = chosen(ranked(other, prompts))
        assert seen[turn][1] == trees[turn]
        assert any(
            tree != before for (_, by_model), kept in zip(seen, trees, strict=True) for tree, before in [(by_model[BY_RANK], kept[BY_RANK])]
        )
        assert second.candidates[0].tokens_per_step.mean < first.candidates[0].tokens_per_step.mean


def test_scores_are_those_of_the_folds_own_trees() -> None:
    """Found anew: every text's steps with the tree of the fold that held it out, a unit for each prompt."""
    rng = np.random.default_rng(4)
    trace = ranked([alike(rng, [0.5, 0.2, 0.1], 25) for _ in range(11)], prompts=[0, 1, 2, 0, 3, 4, 5, 6, 7, 8, 9])
    found = chosen(trace)
    assert (found.folds, found.prompts) == (5, 10)
    for candidate in found.candidates:
        steps = np.zeros(11)
        for fold in folds_of(trace, 5):
            rest = trace.of_texts([place for place in range(11) if place not in fold])
            steps[fold] = replay(fits(rest, of_size(12, 4))[candidate.model].tree, trace.of_texts(fold)).steps
        assert candidate.tokens_per_step.mean == pytest.approx(11 * 25 / steps.sum())
        np.testing.assert_allclose(np.sort(candidate.costs), np.sort([steps[0] + steps[3], *np.delete(steps, [0, 3])]))


@pytest.mark.parametrize("models", [[BY_RANK], [BY_RANK, BY_DEPTH]])
def test_models_that_are_not_asked_for_change_nothing_in_the_others(models: list[str]) -> None:
    trace = ranked([alike(np.random.default_rng(6), [0.5, 0.2, 0.1], 25) for _ in range(10)])
    whole, some = chosen(trace), select(trace, of_size(12, 4), timed=False, models=models)
    assert [one.model for one in some.candidates] == models
    for one, other in zip(some.candidates, whole.candidates, strict=False):
        assert one.fit.tree == other.fit.tree
        assert one.tokens_per_step == other.tokens_per_step
    assert (some.sentence is None) == (len(models) == 1)


def test_times_decide_where_there_are_some(latency: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens for which passes take too long are no lead, and what is promised of replay is what was held out."""
    rng = np.random.default_rng(5)
    trace = ranked([in_turns(rng, 12) for _ in range(30)])
    profile = acceptance_of(trace, 10)
    times = latency({1: 1.0, 4: 1.0, 8: 1.0, 12: 1.0, 16: 9.0}, {1: 0.01, 16: 0.01})
    model = times.at_context(None)
    solve = partial(optimize, latency=times)
    found = select_for(trace, solve, model, profile)
    assert [one.model for one in found.candidates] == list(MODELS)
    for one in found.candidates:
        assert one.seconds_per_token is not None
        assert one.fit.tree.size <= 12
    best = found.chosen
    assert best.seconds_per_token.mean == pytest.approx(1.04 / 5, rel=0.02)
    result, chances = found.outcome(solve, profile, model, None)
    assert result.tree == best.fit.tree
    assert chances.by_depth is not None
    for one in found.candidates:  # whichever is taken, what was held out is promised
        monkeypatch.setattr(Selection, "chosen", property(lambda self, one=one: one))
        promised, _ = found.outcome(solve, profile, model, None)
        assert promised.expected_tokens_per_step == one.tokens_per_step.mean
        assert promised.tree == one.fit.tree
        assert promised.predicted_seconds_per_step == model.step_seconds(promised.tree)
        assert promised.predicted_speedup == pytest.approx(promised.expected_tokens_per_step / promised.predicted_seconds_per_step)
        assert (promised.certified_gap is None) == (one.model == BY_REPLAY)
        assert promised.certainty.intervals["expected_tokens_per_step"] == [*one.tokens_per_step.interval_95]


def test_what_tells_nothing_is_refused() -> None:
    with pytest.raises(ProfileError, match=r"steps of 1 prompt, .* profile more prompts"):
        chosen(ranked([[0, 1, 0], [1, 0]], prompts=[1, 1]))
    with pytest.raises(ProfileError, match="children are random"):
        chosen(ranked([[0, 1, 0], [1, 0]], temperature=0.6, drafting="swor"))


def test_texts_without_a_step_have_no_say() -> None:
    rng = np.random.default_rng(6)
    texts = [alike(rng, [0.5, 0.2], 20) for _ in range(6)]
    with_empty = chosen(ranked([[], *texts, []]))
    assert with_empty.prompts == 6
    assert with_empty.to_json() == chosen(ranked(texts)).to_json()
