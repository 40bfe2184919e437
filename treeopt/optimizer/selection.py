"""Selection: which acceptance model finds the faster tree, by cross-validation over the prompts of a trace. No torch."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treeopt.optimizer.fitting import BY_DEPTH, BY_RANK, BY_REPLAY, MODELS, Fit, Search, Solve, fits
from treeopt.optimizer.frontier import expected_tokens
from treeopt.optimizer.replay import replay, require_replayable
from treeopt.optimizer.search import OptimizationResult, acceptance_rows
from treeopt.optimizer.uncertainty import with_times
from treeopt.optimizer.visits import folds_of
from treeopt.profiles.acceptance import AcceptanceProfile
from treeopt.profiles.intervals import Uncertain
from treeopt.profiles.latency_model import LatencyModel
from treeopt.profiles.ratio import Estimate, estimate
from treeopt.profiles.trace import Trace
from treeopt.profiles.traced import acceptance_of
from treespec.errors import ProfileError, counted, listed
from treespec.tables import number
from treespec.trees.tree import SpeculationTree

FOLDS = 5
"""Folds of the prompts, or as many as there are prompts."""

Progress = Callable[[str, int, int], None]
"""Is told what is done, how much of it, and of how much."""
Sums = NDArray[np.float64]
Ends = tuple[LatencyModel, LatencyModel]

TOLD_AS = {BY_RANK: "the chance of each rank", BY_DEPTH: "that chance at each depth", BY_REPLAY: "replay itself"}
"""The models in words."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A model, the tree that it finds on all texts, and how its trees did on texts that they were not fitted to."""

    model: str
    fit: Fit
    tokens_per_step: Estimate
    costs: Sums
    """float64 [prompts]; the cost of each prompt's texts with the tree of the fold that held it out."""
    seconds_per_token: Estimate | None
    """None where the cost of a step is not its time."""

    def lead_over(self, other: "Candidate") -> Estimate:
        """Return by what factor the other's trees cost more on the same texts, with its error over prompts."""
        return estimate(other.costs, self.costs.tolist())

    def to_json(self, plainest: "Candidate") -> dict[str, Any]:
        """Return the figures as plain data; `lead` is over the plainest model."""
        return {
            "model": self.model,
            "size": self.fit.tree.size,
            "depth": self.fit.tree.depth,
            "held_out_tokens_per_step": self.tokens_per_step.to_json(),
            "held_out_seconds_per_token": None if self.seconds_per_token is None else self.seconds_per_token.to_json(),
            "lead": self.lead_over(plainest).to_json(),
            "shrinkage_positions": None if self.fit.strength is None or math.isinf(self.fit.strength) else self.fit.strength,
            "held_out_nats_per_position": self.fit.nats,
        }


@dataclass(frozen=True, eq=False)
class Selection:
    """The models with their scores, and the one that is taken.

    A richer model is taken only where its lead over the one taken before has a 95 % interval above 1, so that noise prefers none.
    """

    candidates: tuple[Candidate, ...]
    folds: int
    prompts: int

    @property
    def chosen(self) -> Candidate:
        """The model that is taken."""
        best = self.candidates[0]
        for richer in self.candidates[1:]:
            ends = richer.lead_over(best).interval_95
            if ends is not None and ends[0] > 1:
                best = richer
        return best

    def outcome(
        self, solve: Solve, profile: AcceptanceProfile, model: LatencyModel | None, ends: Ends | None
    ) -> tuple[OptimizationResult, AcceptanceProfile]:
        """Return the result of the chosen model on all texts, and the profile that its chances come from.

        `model` has the times of the search, and `ends` their lower and upper ends; None without a latency profile. The chances by rank are
        those of a `profile`, which may be of more texts. What is promised is not what chances expect, but the tokens per step that such trees
        gave on prompts held out. The certified gap is one of chances, and None for a tree of replay.
        """
        chosen = self.chosen
        if chosen.model == BY_RANK:
            plain = _by_rank(profile, chosen.fit.profile)
            return _promised(solve(plain), chosen, model, ends), plain
        result = chosen.fit.result
        if chosen.model == BY_REPLAY:
            result = replace(result, tree=chosen.fit.tree, certified_gap=None, solver=BY_REPLAY)
        return _promised(result, chosen, model, ends), chosen.fit.profile

    def to_json(self) -> dict[str, Any]:
        """Return the figures as plain data."""
        models = [one.to_json(self.candidates[0]) for one in self.candidates]
        return {"chosen": self.chosen.model, "folds": self.folds, "prompts": self.prompts, "models": models}

    @property
    def sentence(self) -> str | None:
        """Which model was taken, and by how much; None of a single one."""
        if len(self.candidates) == 1:
            return None
        plainest, chosen = self.candidates[0], self.chosen
        start = (
            f"the acceptance model {chosen.model} ({TOLD_AS[chosen.model]}) was taken, by cross-validation over "
            f"{counted(self.prompts, 'prompt')} in {counted(self.folds, 'fold')}: on prompts held out,"
        )
        if chosen is plainest:
            others = [f"the trees of {one.model} were {_figure(one.lead_over(plainest), 4)} x" for one in self.candidates[1:]]
            return f"{start} {listed(others)} as fast as its own: neither is told to be faster"
        return f"{start} its trees were {_figure(chosen.lead_over(plainest), 4)} x as fast as those of {plainest.model}"

    @property
    def promise(self) -> str | None:
        """The grounds of the promise, beside what the chances alone expect; None for the root alone, of which nothing is promised."""
        fit = self.chosen.fit
        return None if fit.tree.size == 1 else replay_grounds(self.chosen.model, expected_tokens(fit.tree, acceptance_rows(fit.profile)))


