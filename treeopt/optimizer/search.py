"""The optimizer's front door: from profiles and limits to the tree to run."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from treeopt.optimizer import best_first, dynamic_program
from treeopt.optimizer.frontier import Frontier, Rows, check_rows, largest_size, non_increasing
from treeopt.optimizer.objective import Choice, Objective, choose, seconds_per_token
from treeopt.optimizer.uncertainty import Certainty, certainty
from treeopt.profiles.acceptance import AcceptanceProfile
from treeopt.profiles.agreement import require_verifier
from treeopt.profiles.latency import LatencyProfile
from treeopt.profiles.latency_model import LatencyModel
from treespec.decoding.drafting import Drafting
from treespec.decoding.rules import RULES, TOPK, Sampling
from treespec.decoding.step_rule import StepRule
from treespec.decoding.verifiers import AT_LEAST_SEQUENTIAL
from treespec.errors import MissingRuleError, OptimizerError, counted, listed_in_short
from treespec.trees.limits import MAX_SIZE
from treespec.trees.tree import SpeculationTree

DEFAULT_MAX_DEPTH = 32
"""Largest depth bound of a search, unless a limit says otherwise."""

SOLVERS: dict[str, Callable[[Rows, int, int, int], Frontier]] = {"best-first": best_first.solve, "dp": dynamic_program.solve}


SMOOTHINGS = ("none", "isotonic")


@dataclass(frozen=True)
class FrontierPoint:
    """The most expected tokens per step of a tree of exactly `size` nodes and at most `depth` edges from its root."""

    size: int
    depth: int
    expected_tokens_per_step: float


@dataclass(frozen=True)
class OptimizationResult:
    """The chosen tree and its predictions; three of these are None without a latency profile.

    `predicted_speedup` is over autoregressive decoding by the same engine: size 1, without the draft.
    """

    tree: SpeculationTree
    expected_tokens_per_step: float
    predicted_seconds_per_step: float | None
    predicted_speedup: float | None
    certified_gap: float | None
    solver: str
    table: Frontier = field(repr=False, compare=False)
    certainty: Certainty = field(default_factory=Certainty)
    rival: "OptimizationResult | None" = field(default=None, repr=False, compare=False)
    """If the tree is the root alone, and others were allowed, the best one of them."""

    @cached_property
    def frontier(self) -> tuple[FrontierPoint, ...]:
        """Every size and depth bound >= 1 that some tree meets, sorted by size, then depth."""
        values = self.table.values.tolist()
        sizes, depths = range(1, self.table.max_size + 1), range(1, self.table.max_depth + 1)
        return tuple(FrontierPoint(size, depth, values[depth][size]) for size in sizes for depth in depths if values[depth][size] > 0)


def optimize(
    acceptance: AcceptanceProfile,
    *,
    latency: LatencyProfile | None = None,
    context: int | None = None,
    size: int | None = None,
    depth: int | None = None,
    max_size: int | None = None,
    max_depth: int | None = None,
    max_branch: int | None = None,
    solver: str = "auto",
    smoothing: str = "none",
    objective: Objective = seconds_per_token,
    rule: StepRule | None = None,
    verifier: str | None = None,
) -> OptimizationResult:
    """Return the tree that yields most tokens per step or, with a latency profile, the one of least cost: most tokens per second.

    `size` is exact and `depth` a maximum; both count as limits of the search beside `max_size` (default: the largest
    measured size), `max_depth` (default: 32 edges, or what `size` allows) and `max_branch` (default: all ranks). Without a
    latency profile `size` must be given. `context` picks the latencies (see `LatencyProfile.at_context`). `solver`:
    "best-first", "dp" or "auto", which takes best-first only where it is exact. `objective` is the cost of a tree by a latency profile, for which
    the certified gap holds too. The latencies are those of `rule`, which is by default that of the acceptance profile's own steps with a
    `verifier` (None: the default one). See `rule_for`.

    Raises OptimizerError for limits that no tree meets, naming the largest feasible value, and for a solver that
    cannot be exact; ProfileError for times that were not measured, MissingRuleError for those of a rule.
    """
    rows = acceptance_rows(acceptance, smoothing)
    model = None if latency is None else latency.at_context(context, rule or rule_for(acceptance, latency, verifier))
    limits = _limits(rows, model, size, depth, max_size, max_depth, max_branch)
    frontier = solve(rows, *limits, solver=solver)
    if model is None:
        assert size is not None  # _limits has asked for it
        shallow = int(frontier.shallowest[frontier.max_depth, size])
        tokens = frontier.value(size, shallow)
        tree = frontier.tree(size, shallow)
        return OptimizationResult(tree, tokens, None, None, None, frontier.solver, frontier, certainty(tree, acceptance, rows))
    assert latency is not None
    ends = latency.ends(context, model.rule)

    def result(choice: Choice, rival: OptimizationResult | None = None) -> OptimizationResult:
        tree = frontier.tree(choice.size, choice.depth)
        return OptimizationResult(
            tree=tree,
            expected_tokens_per_step=choice.expected_tokens_per_step,
            predicted_seconds_per_step=choice.seconds_per_step,
            predicted_speedup=model.autoregressive_seconds() / choice.seconds_per_token,
            certified_gap=choice.certified_gap,
            solver=frontier.solver,
            table=frontier,
            certainty=certainty(tree, acceptance, rows, model, ends),
            rival=rival,
        )

    choice = choose(frontier, model, size, objective)
    others = choice.size == 1 and size is None and frontier.max_size > 1
    return result(choice, result(choose(frontier, model, None, objective, smallest=2)) if others else None)


def rule_for(acceptance: AcceptanceProfile, latency: LatencyProfile, verifier: str | None = None) -> StepRule:
    """Return the rule of the steps that an acceptance profile is of, whose times the latency profile has.

    A bare vector does not say its rule: it is taken for the first rule of the latency profile with that verifier, at its temperature and top-p
    if these are known. Raises MissingRuleError with the settings to profile the latency with, SettingsError for a verifier that does not go with
    the drafting, or that accepts other shares than the profile holds.
    """
    require_verifier(acceptance, verifier)
    settings = acceptance.step_settings(verifier)
    if settings is None:
        return _assumed(acceptance, latency, verifier)
    rule = StepRule.of(*settings)
    if rule not in latency.held:
        held_names = listed_in_short([f"({known.name})" for known in latency.held])
        raise MissingRuleError(
            f"the acceptance profile is of ({rule.name}), but the latency profile has times of {held_names} only", _options(*settings)
        )
    return rule


def _assumed(acceptance: AcceptanceProfile, latency: LatencyProfile, verifier: str | None) -> StepRule:
    """Return the rule that a vector is taken for."""
    known = None if acceptance.temperature is None else Sampling(acceptance.temperature, acceptance.top_p or 1.0)
    target = None if known is None else StepRule.of(known).target
    for rule in latency.held:
        other_shares = rule.drafting != TOPK.name and rule.verifier not in AT_LEAST_SEQUENTIAL
        fits = verifier in (None, rule.verifier) and target in (None, rule.target)
        if fits and rule.mode == SpeculationTree.drafter and not other_shares:
            return rule
    at = "" if known is None else f" at `temperature` {known.temperature:g}" + (f" and `top_p` {known.top_p:g}" if known.top_p < 1 else "")
    has = "is" if verifier is None else f"has `verifier` {verifier}"
    what = f"the acceptance vector does not say its rule, and no rule of the latency profile {has}{at}"
    rule_name = next((name for name, kind in RULES.items() if kind.sampled), TOPK.name) if verifier in AT_LEAST_SEQUENTIAL else TOPK.name
    drafting = Drafting(rule_name, verifier=verifier or Drafting.verifier)
    if known is None or verifier not in (None, StepRule.of(known, drafting).verifier):  # at temperature 0, whatever is timed is matched
        raise MissingRuleError(what)
    raise MissingRuleError(what, _options(known, drafting))


def _options(sampling: Sampling, drafting: Drafting) -> dict[str, str]:
    """Return the settings of a step by parameter, as far as they are no defaults. Children that are not random are those of `topk`."""
    wanted = {"temperature": _digits(sampling.temperature)} | ({"top_p": _digits(sampling.top_p)} if sampling.top_p < 1 else {})
    if not drafting.samples(sampling):
        return wanted | {"drafting": TOPK.name}
    wanted["drafting"] = drafting.rule
    if drafting.temperature not in (None, sampling.temperature):
        wanted["draft_temperature"] = _digits(drafting.temperature or 0.0)
    if drafting.verifier != Drafting.verifier:
        wanted["verifier"] = drafting.verifier
    return wanted


def _digits(value: float) -> str:
    """Return a number in short, but with all the digits that it needs to be read back."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def acceptance_rows(profile: AcceptanceProfile, smoothing: str = "none") -> Rows:
    """Return the probabilities that solvers work on, [depths, ranks]: the profile's `by_depth` where it was measured, else one row for all depths.

    They are taken as measured, bumps included, unless `smoothing` is "isotonic": it replaces each row by the non-increasing row
    that is nearest in squares. That is a modelling choice, which says that the bumps are noise. Raises OptimizerError for another
    name of a smoothing.
    """
    if smoothing not in SMOOTHINGS:
        raise OptimizerError(f"smoothing {smoothing!r} is unknown; use one of {', '.join(SMOOTHINGS)}")
    rows = np.array(profile.by_depth or (profile.rank_probability,), dtype=np.float64)
    if smoothing == "none":
        return rows
    from scipy.optimize import isotonic_regression

    smooth = [np.asarray(isotonic_regression(row, increasing=False).x, dtype=np.float64) for row in rows]
    return np.clip(np.stack(smooth), 0.0, 1.0)


