"""The profiles that a growmap is made from: read once, held against one another, each with the SHA-256 of its file."""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from treeopt.optimizer.replay import require_replayable
from treeopt.optimizer.search import rule_for
from treeopt.profiles.acceptance import AcceptanceProfile, read_acceptance
from treeopt.profiles.agreement import random_children, require_own_times, require_same_models, require_trace_of, require_verifier
from treeopt.profiles.latency import LatencyProfile, read_latency
from treeopt.profiles.trace import Trace, read_trace
from treeopt.profiles.traced import acceptance_of
from treespec.errors import MissingRuleError, SettingsError, listed
from treespec.files.reading import PipeablePath, StrPath
from treespec.files.writing import json_text

Profile = TypeVar("Profile", AcceptanceProfile, LatencyProfile, Trace)


@dataclass(frozen=True)
class Given:
    """An acceptance profile, the SHA-256 of its file, and the file, if it was given as one."""

    profile: AcceptanceProfile
    digest: str
    source: str | None = None

    @classmethod
    def of(cls, given: StrPath | AcceptanceProfile) -> "Given":
        """Return what was given. Raises SettingsError for anything but a profile or a path, ProfileError."""
        _require_profile(AcceptanceProfile, acceptance=given)
        profile, digest = _read(given, AcceptanceProfile, read_acceptance)
        return cls(profile, digest, None if isinstance(given, AcceptanceProfile) else os.fspath(given))


@dataclass(frozen=True, eq=False)
class GivenTrace:
    """A trace, the SHA-256 of its file, and the acceptance profile beside it: one that was given, or else that of its own texts."""

    trace: Trace
    digest: str
    beside: Given

    @classmethod
    def of(cls, given: StrPath | Trace, acceptances: Sequence[Given]) -> "GivenTrace":
        """Return what was given. An acceptance vector, which does not say its rule, is taken for one of the trace's rule.

        Raises SettingsError for anything but a trace or a path; ProfileError for a trace that cannot be replayed, or that is of another pair or
        sampling than the profile beside it.
        """
        _require_profile(Trace, trace=given)
        trace, digest = _read(given, Trace, read_trace)
        require_replayable(trace)
        if not acceptances:
            return cls(trace, digest, Given(acceptance_of(trace), ""))
        beside = acceptances[0]
        require_trace_of(beside.profile, trace)
        if beside.profile.step_settings() is None:
            known = replace(beside.profile, drafting=trace.drafting, temperature=trace.temperature, top_p=trace.top_p)
            beside = replace(beside, profile=known)
        return cls(trace, digest, beside)


def each_once(sources: Sequence[Given]) -> tuple[list[Given], list[str]]:
    """Return the profiles without those that are the same as an earlier one, and a sentence for each of these."""
    first: dict[str, tuple[int, Given]] = {}
    said = []
    for place, one in enumerate(sources, 1):
        if one.digest not in first:
            first[one.digest] = place, one
            continue
        before = first[one.digest]
        name, other = one.source or f"number {place}", before[1].source or f"number {before[0]}"
        said.append(
            f"the acceptance profile {name} was given twice and counts once"
            if name == other
            else f"the acceptance profile {name} is the same as {other} and is left out"
        )
    return [one for _, one in first.values()], said


def at_one_temperature(sources: list[Given]) -> tuple[list[Given], list[str]]:
    """Return the profiles, those without a temperature with that of the others, and a sentence on these."""
    known = next((one.profile for one in sources if one.profile.temperature is not None), None)
    unsaid = [one for one in sources if one.profile.temperature is None]
    if known is None or not unsaid:
        return sources, []
    heat, mass = known.temperature, 1.0 if known.top_p is None else known.top_p
    at = f"temperature {heat:g}" + (f" and top-p {mass:g}" if mass < 1 else "")
    names = listed([one.source or "one of them" for one in unsaid])
    taken = [
        one if one.profile.temperature is not None else replace(one, profile=replace(one.profile, temperature=heat, top_p=mass))
        for one in sources
    ]
    return taken, [f"of the acceptance profiles, {names} does not say its temperature: {at} is assumed, as in the others"]


def verifiers_of(sources: Sequence[Given], verifier: str | None) -> list[str | None]:
    """Return the verifier of each profile: the one that is asked for, where it goes with the profile. Raises SettingsError."""
    found: list[str | None] = []
    refused = None
    for one in sources:
        try:
            require_verifier(one.profile, verifier)
        except SettingsError as error:
            if random_children(one.profile):
                raise
            refused = error
            found.append(None)
        else:
            found.append(verifier)
    if refused is not None and not any(found):
        raise refused
    return found


def require_rules(sources: Sequence[Given], verifiers: Sequence[str | None], times: LatencyProfile) -> None:
    """Raise MissingRuleError for the rules of all profiles whose times are not held."""
    missing = {}
    for one, verifier in zip(sources, verifiers, strict=True):
        require_same_models(one.profile, times)
        try:
            rule_for(one.profile, times, verifier)
        except MissingRuleError as error:
            missing[error.what] = error
    if len(missing) > 1:
        settings = [one for error in missing.values() for one in error.settings]
        raise MissingRuleError("; ".join(missing), *settings)
    for lacking in missing.values():
        raise lacking


def read_times(latency: StrPath | LatencyProfile) -> tuple[LatencyProfile, str]:
    """Return a latency profile and the SHA-256 of its file. Raises SettingsError for anything but a profile or a path, ProfileError for another engine's."""
    _require_profile(LatencyProfile, latency=latency)
    profile, digest = _read(latency, LatencyProfile, read_latency)
    require_own_times(profile)
    return profile, digest


def _require_profile(kind: type, **values: object) -> None:
    """Raise SettingsError for a value that is neither a profile of this kind nor a path."""
    for name, value in values.items():
        if not isinstance(value, kind | str | os.PathLike):
            article = "an" if kind.__name__[0] in "AEIOU" else "a"
            raise SettingsError(f"`{name}` is {value!r:.40}, but it must be {article} {kind.__name__} or the path of its file")


def _read(given: StrPath | Profile, kind: type[Profile], read: Callable[[StrPath], Profile]) -> tuple[Profile, str]:
    """Return a profile and the SHA-256 of its file, or of the file that it would be written to."""
    if isinstance(given, kind):
        return given, hashlib.sha256(json_text(given.to_json()).encode() + b"\n").hexdigest()
    path = given if isinstance(given, PipeablePath) else PipeablePath(given)  # type: ignore[arg-type]
    return read(path), path.sha256
