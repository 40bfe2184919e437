"""Fitting: the trees that a trace leads to, by the chance of each rank, by that chance at each depth, and by replay itself. No torch."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from treeopt.optimizer.climbing import Bounds, Price, climb, cost
from treeopt.optimizer.replay import replay
from treeopt.optimizer.search import OptimizationResult
from treeopt.optimizer.visits import folds_of, rows_by_depth, visits
from treeopt.profiles.acceptance import AcceptanceProfile
from treeopt.profiles.trace import Trace
from treeopt.profiles.traced import acceptance_of
from treespec.trees.tree import SpeculationTree

BY_RANK, BY_DEPTH, BY_REPLAY = MODELS = ("by-rank", "by-depth", "replay")
"""The acceptance models, from the plainest to the richest."""

Solve = Callable[[AcceptanceProfile], OptimizationResult]
"""From chances to the best tree for them, within limits that it knows."""

ROUNDS = 4
"""Most rounds of chances by depth and the best tree for them, each of which needs the other."""
_FOLDS = 5
"""Folds of the prompts by which the strength of shrinkage is found."""


@dataclass(frozen=True)
class Search:
    """The trees that are looked for, and what they cost."""

    solve: Solve
    """The best tree for chances, within the limits."""
    price: Price
    sizes: tuple[int, ...]
    """Sizes that a climb may try, ascending."""
    ranks: int
    """Ranks whose chances are estimated."""
    branch: int
    """Most children of a node."""


@dataclass(frozen=True)
class Fit:
    """A tree that a model found on texts, with the solver's result that it comes from."""

    tree: SpeculationTree
    profile: AcceptanceProfile
    result: OptimizationResult
    strength: float | None = None
    """Strength of the shrinkage of chances by depth, in positions."""
    nats: float | None = None
    """Gain of these chances over those by rank: log-likelihood per position, on prompts that were held out."""


def fits(trace: Trace, search: Search, models: Collection[str] = MODELS) -> dict[str, Fit]:
    """Return the tree of each of the `models`, fitted to all texts of a trace and to nothing else."""
    plain = acceptance_of(trace, search.ranks)
    found = search.solve(plain)
    by_rank = Fit(found.tree, plain, found)
    if set(models) == {BY_RANK}:
        return {BY_RANK: by_rank}
    by_depth = _by_depth(by_rank, trace, search)
    if BY_REPLAY not in models:
        return {BY_RANK: by_rank, BY_DEPTH: by_depth}
    start = min((by_rank, by_depth), key=lambda fit: cost(replay(fit.tree, trace), search.price))
    bounds = Bounds(search.sizes, found.table.max_depth, search.branch)
    climbed = replace(start, tree=climb(start.tree, trace, search.price, bounds))
    return {BY_RANK: by_rank, BY_DEPTH: by_depth, BY_REPLAY: climbed}


def _by_depth(start: Fit, trace: Trace, search: Search) -> Fit:
    """Return the best tree for the chances by depth that the steps of a tree meet.

    Which positions are roots depends on the tree, and the tree on the chances, so both are found in turn, until a tree comes again, or for
    `ROUNDS` rounds. Of the rounds, the one whose steps on these texts cost least is taken; of equal ones the last, whose chances are more of
    its own tree.
    """
    folds = folds_of(trace, _FOLDS)
    before, seen = start.tree, set[SpeculationTree]()
    found: list[tuple[float, Fit]] = []
    while before not in seen and len(seen) < ROUNDS:
        seen.add(before)
        met = visits(replay(before, trace), trace, search.ranks)[:, : trace.levels]  # below a head's last level, nothing is met
        rows = rows_by_depth(met, folds, None if trace.levels is None else trace.rank_counts(search.ranks))
        richer = replace(start.profile, by_depth=tuple(map(tuple, rows.rows.tolist())), deeper=())
        result = search.solve(richer)
        before = result.tree
        fit = Fit(before, richer, result, rows.strength, rows.nats)
        found.append((cost(replay(before, trace), search.price), fit))
    return min(reversed(found), key=lambda one: one[0])[1]
