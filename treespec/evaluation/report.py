"""EvaluationReport: it holds raw results per prompt, and all other figures are derived from them. No torch."""

from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from treespec.decoding.plans import DynamicBudget
from treespec.decoding.rules import RULES
from treespec.decoding.verifiers import MATCHING
from treespec.errors import ProfileError, counted
from treespec.evaluation import chains, figures
from treespec.evaluation.categories import by_category
from treespec.evaluation.drawing import evaluation
from treespec.evaluation.gaps import sentences
from treespec.evaluation.observed import DepthAcceptance, accepted_by_depth
from treespec.evaluation.predicted import Prediction, prediction_from
from treespec.evaluation.results import PromptResult
from treespec.files.fields import (
    Fields,
    amount,
    chances,
    checked_object,
    count,
    counts,
    listed,
    mapping,
    natural,
    text,
)
from treespec.files.provenance import provenance_fields
from treespec.files.reading import StrPath, read_json
from treespec.files.writing import write_json
from treespec.tables import Drawing, Drawn, in_short
from treespec.trees.tree import SpeculationTree

SCHEMA, VERSION = "treeopt.evaluation", 1


_COLUMNS = ("tokens", "steps", "seconds", "baseline_tokens", "baseline_seconds", "prompt_seconds", "baseline_prompt_seconds", "firsts")


