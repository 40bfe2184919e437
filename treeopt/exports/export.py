"""An export: the numbers of an engine for every batch size, ready to paste, with what they should give and what is lost."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from treeopt.exports.beside import replayed_settings
from treeopt.exports.choosing import KINDS, Setting, chain, promised
from treeopt.exports.drafts import UNNAMED, draft_of
from treeopt.exports.engines import BLOCKS, COUNTED, DFLASH, ENGINES, GUESSED, MEDUSA, SCHEDULE, SCHEDULED, Engine, Paste, Told
from treeopt.optimizer.given import Given
from treeopt.optimizer.notes import noise, other_context
from treeopt.optimizer.search import acceptance_rows
from treeopt.profiles.acceptance import AcceptanceProfile
from treeopt.profiles.agreement import require_same_models
from treeopt.profiles.latency import OWN_ENGINE, LatencyProfile, read_latency
from treeopt.profiles.rule_latency import RuleLatency
from treeopt.profiles.samples import LatencySample
from treespec.checks import require_whole
from treespec.decoding.chosen import ChosenBudget, read_budget
from treespec.decoding.rules import TOPK
from treespec.decoding.step_rule import GREEDY
from treespec.errors import ProfileError, SettingsError, listed_in_short
from treespec.files.reading import PipeablePath, StrPath
from treespec.tables import Drawing, Drawn, Table, in_short, milliseconds, number

HEAD = "# treeopt export to "
"""The beginning of an export in a file."""
_NO_TIME = 1e-12
"""Seconds of what takes none: no clock shows less than nothing."""
_GROWING = "dynamic tree"
"""The kind of the settings of engines that grow trees."""


@dataclass(frozen=True)
class Export(Drawn):
    """The settings of an engine by batch size, text that is ready to paste, and sentences on what is `lossy` and what the numbers rest on."""

    engine: str
    kind: str
    settings: tuple[Setting, ...]
    pastes: tuple[Paste, ...]
    lossy: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """All that is to paste, each part under its title in a comment."""
        return "\n\n".join([f"{HEAD}{self.engine}", *(f"# {title}\n{text}" for title, text in self.pastes)]) + "\n"

    def summary(self) -> dict[str, Any]:
        """Return the export as plain data."""
        return {
            "engine": self.engine,
            "kind": self.kind,
            "batches": [setting.to_json() for setting in self.settings],
            "paste": [{"title": title, "text": text} for title, text in self.pastes],
            "lossy": list(self.lossy),
            "notes": list(self.notes),
        }

    def drawing(self) -> Drawing:
        """Return a table of the settings with what they should give, the text to paste, and what is lost."""
        rows = []
        for setting in self.settings:
            ends = setting.intervals
            expected = (
                number(setting.tokens_per_step, 3, ends.get("expected_tokens_per_step")),
                milliseconds(setting.seconds_per_step, ends.get("predicted_seconds_per_step")),
                number(setting.speedup, 3, ends.get("predicted_speedup")),
            )
            rows.append((*map(str, (setting.batch, setting.size, setting.depth, setting.width)), *expected))
        columns = ("batch", "size", "depth", "width", "tokens per step", "ms per step", "speed-up, x")
        table = Table(f"{self.engine}: the best {self.kind} [95 % interval]", columns, rows, left=())
        return Drawing(
            (
                table,
                *(f"{title}:\n{text}\n" for title, text in self.pastes),
                *(f"lossy: {sentence}" for sentence in self.lossy),
                *self.notes,
            )
        )

    def __repr__(self) -> str:
        return in_short(self, engine=self.engine, kind=self.kind, batches=tuple(setting.batch for setting in self.settings))


def export(
    to: str,
    acceptance: StrPath | AcceptanceProfile | None = None,
    latency: StrPath | LatencyProfile | Sequence[StrPath | LatencyProfile] = (),
    *,
    budget: StrPath | ChosenBudget | None = None,
    batch: Sequence[int] | None = None,
    context: int | None = None,
) -> Export:
    """Return the numbers for the engine `to` from an acceptance profile and latency profiles, one for each batch size.

    Each is a profile or its file. `batch` are the batch sizes that are wanted, of those measured (None: all of them), and `context` picks
    the latencies (see `LatencyProfile.at_context`). Times of treeopt itself are taken too, and said to be none of the engine's.

    Where a growmap in the folder of the acceptance profile was made of these very files, has the same tree, and promises what replay gave, its
    promise takes the place of what chances expect, and the notes say so.

    For an engine that grows dynamic trees, an acceptance profile that has counted their steps gives the best budget of those counted. A
    `budget` that was chosen before, or its file, can take the place of both profiles.

    Raises SettingsError for an unknown engine and for batch sizes that were not measured, ProfileError for times of another engine, two
    profiles of one batch size, or profiles of different models, MissingRuleError and OptimizerError as `grow` does, GrowMapError for a
    file that is no budget, and for a growmap beside the acceptance profile that cannot be read. ProfileError too for times without size 1, a
    step without speculation.
    """
    if to not in ENGINES:
        raise SettingsError(f"`to` is {to!r:.40}, but it must be one of {', '.join(ENGINES)}")
    engine = ENGINES[to]
    if context is not None:
        require_whole(0, context=context)
    if batch is not None and not isinstance(batch, Iterable):
        raise SettingsError(f"`batch` is {batch!r:.40}, but it must be a list of batch sizes, such as [1, 8]")
    if budget is not None:
        if acceptance is not None or latency or context is not None:
            raise SettingsError("`budget` stands in the place of profiles; pass it alone, or `acceptance` and `latency` without it")
        return _of_budget(engine, budget if isinstance(budget, ChosenBudget) else read_budget(budget), batch)
    if acceptance is None:
        raise SettingsError("the numbers come from profiles; pass `acceptance` and `latency`, or a `budget`")
    given = Given.of(acceptance)
    profile = given.profile
    one = isinstance(latency, str | os.PathLike | LatencyProfile)
    times, files = _by_batch(engine, profile, [latency] if one else latency)  # type: ignore[list-item, arg-type]
    wanted = _wanted(engine, list(times), batch)
    draft, kind = draft_of(profile.provenance, engine, given.source)
    for size in wanted:
        _require_usable(times[size], files[size], context)
        if kind in (DFLASH, MEDUSA):
            times[size] = _in_one_pass(times[size])
    made = "chain" if kind == DFLASH and engine.kind == _GROWING else engine.kind
    chosen = [KINDS[made](profile, times[size], context) for size in wanted]
    settings, promises = (chosen, []) if made == _GROWING else replayed_settings(chosen, given, times, files, context)
    chains = [chain(profile, times[size], context) for size in wanted]
    pastes = engine.words(Told(settings, chains, draft, acceptance_rows(profile), kind))
    said = (
        *promises,
        *_notes(engine, profile.drafting, [times[size].engine for size in wanted], draft),
        *_in_doubt(settings, times, context),
    )
    lossy = _lossy(engine, kind, pastes, counted=profile.dynamic is not None)
    return Export(engine.name, made, tuple(settings), tuple(pastes), lossy, said)


def _in_one_pass(times: LatencyProfile) -> LatencyProfile:
    """Return times of an engine for a draft that proposes all levels at once: what is below its first pass takes no time. Treeopt's own times say it."""
    if times.engine == OWN_ENGINE:
        return times
    own = times.rules[0] if times.rules else RuleLatency(GREEDY)
    below = tuple(LatencySample(1, sample.context, (_NO_TIME,) * len(sample.seconds)) for sample in times.draft if sample.nodes == 1)
    return replace(times, rules=(replace(own, below=own.below or below), *times.rules[1:]))


