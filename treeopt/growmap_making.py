"""Making growmaps: from profile files to a growmap that records its inputs and its promise."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from treeopt.optimizer.objective import Objective, seconds_per_token
from treeopt.optimizer.search import OptimizationResult, acceptance_rows, optimize
from treeopt.optimizer.sequoia_config import optimize_config, read_sequoia_config
from treeopt.profiles.acceptance import AcceptanceProfile, read_acceptance
from treeopt.profiles.latency import LatencyProfile, read_latency
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


def generate(
    acceptance: StrPath | AcceptanceProfile,
    *,
    latency: StrPath | LatencyProfile | None = None,
    context: int | None = None,
    limits: Limits = Limits(),
    solver: str = "auto",
    smoothing: str = "none",
    objective: Objective = seconds_per_token,
) -> Generated:
    """Return the best growmap for an acceptance profile and, if there is one, a latency profile. Each is a profile or its file.

    Raises ProfileError for files that cannot be used, OptimizerError for limits that no tree meets, GrowMapError for a
    `size` that no growmap may have.
    """
    refuse_size(limits.size or 0, "the tree asked for")  # before the work of finding it
    profile, digest = _read(acceptance, AcceptanceProfile, read_acceptance)
    times, times_digest = (None, "") if latency is None else _read(latency, LatencyProfile, read_latency)
    limits = _within_growmaps(limits, profile, None if times is None else times.at_context(context).largest_size)
    result = optimize(profile, latency=times, context=context, **vars(limits), solver=solver, smoothing=smoothing, objective=objective)
    made_from: dict[str, Any] = {"acceptance_sha256": digest}
    if times is not None:
        made_from |= {"latency_sha256": times_digest, "context": times.at_context(context).context}
    timed_on = None if times is None else times.provenance or {}
    return Generated(_growmap(result, profile, smoothing, made_from, timed_on), result)


def _read(given: StrPath | Profile, kind: type[Profile], read: Callable[[StrPath], Profile]) -> tuple[Profile, str]:
    """Return a profile and the SHA-256 of its file, or of the file that it would be written to."""
    if isinstance(given, kind):
        return given, hashlib.sha256(json_text(given.to_json()).encode() + b"\n").hexdigest()
    path = PipeablePath(given)  # type: ignore[arg-type]
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
