"""The kinds of things that are compared: the figures of each, how differences come by their intervals, and what describes a thing. No torch."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from treeopt.comparing.comparison import Compared, Estimated, Form
from treeopt.profiles.acceptance import AcceptanceProfile
from treeopt.profiles.intervals import Interval, difference, of_chance, of_mean
from treeopt.profiles.latency import LatencyProfile
from treeopt.profiles.ratio import error_of, ratio_difference
from treeopt.profiles.samples import interval_of
from treespec.decoding.chosen import ChosenBudget
from treespec.errors import counted, listed
from treespec.evaluation import figures
from treespec.evaluation.report import EvaluationReport
from treespec.trees.growmap import GrowMap, Promise

Found = tuple[tuple[Compared, ...], tuple[bool, ...], tuple[str, ...]]
"""Figures, whether each of the others is paired with the first by prompt (empty: there are no prompts), and sentences on how they are to be read."""

_CHANCE = "difference: the other less the first, with its 95 % interval; one whose interval holds 0 may be chance"


@dataclass(frozen=True)
class Kind:
    """One kind of things: its name, a noun with its article, and two functions."""

    name: str
    noun: str
    figures: Callable[[Sequence[Any]], Found]
    """Returns the figures of several things of this kind."""
    describe: Callable[[Any], Mapping[str, Any]]
    """Returns the settings of a thing that may differ, by name."""


def _compared(key: str, form: Form, values: Sequence[Estimated], ends: Sequence[Interval | None] | None = None, at: Any = None) -> Compared:
    """Return a figure with its differences. Their intervals are those given, or those of independent figures."""
    first, *others = values
    found = []
    for place, other in enumerate(others):
        if first.value is None or other.value is None:
            found.append(Estimated())
            continue
        known = ends[place] if ends is not None else _independent(first, other)
        found.append(Estimated(other.value - first.value, known))
    return Compared(key, form, tuple(values), tuple(found), at or {})


def _independent(first: Estimated, other: Estimated) -> Interval | None:
    if first.value is None or other.value is None or first.interval is None or other.interval is None:
        return None
    return difference(other.value, other.interval, first.value, first.interval)


_REPORT = {
    "tokens_per_step": Form("tokens per step"),
    "seconds_per_step": Form("ms per step", factor=1e3),
    "seconds_per_token": Form("ms per token", factor=1e3),
    "baseline_seconds_per_token": Form("ms per token, autoregressive", factor=1e3),
    "speedup": Form("speed-up"),
    "speedup_with_prompts": Form("speed-up with prompts"),
}


def _reports(reports: Sequence[EvaluationReport]) -> Found:
    """Return the figures of reports. Intervals of differences are bootstrapped over prompts: the same draws for both where the prompts are the same."""
    first, *others = reports
    paired = tuple(_same_prompts(first.prompts, one.prompts) and len(one.results) == len(first.results) for one in others)
    found = []
    for key, form in _REPORT.items():
        values = [Estimated(getattr(report, key), report.intervals[key]) for report in reports]
        figure = getattr(figures, key)
        ends = [
            figures.difference_interval(one.columns, first.columns, figure, paired=same) for one, same in zip(others, paired, strict=True)
        ]
        found.append(_compared(key, form, values, ends))
    return tuple(found), paired, (_CHANCE, *_unpaired(paired), *_other_speed(found))


def _other_speed(found: Sequence[Compared]) -> list[str]:
    """Return a sentence if autoregressive steps, which no tree changes, took other times by more than chance: then times are not those of the trees."""
    alone = next(figure for figure in found if figure.key == "baseline_seconds_per_token")
    if not any(one.interval is not None and (one.interval[0] > 0 or one.interval[1] < 0) for one in alone.differences):
        return []
    return [
        "autoregressive steps, which no tree changes, did not take the same time in all runs: the machine was not equally fast, or texts are longer; "
        "compare speed-ups and tokens per step, not times"
    ]


def _same_prompts(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two sets of prompts are the same, token for token, as far as their records tell."""
    return bool(one.get("sha256")) and one.get("sha256") == other.get("sha256")


