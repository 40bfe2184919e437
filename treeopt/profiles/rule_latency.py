"""RuleLatency: what a latency profile holds for one rule of steps: its draft levels, and whole steps of a few typical trees."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from treeopt.profiles.latency_model import LatencyModel
from treeopt.profiles.rest import Fit, Rest, chain_of, fit, longest_chain, numbers_of
from treeopt.profiles.samples import LatencySample, Pick, check_count, check_samples, check_seconds, sample_entry, sample_of
from treespec.decoding.plans import DynamicBudget
from treespec.decoding.step_rule import GREEDY, TREE, StepRule, rule_of
from treespec.errors import ProfileError, SettingsError, TreeError
from treespec.files.fields import count, listed, mapping, numbers
from treespec.trees.tree import SpeculationTree


@dataclass(frozen=True)
class StepSample:
    """Raw seconds of whole steps with one plan, after `context` cached tokens."""

    plan: SpeculationTree | DynamicBudget
    context: int
    seconds: tuple[float, ...]


@dataclass(frozen=True)
class RuleLatency:
    """The times of one rule. What is empty is that of the whole profile, which was measured with `topk` at temperature 0.

    - `draft`: draft passes with the choice of children by this rule, by level width; `root`: those of the root's level, by the level width of
      dynamic trees, which choose as many children of it; `below`: those over one node below the root of a tree, if the draft is a head, to
      which the root is another matter.
    - `steps`: whole steps. What they take beside passes is fitted as a `Rest`. `GREEDY` may have none, as in older files: its rest is the profile's
      overhead then.

    Raises ProfileError.
    """

    rule: StepRule
    draft: tuple[LatencySample, ...] = ()
    root: tuple[LatencySample, ...] = ()
    autoregressive_overhead_seconds: tuple[float, ...] = ()
    steps: tuple[StepSample, ...] = ()
    below: tuple[LatencySample, ...] = ()

    def __post_init__(self) -> None:
        name = f"rule {self.rule.name}:"
        for what, samples in self._levels.items():
            if samples:
                check_samples(f"{name} {what}", "width", samples)
        if self.below and (self.rule.mode != TREE or any(sample.nodes != 1 for sample in self.below)):
            raise ProfileError(f"{name} below is of other levels than those of one node of trees; profile it again")
        if self.autoregressive_overhead_seconds:
            check_seconds(f"{name} autoregressive_overhead_seconds", self.autoregressive_overhead_seconds, least=0.0)
        check_count(f"{name} steps", self.steps, "trees")
        for step in self.steps:
            if step.plan.drafter != self.rule.mode:
                raise ProfileError(f"{name} it has a step of a {step.plan.drafter} plan; keep plans of its own mode, {self.rule.mode}")
            if step.context < 0:
                raise ProfileError(f"{name} a step has context {step.context}, but a context is 0 or more")
            check_seconds(f"{name} a step of {step.plan.size} nodes", step.seconds)
        if self.rule != GREEDY and not self.steps:
            raise ProfileError(f"{name} it has no steps, and those of other rules take other times; profile it again")
        if self.rule.mode == DynamicBudget.drafter and not (self.draft and self.root):
            raise ProfileError(f"{name} it needs draft and root of its own; profile dynamic trees again")
        if self.rule.levels != GREEDY.levels and not self.draft:
            raise ProfileError(f"{name} it has no draft levels, and sampled children take other times; profile it again")
        if self.rule.alone != GREEDY.alone and not self.autoregressive_overhead_seconds:
            raise ProfileError(
                f"{name} it has no autoregressive_overhead_seconds, and a target that samples takes other times; profile it again"
            )

    @property
    def _levels(self) -> dict[str, tuple[LatencySample, ...]]:
        """The draft passes that were measured for this rule alone, by their keys in the file."""
        return {"draft": self.draft, "root": self.root, "below": self.below}

    @property
    def samples(self) -> tuple[tuple[float, ...], ...]:
        """The seconds of every point that was measured for this rule alone."""
        own = self.autoregressive_overhead_seconds
        levels = (sample.seconds for samples in self._levels.values() for sample in samples)
        return (*levels, *(step.seconds for step in self.steps), *([own] if own else []))

    def on(self, model: LatencyModel, of: Pick = statistics.median) -> LatencyModel:
        """Return the times of this rule at the context of `model`, which has those of the whole profile there. `of` picks one of samples."""
        own = self.autoregressive_overhead_seconds
        alone = of(own) if own else model.autoregressive_overhead_seconds
        model = replace(model, rule=self.rule, autoregressive_overhead_seconds=model.overhead_seconds if alone is None else alone)
        if self.draft:
            model = replace(model, draft=times_of(self.draft, model.context, "draft", of))
        if self.root:
            model = replace(model, root=times_of(self.root, model.context, "root", of))
        if self.below:
            ((_, below),) = times_of(self.below, model.context, "draft below the root", of)
            model = replace(model, below=below)
        return model if not self.steps else replace(model, **_fitted(self.rule, self.steps, model, of))

    def to_json(self) -> dict[str, Any]:
        """Return the entry of the profile's file."""
        data: dict[str, Any] = {"rule": self.rule.to_json()}
        for key, samples in self._levels.items():
            if samples:
                data[key] = [sample_entry(sample, "width") for sample in samples]
        if self.autoregressive_overhead_seconds:
            data["autoregressive_overhead_seconds"] = list(self.autoregressive_overhead_seconds)
        if self.steps:
            data["steps"] = [s.plan.describe() | {"context": s.context, "seconds": list(s.seconds)} for s in self.steps]
        return data


