"""The results that commands print, as plain data with the keys that other tools rely on."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from treeopt.optimizer.search import OptimizationResult
    from treeopt.profiles.acceptance import AcceptanceProfile
    from treeopt.profiles.latency import LatencyProfile
    from treeopt.profiles.potential import PotentialReport
    from treeopt.training.record import Outcome
    from treespec.evaluation.report import EvaluationReport
    from treespec.text.generated import Generated
    from treespec.trees.growmap import GrowMap
    from treespec.trees.tree import SpeculationTree

_ACCEPTANCE_KEYS = (
    "drafting",
    "temperature",
    "top_p",
    "draft_temperature",
    "draws",
    "method",
    "rank_probability",
    "none_accepted",
    "standard_error",
    "positions",
    "prompts",
    "prompt_set",
)

_SOURCES = ("target", "draft", "config", "dataset")
_SETTINGS = ("objective", "divergence", "text", "batch_size", "gradient_accumulation", "seq_len", "learning_rate", "warmup", "seed")
"""Settings that `inspect` shows of a training run."""


def acceptance_summary(profile: "AcceptanceProfile") -> dict[str, Any]:
    """Return the profile without its raw sums."""
    data = profile.to_json()
    return {key: data[key] for key in _ACCEPTANCE_KEYS if key in data}


def latency_summary(profile: "LatencyProfile") -> dict[str, Any]:
    """Return medians in place of the raw samples, in seconds."""
    data = profile.to_json()
    overhead = data["overhead_seconds"]
    return {
        "target": [{"size": s["size"], "context": s["context"], "median_seconds": median(s["seconds"])} for s in data["target"]],
        "draft": [{"width": s["width"], "context": s["context"], "median_seconds": median(s["seconds"])} for s in data["draft"]],
        "overhead_seconds": median(overhead) if overhead else 0.0,
    }


def generation_summary(result: "OptimizationResult", *, frontier: bool) -> dict[str, Any]:
    """Return the tree's figures; `frontier` is null unless it was asked for."""
    points = [{"size": p.size, "depth": p.depth, "expected_tokens_per_step": p.expected_tokens_per_step} for p in result.frontier]
    return {
        "size": result.tree.size,
        "depth": result.tree.depth,
        "expected_tokens_per_step": result.expected_tokens_per_step,
        "predicted_seconds_per_step": result.predicted_seconds_per_step,
        "predicted_speedup": result.predicted_speedup,
        "certified_gap": result.certified_gap,
        "solver": result.solver,
        "max_branch": result.tree.max_branch,
        "level_widths": list(result.tree.level_widths),
        "frontier": points if frontier else None,
    }


def evaluation_summary(report: "EvaluationReport") -> dict[str, Any]:
    """Return the report without its per-prompt records; the generated ids stay if they were kept."""
    return {key: value for key, value in report.to_json().items() if key not in ("schema", "version", "results")}


def text_summary(generated: "Generated") -> dict[str, Any]:
    """Return a generated text and its figures, without its ids."""
    return {
        "text": generated.text,
        "tokens": generated.tokens,
        "steps": generated.steps,
        "tokens_per_step": generated.tokens_per_step,
        "tokens_per_second": generated.tokens_per_second,
        "seconds": generated.seconds,
        "ended": generated.ended,
        "stop": generated.stop,
        "prompt_tokens": generated.prompt_tokens,
    }


def conversation_summary(answers: "Sequence[Generated]") -> dict[str, Any]:
    """Return the figures of all answers of a conversation, with the text and the end of the last one, and each answer under `answers`."""
    tokens, steps, seconds = (sum(getattr(answer, name) for answer in answers) for name in ("tokens", "steps", "seconds"))
    stepped = tokens - len(answers)
    last = {"text": None, "ended": None, "stop": None, "prompt_tokens": 0} if not answers else text_summary(answers[-1])
    return last | {
        "tokens": tokens,
        "steps": steps,
        "tokens_per_step": stepped / steps if steps else None,
        "tokens_per_second": stepped / seconds if steps and seconds else None,
        "seconds": seconds,
        "answers": [text_summary(answer) for answer in answers],
    }


def potential_summary(report: "PotentialReport") -> dict[str, Any]:
    """Return the drafts by rank, without the raw sums."""
    data = report.to_json()
    drafts = [{key: value for key, value in draft.items() if key != "sums"} for draft in data["drafts"]]
    return {key: value for key, value in data.items() if key not in ("schema", "version", "prompt_positions")} | {"drafts": drafts}


def training_summary(outcome: "Outcome | None", record: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the figures of a run (null if it is not finished) and its settings."""
    ends = {"before": None, "after": None} if outcome is None else {"before": outcome.before, "after": outcome.after}
    chosen = {name: record["sources"].get(name) for name in _SOURCES} | {name: record["settings"].get(name) for name in _SETTINGS}
    if chosen["objective"] == "ce":
        chosen["divergence"] = None  # older records name one
    return {
        "finished": outcome is not None,
        "steps": outcome and outcome.steps,
        "loss": {"first": outcome and outcome.loss_first, "last": outcome and outcome.loss_last},
        "rank1_acceptance": {
            when: None if found is None else {"probability": found[0], "standard_error": found[1]} for when, found in ends.items()
        },
        "texts": outcome and outcome.texts,
        "seconds": outcome and outcome.seconds,
        "folder": str(folder),
        "settings": chosen,
    }


def growmap_summary(growmap: "GrowMap", probability: Sequence[Sequence[float]] | None) -> dict[str, Any]:
    """Return the tree's shape, its metadata and, if the rank probabilities are known, the chance of each path."""
    tree = growmap.tree
    chances = None if probability is None else path_probabilities(tree, probability)
    return {
        "size": tree.size,
        "depth": tree.depth,
        "max_branch": tree.max_branch,
        "level_widths": list(tree.level_widths),
        "paths": [list(path) for path in tree.paths],
        "path_probability": None if chances is None else chances[1:],
        "expected_tokens_per_step": None if chances is None else math.fsum(chances),
        "metadata": dict(growmap.metadata),
    }


def library_summary(growmaps: Mapping[str, "GrowMap"], folder: Path) -> dict[str, Any]:
    """Return the figures of growmaps by name, and the folder of their files."""
    keys = (
        "expected_tokens_per_step",
        "predicted_seconds_per_step",
        "predicted_speedup",
        "temperature",
        "drafting",
        "source",
        "latency_source",
    )
    rows = [
        {"name": name, "size": growmap.tree.size, "depth": growmap.tree.depth} | {key: growmap.metadata.get(key) for key in keys}
        for name, growmap in growmaps.items()
    ]
    return {"folder": str(folder), "growmaps": rows}


def path_probabilities(tree: "SpeculationTree", probability: Sequence[Sequence[float]]) -> list[float]:
    """Return for each node the chance that the accepted path goes through it: the product of p[depth][rank] on the way from the root.

    `probability` has one row per depth, and the last one serves all deeper nodes; ranks beyond a row have chance 0.
    """
    chances = [1.0]
    for node in range(1, tree.size):
        row = probability[min(tree.depths[node], len(probability)) - 1]
        rank = tree.ranks[node]
        chances.append(chances[tree.parents[node]] * (row[rank] if rank < len(row) else 0.0))
    return chances
