"""Measure the acceptance profile of a pair: the ranks of the draft that the target accepts, position by position."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from treeopt.profiles.acceptance import AcceptanceProfile
from treeopt.profiles.budget_grid import BudgetGrid
from treeopt.profiles.dynamic import DynamicAcceptance
from treeopt.profiles.level_sums import LevelSums
from treeopt.profiles.ratio import ratio
from treeopt.profiles.trace import Trace
from treeopt.profiling.chances import draft_levels, rank_chances, target_chances
from treeopt.profiling.dynamic import dynamic_steps
from treeopt.profiling.measured_text import MeasuredText
from treeopt.profiling.settings import AcceptanceSettings
from treeopt.profiling.texts import Batch, TextSource, chunks, require_drafted, require_positions, require_text
from treeopt.profiling.tracing import drafted_tokens, ranks_of, trace_of, traced_row, traced_text
from treespec.data.prompts import PromptSet
from treespec.decoding.sampling import prompt_generator
from treespec.errors import ProfileError, counted
from treespec.files.fields import list_of_length
from treespec.files.fingerprint import fingerprint
from treespec.files.processes import ALONE, Processes
from treespec.files.spreading import spread
from treespec.models.drafts import Draft
from treespec.models.heads.bound import BoundHead
from treespec.models.pairs import Pair, PairInfo
from treespec.models.positions import readable

Progress = Callable[[str, int, int], None]


def profile_acceptance(
    pair: Pair,
    prompts: PromptSet,
    settings: AcceptanceSettings,
    *,
    dynamic: BudgetGrid | None = None,
    journal: Path | None = None,
    processes: Processes = ALONE,
    progress: Progress = lambda what, done, total: None,
) -> AcceptanceProfile:
    """Measure the chance of each rank on texts of the target or of the data set; `chances.rank_chances` defines it.

    Positions are those that decoding drafts for: after the first generated token, up to EOS. Standard errors treat
    prompts as the independent units (linearised ratio estimator); each prompt's draws are its own, so they are in it.
    With `dynamic`, the steps of dynamic trees of these budgets are counted on the same texts. Finished batches survive an interruption in
    `journal`, which the caller discards once the profile is saved. Several `processes`, which all call this with a pair of their own, share the
    batches, and all get the profile that one would measure. Raises CapacityError, ModelError (non-finite logits), ProcessesError, ProfileError
    (nothing to measure), SettingsError for `dynamic` where steps could not be counted.
    """
    return _measured(pair, prompts, settings, journal, processes, progress, dynamic, tracing=False)[0]


def trace_acceptance(
    pair: Pair,
    prompts: PromptSet,
    settings: AcceptanceSettings,
    *,
    dynamic: BudgetGrid | None = None,
    journal: Path | None = None,
    processes: Processes = ALONE,
    progress: Progress = lambda what, done, total: None,
) -> tuple[AcceptanceProfile, Trace]:
    """Measure as `profile_acceptance` does, and also return the trace of the same texts. Raises SettingsError where steps could not be replayed."""
    settings.require_traceable()
    profile, rows = _measured(pair, prompts, settings, journal, processes, progress, dynamic, tracing=True)
    traced = [row.traced for row in rows if row.traced is not None]
    return profile, trace_of(pair, prompts, settings, traced, profile.provenance or {})


@torch.inference_mode()
def _measured(
    pair: Pair,
    prompts: PromptSet,
    settings: AcceptanceSettings,
    journal: Path | None,
    processes: Processes,
    progress: Progress,
    dynamic: BudgetGrid | None,
    *,
    tracing: bool,
) -> tuple[AcceptanceProfile, list[MeasuredText]]:
    """Return the profile, and what was measured on the text of every prompt, batch by batch, with finished batches in the journal."""
    if dynamic is not None:
        settings.require_traceable("dynamic")
        dynamic = dynamic.of_vocabulary(drafted_tokens(pair))
        if isinstance(pair.draft, BoundHead) and pair.draft.parallel_levels is not None:
            dynamic = dynamic.of_levels(pair.draft.parallel_levels)
    require_fit(pair, prompts, settings)
    found: dict[int, MeasuredText] = {}
    source = TextSource(pair, prompts, settings.method, settings.gen_len, settings.sampling, settings.batch_size)
    batches = source.batches

    def read(key: str, value: Any) -> list[MeasuredText]:
        rows = list_of_length(len(batches[int(key)]), value)
        return [MeasuredText.from_json(settings.max_branch, row, tracing=tracing, grid=dynamic) for row in rows]

    work = _fingerprint(pair, prompts, settings, dynamic, tracing=tracing)
    done = spread(
        [str(number) for number in range(len(batches))],
        lambda key, on_token: _measure(pair, source, batches[int(key)], settings, on_token, dynamic, tracing=tracing),
        journal=pair.own(journal, work),
        fingerprint=work,
        read=read,
        keep=lambda rows: [row.to_json() for row in rows],
        processes=processes,
        units=settings.gen_len * (1 if dynamic is None else 2),  # to write the texts, and as much again to grow trees along them
        progress=partial(progress, "profiling acceptance"),
    )
    for key, rows in done.items():
        found.update({index: row for (index, _), row in zip(batches[int(key)], rows, strict=True)})
    measured = [found[index] for index in sorted(found)]
    profile = pair.agreed(_profile(pair, prompts, settings, measured, processes.place.size))
    if dynamic is None:
        return profile, measured
    tokens, steps = zip(*(row.grown for row in measured if row.grown is not None), strict=True)
    return replace(profile, dynamic=DynamicAcceptance(dynamic, tokens, np.stack(steps, axis=-1))), measured


def require_fit(pair: Pair | PairInfo, prompts: PromptSet, settings: AcceptanceSettings) -> None:
    """Raise CapacityError or ProfileError for prompts on which these models, which need not be loaded, cannot be profiled."""
    vocabulary = pair.vocabulary_size
    if settings.max_branch > vocabulary and not settings.drafting.kind.replacement:
        raise ProfileError(
            f"`max_branch` is {settings.max_branch}, but the vocabulary has {counted(vocabulary, 'token')}; pass `max_branch` {vocabulary} or less"
        )
    require_text(prompts, settings.method)
    require_positions(pair.target, prompts, settings.gen_len)
    require_drafted({"draft": pair.draft}, prompts)


def _measure(
    pair: Pair,
    source: TextSource,
    batch: Batch,
    settings: AcceptanceSettings,
    on_token: Callable[[int], None],
    dynamic: BudgetGrid | None,
    *,
    tracing: bool,
) -> list[MeasuredText]:
    """Return what was measured on the text of each prompt of a batch."""
    generators = [prompt_generator(settings.seed, index, pair.target.device) for index, _ in batch]
    pixels = pair.pixels(*(prompt for _, prompt in batch))
    streams = [prompt_generator(settings.seed, index, pair.target.device, "children") for index, _ in batch]
    found, done = [MeasuredText([], 0)] * len(batch), 0
    for texts in source.texts(batch, generators, partial(readable, pair.draft), on_token=on_token, pixels=pixels):
        for part in chunks(texts.tokens, pair.target.vocabulary_size):
            rows, valid, tokens = texts.rows[part], texts.valid[part], texts.tokens[part]
            following = tokens[:, tokens.shape[1] - valid.shape[1] :]
            below: list[tuple[list[list[float]], list[int]]] = []
            ranks_below: list[list[NDArray[np.uint32]]] = []
            if valid.shape[1]:
                seen = None if pixels is None else pixels[rows]
                levels = draft_levels(pair, tokens, valid, seen)
                logits, p, own = next(levels), target_chances(pair, tokens, valid, settings, seen), [streams[row] for row in rows]
                chances = rank_chances(logits, p, valid, settings, own)
                for depth, deeper in enumerate(levels, start=1):
                    there = valid[:, depth:]
                    below.append((rank_chances(deeper, p[:, depth:], there, settings, own).sum(1).tolist(), there.sum(1).tolist()))
                    if tracing:
                        ranks_below.append([ranks_of(pair, *one) for one in zip(deeper, following[:, depth:], strict=True)])
            else:  # the draft can read no token behind these prompts
                logits, chances = (torch.empty(len(rows), 0, width) for width in (pair.target.vocabulary_size, settings.max_branch))
            for place, (row, sums, count) in enumerate(zip(rows, chances.sum(1).tolist(), valid.sum(1).tolist(), strict=True)):
                said = grown = None
                length, ended, prompt = texts.lengths[part][place], texts.ended[part][place], batch[row][1]
                if tracing:
                    deeper_ranks = [level[place] for level in ranks_below]
                    said = traced_row(pair, logits[place, :count], following[place, :count], length, eos=ended, deeper=deeper_ranks)
                if dynamic is not None:
                    known = traced_text(pair, prompt, length, eos=ended)
                    text = tokens[place, len(prompt.ids) : len(prompt.ids) + known.drafted + 1].tolist()
                    seen = None if pixels is None else pixels[row]
                    steps = dynamic_steps(pair.draft, pair.vocabulary_size, prompt.ids, text, known, settings.gen_len, dynamic, seen)
                    grown = length - 1, steps
                    done += 1
                    on_token(settings.gen_len + settings.gen_len * done // len(batch))
                found[row] = MeasuredText(sums, count, said, grown, tuple((level[place], counts[place]) for level, counts in below))
    return found


def _profile(
    pair: Pair, prompts: PromptSet, settings: AcceptanceSettings, rows: Sequence[MeasuredText], processes: int
) -> AcceptanceProfile:
    counts = [row.positions for row in rows]
    positions = sum(counts)
    if positions == 0:
        raise ProfileError("no position to measure: the target ended every prompt with its first token; use other prompts")
    probability, errors = ratio(np.array([row.sums for row in rows]), counts)
    if errors is None:
        errors = np.zeros_like(probability)
    deeper = _deeper(rows, len(probability))
    return AcceptanceProfile(
        drafting=settings.drafting.rule,
        temperature=settings.sampling.temperature,
        top_p=settings.sampling.top_p,
        draft_temperature=settings.drafting.sampling(settings.sampling).temperature if settings.drafting.kind.sampled else None,
        draws=settings.draws if settings.drafting.samples(settings.sampling) else None,
        rank_probability=tuple(probability.tolist()),
        none_accepted=max(0.0, 1.0 - float(probability.sum())),
        standard_error=tuple(errors.tolist()),
        positions=positions,
        prompts=len(rows),
        method=settings.method,
        by_depth=_by_depth(pair.draft, tuple(probability.tolist()), deeper),
        deeper=deeper,
        prompt_sums=tuple(tuple(row.sums) for row in rows),
        prompt_positions=tuple(counts),
        prompt_categories=categories if any(categories := tuple(prompt.category for prompt in prompts)) else (),
        prompt_set=prompts.describe(),
        pair_sha256=pair.sha256,
        provenance=pair.provenance(
            temperature=settings.sampling.temperature,
            top_p=settings.sampling.top_p,
            dataset=prompts.label,
            seed=settings.seed,
            processes=processes,
        ),
    )


def _deeper(rows: Sequence[MeasuredText], ranks: int) -> tuple[LevelSums, ...]:
    """Return the sums of each prompt at the levels of a head below the first, as far as a text is long enough for them; none for other drafts."""
    nothing = ([0.0] * ranks, 0)
    found = []
    for depth in range(max(len(row.deeper) for row in rows)):
        sums, positions = zip(*(row.deeper[depth] if len(row.deeper) > depth else nothing for row in rows), strict=True)
        if not any(positions):
            break
        found.append(LevelSums(tuple(map(tuple, sums)), positions))
    return tuple(found)


def _by_depth(draft: Draft, first: tuple[float, ...], deeper: Sequence[LevelSums]) -> tuple[tuple[float, ...], ...] | None:
    """Return the chances of the ranks at each level of a head, of which the first is known; None for a draft whose levels are alike.

    A head that proposes all levels at once has nothing behind the last, where every chance is 0; so it is taken behind the last level that a text
    was long enough for.
    """
    if not isinstance(draft, BoundHead):
        return None
    nothing = () if draft.parallel_levels is None else ((0.0,) * len(first),)
    return (first, *(level.chances for level in deeper), *nothing)


def _fingerprint(pair: Pair, prompts: PromptSet, settings: AcceptanceSettings, dynamic: BudgetGrid | None, *, tracing: bool) -> str:
    where = pair.place, str(pair.target.dtype)
    more = [*(["trace"] if tracing else []), *([] if dynamic is None else [asdict(dynamic)])]
    return fingerprint(pair.describe(), prompts.fingerprint, asdict(settings), *where, *more)