def solve(rows: Rows, max_size: int, max_depth: int, max_branch: int, *, solver: str = "auto") -> Frontier:
    """Return the frontier by a named solver; "auto" takes best-first if it is exact, else the dynamic programme.

    Raises OptimizerError for an unknown name, or for best-first if it is not exact.
    """
    if solver == "auto":
        solver = "best-first" if non_increasing(check_rows(rows, max_size, max_depth, max_branch)) else "dp"
    if solver not in SOLVERS:
        raise OptimizerError(f"solver {solver!r} is unknown; use one of auto, {', '.join(SOLVERS)}")
    return SOLVERS[solver](rows, max_size, max_depth, max_branch)


def _limits(
    rows: Rows,
    model: LatencyModel | None,
    size: int | None,
    depth: int | None,
    max_size: int | None,
    max_depth: int | None,
    max_branch: int | None,
) -> tuple[int, int, int]:
    """Return (largest size, largest depth, most branches) to search, such that `size` is feasible."""
    named = {"size": size, "depth": depth, "max_size": max_size, "max_depth": max_depth, "max_branch": max_branch}
    for name, value in named.items():
        if value is not None and value < 1:
            raise OptimizerError(f"`{name}` is {value}, but it must be 1 or more")
    largest = MAX_SIZE if model is None else model.largest_size
    known = (
        f"trees have at most {MAX_SIZE} nodes"
        if model is None
        else f"the latency profile ends at {counted(largest, 'node')} at context {model.context}"
    )
    for name, value in (("size", size), ("max_size", max_size)):
        if value is not None and value > largest:
            raise OptimizerError(
                f"`{name}` is {value}, but {known}; ask for at most {largest}" + ("" if model is None else ", or profile larger trees")
            )
    if model is None and size is None:
        raise OptimizerError("without a latency profile the size of the tree must be given; pass a size, or a latency profile")
    if size is not None and max_size is not None and size > max_size:
        raise OptimizerError(f"`size` is {size}, but `max_size` is {max_size}; ask for at most {max_size} or raise `max_size`")
    branches = min(max_branch or rows.shape[1], rows.shape[1])
    nodes = size or max_size or largest
    edges = min(depth or max_depth or DEFAULT_MAX_DEPTH, max_depth or MAX_SIZE, max(1, nodes - 1))
    feasible = largest_size(edges, branches)
    if size is not None and size > feasible:
        raise OptimizerError(
            f"`size` is {size}, but with depth at most {edges} and at most {counted(branches, 'child', 'children')} per node "
            f"({counted(rows.shape[1], 'rank is', 'ranks are')} known) "
            f"a tree has at most {counted(feasible, 'node')}; ask for at most {feasible}, or allow more depth or branches"
        )
    return min(nodes, feasible), edges, branches
