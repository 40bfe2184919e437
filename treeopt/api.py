"""The functions of `import treeopt`: the loop from two models to a tree and its report, a call for each step.

Every step takes and returns objects; where a file can stand for one, its path can be passed. Settings are keywords, with the defaults of the
command line. Warnings for people are logged.
"""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from treeopt import growmap_making
from treeopt.budget_making import make_budget
from treeopt.optimizer.objective import Objective, seconds_per_token
from treeopt.profiles.acceptance import AcceptanceProfile
from treeopt.profiles.budget_grid import BudgetGrid
from treeopt.profiles.latency import LatencyProfile
from treeopt.profiles.trace import TRACE_SCHEMA, Trace
from treeopt.profiling import acceptance as acceptance_profiling
from treeopt.profiling import latency as latency_profiling
from treeopt.profiling.settings import AcceptanceSettings, LatencySettings
from treeopt.prompting import Progress, complete, prompt_set
from treespec.data.prompts import PromptSet
from treespec.decoding.chosen import ChosenBudget
from treespec.decoding.drafting import Drafting, drafting_of
from treespec.decoding.plans import Plan
from treespec.decoding.rules import Sampling
from treespec.errors import SettingsError
from treespec.evaluation import runner
from treespec.evaluation.chains import chains_of
from treespec.evaluation.made_for import settings_of, taken_line
from treespec.evaluation.predicted import Prediction
from treespec.evaluation.prediction import prediction_of
from treespec.evaluation.report import EvaluationReport
from treespec.evaluation.settings import EvaluationSettings
from treespec.files.reading import StrPath
from treespec.files.writing import check_writable
from treespec.models.pairs import Pair, Target
from treespec.trees.growmap import GrowMap
from treespec.trees.library import load_growmap

_LOG = logging.getLogger("treeopt")


def _silent(what: str, done: int, total: int) -> None:
    """Tell nobody of the progress."""


def profile_acceptance(
    pair: Pair,
    prompts: PromptSet | Sequence[object],
    *,
    temperature: float = Sampling.temperature,
    top_p: float = Sampling.top_p,
    drafting: Drafting | str = Drafting(),
    draws: int = AcceptanceSettings.draws,
    gen_len: int = AcceptanceSettings.gen_len,
    max_branch: int = AcceptanceSettings.max_branch,
    method: str = AcceptanceSettings.method,
    seed: int = AcceptanceSettings.seed,
    batch_size: int | None = AcceptanceSettings.batch_size,
    dynamic: BudgetGrid | None = None,
    trace: StrPath | None = None,
    journal: Path | None = None,
    progress: Progress = _silent,
) -> AcceptanceProfile:
    """Measure how often the target accepts a child of each rank, along its own continuations of prompts or along the prompts' own text.

    `prompts` may be a list, as for the function of that name. `temperature` and `top_p` are the target's; `drafting` says how children are
    chosen, by a rule's name ("topk", "swor", "swr") or whole. See `AcceptanceSettings` for the rest. With `journal`, finished batches survive
    an interruption. `dynamic` names budgets of dynamic trees whose steps are counted on the same texts, for `choose_budget`. `trace` is a file
    that is written for `replay`: what the draft said of every token that the target chose.

    Raises SettingsError, CapacityError, ModelError, ProfileError; OutputError for a `trace` that cannot be written.
    """
    settings = AcceptanceSettings(Sampling(temperature, top_p), drafting_of(drafting), draws, gen_len, max_branch, method, seed, batch_size)
    _require_draft(pair)
    if trace is not None:
        settings.require_traceable()
        check_writable(trace, TRACE_SCHEMA)
    _note_not_applied(pair, settings.sampling)
    found = prompt_set(pair, prompts, gen_len)
    if method != "teacher-forced":
        found = complete(pair, found, gen_len, progress)
    if trace is None:
        return acceptance_profiling.profile_acceptance(pair, found, settings, dynamic=dynamic, journal=journal, progress=progress)
    profile, traced = acceptance_profiling.trace_acceptance(pair, found, settings, dynamic=dynamic, journal=journal, progress=progress)
    traced.write(trace)
    return profile