def _of_budget(engine: Engine, budget: ChosenBudget, batch: Sequence[int] | None) -> Export:
    """Return the numbers of a budget that was chosen before. Raises SettingsError, ProfileError."""
    if engine.kind != _GROWING:
        growing = " or ".join(name for name, known in ENGINES.items() if known.kind == _GROWING)
        raise SettingsError(
            f"`budget` is of dynamic trees, but {engine.name} takes a {engine.kind}; pass `acceptance` and `latency`, or `to` {growing}"
        )
    _wanted(engine, [1], batch)
    draft, kind = draft_of(None if budget.provenance is None else budget.provenance.to_json(), engine)
    if kind == DFLASH:
        raise ProfileError(f"`budget` is of a DFlash draft, whose blocks {engine.name} verifies as chains; pass `acceptance` and `latency`")
    setting = promised(budget)
    pastes = engine.words(Told([setting], [], draft, np.empty((0, 0)), kind))
    said = (*_notes(engine, str(budget.metadata.get("drafting", TOPK.name)), [OWN_ENGINE], draft), *_untold([setting]))
    return Export(engine.name, engine.kind, (setting,), tuple(pastes), _lossy(engine, kind, pastes, counted=True), said)


def _lossy(engine: Engine, kind: str, pastes: Sequence[Paste], *, counted: bool) -> tuple[str, ...]:
    """Return the sentences on what is lost, with what the expected tokens of dynamic trees are and, where there is a schedule, how it is read."""
    grown = [] if engine.kind != _GROWING else [BLOCKS] if kind == DFLASH else [COUNTED if counted else GUESSED]
    scheduled = [SCHEDULED] if any(SCHEDULE in text for _, text in pastes) else []
    return (*grown, *engine.lossy, *scheduled)