def _unpaired(paired: Sequence[bool]) -> list[str]:
    if all(paired):
        return []
    return ["the prompts are not the same, so both sets count as independent; the same prompts give narrower intervals"]


def _acceptances(profiles: Sequence[AcceptanceProfile]) -> Found:
    """Return the chance of each rank and of none, by Student's t over prompts; prompt by prompt where prompts and their sums are known and the same.

    Of heads, it is also the chance of the first choice at each deeper level that all of them have.
    """
    ranks = max(len(profile.rank_probability) for profile in profiles)
    used = [rank for rank in range(ranks) if rank == 0 or any(_chance(profile, rank) for profile in profiles)]
    first, *others = profiles
    paired = tuple(_paired_acceptance(first, one) for one in others)
    found = []
    for rank in (*used, None):
        values = [_rank_estimate(profile, rank) for profile in profiles]
        ends = [
            _paired_ends(first, one, rank) if same else _unpaired_ends(first, one, rank) for one, same in zip(others, paired, strict=True)
        ]
        form = Form("no rank accepted" if rank is None else f"rank {rank} accepted", 4)
        key = "none_accepted" if rank is None else "rank_probability"
        found.append(_compared(key, form, values, ends, None if rank is None else {"rank": rank}))
    return (*found, *_first_choices(profiles, paired)), paired, (_CHANCE, *_unpaired(paired))


def _first_choices(profiles: Sequence[AcceptanceProfile], paired: Sequence[bool]) -> Iterator[Compared]:
    """Yield the chance of the first choice at each level below the first."""
    first, *others = profiles
    for depth in range(1, min(len(profile.by_depth or ()) for profile in profiles)):
        values = [_first_choice(profile, depth) for profile in profiles]
        if not any(one.value for one in values):
            continue  # nothing is proposed there
        ends = [
            _paired_first_choice(first, one, depth) if same else _independent(values[0], value)
            for one, same, value in zip(others, paired, values[1:], strict=True)
        ]
        yield _compared("by_depth", Form(f"rank 0 accepted at level {depth + 1}", 4), values, ends, {"level": depth + 1, "rank": 0})


def _first_choice_parts(profile: AcceptanceProfile, depth: int) -> Any:
    """Return what each prompt adds to the error of the first choice's chance at a level, [prompts]; None if it is not known."""
    levels = profile.levels
    return levels[depth].effects(np.eye(len(profile.rank_probability))[0]) if profile.deeper and depth < len(levels) else None


def _first_choice(profile: AcceptanceProfile, depth: int) -> Estimated:
    assert profile.by_depth is not None  # only such depths are asked for
    value, parts = profile.by_depth[depth][0], _first_choice_parts(profile, depth)
    return Estimated(value, None if parts is None else of_chance(value, error_of(parts), len(parts)))


def _paired_first_choice(first: AcceptanceProfile, other: AcceptanceProfile, depth: int) -> Interval | None:
    base, own = (_first_choice_parts(profile, depth) for profile in (first, other))
    values = [_first_choice(profile, depth).value for profile in (first, other)]
    if base is None or own is None or values[0] is None or values[1] is None:
        return None
    return of_mean(values[1] - values[0], error_of(own - base), len(own))


def _chance(profile: AcceptanceProfile, rank: int | None) -> float | None:
    if rank is None:
        return profile.none_accepted
    return profile.rank_probability[rank] if rank < len(profile.rank_probability) else None


def _columns(profile: AcceptanceProfile, rank: int | None) -> Any:
    """Return the sums of a rank's chances per prompt, [prompts]; those of no rank for None."""
    sums = np.array(profile.prompt_sums, dtype=np.float64)
    return np.array(profile.prompt_positions) - sums.sum(1) if rank is None else sums[:, rank]


