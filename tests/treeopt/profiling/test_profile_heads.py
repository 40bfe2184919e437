"""Acceptance of heads: the chances of every level are those of the slow implementations, root by root along the target's own texts."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.reference.head_pairs import LEVELS, PARALLEL, HeadPair, bound, head_pair
from tests.reference.pairs import prompt_set
from tests.reference.states import states_of
from treeopt.optimizer.chains import best_chain
from treeopt.profiles.latency_model import LatencyModel
from treeopt.profiling.acceptance import profile_acceptance
from treeopt.profiling.latency import profile_latency
from treeopt.profiling.settings import AcceptanceSettings, LatencySettings
from treespec.decoding.drafting import Drafting
from treespec.decoding.engine import EagerSteps
from treespec.decoding.loop import Request, decode_autoregressive
from treespec.decoding.rules import Sampling
from treespec.decoding.step import StepSpec
from treespec.errors import CapacityError, ModelError, ProfileError
from treespec.trees.tree import SpeculationTree

RANKS = 4


def texts(made: HeadPair, gen_len: int) -> list[tuple[int, list[int]]]:
    """The length of every prompt, and the prompt with the target's own text."""
    found = []
    for prompt in prompt_set(3):
        records = decode_autoregressive(made.target, Request(prompt.ids, gen_len))
        found.append((len(prompt.ids), [*prompt.ids, *(token for record in records for token in record.tokens)]))
    return found


@pytest.mark.parametrize("kind", ["eagle3 official", "eagle official", "medusa", "dflash official"])
def test_chances_by_depth_are_those_of_the_slow_implementation(kind: str, tmp_path: Path) -> None:
    made, gen_len = head_pair(kind, "llama", tmp_path), 9
    pair, draft = bound(made)
    profile = profile_acceptance(pair, prompt_set(3), AcceptanceSettings(gen_len=gen_len, max_branch=RANKS))
    assert profile.by_depth is not None
    levels = LEVELS if kind in PARALLEL else gen_len - 1
    counts, positions = np.zeros((levels, RANKS)), np.zeros(levels)
    ids = draft.head.target_ids
    for start, text in texts(made, gen_len):
        states = states_of(made.module, torch.tensor(text)).double()
        for root in range(start, len(text) - 1):
            for level in range(1, min(levels, len(text) - 1 - root) + 1):
                logits = made.slow(states, text[: root + 1], tuple(text[root + 1 : root + level]))
                best = logits.topk(RANKS).indices if ids is None else ids[logits.topk(RANKS).indices]
                counts[level - 1] += (best == text[root + level]).numpy()
                positions[level - 1] += 1
    wanted = counts / positions[:, None]
    assert 0 < wanted[:2, 0].max() < 1, "a head that is always or never right tests nothing"
    np.testing.assert_allclose(profile.by_depth[:levels], wanted, atol=1e-12)
    np.testing.assert_allclose(profile.rank_probability, wanted[0], atol=1e-12)
    assert profile.positions == positions[0]
    np.testing.assert_allclose([np.sum(level.sums, axis=0) for level in profile.deeper], counts[1:], atol=1e-9)
    assert [sum(level.positions) for level in profile.deeper] == positions[1:].tolist()
    assert all(len(level.positions) == profile.prompts for level in profile.deeper)
    assert profile.by_depth[levels:] == (((0.0,) * RANKS,) if kind in PARALLEL else ())


def test_a_profile_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    pair, _ = bound(head_pair("medusa", "llama", tmp_path))
    settings = AcceptanceSettings(gen_len=6, max_branch=RANKS, batch_size=1)
    whole, seen = profile_acceptance(pair, prompt_set(3), settings), []

    def stop(what: str, done: int, total: int) -> None:
        seen.append(done)
        if done >= total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        profile_acceptance(pair, prompt_set(3), settings, journal=tmp_path / "journal", progress=stop)
    again = profile_acceptance(pair, prompt_set(3), settings, journal=tmp_path / "journal")
    assert again.by_depth == whole.by_depth
    assert again.deeper == whole.deeper != ()
    assert again.prompt_sums == whole.prompt_sums


