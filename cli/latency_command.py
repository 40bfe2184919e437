"""The command that measures the rules that a latency profile lacks, together with all that it holds."""

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treeopt.cli.values import DTYPES
from treeopt.profiling.settings import LatencySettings, default_sizes, default_widths
from treeopt.tuning.folder import MANIFEST, TUNING_SCHEMA
from treespec.decoding.drafting import Drafting
from treespec.decoding.plans import DynamicBudget
from treespec.decoding.rules import RULES, TOPK, Sampling
from treespec.decoding.step_rule import GREEDY, StepRule
from treespec.decoding.verifiers import VERIFIERS
from treespec.embedded import EMBEDDED
from treespec.errors import SettingsError
from treespec.files.reading import is_json_of
from treespec.models.ngram import BESIDE, NGRAM, in_records
from treespec.trees.tree import SpeculationTree

if TYPE_CHECKING:
    from treeopt.profiles.latency import LatencyProfile

_WARM, _NUCLEUS = 0.6, 0.9
"""A temperature and a top-p for rules that are held: all above 0, and all below 1, take the same time."""
_ROLES = {
    "target": ("target", "revision"),
    "draft": ("draft", "draft-revision"),
    "adapter": ("adapter", ""),
    "draft_adapter": ("draft-adapter", ""),
}
"""The options of a model and of its revision, by its role in records."""


def latency_command(held: "LatencyProfile", file: str, missing: Sequence[Mapping[str, str]], models: Mapping[str, str]) -> str:
    """Return the command that measures a profile with the rules of `missing` settings beside those that it holds, into the same `file`.

    `models` are names by role, for a profile that does not say its own. Of folders, records have the last part of the path alone: their
    places begin with `path/to/`. Rules that one command cannot time together are left to the missing ones
    alone, which then go into a file beside it. A file in a folder of `treeopt tune` stays as it is, as that command refuses one that was changed:
    the new one goes beside the folder.
    """
    settings = [_settings(one) for one in missing]
    mode = DynamicBudget.drafter if any("dynamic" in one for one in missing) else SpeculationTree.drafter
    wanted = {StepRule.of(*one, mode) for one in settings}
    rules, output = _rules({*held.held, *wanted}, settings), _outside_tuning(file)
    if rules is None:
        output = str(Path(output).with_stem(f"{Path(output).stem}-more"))
        rules = _rules(wanted, settings) or _rules({StepRule.of(*settings[0], mode)}, settings[:1]) or []
    known = held.provenance or {}
    words = ["profile", "latency", *_models({**models, **(known.get("models") or {})}), *rules]
    words += ["--context", ",".join(map(str, held.contexts)), *_places(held)]
    if known.get("dtype") in DTYPES.values():
        words += ["--dtype", str(known["dtype"])]
    if known.get("offloaded"):
        words.append("--offload")
    if known.get("tensor_parallel"):
        words += ["--tensor-parallel", str(known["tensor_parallel"])]
    return shlex.join([*words, "-o", output])


def _outside_tuning(file: str) -> str:
    """Return a file for new times: the given one or, if that lies in a folder of `treeopt tune`, one beside the folder and named after it."""
    path = Path(os.path.abspath(file))
    folder = next((parent for parent in path.parents[:-1] if is_json_of(parent / MANIFEST, TUNING_SCHEMA)), None)
    if folder is None:
        return file
    beside = folder.with_name("-".join((folder.name, *path.relative_to(folder).parts)))
    return str(beside) if os.path.isabs(file) else os.path.relpath(beside)


def _settings(options: Mapping[str, str]) -> tuple[Sampling, Drafting]:
    """Return the settings of a missing rule from its options."""
    heat = options.get("draft_temperature")
    drafting = Drafting(options["drafting"], None if heat is None else float(heat), options.get("verifier", Drafting.verifier))
    return Sampling(float(options["temperature"]), float(options.get("top_p", 1))), drafting