def _error(profile: AcceptanceProfile, rank: int | None) -> float | None:
    """Return the standard error of a chance; None if it is not known."""
    if rank is not None:
        return profile.standard_error[rank] if rank < len(profile.standard_error) else None
    if len(profile.prompt_sums) < 2:
        return None
    sums = _columns(profile, None)
    return ratio_difference(sums, profile.prompt_positions, np.zeros_like(sums), profile.prompt_positions)


def _rank_estimate(profile: AcceptanceProfile, rank: int | None) -> Estimated:
    value, error = _chance(profile, rank), _error(profile, rank)
    return Estimated(value, None if value is None or error is None or profile.prompts < 2 else of_chance(value, error, profile.prompts))


def _paired_acceptance(one: AcceptanceProfile, other: AcceptanceProfile) -> bool:
    """Return whether two profiles hold the sums of the same prompts."""
    return _same_prompts(one.prompt_set or {}, other.prompt_set or {}) and len(one.prompt_sums) == len(other.prompt_sums) > 1


def _paired_ends(first: AcceptanceProfile, other: AcceptanceProfile, rank: int | None) -> Interval | None:
    value, base = _chance(other, rank), _chance(first, rank)
    if value is None or base is None:
        return None
    error = ratio_difference(_columns(other, rank), other.prompt_positions, _columns(first, rank), first.prompt_positions)
    return of_mean(value - base, error, len(other.prompt_sums))


def _unpaired_ends(first: AcceptanceProfile, other: AcceptanceProfile, rank: int | None) -> Interval | None:
    return _independent(_rank_estimate(first, rank), _rank_estimate(other, rank))


def _latencies(profiles: Sequence[LatencyProfile]) -> Found:
    """Return the medians of the points that all profiles have. Intervals of differences are those of independent figures."""
    found, left_out = [], 0
    for what, unit, key in (("target", "size", "target_seconds"), ("draft", "width", "draft_seconds")):
        points = [{(s.context, s.nodes): s for s in getattr(profile, what)} for profile in profiles]
        common = sorted(set(points[0]).intersection(*points[1:]))
        left_out += len(set().union(*points)) - len(common)
        for context, nodes in common:
            samples = [own[context, nodes] for own in points]
            values = [Estimated(s.median_seconds, s.interval) for s in samples]
            name = f"{what} pass, ms: {unit} {nodes}, context {context}"
            found.append(_compared(key, Form(name, factor=1e3), values, at={unit: nodes, "context": context}))
    rests = [profile.overhead_seconds for profile in profiles]
    values = [Estimated(float(np.median(rest)), interval_of(rest)) for rest in rests]
    found.append(_compared("overhead_seconds", Form("overhead per step, ms", factor=1e3), values))
    notes = [f"{counted(left_out, 'point is', 'points are')} not in all profiles and left out"] if left_out else []
    return tuple(found), (), (_CHANCE, *notes)


_PROMISE = {
    "expected_tokens_per_step": (Form("expected tokens per step", 4), "tokens_per_step"),
    "predicted_seconds_per_step": (Form("predicted ms per step", factor=1e3), "seconds_per_step"),
    "predicted_speedup": (Form("predicted speed-up"), "speedup"),
}


def _growmaps(growmaps: Sequence[GrowMap]) -> Found:
    """Return the shapes of growmaps and what they promise. Intervals of differences are those of independent figures."""
    shapes = (("size", "size (root included)"), ("depth", "depth"), ("max_branch", "most children"))
    found = [_compared(key, Form(name, 0), [Estimated(float(getattr(growmap.tree, key))) for growmap in growmaps]) for key, name in shapes]
    promised, notes = _promised([growmap.promise for growmap in growmaps], "growmaps")
    paths = [set(growmap.tree.paths) for growmap in growmaps]
    shared = [str(len(own & paths[0])) for own in paths[1:]]
    shape = f"of the {counted(len(paths[0]), 'path')} of the first tree, {listed(shared)} are in the others, in their order"
    return (*found, *promised), (), (shape, *notes)


