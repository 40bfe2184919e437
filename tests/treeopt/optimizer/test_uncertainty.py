"""Intervals of predictions: derivatives against differences, coverage by drawing prompts, times by the ends of medians, and who is told apart."""

import math
from dataclasses import replace

import numpy as np
import pytest

from treeopt.growmap_making import Limits, generate
from treeopt.optimizer.frontier import expected_tokens
from treeopt.optimizer.notes import levels_unknown, notes, telling_apart, tellings
from treeopt.optimizer.search import acceptance_rows, optimize
from treeopt.optimizer.uncertainty import Certainty, Lead, certainty, gains
from treeopt.profiles.acceptance import AcceptanceProfile
from treeopt.profiles.intervals import Uncertain
from treeopt.profiles.latency import LatencyProfile, LatencySample
from treeopt.profiles.level_sums import LevelSums
from treeopt.profiles.ratio import ratio
from treespec.decoding.step_rule import GREEDY
from treespec.trees.tree import SpeculationTree

TREE = SpeculationTree.from_branches([[2], [2, 1], [1, 0, 0]])
TRUTH = np.array([0.6, 0.15, 0.05])


def profiled(seed: int, prompts: int = 40, positions: int = 50) -> AcceptanceProfile:
    """A profile of prompts that are harder or easier than one another."""
    random = np.random.default_rng(seed)
    ease = random.uniform(0.76, 1.24, (prompts, 1))
    sums = np.array([random.multinomial(positions, [*(TRUTH * e), 1 - (TRUTH * e).sum()])[:3] for (e,) in ease], dtype=float)
    mean, error = ratio(sums, [positions] * prompts)
    assert error is not None
    chances, errors = tuple(mean.tolist()), tuple(error.tolist())
    rows = tuple(map(tuple, sums.tolist()))
    return AcceptanceProfile(
        "topk",
        0.0,
        1.0,
        chances,
        1 - sum(chances),
        errors,
        positions * prompts,
        prompts,
        prompt_sums=rows,
        prompt_positions=(positions,) * prompts,
    )


def timed(spread: float, draft: float = 0.1) -> LatencyProfile:
    """Times of 24 samples whose bursts differ by a share."""
    bursts = np.linspace(1 - spread, 1 + spread, 6).repeat(4)

    def around(seconds: float) -> tuple[float, ...]:
        return tuple((seconds * bursts).tolist())

    return LatencyProfile(
        target=tuple(LatencySample(n, 64, around(1 + 0.01 * n)) for n in (1, 2, 4, 8, 16)),
        draft=tuple(LatencySample(w, 64, around(draft)) for w in (1, 16)),
        overhead_seconds=around(0.05),
    )


@pytest.mark.parametrize("by_depth", [False, True])
def test_gains_are_what_a_little_more_chance_brings(by_depth: bool) -> None:
    random = np.random.default_rng(2)
    for size in (2, 5, 12, 30):
        tree = SpeculationTree.from_parents([-1, *(int(random.integers(0, node)) for node in range(1, size))])
        rows = random.dirichlet(np.ones(tree.max_branch + 1), 3 if by_depth else 1)[:, :-1]
        step = np.eye(rows.size).reshape(-1, *rows.shape) * 1e-6
        expected = [(expected_tokens(tree, rows + more) - expected_tokens(tree, rows - more)) / 2e-6 for more in step]
        np.testing.assert_allclose(gains(tree, rows).ravel(), expected, rtol=1e-6, atol=1e-9)


def test_tokens_per_step_hold_the_truth_as_often_as_they_say() -> None:
    truth, held, apart = expected_tokens(TREE, TRUTH[None]), 0, 0
    for seed in range(300):
        found = profiled(seed)
        told = certainty(TREE, found, acceptance_rows(found)).tokens_per_step
        assert told is not None
        assert told.value == pytest.approx(expected_tokens(TREE, np.array([found.rank_probability])))
        held += told.low <= truth <= told.high
        alone = certainty(TREE, replace(found, prompt_sums=(), prompt_positions=()), acceptance_rows(found)).tokens_per_step
        assert alone is not None
        apart += alone.low <= truth <= alone.high
    assert 0.92 <= held / 300 <= 0.98
    assert apart / 300 >= 0.85, "chances of ranks go up and down together, which their own errors do not say"


LEVELS = np.array([[0.6, 0.15], [0.5, 0.1], [0.4, 0.1]])
DEEP = SpeculationTree.from_paths([(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0), (0, 0, 1)])


