"""The function `compare`: from things of one kind, or their files, to a Comparison."""

import os
from collections.abc import Collection, Mapping
from importlib import import_module
from typing import Any

from treeopt.comparing.comparison import Comparison, labels
from treeopt.comparing.conditions import OF, require_comparable
from treeopt.comparing.kinds import KINDS, Kind
from treeopt.profiles.acceptance import AcceptanceProfile, read_acceptance
from treeopt.profiles.latency import LatencyProfile
from treespec.decoding.chosen import ChosenBudget
from treespec.errors import GrowMapError, ProfileError, SettingsError, listed
from treespec.evaluation.report import EvaluationReport
from treespec.files.kinds import NOUNS, schema_of
from treespec.files.reading import MAX_JSON_BYTES, PipeablePath, StrPath, read_bytes
from treespec.trees.formats.text import text_format
from treespec.trees.growmap import MAX_FILE_BYTES, GrowMap, read_growmap
from treespec.trees.library import find_growmap

Thing = GrowMap | ChosenBudget | AcceptanceProfile | LatencyProfile | EvaluationReport

_READERS = {
    "treeopt.acceptance": ("treeopt.profiles.acceptance", "read_acceptance"),
    "treeopt.latency": ("treeopt.profiles.latency", "read_latency"),
    "treeopt.budget": ("treespec.decoding.chosen", "read_budget"),
    "treeopt.evaluation": ("treespec.evaluation.report", "read_report"),
}

_TAKEN = "growmaps, budgets of dynamic trees, acceptance profiles, latency profiles or reports of evaluations"


def compare(*things: Thing | StrPath, across: Collection[str] = ()) -> Comparison:
    """Return things of one kind side by side, with the differences of all others from the first.

    They are growmaps (or names of those that come with treeopt), budgets of dynamic trees, acceptance profiles, latency profiles or reports of
    evaluations, as objects or files. Where all the prompts are the same, differences are taken prompt by prompt. `across` names fields that may differ, such as
    "device" or "temperature" (see `treeopt.comparing.fields`): without it, things that must not be mixed are refused.

    Raises SettingsError for fewer than two things and for an unknown field, ProfileError for things that are not of one kind or differ in a field,
    and for files; GrowMapError.
    """
    if len(things) < 2:
        raise SettingsError(
            f"there is nothing to compare: given {'is 1' if things else 'are 0'} of the 2 or more that are needed; pass another"
        )
    found = [_read(thing) if isinstance(thing, str | os.PathLike) else thing for thing in things]
    named = [os.fspath(thing) if isinstance(thing, str | os.PathLike) else chr(ord("A") + at % 26) for at, thing in enumerate(things)]
    names = labels([str(name) for name in named])
    kinds = [_kind(name, thing) for name, thing in zip(names, found, strict=True)]
    other = next((at for at, kind in enumerate(kinds) if kind is not kinds[0]), None)
    if other is not None:
        raise ProfileError(
            f"{names[0]} is {kinds[0].noun} and {names[other]} is {kinds[other].noun}, which have no figures in common; pass things of one kind"
        )
    conditions = [OF[type(thing)](thing) for thing in found]
    require_comparable(names, conditions, across)
    kind = kinds[0]
    figures, paired, notes = kind.figures(found)
    described = [
        {**{field: known.get(field) for field in across}, **kind.describe(thing)} for known, thing in zip(conditions, found, strict=True)
    ]
    differ = {field: values for field in described[0] if len(set(values := tuple(one[field] for one in described))) > 1}
    unknown = _unknown(names, conditions)
    return Comparison(kind.name, names, figures, differ, paired, (*notes, *unknown))


def _kind(name: str, thing: Any) -> Kind:
    """Return the kind of a thing. Raises SettingsError for anything else."""
    if type(thing) not in KINDS:
        raise SettingsError(f"{name} is of the type {type(thing).__name__}, but compared are {_TAKEN}; pass things of one of these kinds")
    return KINDS[type(thing)]


def _read(path: StrPath) -> Any:
    """Return the thing in a file, or the growmap of a name. Raises ProfileError, GrowMapError."""
    file = PipeablePath(find_growmap(path))
    data = read_bytes(file, limit=max(MAX_JSON_BYTES, MAX_FILE_BYTES), error=ProfileError)
    schema = schema_of(data)
    if schema in _READERS:
        module, reader = _READERS[schema]
        return getattr(import_module(module), reader)(file)
    if schema == "treeopt.growmap":
        return read_growmap(file)
    if schema is not None:
        raise ProfileError(
            f"{path} is {NOUNS.get(schema, f'a file of the schema {schema}')}, but compared are {_TAKEN}; pass files of one of these kinds"
        )
    if text_format(file) is not None:
        return read_growmap(file)
    if not data.startswith(b"PK"):
        raise ProfileError(f"{path} is no file of treeopt that can be compared; pass {_TAKEN}")
    try:
        return read_growmap(file)
    except GrowMapError:
        if _is_vector(file):
            return read_acceptance(file)
        raise


def _is_vector(file: PipeablePath) -> bool:
    """Return whether a .pt file holds one tensor, as acceptance vectors of Sequoia do."""
    from treespec.files.pt import load_pt

    return type(load_pt(file, limit=MAX_FILE_BYTES, error=GrowMapError)).__name__ == "Tensor"


def _unknown(names: tuple[str, ...], conditions: "list[Mapping[str, Any]]") -> list[str]:
    """Return a sentence for the things of which it is not known on what they were measured, while it is known of another one."""
    lacks = [
        (name, [field for field in ("target", "draft", "device", "temperature", "dataset") if _lacks(field, own, conditions)])
        for name, own in zip(names, conditions, strict=True)
    ]
    return [f"{name} does not say its {listed(fields)}: whether it may be compared is not known" for name, fields in lacks if fields]


def _lacks(field: str, own: Mapping[str, Any], all_of_them: "list[Mapping[str, Any]]") -> bool:
    return own.get(field) is None and any(one.get(field) is not None for one in all_of_them)
