"""Which profiles and settings go together: a growmap is made of profiles of one pair, and promises what its verifier accepts."""

from collections.abc import Sequence
from pathlib import Path

from treeopt.profiles.acceptance import AcceptanceProfile
from treeopt.profiles.latency import OWN_ENGINE, LatencyProfile
from treeopt.profiles.trace import Trace
from treespec.decoding.drafting import Drafting
from treespec.decoding.rules import RULES
from treespec.decoding.verifiers import AT_LEAST_SEQUENTIAL, verifier_named
from treespec.errors import ProfileError, SettingsError, listed


def require_verifier(profile: AcceptanceProfile, verifier: str | None) -> None:
    """Raise SettingsError for an unknown verifier, one that cannot verify a profile's children, or one that accepts other shares than the profile holds.

    Shares of children that are random are those of residual chains (`sequential`).
    """
    if verifier is None:
        return
    entry = verifier_named(verifier)
    if profile.drafting not in RULES:
        return
    kind = RULES[profile.drafting]
    if entry.sampled and not kind.sampled:
        sampled = " or ".join(name for name, known in RULES.items() if known.sampled)
        raise SettingsError(
            f"`verifier` {verifier} needs sampled children, but the acceptance profile is of {profile.drafting}; "
            f"pass `acceptance` of {sampled}, or leave `verifier` out"
        )
    if not random_children(profile) or verifier in AT_LEAST_SEQUENTIAL:
        return
    raise SettingsError(
        f"`verifier` {verifier} accepts other shares of {profile.drafting} children than the acceptance profile holds, which are those of residual "
        f"chains ({Drafting.verifier}); pass `acceptance` of topk, or another `verifier`"
    )


def random_children(profile: AcceptanceProfile) -> bool:
    """Return whether the children of a profile were random, as far as it is known."""
    settings = profile.step_settings()
    return settings is not None and settings[1].samples(settings[0])


def require_comparable(profiles: Sequence[AcceptanceProfile]) -> None:
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


def require_same_models(acceptance: AcceptanceProfile | Trace, latency: LatencyProfile) -> None:
    """Raise ProfileError for an acceptance profile or a trace, and a latency profile, that name different models.

    Folders are known by their last part.
    """
    what = "trace" if isinstance(acceptance, Trace) else "acceptance profile"
    for role in ("target", "draft"):
        one, other = _model_of(acceptance, role), _model_of(latency, role)
        if one and other and Path(one).name != Path(other).name:
            raise ProfileError(
                f"the {what} is of the {role} {one}, but the latency profile is of the {role} {other}; pass profiles of the same models"
            )


def require_own_times(latency: LatencyProfile) -> None:
    """Raise ProfileError for times of another engine: a growmap runs in treeopt."""
    if latency.engine != OWN_ENGINE:
        raise ProfileError(
            f"the latency profile was measured in {latency.engine}, but a growmap runs in treeopt; pass one of `treeopt profile latency`, "
            f"or make the numbers of {latency.engine} with `treeopt export`"
        )


def require_trace_of(profile: AcceptanceProfile, trace: Trace) -> None:
    """Raise ProfileError for an acceptance profile that is of another pair, another sampling or other children than a trace, as far as it is known."""
    for role in ("target", "draft"):
        one, other = _model_of(profile, role), _model_of(trace, role)
        if one and other and Path(one).name != Path(other).name:
            raise ProfileError(
                f"the acceptance profile is of the {role} {one}, but the trace is of the {role} {other}; pass a profile of the same models"
            )
    if profile.pair_sha256 and trace.pair_sha256 and profile.pair_sha256 != trace.pair_sha256:
        raise ProfileError(
            "the acceptance profile and the trace are of models with the same names and other weights; pass a profile of the same models"
        )
    for name, of_profile, of_trace in (
        ("temperature", profile.temperature, trace.temperature),
        ("top_p", profile.top_p if trace.temperature > 0 else None, trace.top_p),
    ):
        if of_profile is not None and of_profile != of_trace:
            raise ProfileError(
                f"the acceptance profile is of `{name}` {of_profile:g}, but the trace is of `{name}` {of_trace:g}; pass a profile of the same sampling"
            )
    if random_children(profile):
        raise ProfileError(
            f"the acceptance profile is of {profile.drafting}, whose children are random, but the trace is of {trace.drafting}; "
            f"pass a profile of {trace.drafting}"
        )


def _model_of(profile: AcceptanceProfile | LatencyProfile | Trace, role: str) -> str | None:
    """Return the name of a model of a profile without its revision, if it is known."""
    name = ((profile.provenance or {}).get("models") or {}).get(role)
    return None if name is None else str(name).partition("@")[0]