def test_a_head_scores_its_first_level_and_says_what_it_cannot_do(tmp_path: Path) -> None:
    made = head_pair("eagle3 official", "llama", tmp_path)
    _, draft = bound(made)
    ids = torch.tensor([[5, 17, 3, 44, 51]])
    states = states_of(made.module, ids[0]).double()
    found, own = draft.score(ids, 2)[0], draft.head.target_ids
    assert own is not None
    for row, end in enumerate((3, 4, 5)):
        slow = made.slow(states, ids[0, :end].tolist(), ())
        torch.testing.assert_close(found[row][own].double(), slow, rtol=0, atol=2e-3 * float(slow.std()))
    assert set(draft.unknown) == set(range(draft.vocabulary_size)) - set(own.tolist())
    with pytest.raises(CapacityError, match="proposes nothing after the first token"):
        draft.score(ids)
    with pytest.raises(ModelError, match="reads no pictures"):
        draft.score(ids, 1, torch.zeros(1, 3, 4, 4))


def test_a_chain_ends_where_its_next_node_has_no_chance() -> None:
    model = LatencyModel(
        context=1, target=((1, 1.0), (64, 1.0)), draft=((1, 0.0),), overhead_seconds=0.0, autoregressive_overhead_seconds=0.0
    )
    best = best_chain(np.array([[0.9], [0.9], [0.0]]), model, 10)
    assert best is not None
    assert best.depth == 2


@pytest.mark.parametrize(("kind", "passes"), [("medusa", 1), ("eagle3 official", 2)])
def test_the_level_below_the_root_is_timed_beside_it(kind: str, passes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A head that proposes all levels at once computes nothing below the root."""
    pair, draft = bound(head_pair(kind, "llama", tmp_path))
    settings = LatencySettings((1, 2, 4), (2,), (8,), 1, samplings=(Sampling(0.7),), dynamic=True)
    profile = profile_latency(pair, settings)
    assert sorted(sample.nodes for sample in profile.draft) == [1, 2], "the root's width is timed whether it was asked for or not"
    for entry in profile.rules:
        assert [sample.nodes for sample in entry.below] == ([1] if entry.rule.mode == "tree" else [])
    for rule in profile.held[:-1]:
        model = profile.at_context(8, rule)
        assert model.below is not None
        chain = model.step_seconds(SpeculationTree.chain(2)) - model.target_seconds(3) - model.rest_seconds(SpeculationTree.chain(2))
        assert chain == pytest.approx(model.draft_seconds(1) + model.below)
    counted = []
    called = "propose" if kind == "medusa" else "forward"
    run = getattr(draft.head, called)
    monkeypatch.setattr(draft.head, called, lambda *args: counted.append(1) or run(*args))
    step = StepSpec(SpeculationTree.chain(2)).build(pair.target, draft)
    root = int(step.begin(torch.tensor([5, 6, 7]), None).argmax())
    counted.clear()
    steps = EagerSteps(step)
    steps.begin(torch.tensor([7, root]), 3, torch.Generator())
    steps.launch(1 << 30)
    assert len(counted) == passes


def test_heads_of_few_levels_are_timed_as_far_as_they_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many sampled children are timed at a third level, which a head of two has not; a head of one has none to time."""
    pair, draft = bound(head_pair("medusa", "llama", tmp_path))
    monkeypatch.setattr(draft.head, "levels", 2)
    settings = LatencySettings((1, 2, 4), (2, 40), (8,), 1, samplings=(Sampling(0.7),), draftings=(Drafting("swor"),))
    profile = profile_latency(pair, settings)
    assert [sample.nodes for sample in profile.draft] == [1, 2, 40]
    (sampled,) = (entry for entry in profile.rules if entry.rule.drafting == "swor")
    assert [sample.nodes for sample in sampled.draft] == [1, 2]
    monkeypatch.setattr(draft.head, "levels", 1)
    with pytest.raises(ProfileError, match="proposes 1 level, but draft levels are timed with trees of 2 levels"):
        profile_latency(pair, settings)


def test_nothing_is_proposed_behind_the_last_level_that_was_seen(tmp_path: Path) -> None:
    pair, draft = bound(head_pair("medusa", "llama", tmp_path))
    profile = profile_acceptance(pair, prompt_set(3), AcceptanceSettings(gen_len=3, max_branch=RANKS))
    assert draft.parallel_levels == LEVELS > 2
    assert profile.by_depth is not None
    assert len(profile.by_depth) == 3
    assert profile.by_depth[-1] == (0.0,) * RANKS
