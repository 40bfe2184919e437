"""The trees of `benchmarks.audit` and its figures: pure functions on profiles, traces and what was measured."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treeopt.optimizer.chains import best_chain
from treeopt.optimizer.frontier import expected_tokens
from treeopt.optimizer.replay import replay
from treeopt.optimizer.search import DEFAULT_MAX_DEPTH, acceptance_rows, optimize
from treeopt.optimizer.uncertainty import certainty
from treeopt.profiles.acceptance import AcceptanceProfile
from treeopt.profiles.latency import LatencyProfile
from treeopt.profiles.ratio import estimate, ratio
from treeopt.profiles.trace import Trace
from treespec.errors import OptimizerError, ProfileError
from treespec.trees.library import load_growmap
from treespec.trees.tree import SpeculationTree

PICKED = "the picked tree"
SIZES = (8, 16, 32, 64, 128, 256, 512)
"""Sizes of the best trees whose predictions are audited."""
CHAINS = (4, 8, 16)
K_ARY = ((2, 3), (3, 3), (4, 3), (2, 6), (2, 7), (3, 5))
"""Branches and depths of the k-ary trees."""
GRID_SIZES = (8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
GRID_DEPTHS = (3, 4, 6, 8, 12)
PUBLISHED = ("68m_7b-16", "68m_7b-64", "68m_7b-128", "68m_7b-T0.6-64", "68m_7b-T0.6-128")
"""Growmaps of Sequoia's format from growmaps/, made for another pair from published numbers."""


@dataclass(frozen=True)
class Candidate:
    """A tree of the audit: its name, its kind, and whether its predictions are audited."""

    name: str
    kind: str
    tree: SpeculationTree
    audited: bool = False


def candidates(acceptance: AcceptanceProfile, latency: LatencyProfile, context: int, largest: int, choices: int) -> list[Candidate]:
    """Return all trees of at most `largest` nodes, each once, the picked one first; `choices` is the most (size, depth) best trees."""
    how: dict[str, Any] = {"latency": latency, "context": context}
    picked = optimize(acceptance, max_size=largest, **how).tree
    found = [Candidate(PICKED, "picked", picked, audited=picked.size > 1)]
    found += [
        Candidate(f"best of {size}", "best", optimize(acceptance, size=size, **how).tree, audited=True) for size in SIZES if size <= largest
    ]
    found += [Candidate(f"chain of {depth}", "chain", SpeculationTree.chain(depth), audited=True) for depth in CHAINS if depth < largest]
    trees = [(branches, depth, SpeculationTree.k_ary(branches, depth)) for branches, depth in K_ARY]
    found += [
        Candidate(f"{branches}-ary of depth {depth}", "k-ary", tree, audited=True)
        for branches, depth, tree in trees
        if tree.size <= largest
    ]
    model = latency.at_context(context)
    chain = best_chain(acceptance_rows(acceptance), model, min(DEFAULT_MAX_DEPTH, largest - 1))
    if chain is not None:
        found.append(Candidate(f"best chain, of {chain.depth}", "chain", SpeculationTree.chain(chain.depth), audited=True))
    published = [(name, load_growmap(name).tree) for name in PUBLISHED]
    found += [Candidate(name, "published", tree) for name, tree in published if tree.size <= largest]
    grid = []
    for size in GRID_SIZES:
        for depth in GRID_DEPTHS:
            if size <= largest and depth < size:
                try:
                    tree = optimize(acceptance, size=size, depth=depth).tree  # most tokens, whatever they cost
                except OptimizerError:  # no tree of that size is so shallow
                    continue
                grid.append(Candidate(f"best of ({size}, {depth})", "grid", tree))
    return found + spread(once(found, grid), choices)


def once(taken: Sequence[Candidate], more: Sequence[Candidate]) -> list[Candidate]:
    """Return those of `more` whose trees are neither taken nor repeated."""
    seen = {one.tree for one in taken}
    found = []
    for one in more:
        if one.tree not in seen:
            seen.add(one.tree)
            found.append(one)
    return found


def spread(several: Sequence[Candidate], most: int) -> list[Candidate]:
    """Return at most so many of them, evenly spread."""
    if len(several) <= most:
        return list(several)
    return [several[round(place)] for place in np.linspace(0, len(several) - 1, most)]


def joined(one: Trace, other: Trace) -> Trace:
    """Return two traces of one pair and sampling as one, the texts of the first before those of the second."""
    columns: dict[str, Any] = {
        name: np.concatenate([getattr(one, name), getattr(other, name)]) for name in ("rank", "log_probability", "top_log_probability")
    }
    return replace(one, texts=(*one.texts, *other.texts), **columns)


