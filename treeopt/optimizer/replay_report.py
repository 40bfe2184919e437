"""ReplayReport: trees beside one another on the texts of a trace, each with its tokens per step and what was predicted of them. No torch."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from treeopt.optimizer.frontier import expected_tokens
from treeopt.optimizer.replay import Replay, replay, require_replayable
from treeopt.optimizer.search import acceptance_rows
from treeopt.profiles.acceptance import AcceptanceProfile, read_acceptance
from treeopt.profiles.agreement import require_trace_of
from treeopt.profiles.trace import Trace, read_trace
from treespec.decoding.drafting import Drafting
from treespec.decoding.rules import Sampling
from treespec.errors import ModelError, ProfileError, SettingsError, counted, listed
from treespec.evaluation.prediction import prediction_of
from treespec.files.reading import StrPath
from treespec.tables import Drawing, Drawn, Parts, Table, in_short, number
from treespec.trees.growmap import GrowMap
from treespec.trees.library import load_growmap
from treespec.trees.tree import SpeculationTree

Given = GrowMap | SpeculationTree | StrPath


@dataclass(frozen=True)
class ReplayedTree:
    """One tree: its name, its steps, and the tokens per step that were predicted (None: unknown, as for more children than a profile has ranks)."""

    name: str
    replay: Replay
    predicted: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return its figures as plain data. `tokens` counts the first token of each text too, which comes with no step."""
        found, tree = self.replay.tokens_per_step, self.replay.tree
        figures = {"mean": None, "standard_error": None, "interval_95": None} if found is None else found.to_json()
        return {
            "name": self.name,
            "size": tree.size,
            "depth": tree.depth,
            "steps": int(self.replay.steps.sum()),
            "tokens": int(self.replay.tokens.sum()),
            "tokens_per_step": figures["mean"],
            "standard_error": figures["standard_error"],
            "interval_95": figures["interval_95"],
            "predicted_tokens_per_step": self.predicted,
            "steps_by_accepted": list(self.replay.steps_by_accepted),
        }


@dataclass(frozen=True, eq=False)
class ReplayReport(Drawn):
    """Trees that were replayed on one trace, in the order in which they were given."""

    trees: tuple[ReplayedTree, ...]
    trace: Trace

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences on trees of which the trace cannot say all."""
        longest = int(self.trace.tokens.max()) - 1
        deep = [one.name for one in self.trees if one.replay.tree.depth > longest]
        said = f"the longest text has {counted(longest, 'token')} behind its first, so no step can have accepted more: longer texts say more of"
        return (f"{said} {listed(deep)}",) if deep else ()

    def summary(self) -> dict[str, Any]:
        """Return the figures as plain data."""
        known = {key: value for key, value in self.trace.summary().items() if key in _KNOWN}
        return {"trees": [one.to_json() for one in self.trees], **known, "notes": list(self.notes)}

    def drawing(self) -> Drawing:
        """Return the trees as a table, a row each."""
        return Drawing(_drawn(self.summary()))

    def __repr__(self) -> str:
        return in_short(self, trees=len(self.trees), prompts=len(self.trace.texts))


_KNOWN = ("drafting", "temperature", "top_p", "gen_len", "seed", "prompts", "positions", "prompt_set")
"""Keys of a trace's summary that a report has too."""


def replay_trees(
    trees: Given | Iterable[Given], trace: Trace | StrPath, acceptance: AcceptanceProfile | StrPath | None = None
) -> ReplayReport:
    """Return the tokens per step of one tree or several on the texts of a trace: exactly those of decoding these texts, without models.

    A tree is a growmap, its file, the name of one that comes along, or a `SpeculationTree`. Beside them stands what an `acceptance` profile
    predicts; without one, what a growmap promises, if it was made for the models and the sampling of the trace.

    Raises ProfileError for a trace that cannot be replayed, and for a profile of another pair or sampling; GrowMapError; ModelError for a tree
    that is wider than the vocabulary; SettingsError for no tree, and for plans that are none.
    """
    one = isinstance(trees, str | os.PathLike) or not isinstance(trees, Iterable)
    given: list[Any] = [trees] if one else list(trees)  # type: ignore[arg-type]
    if not given:
        raise SettingsError("`trees` names no tree; pass one or more")
    texts = trace if isinstance(trace, Trace) else read_trace(trace)
    require_replayable(texts)
    if int(texts.tokens.max()) < 2:
        raise ProfileError("the trace has no step to replay: every text ended with its first token; profile other prompts")
    profile = read_acceptance(acceptance) if isinstance(acceptance, str | os.PathLike) else acceptance
    if profile is not None:
        require_trace_of(profile, texts)
    return ReplayReport(tuple(_replayed(item, texts, profile) for item in given), texts)


def _replayed(given: Any, trace: Trace, profile: AcceptanceProfile | None) -> ReplayedTree:
    grown = load_growmap(given) if isinstance(given, str | os.PathLike) else given
    plan = grown.tree if isinstance(grown, GrowMap) else grown
    described = plan.describe() if hasattr(plan, "describe") else {}
    if "parents" not in described:
        raise SettingsError(f"`trees` has {plan!r:.60}, but steps can be replayed for trees that stay the same alone; pass growmaps")
    tree = SpeculationTree(tuple(described["parents"]))
    name = os.fspath(given) if isinstance(given, str | os.PathLike) else f"tree ({tree.size}, {tree.depth})"
    try:
        found = replay(tree, trace)
    except (ModelError, ProfileError) as e:
        raise type(e)(f"{name}: {e}") from e
    if profile is None:
        return ReplayedTree(name, found, _promised(grown, trace))
    rows = acceptance_rows(profile)
    return ReplayedTree(name, found, expected_tokens(tree, rows) if tree.max_branch <= rows.shape[1] else None)


def _promised(grown: Any, trace: Trace) -> float | None:
    """Return the tokens per step that a growmap promises for the models and the sampling of a trace; None for other ones."""
    if not isinstance(grown, GrowMap):
        return None
    models = {role: name.partition("@")[0] for role, name in (trace.provenance.get("models") or {}).items()}
    predicted, _ = prediction_of(grown, models, None, Sampling(trace.temperature, trace.top_p), Drafting(trace.drafting))
    return None if predicted is None else predicted.tokens_per_step


def _drawn(data: Mapping[str, Any]) -> Parts:
    """Draw a row per tree, and the notes."""
    known = any(tree["predicted_tokens_per_step"] is not None for tree in data["trees"])
    rows = [
        (
            tree["name"],
            str(tree["size"]),
            str(tree["depth"]),
            f"{tree['steps']:,}",
            number(tree["tokens_per_step"], 3, tree["interval_95"]),
            *([number(tree["predicted_tokens_per_step"], 3)] if known else []),
        )
        for tree in data["trees"]
    ]
    texts = f"{counted(data['prompts'], 'text')} of up to {counted(data['gen_len'], 'token')}"
    title = f"replayed on {texts}: {data['drafting']}, temperature {data['temperature']:g}"
    columns = ("tree", "size", "depth", "steps", "tokens per step", *(["predicted"] if known else []))
    intervals = "in brackets: 95 % intervals over prompts"
    return [Table(title, columns, rows, left=("tree",)), *([intervals] if data["prompts"] > 1 else []), *data["notes"]]