def _by_batch(
    engine: Engine, acceptance: AcceptanceProfile, given: Sequence[StrPath | LatencyProfile]
) -> tuple[dict[int, LatencyProfile], dict[int, PipeablePath | None]]:
    """Return the profiles by batch size, ascending, and the file of each, None of an object. Raises ProfileError, SettingsError."""
    found: dict[int, LatencyProfile] = {}
    files: dict[int, PipeablePath | None] = {}
    for source in given:
        file = None if isinstance(source, LatencyProfile) else PipeablePath(source)
        named = _named(file)
        times = source if isinstance(source, LatencyProfile) else read_latency(source if file is None else file)
        if times.engine not in (engine.name, OWN_ENGINE):
            right = OWN_ENGINE if engine.own_times else engine.name
            raise ProfileError(f"{named} was measured in {times.engine}, but the numbers are for {engine.name}; pass times of {right}")
        if times.batch in found:
            raise ProfileError(
                f"{named} is of batch size {times.batch}, and so is another one; pass one latency profile for each batch size"
            )
        if len({times.engine, *(other.engine for other in found.values())}) > 1:
            raise ProfileError(f"{named} was measured in {times.engine}, another one was not; pass times of one engine")
        require_same_models(acceptance, times)
        found[times.batch], files[times.batch] = times, file
    if not found:
        raise SettingsError("`latency` names no profile; pass one or more")
    return dict(sorted(found.items())), files


def _named(file: PipeablePath | None) -> str:
    """Return what messages call a latency profile: its file, if it was given as one."""
    return "the latency profile" if file is None else str(file)


def _wanted(engine: Engine, measured: Sequence[int], batch: Sequence[int] | None) -> list[int]:
    """Return the batch sizes to export, ascending. Raises SettingsError for one that was not measured."""
    wanted = sorted(set(measured if batch is None else batch))
    if not wanted:
        raise SettingsError("`batch` names no batch size; leave it out for all that were measured")
    for size in wanted:
        require_whole(1, batch=size)
    if engine.own_times and wanted != [1]:
        raise SettingsError(
            f"`batch` is {wanted[-1]}, but {engine.name} decodes the prompts of a batch one by one; pass 1, or leave it out"
        )
    for size in wanted:
        if size not in measured:
            have = listed_in_short([str(one) for one in measured])
            raise SettingsError(
                f"`batch` {size} was not measured, only {have}: each needs a `latency` profile of its own; measure it in {engine.name}, or drop it"
            )
    return wanted


def _require_usable(times: LatencyProfile, file: PipeablePath | None, context: int | None) -> None:
    """Refuse times that do not reach the context, and those without a step of one token, beside which speed-ups stand. Raises ProfileError."""
    if context is not None and context > times.contexts[-1] and not times.extrapolates:
        measured = listed_in_short([str(known) for known in times.contexts])
        raise ProfileError(
            f"in {_named(file)} the target was not measured at context {context} or beyond, only at {measured}; "
            f"profile it there, or ask for at most {times.contexts[-1]}"
        )
    model = times.at_context(context)
    for what, nodes in (("target size", model.target[0][0]), ("draft width", model.draft[0][0] if times.engine != OWN_ENGINE else 1)):
        if nodes > 1:
            raise ProfileError(
                f"{_named(file)} of batch size {times.batch} begins at {what} {nodes} at context {model.context}, "
                f"but {what} 1 must be there; measure it too"
            )


def _in_doubt(settings: Sequence[Setting], times: Mapping[int, LatencyProfile], context: int | None) -> Iterator[str]:
    """Yield which times are of another context or of a busy machine, and where the profiles cannot tell whether speculation pays."""
    for setting in settings:
        own = times[setting.batch]
        for sentence in (*other_context(own, context), noise(own)):
            if sentence is not None:
                yield f"batch size {setting.batch}: {sentence}" if len(settings) > 1 else sentence
    yield from _untold(settings)


def _untold(settings: Sequence[Setting]) -> Iterator[str]:
    """Yield for which batch sizes the interval of the speed-up holds 1."""
    for setting in settings:
        low, high = setting.intervals.get("predicted_speedup", (0.0, 0.0))
        if low <= 1 <= high:
            yield (
                f"cannot tell whether speculation is faster than plain decoding at batch size {setting.batch}: "
                "the interval of its speed-up holds 1; profile more prompts, and latencies on an idle machine"
            )


def _notes(engine: Engine, drafting: str, timed_in: Sequence[str], draft: str) -> tuple[str, ...]:
    said = []
    if not engine.own_times and OWN_ENGINE in timed_in:
        said.append(
            f"the times are those of treeopt with one sequence, and not those of {engine.name}: acceptance holds there too, but the best numbers "
            "may be others; docs/serving.md tells how to measure there"
        )
    if drafting not in (TOPK.name, "unknown") and not engine.own_times:
        said.append(f"the acceptance profile is of {drafting}: it holds where {engine.name} draws its drafts at random too")
    if draft == UNNAMED and engine.kind != "fixed tree":
        said.append(f"the acceptance profile does not name its draft: put its name or path in the place of {UNNAMED}")
    return tuple(said)
