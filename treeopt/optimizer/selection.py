"""Selection: which acceptance model finds the faster tree, by cross-validation over the prompts of a trace. No torch."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treeopt.optimizer.fitting import BY_RANK, BY_REPLAY, MODELS, Fit, Search, fits
from treeopt.optimizer.replay import replay, require_replayable
from treeopt.optimizer.visits import folds_of
from treeopt.profiles.ratio import Estimate, estimate
from treeopt.profiles.trace import Trace
from treespec.errors import ProfileError, counted

FOLDS = 5
"""Folds of the prompts, or as many as there are prompts."""

Progress = Callable[[str, int, int], None]
Sums = NDArray[np.float64]

TOLD_AS = {BY_RANK: "the chance of each rank", "by-depth": "that chance at each depth", BY_REPLAY: "replay itself"}
"""The models in words."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A model, the tree that it finds on all texts, and how its trees did on texts that they were not fitted to."""

    model: str
    fit: Fit
    tokens_per_step: Estimate
    costs: Sums
    """float64 [texts]; the cost of each text with the tree of the fold that held it out."""
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

    def to_json(self) -> dict[str, Any]:
        """Return the figures as plain data."""
        models = [one.to_json(self.candidates[0]) for one in self.candidates]
        return {"chosen": self.chosen.model, "folds": self.folds, "prompts": self.prompts, "models": models}

    @property
    def sentence(self) -> str:
        """Which model was taken, and by how much."""
        plainest, chosen = self.candidates[0], self.chosen
        how = f"cross-validation over {counted(self.prompts, 'prompt')} in {counted(self.folds, 'fold')}"
        said = [
            f"{TOLD_AS[one.model]} gives trees that are {_lead(one.lead_over(plainest))} as fast as those of {TOLD_AS[BY_RANK]} on prompts held out"
            for one in self.candidates[1:]
            if chosen in (plainest, one)
        ]
        taken = f"the acceptance model {chosen.model} was taken"
        why = ", so nothing richer is told from noise" if chosen is plainest else ""
        return f"{taken} by {how}: {'; '.join(said)}{why}"

    @property
    def promise(self) -> str:
        """What the chosen model's trees gave on prompts that were held out."""
        return (
            f"replayed on prompts held out, trees of {self.chosen.model} took {_figure(self.chosen.tokens_per_step)} tokens per step "
            "(95 % interval)"
        )


def _figure(found: Estimate) -> str:
    ends = "" if found.interval_95 is None else f" [{found.interval_95[0]:.3f}, {found.interval_95[1]:.3f}]"
    return f"{found.mean:.3f}{ends}"


def _lead(found: Estimate) -> str:
    ends = "" if found.interval_95 is None else f" [{found.interval_95[0]:.4f}, {found.interval_95[1]:.4f}]"
    return f"{found.mean:.4f}{ends} x"


def select(trace: Trace, search: Search, *, timed: bool, progress: Progress = lambda what, done, total: None) -> Selection:
    """Return the acceptance models with the scores that cross-validation gives them, and the fits to all texts.

    The prompts are cut into folds. For each, all models are fitted to the texts of the other prompts, and their trees are replayed on those that
    were held out: the score is the cost of their steps. `timed` says that the cost of a step is its seconds.

    Raises ProfileError for a trace of random children, and for one with steps of a single prompt or none.
    """
    require_replayable(trace)
    stepped = [place for place, one in enumerate(trace.texts) if one.drafted]
    prompts = len({trace.texts[place].prompt_sha256 for place in stepped})
    if prompts < 2:
        raise ProfileError(
            f"the trace has steps of {counted(prompts, 'prompt')}, but acceptance models are told apart by prompts held out, for which it takes 2 or "
            "more; profile more prompts"
        )
    trace = trace.of_texts(stepped)
    folds = folds_of(trace, FOLDS)
    steps = {model: np.zeros(len(trace.texts)) for model in MODELS}
    costs = {model: np.zeros(len(trace.texts)) for model in MODELS}
    for turn, held_out in enumerate(folds):
        progress("cross-validating", turn, len(folds) + 1)
        others = sorted(set(range(len(trace.texts))) - set(held_out))
        for model, fit in fits(trace.of_texts(others), search).items():
            taken = replay(fit.tree, trace.of_texts(held_out)).steps
            steps[model][held_out], costs[model][held_out] = taken, taken * search.price(fit.tree)
    progress("cross-validating", len(folds), len(folds) + 1)
    whole = fits(trace, search)
    progress("cross-validating", len(folds) + 1, len(folds) + 1)
    found = tuple(_candidate(model, whole, trace, steps, costs, timed) for model in MODELS)
    return Selection(found, len(folds), prompts)


def _candidate(
    model: str, whole: Mapping[str, Fit], trace: Trace, steps: Mapping[str, Sums], costs: Mapping[str, Sums], timed: bool
) -> Candidate:
    tokens: Sequence[int] = (trace.tokens - 1).tolist()
    per_step = estimate(tokens, steps[model].astype(np.int64).tolist())
    return Candidate(model, whole[model], per_step, costs[model], estimate(costs[model], tokens) if timed else None)