def _budgets(budgets: Sequence[ChosenBudget]) -> Found:
    """Return the limits of budgets and what they promise. Intervals of differences are those of independent figures."""
    limits = (("size", "size (root included)"), ("depth", "depth"), ("width", "level width"))
    found = [_compared(key, Form(name, 0), [Estimated(float(getattr(one.plan, key))) for one in budgets]) for key, name in limits]
    promised, notes = _promised([one.promise for one in budgets], "budgets")
    return (*found, *promised), (), notes


def _promised(promises: Sequence[Promise], things: str) -> tuple[list[Compared], tuple[str, ...]]:
    """Return what is promised, as far as anything promises it, and a sentence on intervals if there are any."""
    found = []
    for key, (form, attribute) in _PROMISE.items():
        values = [Estimated(getattr(promise, attribute), getattr(promise, f"{attribute}_interval")) for promise in promises]
        if any(value.value is not None for value in values):
            found.append(_compared(key, form, values))
    per_token = [Estimated(p.seconds_per_step / p.tokens_per_step if p.seconds_per_step and p.tokens_per_step else None) for p in promises]
    if any(value.value is not None for value in per_token):
        found.append(_compared("predicted_seconds_per_token", Form("predicted ms per token", factor=1e3), per_token))
    gaps = [Estimated(promise.certified_gap) for promise in promises]
    if any(value.value is not None for value in gaps):
        found.append(_compared("certified_gap", Form("certified gap to the best tree, %", 2, 100), gaps))
    if not any(one.interval is not None for figure in found for one in figure.differences):
        return found, ()
    note = f"intervals of differences take the promises as independent: of {things} that are made from the same profiles, they are too wide"
    return found, (note,)


def _described_report(report: EvaluationReport) -> dict[str, Any]:
    tree, prompts, settings, record = report.tree or {}, report.prompts, report.settings, report.provenance
    return {
        "mode": report.mode,
        **{f"tree_{key}": tree.get(key) for key in ("size", "depth", "width")},
        **{key: None if report.mode == "baseline" else settings.get(key) for key in ("drafting", "draft_temperature")},
        "verifier": report.verifier,
        **_rows(prompts),
        **{key: settings.get(key) for key in ("gen_len", "seed", "engine", "processors")},
        **_software(record),
    }


def _described_acceptance(profile: AcceptanceProfile) -> dict[str, Any]:
    named = {key: getattr(profile, key) for key in ("drafting", "draft_temperature", "draws", "positions")}
    return {**named, "ranks": len(profile.rank_probability), **_rows(profile.prompt_set or {}), **_software(profile.provenance or {})}


def _described_latency(profile: LatencyProfile) -> dict[str, Any]:
    contexts, rules = (", ".join(map(str, profile.contexts)), "; ".join(rule.name for rule in profile.held))
    return {"contexts": contexts, "rules": rules, **_software(profile.provenance or {})}


def _described_promise(growmap: GrowMap | ChosenBudget) -> dict[str, Any]:
    record = {} if growmap.provenance is None else growmap.provenance.to_json()
    known = ("solver", "smoothing", "drafting", "draft_temperature", "context", "profiled_start", "profiled_end")
    return {**{key: growmap.metadata.get(key) for key in known}, **_software(record)}


def _rows(prompts: Mapping[str, Any]) -> dict[str, Any]:
    start, end = prompts.get("start"), prompts.get("end")
    return {
        **{key: prompts.get(key) for key in ("prompts", "prompt_len", "chat")},
        "rows": None if start is None or end is None else f"{start} to {end - 1}",
    }


def _software(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: record.get(key) for key in ("treeopt", "torch", "transformers", "driver")}


KINDS: Mapping[type, Kind] = {
    GrowMap: Kind("growmap", "a growmap", _growmaps, _described_promise),
    ChosenBudget: Kind("budget", "a budget of dynamic trees", _budgets, _described_promise),
    AcceptanceProfile: Kind("acceptance", "an acceptance profile", _acceptances, _described_acceptance),
    LatencyProfile: Kind("latency", "a latency profile", _latencies, _described_latency),
    EvaluationReport: Kind("evaluation", "a report of an evaluation", _reports, _described_report),
}
"""The kinds, by the type of the thing."""