def replay_grounds(model: str, expected: float) -> str:
    """Return the grounds of what was replayed with trees of an acceptance model, beside the tokens per step that the chances alone expect."""
    return (
        f"promised are the tokens per step that trees of {model} gave when replayed on prompts held out; of its tree for all prompts, "
        f"the chances alone expect {expected:.3f}"
    )


def _figure(found: Estimate, digits: int) -> str:
    return number(found.mean, digits, found.interval_95)


def silent(what: str, done: int, total: int) -> None:
    """Tell nobody of the progress."""


def select_for(
    trace: Trace,
    solve: Solve,
    model: LatencyModel | None,
    profile: AcceptanceProfile,
    size: int | None = None,
    max_branch: int | None = None,
    models: Sequence[str] = MODELS,
    progress: Progress = silent,
) -> Selection:
    """Return the `models` for a `solve` by these latencies, which is bounded by an exact `size` and `max_branch`. See `select`.

    Without latencies every step costs the same, so the score is tokens per step. As many ranks are estimated as the `profile` has.
    """
    ranks = min(len(profile.rank_probability), trace.vocabulary_size)
    largest = solve(acceptance_of(trace, ranks)).table.max_size

    def price(tree: SpeculationTree) -> float:
        if model is None:
            return 1.0
        return math.inf if max(tree.level_widths[:-1], default=0) > model.largest_width else model.step_seconds(tree)

    sizes = () if model is None or size is not None else tuple(n for n, _ in model.target if n <= largest)
    search = Search(solve, price, sizes, ranks, min(max_branch or ranks, ranks))
    return select(trace, search, timed=model is not None, models=models, progress=progress)


def prompts_with_steps(trace: Trace) -> int:
    """Return the number of different prompts whose texts have a step; of two, one can be held out."""
    return len({one.prompt_sha256 for one in trace.texts if one.drafted})


def select(trace: Trace, search: Search, *, timed: bool, models: Sequence[str] = MODELS, progress: Progress = silent) -> Selection:
    """Return acceptance models, the plainest first, with the scores that cross-validation gives them, and the fits to all texts.

    The prompts are cut into folds. For each, all `models` are fitted to the texts of the other prompts, and their trees are replayed on those that
    were held out: the score is the cost of their steps. `timed` says that the cost of a step is its seconds.

    Raises ProfileError for a trace of random children, and for one with steps of a single prompt or none.
    """
    require_replayable(trace)
    prompts = prompts_with_steps(trace)
    if prompts < 2:
        raise ProfileError(
            f"the trace has steps of {counted(prompts, 'prompt')}, but acceptance models are told apart by prompts held out, for which it takes 2 or "
            "more; profile more prompts"
        )
    trace = trace.of_texts([place for place, one in enumerate(trace.texts) if one.drafted])
    folds = folds_of(trace, FOLDS)
    steps = {model: np.zeros(len(trace.texts)) for model in models}
    costs = {model: np.zeros(len(trace.texts)) for model in models}
    for turn, held_out in enumerate(folds):
        progress("cross-validating", turn, len(folds) + 1)
        others = sorted(set(range(len(trace.texts))) - set(held_out))
        for model, fit in fits(trace.of_texts(others), search, models).items():
            taken = replay(fit.tree, trace.of_texts(held_out)).steps
            steps[model][held_out], costs[model][held_out] = taken, taken * search.price(fit.tree)
    progress("cross-validating", len(folds), len(folds) + 1)
    whole = fits(trace, search, models)
    progress("cross-validating", len(folds) + 1, len(folds) + 1)
    found = tuple(_candidate(model, whole, trace, steps, costs, timed) for model in models)
    return Selection(found, len(folds), prompts)


def _by_rank(profile: AcceptanceProfile, traced: AcceptanceProfile) -> AcceptanceProfile:
    """Return a profile without chances by depth, unless they are of a head's levels, as those that a trace gave then are; a vector has none of these."""
    if traced.by_depth is None:
        return replace(profile, by_depth=None, deeper=())
    return traced if profile.by_depth is None else profile


def _candidate(
    model: str, whole: Mapping[str, Fit], trace: Trace, steps: Mapping[str, Sums], costs: Mapping[str, Sums], timed: bool
) -> Candidate:
    """Return a model with its scores. The texts of equal prompts are one unit, since they tell the same twice."""
    _, unit = np.unique([one.prompt_sha256 for one in trace.texts], return_inverse=True)

    def summed(values: NDArray[Any]) -> Sums:
        return np.bincount(unit, weights=values).astype(np.float64)

    tokens, paid = summed(trace.tokens - 1), summed(costs[model])
    per_step = estimate(tokens, summed(steps[model]).tolist())
    return Candidate(model, whole[model], per_step, paid, estimate(paid, tokens.tolist()) if timed else None)


def _promised(result: OptimizationResult, chosen: Candidate, model: LatencyModel | None, ends: Ends | None) -> OptimizationResult:
    """Return a result that promises the tokens per step of prompts held out, and what follows from them."""
    found, tree = chosen.tokens_per_step, result.tree
    tokens = 1.0 if tree.size == 1 else found.mean
    interval = None if found.interval_95 is None else Uncertain(found.mean, max(1.0, found.interval_95[0]), found.interval_95[1])
    seconds = None if model is None else model.step_seconds(tree)
    speedup = None if model is None or seconds is None else model.autoregressive_seconds() * tokens / seconds
    return replace(
        result,
        expected_tokens_per_step=tokens,
        predicted_seconds_per_step=seconds,
        predicted_speedup=speedup,
        certainty=with_times(interval, tree, model, ends),
    )
