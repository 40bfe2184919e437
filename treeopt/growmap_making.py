"""Making growmaps: from profile files to a growmap that records its inputs and its promise."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from treeopt.optimizer.chains import best_chain, replayed_chain
from treeopt.optimizer.fitting import MODELS
from treeopt.optimizer.given import Given, GivenTrace, at_one_temperature, each_once, read_times, require_rules, verifiers_of
from treeopt.optimizer.notes import doubts, levels_unknown, noise, notes, other_context, telling_apart, tellings
from treeopt.optimizer.objective import Objective, seconds_per_token
from treeopt.optimizer.search import DEFAULT_MAX_DEPTH, OptimizationResult, acceptance_rows, optimize, rule_for
from treeopt.optimizer.selection import Progress, Selection, select_for, silent
from treeopt.optimizer.sequoia_config import optimize_config, read_sequoia_config
from treeopt.profiles.acceptance import AcceptanceProfile, read_acceptance
from treeopt.profiles.agreement import require_comparable, require_same_models, require_verifier
from treeopt.profiles.latency import LatencyProfile
from treeopt.profiles.trace import Trace
from treespec.decoding.step_rule import GREEDY, StepRule
from treespec.errors import OptimizerError, SettingsError, counted
from treespec.files.fields import ROWS
from treespec.files.provenance import TIMED_ON, Provenance
from treespec.files.reading import PipeablePath, StrPath
from treespec.trees.formats.sequoia import MAX_GROWMAP_SIZE, refuse_size
from treespec.trees.growmap import GrowMap


@dataclass(frozen=True)
class Limits:
    """Limits of the tree: an exact `size` with at most `depth` edges, or bounds for a search. None is no limit."""

    size: int | None = None
    depth: int | None = None
    max_size: int | None = None
    max_depth: int | None = None
    max_branch: int | None = None


@dataclass(frozen=True)
class Generated:
    """A growmap, and the optimizer's result that it was made from."""

    growmap: GrowMap
    result: OptimizationResult
    drafting: str = "unknown"
    """The drafting of the acceptance profile, and its `draft_temperature`, if it has one."""
    draft_temperature: float | None = None
    rule: StepRule | None = None
    """The rule whose times were taken; None without a latency profile."""
    source: str | None = None
    """The file of the acceptance profile; None if it was given as an object."""
    notes: tuple[str, ...] = ()
    """Sentences for people on what the figures rest on."""
    doubts: tuple[str, ...] = ()
    """Sentences on why the times of the rule may be wrong, which count for a choice among several too."""
    selection: Selection | None = None
    """The acceptance models that a trace was given for, and which of them was taken."""

    @property
    def seconds_per_token(self) -> float:
        """Predicted seconds per token; infinite if no time is predicted."""
        seconds = self.result.predicted_seconds_per_step
        return math.inf if seconds is None else seconds / self.result.expected_tokens_per_step


def generate_fastest(
    acceptances: Sequence[StrPath | AcceptanceProfile],
    *,
    latency: StrPath | LatencyProfile | None = None,
    verifier: str | None = None,
    trace: StrPath | Trace | None = None,
    models: Sequence[str] = MODELS,
    progress: Progress = silent,
    **how: Any,
) -> tuple[Generated, ...]:
    """Return the best growmap for each of several acceptance profiles (rules, draft temperatures), the fastest one first.

    For `how` see `generate`. A `verifier` counts for the profiles that it goes with. A profile that is given twice counts once, and one that does not
    say its temperature is taken for one of the others' temperature and top-p. A `trace` may take the place of the profile, or stand beside a
    single one; it tells by which of the acceptance `models` the tree is chosen, and what is promised (`Selection`).

    Raises ProfileError for profiles of different models, temperatures or top-p and for such a trace, and the errors of `generate`; SettingsError
    for no profile, for several ones without a latency profile or with a trace, for a verifier that goes with none of them, and for one that
    accepts other shares of random children than a profile holds.
    """
    sources = [Given.of(given) for given in acceptances]
    if trace is not None:
        if len(sources) > 1:
            raise SettingsError(
                "`trace` is of one drafting rule, so it goes with one acceptance profile; pass one, or leave `acceptance` out"
            )
        traced = GivenTrace.of(trace, sources)
        sources, how = [traced.beside], {**how, "traced": traced, "models": models, "progress": progress}
    if not sources:
        raise SettingsError("`acceptance` names no profile; pass one or more")
    if len(sources) > 1 and latency is None:
        raise SettingsError("several acceptance profiles are told apart by their speed; pass `latency` as well, or one profile")
    sources, said = each_once(sources)
    require_comparable([one.profile for one in sources])
    sources, assumed = at_one_temperature(sources)
    times = None if latency is None else read_times(latency)
    if times is not None and "traced" in how:
        require_same_models(how["traced"].trace, times[0])
    fitting = verifiers_of(sources, verifier)
    if times is not None and how.get("rule") is None:
        require_rules(sources, fitting, times[0])
    made = [_generate(one, times, verifier=own, **how) for one, own in zip(sources, fitting, strict=True)]
    fastest, *others = sorted(made, key=lambda one: one.seconds_per_token)
    apart = telling_apart(fastest.result, others[0].result, min(one.profile.prompts for one in sources)) if others else None
    return replace(fastest, notes=(*said, *assumed, *fastest.notes, *([] if apart is None else [apart]))), *others


