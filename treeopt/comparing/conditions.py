"""Conditions: what things must have in common to be compared, such as their models, their GPU and their sampling. No torch."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from treeopt.comparing.fields import FIELDS
from treeopt.profiles.acceptance import AcceptanceProfile
from treeopt.profiles.latency import LatencyProfile
from treespec.decoding.chosen import ChosenBudget
from treespec.decoding.rules import RULES
from treespec.errors import ProfileError, SettingsError
from treespec.evaluation.report import EvaluationReport
from treespec.trees.growmap import GrowMap

Conditions = Mapping[str, Any]
"""Fields and their values; None for one that is not known, or does not matter. Such a one goes with every value."""


def require_comparable(names: Sequence[str], conditions: Sequence[Conditions], across: Collection[str] = ()) -> None:
    """Raise ProfileError for things that differ in a field that is not `across`, naming the field and both values; SettingsError for an unknown field.

    Weights are looked at only where both models have to be the same.
    """
    unknown = next((name for name in across if name not in FIELDS), None)
    if unknown is not None:
        raise SettingsError(f"`across` is {unknown!r:.40}, but it must be one of {', '.join(FIELDS)}")
    for field, reason in FIELDS.items():
        if field in across or (field == "weights" and {"target", "draft"} & set(across)):
            continue
        known = [(name, values[field]) for name, values in zip(names, conditions, strict=True) if values.get(field) is not None]
        for name, value in known[1:]:
            if value != known[0][1]:
                raise ProfileError(
                    f"{known[0][0]} and {name} differ in {field}: {_shown(known[0][1])} and {_shown(value)}; {reason}. "
                    f"Pass `across` {field} to compare them all the same"
                )


def of_report(report: EvaluationReport) -> Conditions:
    """Return the conditions of a report."""
    record, prompts = report.provenance, report.prompts
    sampling = {"temperature": report.temperature, "top_p": report.settings.get("top_p") if report.temperature else None}
    return {**_models(record), **_machine(record), **sampling, "dataset": prompts.get("dataset")}


def of_acceptance(profile: AcceptanceProfile) -> Conditions:
    """Return the conditions of an acceptance profile. Where and how fast it was measured does not matter."""
    return {
        **_models(profile.provenance or {}),
        "weights": profile.pair_sha256[:12] or None,
        "temperature": profile.temperature,
        "top_p": profile.top_p if profile.temperature else None,
        "method": profile.method if profile.drafting in RULES and profile.method else None,
        "dataset": (profile.prompt_set or {}).get("dataset"),
    }


def of_latency(profile: LatencyProfile) -> Conditions:
    """Return the conditions of a latency profile, to which texts and sampling do not matter."""
    record = profile.provenance or {}
    return {**_models(record), **_machine(record), "engine": profile.engine, "batch": profile.batch}


def of_promise(growmap: GrowMap | ChosenBudget) -> Conditions:
    """Return the conditions of what a growmap or a budget promises. Its times are those of a device, if it has any."""
    record = {} if growmap.provenance is None else growmap.provenance.to_json()
    known = growmap.metadata
    timed = known.get("predicted_seconds_per_step") is not None
    return {
        **_models(record),
        **(_machine(record) if timed else {}),
        "temperature": known.get("temperature"),
        "top_p": known.get("top_p") if known.get("temperature") else None,
        "dataset": known.get("profiled_dataset"),
    }


OF: Mapping[type, Callable[[Any], Conditions]] = {
    EvaluationReport: of_report,
    AcceptanceProfile: of_acceptance,
    LatencyProfile: of_latency,
    GrowMap: of_promise,
    ChosenBudget: of_promise,
}
"""The function that returns the conditions of a thing, by its type."""


def _models(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the names of models without revisions. Folders are known by their last part."""
    names = record.get("models") or {}
    return {role: Path(names[role].partition("@")[0]).name if names.get(role) else None for role in ("target", "draft")}


def _machine(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what times depend on. Threads count on a processor alone, and weights on a device are those of the host or not."""
    gpu = record.get("gpu")
    return {
        "device": gpu or record.get("cpu"),
        "threads": None if gpu else record.get("threads"),
        "dtype": record.get("dtype"),
        "offloaded": record.get("offloaded"),
        "tensor_parallel": (record.get("tensor_parallel") or 1) if record else None,
    }


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