@dataclass(frozen=True)
class EvaluationReport(Drawn):
    """The results of all prompts of one run. `mode` "baseline" means that only autoregressive decoding ran."""

    mode: str
    """"baseline", or the drafter of the plan: "tree", "dynamic" or one that was added to `DRAFTERS`."""
    results: tuple[PromptResult, ...]
    temperature: float
    predicted: Prediction = field(default_factory=Prediction)
    tree: dict[str, Any] | None = None
    """Size and depth, and the parents of a static tree or the width of a dynamic one."""
    prompts: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def columns(self) -> dict[str, NDArray[np.float64]]:
        """Return per prompt [prompts] the steps, the seconds and the tokens without the first (`firsts`), which comes from the prompt pass.

        Seconds of prompt passes that are not known are NaN, and so are the figures that need them. Empty without results.
        """
        rows = [
            (
                r.tokens - 1,
                r.steps,
                r.seconds,
                max(0, r.baseline_tokens - 1),
                r.baseline_seconds,
                r.prompt_seconds,
                r.baseline_prompt_seconds,
            )
            for r in self.results
        ]
        return dict(zip(_COLUMNS, np.array([(*row, 1) for row in rows], dtype=np.float64).T, strict=True)) if rows else {}

    @property
    def tokens(self) -> int:
        """Return the number of generated tokens, including each prompt's first (from its prompt pass)."""
        return sum(r.tokens for r in self.results)

    @property
    def steps(self) -> int:
        """Return the number of target passes after the prompt passes."""
        return sum(r.steps for r in self.results)

    @property
    def tokens_per_step(self) -> float | None:
        """Return (tokens - prompts) / steps; None without a step."""
        return self._figure(figures.tokens_per_step)

    @property
    def seconds_per_token(self) -> float | None:
        """Return the decoding seconds per token after the first."""
        return self._figure(figures.seconds_per_token)

    @property
    def seconds_per_step(self) -> float | None:
        """Return the decoding seconds per step, without prompt passes; None without a step."""
        return self._figure(figures.seconds_per_step)

    @property
    def baseline_seconds_per_token(self) -> float | None:
        """Return the seconds per token of autoregressive decoding, without each prompt's first token."""
        return self._figure(figures.baseline_seconds_per_token)

    @property
    def speedup(self) -> float | None:
        """Return the autoregressive seconds per token divided by the tree's, without prompt passes."""
        return self._figure(figures.speedup)

    @property
    def speedup_with_prompts(self) -> float | None:
        """Return the same with the prompt passes, the draft's included, and with the first tokens; None if their times are not known."""
        return self._figure(figures.speedup_with_prompts)

    def _prompt_seconds(self, which: str) -> float | None:
        """Return the mean seconds of the prompt passes of a prompt; None if they are not known."""
        return self._figure(lambda sums: sums[which] / len(self.results))

    @cached_property
    def intervals(self) -> dict[str, tuple[float, float] | None]:
        """Return 95 % bootstrap intervals over prompts of the figures; None with fewer than two prompts."""
        wanted = (
            "tokens_per_step",
            "seconds_per_step",
            "seconds_per_token",
            "baseline_seconds_per_token",
            "speedup",
            "speedup_with_prompts",
        )
        return {name: figures.interval_of(self.columns, getattr(figures, name)) if self.results else None for name in wanted}

    @cached_property
    def beyond_chain(self) -> chains.Beyond | None:
        """Return what the tree is worth beyond the fastest chain that ran beside it; None if none ran."""
        return chains.beyond_chains(self.results, self._columns) if self.results else None

    @property
    def lossless(self) -> Literal["match", "ties", "mismatch", "not-applicable"]:
        """Return whether every output equals the autoregressive one, token for token, or differs from it only by ties.

        Outputs are compared at temperature 0, and at temperatures that leave a single token everywhere.
        """
        if self.mode == "baseline" or (self.temperature > 0 and not (self.results and all(r.determined for r in self.results))):
            return "not-applicable"
        if self.mismatches:
            return "mismatch"
        return "ties" if self.ties else "match"

    @property
    def mismatches(self) -> int:
        """Return the number of outputs that differ from the autoregressive ones by more than rounding."""
        return sum(r.mismatch is not None and not r.mismatch.tie for r in self.results)

    @property
    def ties(self) -> int:
        """Return the number of outputs that part from the autoregressive ones at a tie."""
        return sum(r.mismatch is not None and r.mismatch.tie for r in self.results)

    @property
    def verifier(self) -> str | None:
        """Return the verifier that decided; None without a tree. Dynamic trees and children that are not random are matched, whichever was asked for."""
        asked, kind = self.settings.get("verifier"), RULES.get(self.settings.get("drafting", ""))
        if self.mode == "baseline" or asked is None or kind is None:
            return None if self.mode == "baseline" else asked
        heat = self.settings.get("draft_temperature")
        drawn = self.mode != DynamicBudget.drafter and kind.is_random(self.temperature if heat is None else heat)
        return asked if drawn else MATCHING

    @property
    def undrafted(self) -> int:
        """Return the number of tokens that the target decoded alone, because the draft had no positions left."""
        return sum(r.undrafted for r in self.results)

    @property
    def tokens_cut(self) -> int:
        """Return the number of accepted tokens behind the ends of the texts, which do not count; 0 where the steps were not kept."""
        known = [r for r in self.results if len(r.accepted_ranks) + r.undrafted == r.steps]
        return sum(max(0, sum(len(ranks) + 1 for ranks in r.accepted_ranks) + r.undrafted + 1 - r.tokens) for r in known)

    def _figure(self, figure: figures.Figure) -> float | None:
        return figures.figure_of(self.columns, figure) if self.results else None

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain data. Other tools rely on the first keys."""
        spt, base = self.seconds_per_token, self.baseline_seconds_per_token
        data: dict[str, Any] = {
            "schema": SCHEMA,
            "version": VERSION,
            "mode": self.mode,
            "tokens": self.tokens,
            "steps": self.steps,
            "tokens_per_step": self.tokens_per_step,
            "tokens_per_second": _inverse(spt),
            "seconds_per_token": spt,
            "baseline": {
                "tokens_per_second": _inverse(base),
                "seconds_per_token": base,
                "prompt_seconds": self._prompt_seconds("baseline_prompt_seconds"),
            },
            "speedup": self.speedup,
            "speedup_with_prompts": self.speedup_with_prompts,
            "prompt_seconds": self._prompt_seconds("prompt_seconds"),
            "intervals_95": self.intervals,
            "predicted": self.predicted.to_json(),
            "measured_seconds_per_step": self.seconds_per_step,
            "lossless": self.lossless,
            "mismatches": self.mismatches,
            "ties": self.ties,
            "largest_tie_gap": max((r.mismatch.logit_gap for r in self.results if r.mismatch is not None and r.mismatch.tie), default=None),
            "chains": chains.chains_to_json(self.results, self._columns) if self.results else [],
            "beyond_chain": None if self.beyond_chain is None else asdict(self.beyond_chain),
            "tokens_without_draft": self.undrafted,
            "tokens_cut": self.tokens_cut,
            "texts_cut": sum(r.tokens == self.settings.get("gen_len") for r in self.results),
            "prompts": len(self.results),
            "temperature": self.temperature,
            **{key: None if self.mode == "baseline" else self.settings.get(key) for key in ("drafting", "draft_temperature")},
            "verifier": self.verifier,
            "tree": self.tree,
            "profiled_acceptance": self.predicted.rank_probability,
            "observed_acceptance": [asdict(row) for row in self.observed],
            "by_category": by_category([r.category for r in self.results], self.columns) if self.results else [],
            "prompt_set": self.prompts,
            "settings": self.settings,
            "provenance": self.provenance,
            "results": [
                {key: value for key, value in asdict(r).items() if key != "output" and (key != "pieces" or value)} for r in self.results
            ],
        }
        data["notes"] = [*sentences(data), *chains.sentences(data)]
        if any(r.output for r in self.results):
            data["outputs"] = [list(r.output) for r in self.results]
        if any(r.parts for r in self.results):
            data["breakdown"] = self.breakdown
        return data

    def summary(self) -> dict[str, Any]:
        """Return the report as plain data without its per-prompt records; the generated ids stay if they were kept."""
        return {key: value for key, value in self.to_json().items() if key not in ("schema", "version", "results")}

    def drawing(self) -> Drawing:
        """Return the tree beside autoregressive decoding, predictions beside measurements, and the verdict."""
        return Drawing(evaluation(self.summary()))

    def __repr__(self) -> str:
        figures = {"tokens_per_step": self.tokens_per_step, "speedup": self.speedup, "lossless": self.lossless}
        return in_short(self, mode=self.mode, prompts=len(self.results), **({} if self.mode == "baseline" else figures))

    @property
    def breakdown(self) -> dict[str, float]:
        """Return the seconds in each part of the steps, summed over prompts; `other` is the time between the parts."""
        names = dict.fromkeys(name for r in self.results for name in r.parts)
        found = {name: sum(r.parts.get(name, 0.0) for r in self.results) for name in names}
        return {**found, "other": max(0.0, sum(r.seconds for r in self.results) - sum(found.values()))}

    @cached_property
    def observed(self) -> tuple[DepthAcceptance, ...]:
        """Return the counts of accepted children of the visited nodes, by the depth of the node."""
        return accepted_by_depth((ranks for r in self.results for ranks in r.accepted_ranks), self.tree)

    @property
    def first_choices(self) -> tuple[int, int]:
        """Return how many first children were accepted, and how many visited nodes had one."""
        accepted = sum(row.accepted[0] for row in self.observed if row.accepted)
        return accepted, sum(row.visits if row.offered is None else sum(row.offered[:1]) for row in self.observed)

    def write(self, path: Path) -> None:
        """Write the report whole or not at all."""
        write_json(path, self.to_json())


def read_report(path: StrPath) -> EvaluationReport:
    """Read a report and compute its derived figures again. Raises ProfileError for a file that no run can have written."""
    data = Fields(path, read_json(path, schema=SCHEMA, version=VERSION, error=ProfileError))
    profiled = data.optional("profiled_acceptance", chances)
    results = data.get("results", lambda value: tuple(PromptResult.from_json(result) for result in listed(value)))
    report = EvaluationReport(
        mode=data.get("mode", _mode),
        results=data.get("outputs", lambda value: _with_outputs(results, value), [[*result.output] for result in results]),
        temperature=data.get("temperature", amount),
        predicted=data.get("predicted", lambda value: prediction_from(value, profiled)),
        tree=data.optional("tree", _tree),
        prompts=data.get("prompt_set", mapping),
        settings=data.get("settings", checked_object({"drafting": text, "verifier": text, "draft_temperature": amount})),
        provenance=data.get("provenance", provenance_fields),
    )
    data.build(lambda: report.observed)  # whether the ranks are of this tree
    data.build(lambda: chains.chain_depths(report.results))
    return report


def _with_outputs(results: tuple[PromptResult, ...], value: Any) -> tuple[PromptResult, ...]:
    """Return the results with their generated ids. Files hold these once, under `outputs`; older ones also have them in the results."""
    if len(listed(value)) != len(results):
        raise ValueError(f"it has {counted(len(value), 'output')} for {counted(len(results), 'result')}")
    return tuple(replace(result, output=counts(ids)) for result, ids in zip(results, value, strict=True))


def _mode(value: Any) -> Any:
    if not isinstance(value, str) or not value.isidentifier():
        raise ValueError(f"{value!r:.40} is no name of a drafter")
    return value


def _tree(value: Any) -> dict[str, Any]:
    found = checked_object({"depth": natural, "parents": lambda parents: SpeculationTree(tuple(map(count, listed(parents))))}, null=False)(
        value
    )
    if "depth" not in found:
        raise ValueError("it has no depth")
    return found


def _inverse(figure: float | None) -> float | None:
    inverse = 1 / figure if figure else float("inf")
    return inverse if np.isfinite(inverse) else None