def profiled_head(seed: int, prompts: int = 40, positions: int = 200) -> AcceptanceProfile:
    """A profile of a head whose levels have chances of their own, and whose prompts differ the more the deeper the level."""
    random = np.random.default_rng(seed)
    levels = []
    for depth, row in enumerate(LEVELS):
        roots, ease = positions - depth, random.uniform(1 - 0.4 * depth, 1 + 0.4 * depth, (prompts, 1))
        drawn = [random.multinomial(roots, [*(row * e), 1 - (row * e).sum()])[:2].astype(float).tolist() for (e,) in ease]
        levels.append(LevelSums(tuple(map(tuple, drawn)), (roots,) * prompts))
    first, *deeper = levels
    mean, error = ratio(np.array(first.sums), first.positions)
    assert error is not None
    return AcceptanceProfile(
        "topk",
        0.0,
        1.0,
        tuple(mean.tolist()),
        1 - mean.sum(),
        tuple(error.tolist()),
        positions * prompts,
        prompts,
        by_depth=tuple(level.chances for level in levels),
        prompt_sums=first.sums,
        prompt_positions=first.positions,
        deeper=tuple(deeper),
    )


def test_levels_of_a_head_hold_the_truth_as_often_as_they_say() -> None:
    """Each of 400 profiles holds it with the chance 0.95, but for how far Student's t is off, so four standard deviations are 4.4 of 100."""
    truth, held, by_first, repetitions = expected_tokens(DEEP, LEVELS), 0, 0, 400
    for seed in range(repetitions):
        found = profiled_head(seed)
        told, old = (certainty(DEEP, one, acceptance_rows(one)).tokens_per_step for one in (found, replace(found, deeper=())))
        assert told is not None
        assert old is not None
        assert told.value == old.value
        held += told.low <= truth <= told.high
        by_first += old.low <= truth <= old.high
    tolerance = 4 * math.sqrt(0.95 * 0.05 / repetitions)
    assert abs(held / repetitions - 0.95) <= tolerance
    assert by_first / repetitions < 0.95 - tolerance, "the first level alone does not tell how far deeper ones are off"


def test_levels_behind_the_last_are_exact_and_those_that_one_prompt_reaches_are_unknown() -> None:
    found = profiled_head(0)
    assert found.by_depth is not None
    ended = replace(found, by_depth=(*found.by_depth, (0.0, 0.0)))
    deeper_tree = SpeculationTree.chain(4)
    told, cut = (certainty(tree, ended, acceptance_rows(ended)).tokens_per_step for tree in (deeper_tree, SpeculationTree.chain(3)))
    assert told == cut, "a level without a chance adds nothing"
    sums, positions = found.deeper[-1].sums, found.deeper[-1].positions
    lonely = LevelSums((sums[0], *((0.0, 0.0),) * 39), (positions[0], *(0,) * 39))
    few = replace(found, by_depth=(*found.by_depth[:2], lonely.chances), deeper=(found.deeper[0], lonely))
    assert certainty(DEEP, few, acceptance_rows(few)).tokens_per_step is None
    assert certainty(SpeculationTree.chain(2), few, acceptance_rows(few)).tokens_per_step is not None


def test_a_profile_without_the_sums_of_deeper_levels_says_so() -> None:
    found = profiled_head(1)
    old = replace(found, deeper=())
    assert list(levels_unknown(optimize(found, size=6, depth=3), found)) == []
    (said,) = levels_unknown(optimize(old, size=6, depth=3), old)
    assert said.startswith(
        "the acceptance profile has chances at 3 levels, but the sums of prompts of the first alone: the intervals take "
    )
    assert list(levels_unknown(optimize(old, size=3, depth=1), old)) == []
    assert said in generate(old, limits=Limits(size=6, depth=3)).notes
    assert said not in generate(found, limits=Limits(size=6, depth=3)).notes


def test_as_many_prompts_as_deeper_levels_need_would_tell() -> None:
    """Twice as uncertain deeper levels need more prompts than the first level alone makes believe."""
    found = profiled_head(2)
    leads = [Lead(_relative(one), Uncertain(1.0, 1.0, 1.0)) for one in (found, replace(found, deeper=()))]
    needed, believed = (lead.prompts_needed(found.prompts) for lead in leads)
    assert needed is not None
    assert believed is not None
    assert needed > 1.5 * believed


def _relative(profile: AcceptanceProfile) -> Uncertain:
    """The tokens per step of the deep tree over a figure that is 1 % below them."""
    told = certainty(DEEP, profile, acceptance_rows(profile)).tokens_per_step
    assert told is not None
    by = 0.99 * told.value
    return Uncertain(told.value / by, told.low / by, told.high / by)


