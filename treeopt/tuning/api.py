"""`treeopt.tune`: the whole loop for people who have loaded their models, with keywords in place of options."""

import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from treeopt.prompting import Progress, complete, prompt_set
from treeopt.tuning.prompts import divided
from treeopt.tuning.result import Tuning
from treeopt.tuning.run import tune as run
from treeopt.tuning.settings import TuneSettings
from treespec.data.prompts import PromptSet
from treespec.decoding.drafting import Drafting, drafting_of
from treespec.decoding.rules import Sampling
from treespec.errors import SettingsError
from treespec.files.reading import StrPath
from treespec.models.pairs import Pair

_LOG = logging.getLogger("treeopt")


def tune(
    pairs: Pair | Sequence[Pair],
    prompts: PromptSet | Sequence[object],
    output: StrPath,
    *,
    temperature: float | Sequence[float] = Sampling.temperature,
    top_p: float | Sequence[float] = Sampling.top_p,
    drafting: Drafting | str | Sequence[Drafting | str] = Drafting(),
    choose_prompts: int = TuneSettings.choose_prompts,
    evaluate_prompts: int = TuneSettings.evaluate_prompts,
    gen_len: int = TuneSettings.gen_len,
    max_branch: int = TuneSettings.max_branch,
    draws: int = TuneSettings.draws,
    sizes: Sequence[int] | None = None,
    widths: Sequence[int] | None = None,
    context: int | None = None,
    repetitions: int = TuneSettings.repetitions,
    max_size: int | None = None,
    max_depth: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    minutes: float | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Tuning:
    """Profile, grow, choose and evaluate, and return the result; `output` is a folder that is written, from which an interrupted run goes on.

    `pairs` are one pair, or several drafts beside one target. Every `temperature`, `top_p` and `drafting` (rules by their names, or whole) is
    a candidate with every draft; of several, the one with the most expected tokens per second is chosen, on `choose_prompts` of the
    prompts. `evaluate_prompts` others are decoded in the end, and the rest is profiled. With `minutes`, fewer prompts are profiled than there are
    if need be, and the time goes where the uncertainty is largest. See `TuneSettings` and `profile_acceptance` for the others.

    Raises SettingsError, CapacityError, ModelError, ProfileError; OutputError for a folder that was made in another way.
    """
    given = (pairs,) if isinstance(pairs, Pair) else tuple(pairs)
    if not given or not all(isinstance(pair, Pair) for pair in given) or any(pair.target is not given[0].target for pair in given):
        raise SettingsError("`pairs` must be a Pair, or several of one loaded target; use treespec.models.pairs.load_drafts for the drafts")
    heats, masses = _several(temperature), _several(top_p)
    settings = TuneSettings(
        tuple(Sampling(heat, mass) for heat in heats for mass in masses),
        tuple(drafting_of(one) for one in _several(drafting)),
        choose_prompts,
        evaluate_prompts,
        gen_len,
        max_branch,
        draws,
        _tuple(sizes),
        _tuple(widths),
        context,
        repetitions,
        max_size,
        max_depth,
        seed,
        batch_size,
        minutes,
    )
    found = complete(given[0], prompt_set(given[0], prompts, gen_len), gen_len, progress)
    parts = divided(found, None, settings, len(given))
    record = {
        "target": given[0].target.name,
        "draft": [pair.draft.name for pair in given],
        "dataset": found.label,
        "temperature": list(heats),
        "top_p": list(masses),
        "drafting": list(dict.fromkeys(one.rule for one in settings.draftings)),
        "verifier": list(dict.fromkeys(one.verifier for one in settings.draftings)),
        "draft_temperature": next((one.temperature for one in settings.draftings if one.temperature is not None), None),
        "choose_prompts": choose_prompts,
        "evaluate_prompts": evaluate_prompts,
        "gen_len": gen_len,
        "max_branch": max_branch,
        "draws": draws,
        "sizes": sizes and list(sizes),
        "widths": widths and list(widths),
        "context": context,
        "repetitions": repetitions,
        "max_size": max_size,
        "max_depth": max_depth,
        "seed": seed,
        "batch_size": batch_size,
        "minutes": minutes,
    }
    return run(given, parts, Path(output), settings, record=record, progress=progress, notice=_LOG.warning)


def _tuple(values: Any) -> Any:
    """Return several values as settings have them, and anything else as it is, for their checks."""
    return tuple(values) if isinstance(values, Iterable) else values


def _several(given: Any) -> tuple[Any, ...]:
    """Return several values as a tuple, and one as a tuple of it; texts are one."""
    one = isinstance(given, str | os.PathLike) or not isinstance(given, Iterable)
    return (given,) if one else tuple(given)