def rule_latency_of(value: Any) -> RuleLatency:
    """Return the entry of a profile's file. Raises TypeError, ValueError, ProfileError."""
    item = mapping(value)
    draft, root, below = (tuple(sample_of(entry, "width") for entry in listed(item.get(key, []))) for key in ("draft", "root", "below"))
    return RuleLatency(
        rule=rule_of(item.get("rule")),
        draft=draft,
        root=root,
        autoregressive_overhead_seconds=numbers(item.get("autoregressive_overhead_seconds", [])),
        steps=tuple(_step_of(step) for step in listed(item.get("steps", []))),
        below=below,
    )


def next_context(context: int | None, measured: Sequence[int], model: str) -> int:
    """Return the measured context that equals `context` or is the next larger one; None stands for the smallest. Raises ProfileError."""
    known = sorted(set(measured))
    found = next((c for c in known if context is None or c >= context), None)
    if found is None:
        remedies = f"profile it there, or ask for at most {known[-1]}"
        if model == "target" and len(known) > 1:  # a line has two points
            remedies = f"profile it there, ask for at most {known[-1]}, or pass `extrapolate`"
        raise ProfileError(f"the {model} was not measured at context {context} or beyond, only at {', '.join(map(str, known))}; {remedies}")
    return found


def times_of(samples: Sequence[LatencySample], context: int, what: str, of: Pick) -> tuple[tuple[int, float], ...]:
    """Return the numbers of nodes, ascending, each with what `of` picks of its samples, at the next measured context. Raises ProfileError."""
    chosen = next_context(context, [s.context for s in samples], what)
    return tuple(sorted((s.nodes, of(s.seconds)) for s in samples if s.context == chosen))


def _fitted(rule: StepRule, steps: Sequence[StepSample], model: LatencyModel, of: Pick) -> dict[str, Any]:
    """Return the rest that is fitted to whole steps, as fields of a model, whose passes are known."""
    context = next_context(model.context, [s.context for s in steps], "rest of a step")
    passes = replace(model, rest=Rest(0.0))
    features, rests, wholes = [], [], []
    for step in steps:
        if step.context != context:
            continue
        plan, whole = step.plan, of(step.seconds)
        if rule.mode == DynamicBudget.drafter:
            budget = cast(DynamicBudget, plan)
            links, known = budget.candidates, passes.dynamic_seconds(budget.size, budget.depth, budget.width)
        else:
            tree = cast(SpeculationTree, plan)
            links, known = longest_chain(tree, chain_of(rule)), passes.step_seconds(tree)
        features.append((1.0, plan.size, links, plan.depth))
        rests.append(whole - known)
        wholes.append(whole)
    shortest = {"target": min(seconds for _, seconds in model.target), "level": model.shortest_level}
    per_step, per_node, per_link, per_level = fit(features, rests, wholes, **shortest)
    rest = Rest(per_step, per_node, per_link, per_level, chain_of(rule))
    predicted = [rest.at(nodes, links, levels) for _, nodes, links, levels in features]
    error = statistics.median(abs(own - found) / whole for own, found, whole in zip(rests, predicted, wholes, strict=True))
    return {"rest": rest, "overhead_seconds": rest.per_step, "fitted": Fit(len(set(features)), len(numbers_of(features)), error)}


def _step_of(value: Any) -> StepSample:
    item = mapping(value)
    try:
        plan: SpeculationTree | DynamicBudget
        if "parents" in item:
            plan = SpeculationTree(tuple(count(p) for p in listed(item["parents"])))
            for key, own in (("size", plan.size), ("depth", plan.depth)):
                if item.get(key, own) != own:
                    raise ValueError(f"a step has {key} {item[key]!r:.40}, but the tree of its parents has {own}")
        else:
            plan = DynamicBudget(*(count(item.get(key)) for key in ("size", "depth", "width")))
    except (TreeError, SettingsError) as error:
        raise ValueError(str(error)) from error
    return StepSample(plan, count(item.get("context")), numbers(item.get("seconds")))