def notes_of(found: Sequence[Generated]) -> tuple[str, ...]:
    """Return the notes on the fastest of several results and the doubts about all of them, each once."""
    doubts = [doubt for one in found for doubt in one.doubts]
    return tuple(dict.fromkeys([*found[0].notes, *doubts]))


def generate(
    acceptance: StrPath | AcceptanceProfile,
    *,
    latency: StrPath | LatencyProfile | None = None,
    context: int | None = None,
    extrapolate: bool = False,
    limits: Limits = Limits(),
    solver: str = "auto",
    smoothing: str = "none",
    objective: Objective = seconds_per_token,
    verifier: str | None = None,
    rule: StepRule | None = None,
) -> Generated:
    """Return the best growmap for an acceptance profile and, if there is one, a latency profile. Each is a profile or its file.

    The times are those of the rule of the acceptance profile with a `verifier` (None: the default one), or of another `rule`, which the growmap
    then records. With `extrapolate`, a context beyond the measured ones is no error: its times are extrapolated, and the growmap says so.

    Raises ProfileError for files that cannot be used and for profiles of different models, MissingRuleError for a latency profile without that
    rule, SettingsError for a verifier that accepts other shares than the profile holds, OptimizerError for limits that no tree meets,
    GrowMapError for a `size` that no growmap may have.
    """
    return _generate(
        Given.of(acceptance),
        None if latency is None else read_times(latency),
        context=context,
        extrapolate=extrapolate,
        limits=limits,
        solver=solver,
        smoothing=smoothing,
        objective=objective,
        verifier=verifier,
        rule=rule,
    )


def _generate(
    given: Given,
    timed: tuple[LatencyProfile, str] | None,
    *,
    context: int | None = None,
    extrapolate: bool = False,
    limits: Limits = Limits(),
    solver: str = "auto",
    smoothing: str = "none",
    objective: Objective = seconds_per_token,
    verifier: str | None = None,
    rule: StepRule | None = None,
    traced: GivenTrace | None = None,
    models: Sequence[str] = MODELS,
    progress: Progress = silent,
) -> Generated:
    """See `generate`. `timed` is a latency profile and the SHA-256 of its file, `traced` the trace by which one of the `models` is chosen."""
    refuse_size(limits.size or 0, "the tree asked for")  # before the work of finding it
    profile, times = given.profile, None if timed is None else replace(timed[0], extrapolates=extrapolate)
    if rule is None:
        require_verifier(profile, verifier)
    if times is not None:
        require_same_models(profile, times)
    limits = _within_growmaps(limits, profile, None if times is None else times.at_context(context).largest_size)
    if traced is not None:
        limits = _within_trace(limits, traced.trace)
    own = None if times is None else rule or rule_for(profile, times, verifier)

    def solve(chances: AcceptanceProfile) -> OptimizationResult:
        return optimize(
            chances, latency=times, context=context, **vars(limits), solver=solver, smoothing=smoothing, objective=objective, rule=own
        )

    selection = None
    made_from: dict[str, Any] = {"acceptance_sha256": given.digest}
    said: list[str] = []
    found_doubts: list[str] = []
    if traced is None:
        result = solve(profile)
        said += levels_unknown(result, profile)
    else:
        if objective is not seconds_per_token:
            raise SettingsError("`trace` tells models apart by seconds per token, not by an `objective`; leave one of the two out")
        times_at = None if times is None else times.at_context(context, own)
        selection = select_for(traced.trace, solve, times_at, profile, limits.size, limits.max_branch, models, progress)
        ends = None if times is None else times.ends(context, own)
        result, profile = selection.outcome(solve, profile, times_at, ends)
        made_from |= {"trace_sha256": traced.digest, "acceptance_model": selection.to_json()}
        if not given.digest:  # the profile was made of the trace
            del made_from["acceptance_sha256"]
        said += [sentence for sentence in (selection.sentence, selection.promise) if sentence is not None]
    if timed is not None and times is not None and own is not None:
        model = times.at_context(context, own)
        made_from |= {"latency_sha256": timed[1], "context": model.context}
        if times.is_extrapolated(model.context):
            made_from["extrapolated_from"] = times.contexts[-1]
        if own != GREEDY:  # that of growmaps which name none
            made_from["timed_rule"] = own.to_json()
        deepest = min(limits.max_depth or DEFAULT_MAX_DEPTH, (limits.max_size or model.largest_size) - 1)
        rows = acceptance_rows(profile, smoothing)
        chain = best_chain(rows, model, deepest, objective) if traced is None else replayed_chain(traced.trace, model, deepest)
        if chain is not None:
            made_from["best_chain"] = chain.to_json()
        if rule is None and profile.step_settings() is None:
            said.append(f"the acceptance vector does not say its rule: the times are those of ({own.name})")
        said += [*other_context(times, context), *notes(result, model, own), *tellings(result, profile)]
        found_doubts += [*doubts(model, own), *([] if (noisy := noise(times)) is None else [noisy])]
    growmap = _growmap(result, profile, smoothing, made_from, None if times is None else times.provenance or {})
    return Generated(
        growmap, result, profile.drafting, profile.draft_temperature, own, given.source, tuple(said), tuple(found_doubts), selection
    )