def test_vectors_have_no_errors_and_the_root_alone_needs_none() -> None:
    vector = replace(profiled(0), standard_error=(), prompt_sums=(), prompt_positions=(), prompts=0)
    assert certainty(TREE, vector, acceptance_rows(vector)) == Certainty()
    assert certainty(SpeculationTree((-1,)), profiled(0), acceptance_rows(profiled(0))) == Certainty()


def test_times_go_from_the_lower_to_the_upper_ends_of_medians() -> None:
    found = profiled(1)
    result = optimize(found, latency=timed(0.2))
    told, step = result.certainty.seconds_per_step, result.predicted_seconds_per_step
    assert told is not None
    assert step is not None
    assert (told.low, told.value, told.high) == pytest.approx((0.8 * step, step, 1.2 * step))
    ends = result.certainty.intervals
    assert result.predicted_speedup is not None
    assert ends["predicted_speedup"][0] < result.predicted_speedup < ends["predicted_speedup"][1]
    assert result.certainty.lead is not None
    assert result.certainty.lead.whole.value == pytest.approx(result.predicted_speedup)
    few = replace(timed(0.2), overhead_seconds=(0.05,) * 20)
    assert list(optimize(found, latency=few).certainty.intervals) == ["expected_tokens_per_step"]
    assert list(optimize(found, size=4, depth=2).certainty.intervals) == ["expected_tokens_per_step"]


def test_calm_times_tell_and_restless_ones_do_not() -> None:
    found = profiled(3, prompts=100)
    calm, restless = (optimize(found, latency=timed(spread)) for spread in (0.01, 0.6))
    assert list(tellings(calm, found)) == []
    (said,) = tellings(restless, found)
    assert said.startswith(
        "cannot tell whether this tree is faster than plain decoding: its predicted speed-up is 2.02 x, and the 95 % interval from 0.7"
    )
    assert said.endswith("the times alone leave it open; close other programs and profile the latency again, with more `repetitions`")


def test_where_nothing_is_drafted_it_is_told_whether_a_tree_may_be_faster() -> None:
    found = profiled(4, prompts=100)
    sure = optimize(found, latency=timed(0.01, draft=2.0))
    assert sure.tree.size == 1
    assert sure.rival is not None
    assert sure.rival.tree.size > 1
    assert sure.rival.predicted_speedup is not None
    assert sure.rival.predicted_speedup < 1
    assert list(tellings(sure, found)) == []
    close = optimize(found, latency=timed(0.3, draft=0.9))
    assert close.tree.size == 1
    (said,) = tellings(close, found)
    assert (
        "cannot tell whether plain decoding is faster than every tree: the speed-up of the best tree, of 4 nodes and depth 1, is 0.96 x"
        in said
    )
    assert optimize(found, latency=timed(0.3, draft=0.9), size=1).rival is None


def test_a_root_alone_says_whether_a_larger_tree_was_considered() -> None:
    found = profiled(4, prompts=100)
    for size, said in (
        (None, "the tree is the root alone: nothing"),
        (1, "the tree is the root alone, because no larger size was considered"),
    ):
        times = timed(0.3, draft=0.9)
        result = optimize(found, latency=times, size=size)
        assert result.tree.size == 1
        assert [note for note in notes(result, times.at_context(), GREEDY) if note.startswith(said)]


@pytest.mark.parametrize("value", [1.05, 0.95])
def test_as_many_prompts_as_are_named_would_tell(value: float) -> None:
    def lead(prompts: int) -> Lead:
        distance = 0.2 * math.sqrt(50 / prompts)
        return Lead(Uncertain(value, value * math.exp(-distance), value * math.exp(distance)), Uncertain(1.0, 0.99, 1.01))

    needed = lead(50).prompts_needed(50)
    assert needed is not None
    assert needed > 50
    assert not lead(50).told
    assert not lead(needed - 20).told
    assert lead(needed).told
    open_times = Lead(lead(50).tokens, Uncertain(1.0, 0.9, 1.1))
    assert open_times.prompts_needed(50) is None


def test_two_profiles_are_told_apart_or_not() -> None:
    one, other = profiled(5, prompts=20), profiled(6, prompts=20)
    first, second = (optimize(profile, latency=timed(0.001)) for profile in (one, other))
    said = telling_apart(first, second, 20)
    assert said is not None
    assert said.startswith("cannot tell which of the first two acceptance profiles gives the faster tree: the lead of the first is ")
    assert "prompts would tell, in place of 20, if the figures stay as they are" in said
    weak = replace(one, rank_probability=(0.2, 0.1, 0.05), none_accepted=0.65, prompt_sums=(), prompt_positions=())
    assert telling_apart(first, optimize(weak, latency=timed(0.001)), 20) is None
    vector = replace(weak, standard_error=())
    assert telling_apart(first, optimize(vector, latency=timed(0.001)), 20) is None
