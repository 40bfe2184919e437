"""Evaluations for people: speeds, predictions beside measurements, ranks by depth, the parts of a step, and the verdict."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from treespec.decoding.rules import RULES
from treespec.errors import counted
from treespec.evaluation.categories import category_table
from treespec.evaluation.chains import rows_of
from treespec.evaluation.shares import expected, share_cells, sums
from treespec.evaluation.verdicts import no_step, verdict
from treespec.tables import Parts, Table, figures, milliseconds, number

_MOST_RANKS = 6
"""Ranks with a column of their own; the others share one."""


def evaluation(data: Mapping[str, Any]) -> Parts:
    """Draw an evaluation from its summary: the tree beside autoregressive decoding, predictions beside measurements, and the verdict."""
    if not data["steps"]:
        return [no_step(data)]
    drawing: list[Table | str] = [speeds(data)]
    planned = data["mode"] != "baseline"
    if planned:
        drawing += [*_speedups(data), *_prediction(data), *accepted_ranks(data["observed_acceptance"], data["profiled_acceptance"])]
    if data["by_category"]:
        drawing.append(category_table(data["by_category"]))
    if data.get("breakdown"):
        drawing.append(_breakdown(data["breakdown"], data["steps"]))
    if alone := data["tokens_without_draft"]:
        drawing.append(
            f"{alone:,} of {data['tokens']:,} tokens {'was' if alone == 1 else 'were'} decoded without the draft, which has no positions for longer texts"
        )
    if planned and (data["tree"] or {}).get("depth") == 0:
        drawing.append("the tree is the root alone: nothing is drafted, and every step is an autoregressive one")
    return [*drawing, *data["notes"], verdict(data)] if planned else drawing


def speeds(data: Mapping[str, Any]) -> Table:
    """Draw the speeds of autoregressive decoding, of the tree, and of the chains that ran beside them, from a summary."""
    spans, baseline, mode = data["intervals_95"], data["baseline"], data["mode"]
    rows: list[tuple[str, ...]] = []
    if baseline["seconds_per_token"] is not None:
        per_token = milliseconds(baseline["seconds_per_token"], spans["baseline_seconds_per_token"])
        rows.append(("autoregressive", number(baseline["tokens_per_second"], 1), per_token, "1.000", "1.000"))
    if mode != "baseline":
        rows.append(
            (
                "growmap" if mode == "tree" else f"{mode} tree",
                number(data["tokens_per_second"], 1),
                milliseconds(data["seconds_per_token"], spans["seconds_per_token"]),
                number(data["tokens_per_step"], 3, spans["tokens_per_step"]),
                number(data["speedup"], 3, spans["speedup"]),
            )
        )
    rows += rows_of(data)
    title = f"decoding {counted(data['prompts'], 'prompt')}{_drafting(data)}, 95 % intervals over prompts"
    return Table(title, ("", "tokens/s", "ms/token", "tokens/step", "speed-up"), rows)


def _speedups(data: Mapping[str, Any]) -> list[Table]:
    """Draw the speed-up of the steps beside that of whole texts, if the times of prompt passes are known."""
    if data["speedup_with_prompts"] is None:
        return []
    named = {"speedup": "without prompt passes", "speedup_with_prompts": "with them, the draft's too"}
    rows = [(name, number(data[key], 3, data["intervals_95"][key])) for key, name in named.items()]
    return [figures("speed-up over autoregressive decoding", rows)]


def _drafting(data: Mapping[str, Any]) -> str:
    """Return the words for the way in which children were drafted; they are empty for the draft's most likely tokens."""
    if not (data["drafting"] in RULES and RULES[data["drafting"]].sampled):
        return ""
    temperature = data["draft_temperature"]
    at = "" if temperature is None else f" at draft temperature {temperature:g}"
    return f", {data['drafting']}{at}, {data['verifier']} verification"


def _prediction(data: Mapping[str, Any]) -> list[Table]:
    predicted, measured = data["predicted"], data["intervals_95"]
    if predicted["tokens_per_step"] is None:
        return []
    promised = predicted["intervals_95"]
    shown_as: list[tuple[str, str, Any, Callable[..., str]]] = [
        ("tokens per step", "tokens_per_step", data["tokens_per_step"], _three_digits),
        ("ms per step", "seconds_per_step", data["measured_seconds_per_step"], milliseconds),
        ("speed-up", "speedup", data["speedup"], _three_digits),
    ]
    rows = [
        (name, shown(predicted[key], promised[key]), shown(found, measured[key]))
        for name, key, found, shown in shown_as
        if predicted[key] is not None
    ]
    return [Table("prediction, with 95 % intervals", ("", "predicted", "measured"), rows)]


def _three_digits(value: float | None, interval: Sequence[float] | None) -> str:
    return number(value, 3, interval)


def accepted_ranks(observed: Sequence[Mapping[str, Any]], profiled: Sequence[Sequence[float]] | None) -> Parts:
    """Draw for each depth the share of the visited nodes with a child of each rank whose child was accepted, then the profiled chances.

    Under `none` stands the share of the nodes with children that ended there. If it is not known which children the nodes had (dynamic
    trees), shares are of all visited nodes. Where no node was visited, there is no table.
    """
    if not any(row["visits"] for row in observed):
        return []
    known = all(row["offered"] is not None for row in observed)
    if not known and not any(sum(row["accepted"]) for row in observed):
        return ["no drafted token was accepted"]
    most = max(len(row["offered"] if known else row["accepted"]) for row in observed)
    shown = min(most, _MOST_RANKS)
    found = [(str(row["depth"]), row["visits"], row["accepted"], row["offered"] if known else [row["visits"]] * most) for row in observed]
    found.append(("all", sum(row[1] for row in found), sums([row[2] for row in found]), sums([row[3] for row in found])))
    promised: list[list[float]] = []
    if profiled and known:
        promised = [expected(row[3], profiled[min(depth, len(profiled) - 1)]) for depth, row in enumerate(found[:-1])]
        promised.append(sums(promised))
    each_depth, rows = len(profiled or ()) > 1, []
    for place, (depth, visits, accepted, base) in enumerate(found):
        rows.append((depth, f"{visits:,}", *share_cells(accepted, base, shown, most)))
        if promised and (each_depth or depth == "all"):
            rows.append(("profiled", "", *share_cells(promised[place], base, shown, most)))
    ranks = (f"rank {rank}" for rank in range(shown))
    title = f"accepted rank by depth, share of the visited nodes{' that had such a child' if known else ''}"
    return [Table(title, ("depth", "visits", *ranks, *(["later"] if most > shown else []), "none"), rows, totals=2 if promised else 1)]


def _breakdown(parts: Mapping[str, float], steps: int) -> Table:
    """Draw the seconds in each part of the steps: in all, per step, and as shares of the whole."""
    whole = sum(parts.values())
    rows = [
        (part, number(seconds, 3), milliseconds(seconds / steps), number(100 * seconds / whole if whole else None, 1))
        for part, seconds in [*parts.items(), ("all", whole)]
    ]
    return Table(f"breakdown of {counted(steps, 'step', form=',')}", ("", "seconds", "ms/step", "share, %"), rows, totals=1)