def _within_growmaps(limits: Limits, profile: AcceptanceProfile, largest: int | None) -> Limits:
    """Return limits without what no growmap may have, where the profiles reach beyond it: more nodes, or more children of one."""
    if largest is not None and largest > MAX_GROWMAP_SIZE and limits.size is None and limits.max_size is None:
        limits = replace(limits, max_size=MAX_GROWMAP_SIZE)
    if len(profile.rank_probability) > MAX_GROWMAP_SIZE and limits.max_branch is None:
        limits = replace(limits, max_branch=MAX_GROWMAP_SIZE)
    return limits


def _within_trace(limits: Limits, trace: Trace) -> Limits:
    """Return limits without what cannot be replayed: trees that are deeper than a head's trace. Raises OptimizerError if they are asked for."""
    if trace.levels is None:
        return limits
    for name in ("depth", "max_depth"):
        asked = getattr(limits, name)
        if asked is not None and asked > trace.levels:
            raise OptimizerError(
                f"`{name}` is {asked}, but the trace is of a head and has {counted(trace.levels, 'level')}, below which steps cannot be replayed; "
                f"ask for at most {trace.levels}, or leave `trace` out"
            )
    return replace(limits, max_depth=limits.max_depth or trace.levels)


def generate_as_sequoia(config: Path, *, solver: str = "auto", smoothing: str = "none") -> Generated:
    """Return the growmap that Sequoia's own configuration file asks for, in its own meaning.

    Predicted seconds are in the unit of the configuration's times. Raises OptimizerError, ProfileError.
    """
    asked = PipeablePath(config)
    meaning = read_sequoia_config(asked)
    chances = PipeablePath(meaning.acceptance_path)
    profile = read_acceptance(chances)
    result = optimize_config(meaning, profile, solver=solver, smoothing=smoothing)
    made_from = {"acceptance_sha256": chances.sha256, "sequoia_config_sha256": asked.sha256}
    return Generated(_growmap(result, profile, smoothing, made_from, timed_on={}), result)


def _growmap(
    result: OptimizationResult,
    profile: AcceptanceProfile,
    smoothing: str,
    made_from: dict[str, Any],
    timed_on: Mapping[str, Any] | None,
) -> GrowMap:
    """Return the growmap of a result. Its provenance names the hardware of the times, whose provenance is `timed_on` (None: no times)."""
    rows = profile.prompt_set or {}
    metadata = {
        "expected_tokens_per_step": result.expected_tokens_per_step,
        "predicted_seconds_per_step": result.predicted_seconds_per_step,
        "predicted_speedup": result.predicted_speedup,
        "certified_gap": result.certified_gap,
        **({"intervals_95": intervals} if (intervals := result.certainty.intervals) else {}),
        "solver": result.solver,
        "smoothing": smoothing,
        "drafting": profile.drafting,
        "temperature": profile.temperature,
        "top_p": profile.top_p,
        "draft_temperature": profile.draft_temperature,
        "rank_probability": acceptance_rows(profile, smoothing)[: max(1, result.tree.depth)].tolist(),  # no parent lies deeper
        **{f"profiled_{key}": rows[key] for key in ROWS if key in rows},
        **made_from,
    }
    known = {key: (profile.provenance or {}).get(key) for key in ("models", "draft_kind", "dtype", "dataset", "seed")}
    known = {key: value for key, value in known.items() if value is not None}
    if timed_on is not None:
        known |= {key: timed_on.get(key) for key in TIMED_ON}
    provenance = Provenance.collect(temperature=profile.temperature, top_p=profile.top_p, **known)
    return GrowMap(result.tree, metadata, provenance)