def profile_latency(
    pair: Pair,
    *,
    sizes: Sequence[int] | None = None,
    widths: Sequence[int] | None = None,
    contexts: Sequence[int] = LatencySettings.contexts,
    repetitions: int = LatencySettings.repetitions,
    temperature: float | Sequence[float] = Sampling.temperature,
    top_p: float | Sequence[float] = Sampling.top_p,
    drafting: Drafting | str | Sequence[Drafting | str] = Drafting(),
    dynamic: bool = LatencySettings.dynamic,
    seed: int = LatencySettings.seed,
    journal: Path | None = None,
    progress: Progress = _silent,
) -> LatencyProfile:
    """Measure how long the target takes per tree size, the draft per level width, and the rest of a step, on the pair's own device.

    `sizes` and `widths` default to those of the device. `contexts` are numbers of tokens in the cache. On CUDA, captured steps are timed.
    Greedy steps (`topk`, temperature 0) and size 1, autoregressive steps, are always timed, and `repetitions` are rounded up to a multiple of 4.
    Sampling and sampled children take other times, so every one of `drafting` (rules by their names, or whole), and dynamic trees with `dynamic`,
    is timed at every `temperature` and `top_p`.

    Raises SettingsError, CapacityError, ModelError, ProfileError.
    """
    _require_draft(pair)
    heats, masses, draftings = _several(temperature), _several(top_p), _several(drafting)
    for name, values in (("temperature", heats), ("top_p", masses), ("drafting", draftings)):
        if not values:
            raise SettingsError(f"`{name}` is an empty list, but steps need one value or more; leave it out for greedy steps")
    settings = LatencySettings(
        _tuple(sizes),
        _tuple(widths),
        _tuple(contexts),
        repetitions,
        seed,
        samplings=tuple(Sampling(heat, mass) for heat in heats for mass in masses),
        draftings=tuple(drafting_of(one) for one in draftings),
        dynamic=dynamic,
    )
    measured = latency_profiling.profile_latency(pair, settings, journal=journal, progress=progress, notice=_LOG.warning)
    if measured.warning is not None:
        _LOG.warning("%s", measured.warning)
    return measured


def grow(
    acceptance: AcceptanceProfile | StrPath | Sequence[AcceptanceProfile | StrPath] | None = None,
    latency: LatencyProfile | StrPath | None = None,
    *,
    trace: Trace | StrPath | None = None,
    size: int | None = None,
    depth: int | None = None,
    max_size: int | None = None,
    max_depth: int | None = None,
    max_branch: int | None = None,
    context: int | None = None,
    extrapolate: bool = False,
    solver: str = "auto",
    smoothing: str = "none",
    objective: Objective = seconds_per_token,
    verifier: str | None = None,
    progress: Progress = _silent,
) -> GrowMap:
    """Return the best growmap for an acceptance profile: the fastest one by a latency profile, or the best of a `size` and a `depth`.

    `size` counts nodes with the root and is exact, `depth` counts edges and is a maximum; the other limits bound the search with a latency
    profile. `context` picks one of its contexts (None: the smallest, else the next larger one); with `extrapolate`, it may also lie beyond them,
    and the times go on along the line through the two largest. `objective` is the cost that the tree is to keep least. What the
    growmap promises is in its `promise`.

    The times are those of the acceptance profile's own rule with a `verifier` (None: sequential for sampled children). Of several acceptance
    profiles of the same models, temperature and top-p, such as one for each rule, the one with the fastest tree is taken; its `drafting` is in
    the growmap's metadata.

    A `trace` of the same pair and sampling, in place of the acceptance profile or beside a single one, tells by cross-validation over its prompts
    whether chances by depth, or replay itself, find faster trees than the chances by rank; its metadata say so under `acceptance_model`.

    Raises SettingsError for limits that say too little, MissingRuleError for a latency profile without the times of a rule, ProfileError,
    OptimizerError, GrowMapError.
    """
    if latency is None and (size is None or depth is None):
        raise SettingsError("without a latency profile the size of the tree must be given; pass `latency`, or `size` and `depth`")
    limits = growmap_making.Limits(size, depth, max_size, max_depth, max_branch)
    how: dict[str, Any] = {
        "context": context,
        "extrapolate": extrapolate,
        "limits": limits,
        "solver": solver,
        "smoothing": smoothing,
        "objective": objective,
    }
    given = () if acceptance is None and trace is not None else _several(acceptance)
    found = growmap_making.generate_fastest(given, latency=latency, verifier=verifier, trace=trace, progress=progress, **how)
    for sentence in growmap_making.notes_of(found):
        _LOG.warning("%s", sentence)
    return found[0].growmap


def choose_budget(
    acceptance: AcceptanceProfile | StrPath,
    latency: LatencyProfile | StrPath,
    *,
    max_size: int | None = None,
    max_depth: int | None = None,
    max_width: int | None = None,
    context: int | None = None,
    extrapolate: bool = False,
) -> ChosenBudget:
    """Return the budget of dynamic trees that decodes fastest: its `plan`, and what it promises.

    Both profiles were measured with `dynamic`: the steps were counted on the texts of the acceptance profile. The limits bound the search, and
    `context` picks one of the latency profile's contexts (None: the smallest, else the next larger one); with `extrapolate`, it may also lie
    beyond them.

    Raises ProfileError for an acceptance profile without such steps, MissingRuleError for a latency profile without such times, OptimizerError.
    """
    limits = {"max_size": max_size, "max_depth": max_depth, "max_width": max_width}
    made = make_budget(acceptance, latency, context=context, extrapolate=extrapolate, **limits)
    for sentence in made.notes:
        _LOG.warning("%s", sentence)
    return made.chosen


