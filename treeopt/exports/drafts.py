"""The draft of a profile: its name and kind, and whether an engine has it; if not, which profiles of a tuning run to pass in the place of it."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from treeopt.exports.engines import DFLASH, MEDUSA, MODEL, Engine
from treeopt.profiles.acceptance import AcceptanceProfile, read_acceptance
from treespec.errors import ProfileError, listed_in_short
from treespec.files.reading import StrPath
from treespec.models.ngram import in_records

UNNAMED = "DRAFT"
"""The word that stands for the draft's name where the profile does not say it."""
_SHOWN = {
    MODEL: "a model of its own",
    "eagle": "an EAGLE head",
    "eagle3": "an EAGLE-3 head",
    MEDUSA: "Medusa heads",
    DFLASH: "a DFlash draft",
}
"""The kinds of drafts as people read them."""


def draft_of(provenance: Mapping[str, Any] | None, engine: Engine, source: StrPath | None = None) -> tuple[str, str]:
    """Return the name of the draft without its revision, and its kind.

    Raises ProfileError for a draft that the engine does not have, with the profiles of other drafts that a tuning run left beside the profile `source`.
    """
    name, kind = _told(provenance)
    lacking = _lacking(engine, name, kind)
    if lacking is None:
        return name, kind
    others = []
    for acceptance, latency, profile in [] if source is None else _other_candidates(source):
        other = _told(profile.provenance)
        if _lacking(engine, *other) is None:
            others.append(f"{acceptance} with {latency} (of {other[0]})")
    raise ProfileError(lacking + (f", such as {listed_in_short(others)}" if others else ""))


def _told(provenance: Mapping[str, Any] | None) -> tuple[str, str]:
    """Return what records say of the draft: its name without its revision, and its kind."""
    known = provenance or {}
    named = (known.get("models") or {}).get("draft")
    return UNNAMED if named is None else str(named).partition("@")[0], known.get("draft_kind") or MODEL


def _lacking(engine: Engine, name: str, kind: str) -> str | None:
    """Return what an engine lacks of a draft, with the profile to pass in the place of its own; None for a draft that it has."""
    _, ngrams, corpus = in_records(name)
    if ngrams and engine.ngrams and not corpus:
        return None
    if ngrams and engine.ngrams:
        return (
            f"the profile is of n-grams that were counted in a corpus too ({name}), but `tree_generate` counts them in the text alone; pass a profile "
            "without `corpus`, or one of a draft model"
        )
    if ngrams:
        return f"the profile is of treeopt's own n-grams ({name}), which {engine.name} does not have; pass one of a draft model"
    if kind not in engine.drafts:
        have = listed_in_short([_SHOWN.get(one, one) for one in engine.drafts])
        return f"the profile is of {_SHOWN.get(kind, kind)} ({name}), but exports to {engine.name} are for {have}; pass a profile of such a draft"
    return None


def _other_candidates(source: StrPath) -> Iterator[tuple[Path, Path, AcceptanceProfile]]:
    """Yield the profiles of the candidates of a tuning run whose folder holds the acceptance profile `source`: both files, and the acceptance."""
    folder = Path(source).parent
    for place in ("candidates", "pilot/candidates"):
        for path in sorted(folder.glob(f"{place}/*/*/acceptance.json")):
            latency = path.parents[1] / "latency.json"
            try:
                profile = read_acceptance(path)
            except ProfileError:  # it takes the place of no other
                continue
            if latency.is_file():
                yield path, latency, profile