def rank_counts(trace: Trace, ranks: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return how often each of the first `ranks` ranks was the target's choice in every text, [texts, ranks], and the positions of each, [texts]."""
    positions = np.array([text.drafted for text in trace.texts])
    counts = np.zeros((len(positions), ranks))
    text = np.repeat(np.arange(len(positions)), positions)
    known = trace.rank < ranks
    np.add.at(counts, (text[known], trace.rank[known]), 1.0)
    return counts, positions


def profile_of(counts: NDArray[np.float64], positions: NDArray[np.int64]) -> AcceptanceProfile:
    """Return the acceptance profile of some texts of a greedy trace."""
    mean, error = ratio(counts, positions.tolist())
    return AcceptanceProfile(
        *("topk", 0.0, 1.0, tuple(mean.tolist()), max(0.0, 1 - float(mean.sum()))),
        () if error is None else tuple(error.tolist()),
        *(int(positions.sum()), len(positions)),
        prompt_sums=tuple(map(tuple, counts.tolist())),
        prompt_positions=tuple(positions.tolist()),
    )


def splits(trees: Sequence[SpeculationTree], trace: Trace, ranks: int, count: int) -> list[dict[str, Any]]:
    """Predict each tree's tokens per step from a random half of the texts, replay it on the other half, and count how often they agree.

    `held` counts the splits in which the predicted interval holds the other half's figure, `met` those in which it meets the figure's own
    interval, and `agreed` those in which the interval of their difference, with the chance of both halves in it, holds 0. Where nothing is wrong
    but chance, `agreed` is 95 %, and `held` 83 %, because the other half errs as much as the first. `bias` is the mean of predicted over
    replayed, less 1. These predict from chances of ranks; `agreed_by_replay` and `bias_by_replay` are of a replay on the first half.
    """
    counts, positions = rank_counts(trace, ranks)
    texts, draws = len(positions), np.random.default_rng(0)
    halves = [draws.permutation(texts) for _ in range(count)]
    profiles = [profile_of(counts[half[: texts // 2]], positions[half[: texts // 2]]) for half in halves]
    found = []
    for tree in trees:
        replayed = replay(tree, trace)
        steps, tokens = replayed.steps, replayed.tokens - 1
        held = met = agreed = by_replay = 0
        biases, apart = [], []
        for half, profile in zip(halves, profiles, strict=True):
            other = half[texts // 2 :]
            measured = estimate(tokens[other], steps[other].tolist())
            predicted = certainty(tree, profile, acceptance_rows(profile)).tokens_per_step
            assert predicted is not None
            assert measured.interval_95 is not None
            held += predicted.low <= measured.mean <= predicted.high
            met += predicted.low <= measured.interval_95[1] and measured.interval_95[0] <= predicted.high
            above = predicted.value - measured.mean
            own = predicted.value - predicted.low if above > 0 else predicted.high - predicted.value
            agreed += abs(above) <= math.hypot(own, measured.interval_95[1] - measured.mean)
            biases.append(predicted.value / measured.mean - 1)
            own_texts = half[: texts // 2]
            told = estimate(tokens[own_texts], steps[own_texts].tolist())
            assert told.interval_95 is not None
            widths = [one.interval_95[1] - one.mean for one in (told, measured) if one.interval_95 is not None]
            by_replay += abs(told.mean - measured.mean) <= math.hypot(*widths)
            apart.append(told.mean / measured.mean - 1)
        found.append(
            {
                "held": held,
                "met": met,
                "agreed": agreed,
                "splits": count,
                "bias": float(np.mean(biases)),
                "agreed_by_replay": by_replay,
                "bias_by_replay": float(np.mean(apart)),
            }
        )
    return found


def predictions(tree: SpeculationTree, acceptance: AcceptanceProfile, latency: LatencyProfile, context: int) -> dict[str, Any]:
    """Return what the profiles predict of a tree; figures that they do not know are None."""
    rows, model = acceptance_rows(acceptance), latency.at_context(context)
    if tree.max_branch > rows.shape[1]:
        return {"tokens_per_step": None, "tokens_interval_95": None, "seconds_per_step": None, "seconds_per_token": None}
    tokens = expected_tokens(tree, rows)
    interval = certainty(tree, acceptance, rows).tokens_per_step
    try:
        seconds = model.step_seconds(tree)
    except ProfileError:  # larger or wider than what was measured
        seconds = None
    return {
        "tokens_per_step": tokens,
        "tokens_interval_95": None if interval is None else [interval.low, interval.high],
        "seconds_per_step": seconds,
        "seconds_per_token": None if seconds is None else seconds / tokens,
    }


def row_of(
    one: Candidate,
    acceptance: AcceptanceProfile,
    latency: LatencyProfile,
    context: int,
    profiled: Trace,
    decoded: Trace,
    figures_of_tree: Mapping[str, Any],
) -> dict[str, Any]:
    """Return everything that is known of a tree, by the traces of the prompts that were profiled and of those that were decoded."""
    tree, told = one.tree, predictions(one.tree, acceptance, latency, context)
    replayed, elsewhere = replay(tree, decoded).tokens_per_step, replay(tree, profiled).tokens_per_step
    assert replayed is not None
    assert elsewhere is not None
    found = figures_of_tree["tokens_per_step"]
    inside = None if told["tokens_interval_95"] is None else told["tokens_interval_95"][0] <= found <= told["tokens_interval_95"][1]
    ends = elsewhere.interval_95
    per_token, per_step = told["seconds_per_token"], told["seconds_per_step"]
    measured = figures_of_tree["seconds_per_token"]
    return {
        "name": one.name,
        "kind": one.kind,
        "audited": one.audited,
        "size": tree.size,
        "depth": tree.depth,
        "parents": list(tree.parents),
        "predicted": told,
        "replayed_tokens_per_step": replayed.mean,
        "measured": dict(figures_of_tree),
        "replay_error": replayed.mean / found - 1,
        "inside": inside,
        "inside_by_replay": None if ends is None else ends[0] <= found <= ends[1],
        "seconds_per_token_error": None if per_token is None else per_token / measured - 1,
        "seconds_per_token_error_by_replay": None if per_step is None else per_step / elsewhere.mean / measured - 1,
    }