def evaluate(
    pair: Target,
    plan: GrowMap | ChosenBudget | Plan | StrPath | None,
    prompts: PromptSet | Sequence[object],
    *,
    against: str | None = None,
    gen_len: int = EvaluationSettings.gen_len,
    max_length: int | None = EvaluationSettings.max_length,
    temperature: float | None = None,
    top_p: float | None = None,
    drafting: Drafting | str | None = None,
    seed: int = EvaluationSettings.seed,
    save_tokens: bool = EvaluationSettings.save_tokens,
    breakdown: bool = EvaluationSettings.breakdown,
    processors: bool = EvaluationSettings.processors,
    sample_texts: int = EvaluationSettings.sample_texts,
    journal: Path | None = None,
    progress: Progress = _silent,
) -> EvaluationReport:
    """Decode prompts with a plan and autoregressively, in turn, and return what was measured beside what the growmap promised.

    `plan` is a growmap (or its file, or the name of one that comes with treeopt), a budget of `choose_budget`, a `SpeculationTree`, a
    `DynamicBudget`, another plan whose drafter is known, or None to decode autoregressively only. `temperature`, `top_p` and `drafting` that are
    None are those that a growmap or a budget was made for, and for other plans greedy decoding with the draft's most likely tokens. `against`
    names chains that run in turn with the tree: "chain", which is the growmap's best one, or "chain:3,5" for chains of these depths;
    `report.beyond_chain` is what the tree is worth beyond the fastest. See `EvaluationSettings` and `profile_acceptance` for the rest.

    Raises SettingsError, CapacityError, ModelError, GrowMapError.
    """
    grown = load_growmap(plan) if isinstance(plan, str | os.PathLike) else plan
    promising = grown if isinstance(grown, GrowMap | ChosenBudget) else None
    chosen = _chosen({} if promising is None else promising.metadata, temperature, top_p, drafting)
    settings = EvaluationSettings(gen_len, max_length, *chosen, seed, save_tokens, breakdown, processors, sample_texts)
    tree = grown.plan if isinstance(grown, GrowMap | ChosenBudget) else grown
    predicted = None if promising is None else _prediction(promising, pair, settings)
    _note_not_applied(pair, settings.sampling, processed=processors)
    chains = chains_of(against, grown if isinstance(grown, GrowMap) else None)
    largest = max(1 if one is None else one.size for one in (tree, *chains))
    room = None if max_length is None else max_length - gen_len - largest
    found = complete(pair, prompt_set(pair, prompts, gen_len), gen_len, progress, room)
    return runner.evaluate(
        *(pair, tree, found, settings), against=chains, predicted=predicted, journal=journal, progress=progress, notice=_LOG.warning
    )


def _tuple(values: Any) -> Any:
    """Return several values as settings have them, and anything else as it is, for their checks."""
    return tuple(values) if isinstance(values, Iterable) else values


def _several(given: Any) -> tuple[Any, ...]:
    """Return several values as a tuple, and one as a tuple of it; texts and paths are one."""
    one = isinstance(given, str | os.PathLike) or not isinstance(given, Iterable)
    return (given,) if one else tuple(given)


def _chosen(
    metadata: Mapping[str, Any], temperature: float | None, top_p: float | None, drafting: Drafting | str | None
) -> tuple[Sampling, Drafting]:
    """Return the sampling and the drafting of a run: what is given, else what a growmap with these metadata was made for, else the defaults."""
    given: dict[str, Any] = {"temperature": temperature, "top_p": top_p}
    own = None if drafting is None else drafting_of(drafting)
    if own is not None:
        given |= {"drafting": own.rule, "draft_temperature": own.temperature, "verifier": own.verifier}
    known = {name: value for name, value in given.items() if value is not None or (own is not None and name == "draft_temperature")}
    taken = settings_of(metadata, known)
    if (said := taken_line(taken)) is not None:
        _LOG.info("%s", said)
    named = {"temperature": Sampling.temperature, "top_p": Sampling.top_p, **taken, **known}
    if own is None:
        own = Drafting(named.get("drafting", Drafting.rule), named.get("draft_temperature"), named.get("verifier", Drafting.verifier))
    return Sampling(named["temperature"], named["top_p"]), own


def _require_draft(pair: Target) -> None:
    """Raise SettingsError for a target without a draft."""
    if not isinstance(pair, Pair):
        raise SettingsError(
            f"`pair` is a {type(pair).__name__}, but profiles are of a target and its draft; pass a Pair, as load_pair returns"
        )


def _note_not_applied(pair: Target, sampling: Sampling, *, processed: bool = False) -> None:
    """Log which settings of the target's generation config are not followed."""
    left = pair.target.not_applied(sampled=not sampling.greedy, processed=processed)
    if left is not None:
        _LOG.warning("%s", left)


def _prediction(growmap: GrowMap | ChosenBudget, pair: Target, settings: EvaluationSettings) -> Prediction | None:
    """Return what a growmap promises for a run; what of it does not hold is logged."""
    record = pair.provenance()
    names = {role: name.partition("@")[0] for role, name in record["models"].items()}
    held = record["threads"], record["tensor_parallel"]
    predicted, said = prediction_of(growmap, names, record["gpu"] or record["cpu"], settings.sampling, settings.drafting, *held)
    for sentence in said:
        _LOG.warning("%s", sentence)
    return predicted
