"""Making growmaps: from profile files to a growmap that records its inputs and its promise."""

import hashlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from treeopt.optimizer.objective import Objective, seconds_per_token
from treeopt.optimizer.search import OptimizationResult, acceptance_rows, optimize, rule_for
from treeopt.optimizer.sequoia_config import optimize_config, read_sequoia_config
from treeopt.profiles.acceptance import AcceptanceProfile, read_acceptance
from treeopt.profiles.latency import LatencyProfile, read_latency
from treespec.decoding.step_rule import GREEDY, StepRule
from treespec.errors import ProfileError, SettingsError, listed
from treespec.files.fields import ROWS
from treespec.files.provenance import Provenance
from treespec.files.reading import PipeablePath, StrPath
from treespec.files.writing import json_text
from treespec.trees.growmap import GrowMap
from treespec.trees.sequoia_file import MAX_GROWMAP_SIZE, refuse_size

Profile = TypeVar("Profile", AcceptanceProfile, LatencyProfile)


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
    assumed: bool = False
    """Whether the rule was assumed, because the acceptance profile does not say its own."""

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
    **how: Any,
) -> tuple[Generated, ...]:
    """Return the best growmap for each of several acceptance profiles (rules, draft temperatures), the fastest one first.

    For `how` see `generate`. A `verifier` counts for the profiles that it goes with. Raises ProfileError for profiles of different models,
    temperatures or top-p, and the errors of `generate`; SettingsError for no profile, for several ones without a latency profile, and for a
    verifier that goes with none of them.
    """
    sources = [given if isinstance(given, AcceptanceProfile | PipeablePath) else PipeablePath(given) for given in acceptances]  # read once
    profiles = [given if isinstance(given, AcceptanceProfile) else read_acceptance(given) for given in sources]
    if not profiles:
        raise SettingsError("`acceptance` names no profile; pass one or more")
    if len(profiles) > 1 and latency is None:
        raise SettingsError("several acceptance profiles are told apart by their speed; pass `latency` as well, or one profile")
    _require_comparable(profiles)
    if verifier is not None and len(profiles) > 1:
        verifiers = [_fitting(profile, verifier) for profile in profiles]
        if not any(verifiers):
            profiles[0].step_settings(verifier)  # raises what does not fit
    else:
        verifiers = [verifier] * len(profiles)
    times = PipeablePath(latency) if isinstance(latency, str | os.PathLike) else latency
    made = [generate(given, latency=times, verifier=fitting, **how) for given, fitting in zip(sources, verifiers, strict=True)]
    return tuple(sorted(made, key=lambda one: one.seconds_per_token))


def _fitting(profile: AcceptanceProfile, verifier: str) -> str | None:
    """Return the verifier if it goes with the drafting of a profile, else None."""
    try:
        profile.step_settings(verifier)
    except SettingsError:
        return None
    return verifier


def _require_comparable(profiles: Sequence[AcceptanceProfile]) -> None:
    """Raise ProfileError for acceptance profiles that differ in more than rule and draft temperature, naming the field."""
    for name, of in (
        ("temperature", lambda profile: profile.temperature),
        ("top_p", lambda profile: profile.top_p),
        ("target", lambda profile: _model_of(profile, "target")),
        ("draft", lambda profile: _model_of(profile, "draft")),
    ):
        values = list(dict.fromkeys(value for profile in profiles if (value := of(profile)) is not None))
        if len(values) > 1:
            raise ProfileError(
                f"the acceptance profiles differ in {name}: {listed([str(value) for value in values])}; "
                "choose among rules and draft temperatures of the same models, temperature and top-p"
            )


def _model_of(profile: AcceptanceProfile, role: str) -> str | None:
    """Return the name of a model of a profile, if it is known."""
    name = ((profile.provenance or {}).get("models") or {}).get(role)
    return None if name is None else str(name)


def generate(
    acceptance: StrPath | AcceptanceProfile,
    *,
    latency: StrPath | LatencyProfile | None = None,
    context: int | None = None,
    limits: Limits = Limits(),
    solver: str = "auto",
    smoothing: str = "none",
    objective: Objective = seconds_per_token,
    verifier: str | None = None,
    rule: StepRule | None = None,
) -> Generated:
    """Return the best growmap for an acceptance profile and, if there is one, a latency profile. Each is a profile or its file.

    The times are those of the rule of the acceptance profile with a `verifier` (None: the default one), or of another `rule`, which the growmap
    then records.

    Raises ProfileError for files that cannot be used, MissingRuleError for a latency profile without that rule,
    OptimizerError for limits that no tree meets, GrowMapError for a
    `size` that no growmap may have.
    """
    refuse_size(limits.size or 0, "the tree asked for")  # before the work of finding it
    profile, digest = _read(acceptance, AcceptanceProfile, read_acceptance)
    times, times_digest = (None, "") if latency is None else _read(latency, LatencyProfile, read_latency)
    limits = _within_growmaps(limits, profile, None if times is None else times.at_context(context).largest_size)
    timed = None if times is None else rule or rule_for(profile, times, verifier)
    result = optimize(
        profile, latency=times, context=context, **vars(limits), solver=solver, smoothing=smoothing, objective=objective, rule=timed
    )
    made_from: dict[str, Any] = {"acceptance_sha256": digest}
    if times is not None:
        made_from |= {"latency_sha256": times_digest, "context": times.at_context(context).context}
    if timed is not None and timed != GREEDY:  # that of growmaps which name none
        made_from["timed_rule"] = timed.to_json()
    timed_on = None if times is None else times.provenance or {}
    growmap = _growmap(result, profile, smoothing, made_from, timed_on)
    assumed = timed is not None and rule is None and profile.step_settings() is None
    return Generated(growmap, result, profile.drafting, profile.draft_temperature, timed, assumed)


def _read(given: StrPath | Profile, kind: type[Profile], read: Callable[[StrPath], Profile]) -> tuple[Profile, str]:
    """Return a profile and the SHA-256 of its file, or of the file that it would be written to."""
    if isinstance(given, kind):
        return given, hashlib.sha256(json_text(given.to_json()).encode() + b"\n").hexdigest()
    path = given if isinstance(given, PipeablePath) else PipeablePath(given)  # type: ignore[arg-type]
    return read(path), path.sha256


def _within_growmaps(limits: Limits, profile: AcceptanceProfile, largest: int | None) -> Limits:
    """Return limits without what no growmap may have, where the profiles reach beyond it: more nodes, or more children of one."""
    if largest is not None and largest > MAX_GROWMAP_SIZE and limits.size is None and limits.max_size is None:
        limits = replace(limits, max_size=MAX_GROWMAP_SIZE)
    if len(profile.rank_probability) > MAX_GROWMAP_SIZE and limits.max_branch is None:
        limits = replace(limits, max_branch=MAX_GROWMAP_SIZE)
    return limits


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
    known = {key: (profile.provenance or {}).get(key) for key in ("models", "dtype", "dataset", "seed")}
    known = {key: value for key, value in known.items() if value is not None}
    if timed_on is not None:
        known |= {key: timed_on.get(key) for key in ("gpu", "driver", "cpu")}
    provenance = Provenance.collect(temperature=profile.temperature, top_p=profile.top_p, **known)
    return GrowMap(result.tree, metadata, provenance)