def _models(models: Mapping[str, str]) -> Iterator[str]:
    """Yield the options of models, each followed by that of its revision."""
    for role, (option, revision) in _ROLES.items():
        name, _, at = models.get(role, "").partition("@")
        model, ngrams, corpus = in_records(name) if role == "draft" else (name, False, False)
        if ngrams:
            yield from (
                f"--{option}",
                f"{_place(model, at)}{BESIDE}" if model else NGRAM,
                *(("--corpus", "path/to/corpus") if corpus else ()),
            )
        elif name or role in ("target", "draft"):
            yield from (f"--{option}", _place(name, at) or role.upper())
        if at and revision:
            yield from (f"--{revision}", at)


def _place(name: str, revision: str) -> str:
    """Return where a model is. Records have only the last part of a folder's path, so a place is left for the others, unless it is right here."""
    is_folder = name and not revision and "/" not in name and name not in EMBEDDED and not Path(name).exists()
    return f"path/to/{name}" if is_folder else name


def _places(held: "LatencyProfile") -> Iterator[str]:
    """Yield the options of sizes and widths that were given: those that were chosen are some of the defaults, the largest among them."""
    for option, samples, default in (("sizes", held.target, default_sizes), ("widths", held.draft, default_widths)):
        own = sorted({sample.nodes for sample in samples})
        if not any(set(own) <= set(known) and own[-1] == known[-1] for known in (default("cpu"), default("cuda"))):
            yield from (f"--{option}", ",".join(map(str, own)))


def _rules(wanted: set[StepRule], missing: Sequence[tuple[Sampling, Drafting]]) -> list[str] | None:
    """Return the options that time at least the rules that are wanted, with the values of `missing` settings; None if there are none."""
    rules = [rule for rule in wanted if rule != GREEDY]
    samplings = [sampling for sampling, _ in missing]
    warm = next((sampling.temperature for sampling in samplings if not sampling.greedy), _WARM)
    mass = next((sampling.top_p for sampling in samplings if sampling.top_p < 1), _NUCLEUS)
    heats = list(dict.fromkeys(0.0 if rule.target == "greedy" else warm for rule in sorted(rules, key=lambda rule: rule.target))) or [0.0]
    masses = [top_p for top_p, target in ((1.0, "sampled"), (mass, "top-p")) if any(rule.target == target for rule in rules)] or [1.0]
    static = [rule for rule in rules if rule.mode != DynamicBudget.drafter]
    draftings = [name for name in RULES if any(rule.drafting == name for rule in static)] or [TOPK.name]
    verifiers = [name for name in VERIFIERS if any(rule.verifier == name and rule.drafting != TOPK.name for rule in static)]
    dynamic = any(rule.mode == DynamicBudget.drafter for rule in rules)
    own = [drafting.temperature for _, drafting in missing if drafting.temperature is not None]
    for heat, also in product(dict.fromkeys([*own, None, 0.0, warm]), ([], [Drafting.verifier])):
        checked = list(dict.fromkeys([*verifiers, *also])) or [Drafting.verifier]
        if not set(rules) <= _timed(heats, masses, draftings, heat, checked, dynamic):
            continue
        options: list[tuple[str, list[Any], list[Any]]] = [
            ("temperature", heats, [0.0]),
            ("top-p", masses, [1.0]),
            ("drafting", draftings, []),
            ("draft-temperature", [] if heat is None else [heat], []),
            ("verifier", checked, [Drafting.verifier]),
        ]
        words = [word for name, values, default in options if values != default for word in (f"--{name}", ",".join(map(_shown, values)))]
        return [*words, *(["--dynamic"] if dynamic else [])]
    return None


def _timed(
    heats: Sequence[float], masses: Sequence[float], draftings: Sequence[str], heat: float | None, verifiers: Sequence[str], dynamic: bool
) -> set[StepRule]:
    """Return the rules that are timed with these values; none if some value goes with no other."""
    found, fits = [], set()
    for name, verifier in product(draftings, verifiers):
        try:
            found.append(Drafting(name, heat, verifier))
        except SettingsError:
            continue
        fits |= {name, verifier}
    if not fits.issuperset((*draftings, *verifiers)):
        return set()
    samplings = tuple(Sampling(temperature, top_p) for temperature in heats for top_p in masses)
    return set(LatencySettings(samplings=samplings, draftings=tuple(found), dynamic=dynamic).rules)


def _shown(value: Any) -> str:
    """Return a name, or a number with the digits that it needs."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)
