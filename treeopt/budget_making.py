"""Making budgets: from profile files to the budget of dynamic trees that decodes fastest, which records its inputs and its promise."""

from dataclasses import dataclass, replace
from typing import Any

from treeopt.optimizer.budgets import BudgetChoice, choose_budget, telling
from treeopt.optimizer.given import Given, read_times
from treeopt.optimizer.notes import doubts, noise, other_context
from treeopt.profiles.acceptance import AcceptanceProfile
from treeopt.profiles.agreement import require_same_models
from treeopt.profiles.latency import LatencyProfile
from treespec.decoding.chosen import ChosenBudget
from treespec.files.fields import ROWS
from treespec.files.provenance import TIMED_ON, Provenance
from treespec.files.reading import StrPath


@dataclass(frozen=True)
class MadeBudget:
    """A budget, the choice that it was made by, and sentences for people on what the figures rest on."""

    chosen: ChosenBudget
    choice: BudgetChoice
    notes: tuple[str, ...] = ()

    def summary(self) -> dict[str, Any]:
        """Return the figures as plain data: the budget, the fastest one of each width, and how many were compared."""
        choice = self.choice
        return {
            **choice.best.to_json(),
            "predicted_seconds_per_token": choice.best.seconds_per_token,
            "intervals_95": choice.certainty.intervals,
            "compared": choice.compared,
            "context": choice.context,
            "rule": choice.rule.to_json(),
            "rule_name": choice.rule.name,
            "by_width": [one.to_json() | {"predicted_seconds_per_token": one.seconds_per_token} for one in choice.by_width],
        }


def make_budget(
    acceptance: StrPath | AcceptanceProfile,
    latency: StrPath | LatencyProfile,
    *,
    context: int | None = None,
    extrapolate: bool = False,
    max_size: int | None = None,
    max_depth: int | None = None,
    max_width: int | None = None,
) -> MadeBudget:
    """Return the dynamic budget that decodes fastest by two profiles, each given as it is or as its file.

    With `extrapolate`, times at a context beyond the measured ones are extrapolated, and the budget says so.

    For the limits and errors see `choose_budget`; also raises ProfileError for files that cannot be used and for profiles of different models.
    """
    given = Given.of(acceptance)
    profile, (times, digest) = given.profile, read_times(latency)
    times = replace(times, extrapolates=extrapolate)
    require_same_models(profile, times)
    choice = choose_budget(profile, times, context=context, max_size=max_size, max_depth=max_depth, max_width=max_width)
    model = times.at_context(context, choice.rule)
    rows, best = profile.prompt_set or {}, choice.best
    metadata = {
        "expected_tokens_per_step": best.expected_tokens_per_step,
        "predicted_seconds_per_step": best.predicted_seconds_per_step,
        "predicted_speedup": best.predicted_speedup,
        **({"intervals_95": intervals} if (intervals := choice.certainty.intervals) else {}),
        "drafting": profile.drafting,
        "temperature": profile.temperature,
        "top_p": profile.top_p,
        **{f"profiled_{key}": rows[key] for key in ROWS if key in rows},
        "acceptance_sha256": given.digest,
        "latency_sha256": digest,
        "context": choice.context,
        **({"extrapolated_from": times.contexts[-1]} if times.is_extrapolated(choice.context) else {}),
        "timed_rule": choice.rule.to_json(),
    }
    known = {key: (profile.provenance or {}).get(key) for key in ("models", "draft_kind", "dtype", "dataset", "seed")}
    known = {key: value for key, value in known.items() if value is not None}
    known |= {key: (times.provenance or {}).get(key) for key in TIMED_ON}
    provenance = Provenance.collect(temperature=profile.temperature, top_p=profile.top_p, **known)
    said = [telling(choice, profile.prompts), *other_context(times, context), *doubts(model, choice.rule), noise(times)]
    return MadeBudget(ChosenBudget(best.budget, metadata, provenance), choice, tuple(sentence for sentence in said if sentence is not None))
