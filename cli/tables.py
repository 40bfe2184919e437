"""Drawings of what only commands show, from the plain data of results.py. What profiles and reports look like, they say themselves."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from treespec.errors import counted
from treespec.tables import Parts, Table, figures, milliseconds, number
from treespec.trees.drawing import promised


def generation(data: Mapping[str, Any]) -> Parts:
    """Draw the chosen tree and its promise, then the frontier if there is one."""
    shape = {"size (root included)": data["size"], "depth (draft passes per step)": data["depth"]}
    rows = [(name, str(value)) for name, value in shape.items()]
    widths = " ".join(str(w) for w in data["level_widths"])
    drawing: list[Table | str] = [figures("growmap", [*rows, ("level widths", widths), *promised(data), ("solver", data["solver"])])]
    if data.get("best_chain") is not None:
        drawing.append(_best_chain(data["best_chain"], data))
    if len(data.get("candidates", ())) > 1:
        drawing.append(_candidates(data["candidates"]))
    if data.get("acceptance_model"):
        drawing += _models(data["acceptance_model"])
    if data["size"] == 1 and data["predicted_seconds_per_step"] is None:
        drawing.append("the tree is the root alone, as it was asked for: nothing is drafted")
    if data["frontier"]:
        points = [(str(point["size"]), str(point["depth"]), number(point["expected_tokens_per_step"], 4)) for point in data["frontier"]]
        drawing.append(Table("frontier: best expected tokens per step", ("size", "depth bound", "tokens per step"), points))
    return drawing


def _best_chain(chain: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    """Return what the best chain promises, and the tree beside it."""
    tokens, seconds = chain["expected_tokens_per_step"], chain["predicted_seconds_per_step"]
    how = "per step, replayed on the same texts, and steps" if chain.get("replayed") else "per step"
    known = f"the best chain has depth {chain['depth']}: {tokens:.4f} tokens {how} of {milliseconds(seconds)} ms are predicted"
    if not data["predicted_seconds_per_step"]:
        return known
    worth = seconds / tokens * data["expected_tokens_per_step"] / data["predicted_seconds_per_step"]
    return f"{known}; the tree gives {worth:.3f} x its tokens per second"


def _candidates(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Draw the best tree of every acceptance profile, a row each."""
    shown = [
        (
            row["acceptance"] or "-",
            row["rule_name"],
            number(row["draft_temperature"], 2),
            str(row["size"]),
            str(row["depth"]),
            number(row["expected_tokens_per_step"], 4),
            milliseconds(row["predicted_seconds_per_step"]),
            milliseconds(row["predicted_seconds_per_token"]),
        )
        for row in rows
    ]
    columns = ("acceptance", "rule", "draft temperature", "size", "depth", "tokens/step", "ms/step", "ms/token")
    return Table("the best tree of each acceptance profile, the fastest first", columns, shown, left=("acceptance", "rule"))


def budget(data: Mapping[str, Any]) -> Parts:
    """Draw the chosen budget of dynamic trees and its promise, then the fastest budget of each width."""
    shape = {"size (root included)": data["size"], "depth (draft passes per step)": data["depth"], "level width": data["width"]}
    rows = [(name, str(value)) for name, value in shape.items()]
    widths = [
        (
            str(row["width"]),
            str(row["size"]),
            str(row["depth"]),
            number(row["expected_tokens_per_step"], 4),
            milliseconds(row["predicted_seconds_per_step"]),
            milliseconds(row["predicted_seconds_per_token"]),
        )
        for row in data["by_width"]
    ]
    columns = ("width", "size", "depth", "tokens/step", "ms/step", "ms/token")
    return [
        figures("dynamic budget", [*rows, *promised(data)]),
        Table(f"the fastest of {counted(data['compared'], 'budget', form=',')}, by width", columns, widths),
    ]


def _models(found: Mapping[str, Any]) -> Parts:
    """Draw how the trees of every acceptance model did on prompts held out, a row each."""
    rows = []
    for model in found["models"]:
        tokens, seconds, lead = (model[key] for key in ("held_out_tokens_per_step", "held_out_seconds_per_token", "lead"))
        rows.append(
            (
                model["model"] + (" (taken)" if model["model"] == found["chosen"] else ""),
                str(model["size"]),
                str(model["depth"]),
                number(tokens["mean"], 3, tokens["interval_95"]),
                "-" if seconds is None else milliseconds(seconds["mean"]),
                "-" if model is found["models"][0] else number(lead["mean"], 4, lead["interval_95"]),
            )
        )
    title = f"acceptance models, scored on prompts held out: {counted(found['prompts'], 'prompt')} in {counted(found['folds'], 'fold')}"
    columns = ("model", "size", "depth", "tokens per step", "ms/token", "times as fast as by-rank")
    return [
        Table(title, columns, rows, left=("model",)),
        "in brackets: 95 % intervals over prompts; size and depth are those of the tree for all texts",
    ]


def training(data: Mapping[str, Any]) -> Parts:
    """Draw loss and first-choice acceptance, before and after; for a run that is not finished, draw its settings."""
    if not data["finished"]:
        return [pairs(data["settings"]), f"not finished; the same train-draft with --resume -o {shlex.quote(data['folder'])} goes on"]
    title = f"training: {counted(data['steps'], 'step', form=',')} on {counted(data['texts'], 'text', form=',')}, {data['seconds']:.0f} s"
    found = [data["rank1_acceptance"][when] for when in ("before", "after")]
    shown = ["-" if one is None else f"{one['probability']:.4f} +- {number(one['standard_error'], 4)}" for one in found]
    rows = [
        ("loss (nats per token)", number(data["loss"]["first"], 4), number(data["loss"]["last"], 4)),
        ("first-choice acceptance, held-out texts", *shown),
    ]
    return [Table(title, ("", "before", "after"), rows), f"--draft {shlex.quote(data['folder'])}"]


def trained(data: Mapping[str, Any]) -> Parts:
    """Draw a run from its record: its settings, then its figures."""
    return [*([pairs(data["settings"])] if data["finished"] else []), *training(data)]


def library(data: Mapping[str, Any]) -> Parts:
    """Draw the growmaps that come with treeopt, a row each."""
    rows = [
        (
            row["name"],
            str(row["size"]),
            str(row["depth"]),
            number(row["expected_tokens_per_step"], 4),
            milliseconds(row["predicted_seconds_per_step"]),
            f"{row['temperature']:g}",
            row["drafting"],
            row["source"].rpartition(", ")[2],
        )
        for row in data["growmaps"]
    ]
    columns = ("name", "size", "depth", "tokens/step", "ms/step", "temperature", "drafting", "source")
    sources = sorted({row[key] for row in data["growmaps"] for key in ("source", "latency_source") if row[key]})
    return [
        Table(f"growmaps in {data['folder']}", columns, rows, left=("name", "drafting", "source")),
        "expected tokens and predicted ms per step; a name stands for its file: evaluate --growmap NAME, inspect NAME",
        *(f"measured by {source}" for source in sources),
    ]


def pairs(data: Mapping[str, Any]) -> Table:
    """Draw a flat object as two columns."""
    values = {key: ", ".join(str(v) for v in value) if isinstance(value, list | tuple) else value for key, value in data.items()}
    return figures("", [(key.replace("_", " "), "-" if shown in (None, "") else str(shown)) for key, shown in values.items()])
