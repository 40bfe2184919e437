"""Results that only commands print, as plain data with the keys that other tools rely on. Profiles and reports have a `summary` of their own."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from treeopt.growmap_making import Generated as Grown
    from treeopt.optimizer.search import OptimizationResult
    from treeopt.training.record import Outcome
    from treespec.text.generated import Generated
    from treespec.trees.growmap import GrowMap

_SOURCES = ("target", "draft", "config", "kind", "levels", "draft_vocabulary", "dataset")
"""Sources that `inspect` shows of a training run."""
_SETTINGS = ("objective", "divergence", "text", "batch_size", "gradient_accumulation", "seq_len", "learning_rate", "warmup", "seed")
"""Settings that `inspect` shows of a training run."""


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
        "intervals_95": result.certainty.intervals,
        "solver": result.solver,
        "max_branch": result.tree.max_branch,
        "level_widths": list(result.tree.level_widths),
        "frontier": points if frontier else None,
    }


def candidates_summary(found: "Sequence[Grown]") -> dict[str, Any]:
    """Return the rule whose times were taken, and the best tree of every acceptance profile, the fastest first."""
    rows = [
        {
            "acceptance": made.source,
            "acceptance_sha256": made.growmap.metadata.get("acceptance_sha256"),
            "drafting": made.drafting,
            "draft_temperature": made.draft_temperature,
            "rule": None if made.rule is None else made.rule.to_json(),
            "rule_name": None if made.rule is None else made.rule.name,
            "size": made.result.tree.size,
            "depth": made.result.tree.depth,
            "expected_tokens_per_step": made.result.expected_tokens_per_step,
            "predicted_seconds_per_step": made.result.predicted_seconds_per_step,
            "predicted_seconds_per_token": None if math.isinf(made.seconds_per_token) else made.seconds_per_token,
            "predicted_speedup": made.result.predicted_speedup,
            "certified_gap": made.result.certified_gap,
            "intervals_95": made.result.certainty.intervals,
        }
        for made in found
    ]
    return {"rule": rows[0]["rule"], "candidates": rows}


def models_summary(made: "Grown") -> dict[str, Any]:
    """Return the acceptance models that a trace was given for, and the one that was taken; null without a trace."""
    return {"acceptance_model": None if made.selection is None else made.selection.to_json()}


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
