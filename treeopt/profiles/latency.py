"""LatencyProfile: how long passes take per tree size, level width and context, as versioned JSON with raw samples."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from treeopt.profiles.drawing import latency
from treeopt.profiles.latency_model import LatencyModel, extrapolated
from treeopt.profiles.rest import Rest
from treeopt.profiles.rule_latency import RuleLatency, next_context, rule_latency_of, times_of
from treeopt.profiles.samples import ENOUGH, LatencySample, Pick, check_samples, check_seconds, high_end, low_end, sample_entry, sample_of
from treeopt.profiles.stability import Point, warning
from treespec.checks import require_whole
from treespec.decoding.step_rule import GREEDY, StepRule
from treespec.errors import MissingRuleError, ProfileError, listed_in_short
from treespec.errors import listed as listed_of
from treespec.files.fields import Fields, count, listed, numbers
from treespec.files.provenance import provenance_fields
from treespec.files.reading import StrPath, read_json
from treespec.files.writing import write_json
from treespec.tables import Drawing, Drawn, in_short

LATENCY_SCHEMA = "treeopt.latency"
VERSION = 1
OWN_ENGINE = "treeopt"
"""The engine of times that treeopt has measured on itself, which files do not name."""
OTHER_ENGINES = ("sglang", "tensorrt-llm", "vllm", "llama.cpp")
"""The engines whose times a file may hold, by the names that `treeopt.exports` has for them."""


@dataclass(frozen=True)
class LatencyProfile(Drawn):
    """Raw seconds of target passes, draft passes and the rest of a step (`overhead_seconds`), on one machine.

    They are of `topk` at temperature 0, and of all rules where it makes no difference; `rules` has what differs.

    Raises ProfileError for measurements that are empty or repeated, or that no clock can have shown.
    """

    target: tuple[LatencySample, ...]
    draft: tuple[LatencySample, ...]
    overhead_seconds: tuple[float, ...]
    provenance: dict[str, Any] | None = None
    autoregressive_overhead_seconds: tuple[float, ...] = ()
    """Overhead of autoregressive steps, which accept and move nothing. If it is empty, the overhead of tree steps is taken."""
    rules: tuple[RuleLatency, ...] = ()
    """The times of each rule. Older files have none; their rule is `topk` at temperature 0."""
    engine: str = OWN_ENGINE
    """The engine that was measured. Times of others are for `treeopt.exports` only."""
    batch: int = 1
    """Sequences in each pass. Tree sizes and level widths are those of one of them."""
    extrapolates: bool = False
    """Whether times at contexts beyond the measured ones are extrapolated from the two largest ones, and not refused. Files do not hold it."""

    def __post_init__(self) -> None:
        check_samples("target", "size", self.target)
        check_samples("draft", "width", self.draft)
        check_seconds("overhead_seconds", self.overhead_seconds, least=0.0)
        if self.autoregressive_overhead_seconds:
            check_seconds("autoregressive_overhead_seconds", self.autoregressive_overhead_seconds, least=0.0)
        if self.engine not in (OWN_ENGINE, *OTHER_ENGINES):
            raise ProfileError(
                f"engine is {self.engine!r:.40}, which is none that is known; correct it to the one that was measured: "
                f"{', '.join((*OTHER_ENGINES, OWN_ENGINE))}"
            )
        if self.batch < 1 or (self.batch > 1 and self.engine == OWN_ENGINE):
            remedy = "give 1 or more" if self.batch < 1 else "name the engine that was measured as engine"
            raise ProfileError(f"batch is {self.batch}, but {'it counts sequences' if self.batch < 1 else 'treeopt decodes one'}; {remedy}")
        held = [entry.rule for entry in self.rules]
        twice = next((rule for place, rule in enumerate(held) if rule in held[:place]), None)
        if twice is not None:
            raise ProfileError(f"rules has {twice.name} twice; keep one entry of it")
        for entry in self.rules:
            other = next((step.context for step in entry.steps if step.context not in self.contexts), None)
            if other is not None:
                measured = listed_of([str(context) for context in self.contexts])
                raise ProfileError(
                    f"rule {entry.rule.name}: it has a step at context {other}, but target was measured at {measured} only; profile it again"
                )

    @property
    def held(self) -> tuple[StepRule, ...]:
        """The rules whose times the profile holds."""
        return tuple(entry.rule for entry in self.rules) or (GREEDY,)

    @cached_property
    def contexts(self) -> tuple[int, ...]:
        """The contexts at which the target was measured, ascending."""
        return tuple(sorted({s.context for s in self.target}))

    def at_context(self, context: int | None = None, rule: StepRule | None = None, of: Pick = statistics.median) -> LatencyModel:
        """Return the medians at the measured context that equals `context` or is the next larger one; None stands for the smallest.

        A profile that `extrapolates` has times at larger contexts too. `rule` None stands for the first one of the profile, and `of` picks another
        figure of samples than their median. Raises ProfileError, naming the measured contexts, if none is large enough, and MissingRuleError, naming
        the rules that the profile holds, if that one is not among them; SettingsError for a context that is no whole number of 0 or more.
        """
        if context is not None:
            require_whole(0, context=context)
        wanted = self.held[0] if rule is None else rule
        if wanted not in self.held:
            raise MissingRuleError(
                f"the latency profile has no times of ({wanted.name}), only of {listed_in_short([f'({rule.name})' for rule in self.held])}"
            )
        if context is not None and self.is_extrapolated(context):
            return self._beyond(context, rule, of, of)
        model = self._own(context, of)
        return next((entry.on(model, of) for entry in self.rules if entry.rule == wanted), model)

    def ends(self, context: int | None = None, rule: StepRule | None = None) -> tuple[LatencyModel, LatencyModel] | None:
        """Return the lower and the upper ends of the 95 % intervals of these medians; None if some have too few samples for one.

        The ends of all medians come together, since other work on a machine slows all passes: a sum of lower ends is the lower end of a sum.
        """
        counts = [len(seconds) for entry in self.rules for seconds in entry.samples]
        counts += [len(seconds) for seconds in (self.overhead_seconds, self.autoregressive_overhead_seconds) if seconds]
        if min([*counts, *(len(sample.seconds) for sample in (*self.target, *self.draft))]) < ENOUGH:
            return None
        if context is not None and self.is_extrapolated(
            context
        ):  # a line is lowest between the upper end of its first point and the lower of its last
            return self._beyond(context, rule, high_end, low_end), self._beyond(context, rule, low_end, high_end)
        return self.at_context(context, rule, low_end), self.at_context(context, rule, high_end)

    def is_extrapolated(self, context: int) -> bool:
        """Return whether times at a context are extrapolated."""
        return self.extrapolates and context > self.contexts[-1]

    def _beyond(self, context: int, rule: StepRule | None, first: Pick, last: Pick) -> LatencyModel:
        """Return extrapolated times, for which `first` picks of the samples at the second largest context, and `last` of those at the largest."""
        if len(self.contexts) < 2:
            raise ProfileError(
                f"times at context {context} cannot be extrapolated from those at {self.contexts[0]} alone; profile the latency at two contexts or more"
            )
        before, largest = self.contexts[-2:]
        return extrapolated(self.at_context(before, rule, first), self.at_context(largest, rule, last), context)

    def _own(self, context: int | None, of: Pick) -> LatencyModel:
        """Return the times of the profile's own keys."""
        chosen = next_context(context, self.contexts, "target")
        sizes, widths = times_of(self.target, chosen, "target", of), times_of(self.draft, chosen, "draft", of)
        apart = self.autoregressive_overhead_seconds
        return LatencyModel(chosen, sizes, widths, of(self.overhead_seconds), of(apart) if apart else None)

    @property
    def points(self) -> tuple[Point, ...]:
        """The passes and whole steps that were measured, each with its samples and a name."""
        own = [("target size", s) for s in self.target] + [("draft width", s) for s in self.draft]
        found = [Point(self._named(what, sample.nodes, sample.context), sample.seconds) for what, sample in own]
        for entry in self.rules:
            rule = f" ({entry.rule.name})"
            for what, samples in (("draft width", entry.draft), ("root width", entry.root), ("below the root, draft width", entry.below)):
                found += [Point(self._named(what, sample.nodes, sample.context) + rule, sample.seconds) for sample in samples]
            found += [Point(self._named("step of size", step.plan.size, step.context) + rule, step.seconds) for step in entry.steps]
        return tuple(found)

    def _named(self, what: str, nodes: int, context: int) -> str:
        """Return the name of a point. It says the context where there are several."""
        return f"{what} {nodes}" + (f" at context {context}" if len(self.contexts) > 1 else "")

    @property
    def warning(self) -> str | None:
        """The line that warns of unstable times, or of too few samples to tell; None if they are stable."""
        return warning(self.points, (self.provenance or {}).get("threads"))

    def to_json(self) -> dict[str, Any]:
        """Return the content of the profile's file."""
        data: dict[str, Any] = {
            "schema": LATENCY_SCHEMA,
            "version": VERSION,
            "target": [sample_entry(s, "size") for s in self.target],
            "draft": [sample_entry(s, "width") for s in self.draft],
            "overhead_seconds": list(self.overhead_seconds),
        }
        if self.autoregressive_overhead_seconds:
            data["autoregressive_overhead_seconds"] = list(self.autoregressive_overhead_seconds)
        if self.rules:
            data["rules"] = [entry.to_json() for entry in self.rules]
        if self.engine != OWN_ENGINE:
            data |= {"engine": self.engine, "batch": self.batch}
        return data if self.provenance is None else data | {"provenance": self.provenance}

    def summary(self) -> dict[str, Any]:
        """Return the profile as plain data, with medians in seconds, and their intervals, in place of the raw samples."""
        return {
            "target": [sample.summary("size") for sample in self.target],
            "draft": [sample.summary("width") for sample in self.draft],
            "overhead_seconds": statistics.median(self.overhead_seconds),
            "rules": [self._rule_summary(rule) for rule in self.held],
            "warning": self.warning,
            **({} if self.engine == OWN_ENGINE else {"engine": self.engine, "batch": self.batch}),
        }

    def _rule_summary(self, rule: StepRule) -> dict[str, Any]:
        """Return a rule, the rest of its autoregressive step and, fitted at the smallest context, that of its steps with trees."""
        model = self.at_context(None, rule)
        rest = model.rest or Rest(model.overhead_seconds)
        alone = model.autoregressive_overhead_seconds
        return {
            "name": rule.name,
            **rule.to_json(),
            "autoregressive_overhead_seconds": model.overhead_seconds if alone is None else alone,
            **({} if model.below is None else {"below_root_seconds": model.below}),
            "rest_seconds": {"step": rest.per_step, "node": rest.per_node, "link": rest.per_link, "level": rest.per_level},
        }

    def drawing(self) -> Drawing:
        """Return median milliseconds of target passes and draft levels, with a column per context."""
        return Drawing(latency(self.summary()))

    def __repr__(self) -> str:
        most = {"max_size": max(s.nodes for s in self.target), "max_width": max(s.nodes for s in self.draft)}
        contexts = len(self.contexts)
        return in_short(self, sizes=len({s.nodes for s in self.target}), **most, contexts=self.contexts if contexts <= 4 else contexts)

    def write(self, path: StrPath) -> None:
        """Write the file whole or not at all. Raises OutputError."""
        write_json(path, self.to_json())


def read_latency(path: StrPath) -> LatencyProfile:
    """Read a `treeopt.latency` file. Raises ProfileError."""
    data = Fields(path, read_json(path, schema=LATENCY_SCHEMA, version=VERSION, error=ProfileError))

    data.require_spelling(
        *("target", "draft", "overhead_seconds", "autoregressive_overhead_seconds", "rules", "engine", "batch", "provenance")
    )

    def samples(unit: str) -> Callable[[Any], tuple[LatencySample, ...]]:
        return lambda value: tuple(sample_of(item, unit) for item in listed(value))

    return data.build(
        lambda: LatencyProfile(
            target=data.get("target", samples("size")),
            draft=data.get("draft", samples("width")),
            overhead_seconds=data.get("overhead_seconds", numbers),
            autoregressive_overhead_seconds=data.get("autoregressive_overhead_seconds", numbers, []),
            rules=data.get("rules", lambda value: tuple(rule_latency_of(entry) for entry in listed(value)), []),
            engine=data.text("engine", OWN_ENGINE),
            batch=data.get("batch", count, 1),
            provenance=data.optional("provenance", provenance_fields),
        )
    )
