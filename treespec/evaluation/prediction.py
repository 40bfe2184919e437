"""The prediction of a growmap, as far as it holds for a run: it was made for certain models, a sampling, a drafting and a device. No torch."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from treespec.decoding.chosen import ChosenBudget
from treespec.decoding.drafting import Drafting
from treespec.decoding.rules import RULES, TOPK, Sampling
from treespec.decoding.step_rule import GREEDY, StepRule, rule_of
from treespec.decoding.verifiers import AT_LEAST_SEQUENTIAL, traversal_note
from treespec.errors import counted, listed
from treespec.evaluation.predicted import Prediction
from treespec.files.provenance import Provenance
from treespec.trees.growmap import GrowMap


def prediction_of(
    growmap: GrowMap | ChosenBudget,
    models: Mapping[str, str],
    device: str | None,
    sampling: Sampling,
    drafting: Drafting,
    threads: int | None = None,
    tensor_parallel: int | None = None,
) -> tuple[Prediction | None, tuple[str, ...]]:
    """Return what a growmap, or a chosen budget, promises for a run of its trees, and sentences that say what of it does not hold there and is left out.

    `models` are the names of the run's models by role, and `device` is the name of its GPU or processor as records have it (None: unknown);
    `threads` are those that torch has on a processor, and `tensor_parallel` is the number of processes that hold the target (None: one).
    For other models, another sampling or another drafting than those that the growmap was made for, the prediction is None, and so it is for
    a verifier of sampled children that accepts other shares than residual chains do; for
    another device, other threads or another number of processes, or steps of another rule than those that were timed, it has no time per step.
    """
    promised, made = growmap.promise, growmap.noun
    others = [*_other_models(growmap.provenance, models), *_other_conditions(growmap.metadata, sampling, drafting)]
    if others:
        return None, (f"the {made} was made for {listed(others)}: its prediction does not hold here and is not shown",)
    sampled = growmap.plan.sampled and drafting.samples(sampling)
    if sampled and drafting.verifier not in AT_LEAST_SEQUENTIAL:
        return None, (
            f"the {made}'s prediction is for {Drafting.verifier} verification, and {drafting.verifier} accepts other shares of sampled children: "
            "it does not hold here and is not shown",
        )
    said = []
    if promised.tokens_per_step is not None and sampled and isinstance(growmap, GrowMap):
        note = traversal_note(drafting.verifier, growmap.tree)
        said += [] if note is None else [f"the predicted tokens per step are {note}"]
    seconds = promised.seconds_per_step
    elsewhere = None if seconds is None else _elsewhere(growmap.provenance, device, threads, tensor_parallel)
    other = None if seconds is None else _other_rule(growmap.metadata, StepRule.of(sampling, drafting, growmap.plan.drafter))
    if elsewhere is not None:
        said.append(f"the {made} was timed on {elsewhere}: its predicted time per step does not hold here and is not shown")
    elif other is not None:
        said.append(f"the {made} was timed with other steps: {other}: its predicted time per step does not hold here and is not shown")
    known = Prediction(
        promised.tokens_per_step, rank_probability=promised.rank_probability, tokens_per_step_interval=promised.tokens_per_step_interval
    )
    if elsewhere is not None or other is not None:
        return known, tuple(said)
    if seconds is not None and (largest := growmap.metadata.get("extrapolated_from")) is not None:
        said.append(
            f"the {made}'s predicted time per step is extrapolated from context {largest} to {growmap.metadata.get('context')}: it is no measurement"
        )
    return replace(
        known,
        seconds_per_step=seconds,
        speedup=promised.speedup,
        seconds_per_step_interval=promised.seconds_per_step_interval,
        speedup_interval=promised.speedup_interval,
    ), tuple(said)


def _other_models(made: Provenance | None, models: Mapping[str, str]) -> Iterator[str]:
    """Yield the models that a growmap was made for and that do not run. Folders are known by their last part, as in `Provenance`."""
    for role, used in models.items():
        known = "" if made is None else made.models.get(role, "").partition("@")[0]
        if known and Path(known).name != Path(used).name:
            yield f"the {role} {known} (this run has {Path(used).name})"


def _elsewhere(made: Provenance | None, device: str | None, threads: int | None, processes: int | None) -> str | None:
    """Return what a growmap's times were measured on and what runs, or None if they are the same as far as is known."""
    return _other_device(made, device) or _other_threads(made, threads) or (None if device is None else _other_split(made, processes))


def _other_split(made: Provenance | None, processes: int | None) -> str | None:
    """Return how many processes held the target for a growmap's times, and how many do in this run, or None in the same cases."""
    known = None if made is None or (made.gpu or made.cpu) is None else made.tensor_parallel or 1
    runs = processes or 1
    return None if known is None or known == runs else f"a target held by {counted(known, 'process', 'processes')} (this run has {runs})"


def _other_device(made: Provenance | None, device: str | None) -> str | None:
    """Return the device that a growmap's times were measured on and the one that runs, or None if one is unknown or they are the same."""
    known = None if made is None else made.gpu or made.cpu
    return None if known is None or device is None or device == known else f"{known} (this run has {device})"


def _other_threads(made: Provenance | None, threads: int | None) -> str | None:
    """Return the threads that a growmap's times were measured with on a processor, and those that run, or None in the same cases."""
    known = None if made is None or made.gpu is not None else made.threads
    return None if known is None or threads is None or threads == known else f"{counted(known, 'thread')} (this run has {threads})"


def _other_rule(promised: Mapping[str, Any], runs: StepRule) -> str | None:
    """Return the rule that a growmap's times are of and the one that runs, or None if they are the same. Older growmaps have none but `GREEDY`."""
    try:
        timed = rule_of(promised["timed_rule"]) if "timed_rule" in promised else GREEDY
    except (TypeError, ValueError):
        return f"a rule that is unknown here (this run has: {runs.name})"
    return None if timed == runs else f"{timed.name} (this run has: {runs.name})"


def _other_conditions(promised: Mapping[str, Any], sampling: Sampling, drafting: Drafting) -> Iterator[str]:
    """Yield the sampling and the drafting that a growmap's acceptance was profiled with, where the run has others."""
    used = drafting.sampling(sampling).temperature
    conditions: list[tuple[str, str | float | None, str | float]] = [
        ("temperature", promised.get("temperature"), sampling.temperature),
        ("top_p", promised.get("top_p") if sampling.temperature > 0 else None, sampling.top_p),
    ]
    made_at, rule = promised.get("draft_temperature"), promised.get("drafting")
    if rule in RULES:
        made_by, run_by = _effective(rule, made_at), _effective(drafting.rule, used)
        conditions.append(("drafting", made_by, run_by))
        if made_by == run_by and RULES[run_by].sampled:
            conditions.append(("draft_temperature", made_at, used))
    for name, made_for, runs in conditions:
        if made_for is not None and made_for != runs:
            yield f"`{name}` {_shown(made_for)} (this run has {_shown(runs)})"


def _effective(rule: str, temperature: float | None) -> str:
    """Return the rule that gives the same children: one that is not random at this draft temperature drafts the most likely tokens."""
    return rule if temperature is None or RULES[rule].is_random(temperature) else TOPK.name


def _shown(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:g}"
