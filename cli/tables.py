"""Results for people: rich tables and trees, drawn from the plain data of results.py."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.tree import Tree

from treeopt.cli.shares import expected, share_cells, sums
from treeopt.cli.verdicts import no_step, verdict
from treespec.decoding.rules import RULES
from treespec.errors import counted

_MOST_ROWS, _MOST_COLUMNS = 256, 12
"""Most rows and contexts that a table shows: there may be tens of thousands in a file."""


def acceptance(console: Console, data: Mapping[str, Any], *, ranks: int | None = None) -> None:
    """Draw rank probabilities with standard errors and running sums for the first `ranks` ranks.

    Ranks that accept nothing are left out, and a line says so.
    """
    temperature = "" if data.get("temperature") is None else f", temperature {data['temperature']:g}"
    title = f"acceptance by rank: {counted(data['positions'], 'position', form=',')} of {counted(data['prompts'], 'prompt')}, {data['drafting']}{temperature}"
    table = _titled(console, title)
    for column in ("rank", "P(accepted)", "standard error", "cumulative"):
        table.add_column(column, justify="right")
    errors: Sequence[float] = data.get("standard_error") or ()
    total, left_out, most = 0.0, False, min(ranks or _MOST_ROWS, _MOST_ROWS)
    for rank, value in enumerate(data["rank_probability"]):
        total += value
        if value == 0 and rank > 0:
            left_out = True
        elif rank < most:
            table.add_row(str(rank), f"{value:.4f}", f"{errors[rank]:.4f}" if rank < len(errors) else "-", f"{total:.4f}")
    console.print(table)
    _more(console, 0 if ranks else len(data["rank_probability"]) - most, "rank")
    never = "; ranks that were never accepted are not shown" if left_out else ""
    _line(console, "cumulative: the chance that the drafted token of this rank, or one of an earlier rank, is accepted")
    _line(console, f"no rank accepted: {data['none_accepted']:.4f}{never}")


def latency(console: Console, data: Mapping[str, Any]) -> None:
    """Draw median milliseconds of target passes and draft levels, a column per context."""
    for title, what, rows in (("target pass by tree size", "size", data["target"]), ("draft pass by level width", "width", data["draft"])):
        contexts = sorted({row["context"] for row in rows})
        by_place = {(row[what], row["context"]): row["median_seconds"] for row in rows}
        table = _titled(console, f"{title}, median ms")
        table.add_column(what, justify="right")
        for context in contexts[:_MOST_COLUMNS]:
            table.add_column(f"context {context}", justify="right")
        for n in (sizes := sorted({row[what] for row in rows}))[:_MOST_ROWS]:
            table.add_row(str(n), *(_ms(by_place.get((n, context))) for context in contexts[:_MOST_COLUMNS]))
        console.print(table)
        for count, kind in ((len(sizes) - _MOST_ROWS, what), (len(contexts) - _MOST_COLUMNS, "context")):
            _more(console, count, kind)
    _line(console, f"overhead per step: {_ms(data['overhead_seconds'])} ms")


_PROMISE: Mapping[str, Callable[[float], tuple[str, str]]] = {  # how each figure that a growmap promises is shown
    "expected_tokens_per_step": lambda value: ("expected tokens per step", f"{value:.4f}"),
    "predicted_seconds_per_step": lambda value: ("predicted ms per step", _ms(value)),
    "predicted_speedup": lambda value: ("predicted speed-up", f"{value:.3f} x"),
    "certified_gap": lambda value: ("certified gap to the best tree", f"{100 * value:.2f} %"),
}


def _add_promise(table: Table, data: Mapping[str, Any]) -> None:
    for row in (shown(data[key]) for key, shown in _PROMISE.items() if data.get(key) is not None):
        table.add_row(*row)


def generation(console: Console, data: Mapping[str, Any]) -> None:
    """Draw the chosen tree and its promise."""
    table = _figures(console, "growmap")
    table.add_row("size (root included)", str(data["size"]))
    table.add_row("depth (draft passes per step)", str(data["depth"]))
    table.add_row("level widths", " ".join(str(w) for w in data["level_widths"]))
    _add_promise(table, data)
    table.add_row("solver", str(data["solver"]))
    console.print(table)
    if data.get("size") == 1 and data.get("predicted_seconds_per_step") is None:
        _line(console, "the tree is the root alone, as it was asked for: nothing is drafted")
    elif data.get("size") == 1:
        _line(console, "the best tree is the root alone: on this hardware speculation with this draft does not pay")
    if data.get("frontier"):
        frontier = _titled(console, "frontier: best expected tokens per step")
        for column in ("size", "depth bound", "tokens per step"):
            frontier.add_column(column, justify="right")
        for point in data["frontier"]:
            frontier.add_row(str(point["size"]), str(point["depth"]), f"{point['expected_tokens_per_step']:.4f}")
        console.print(frontier)


def evaluation(console: Console, data: Mapping[str, Any]) -> None:
    """Draw the tree beside autoregressive decoding, predictions beside measurements, and the verdict."""
    if not data["steps"]:
        _line(console, no_step(data))
        return
    intervals = data.get("intervals_95") or {}
    baseline = data["baseline"]
    table = _titled(console, f"decoding {counted(data['prompts'], 'prompt')}{_drafting(data)}, 95 % intervals over prompts")
    for column in ("", "tokens/s", "ms/token", "tokens/step", "speed-up"):
        table.add_column(column, justify="right" if column else "left")
    spans = intervals.get("baseline_seconds_per_token")
    if baseline["seconds_per_token"] is not None:
        table.add_row(
            "autoregressive", _number(baseline["tokens_per_second"], 1), _ms(baseline["seconds_per_token"], spans), "1.000", "1.000"
        )
    if data.get("mode") != "baseline":
        table.add_row(
            "growmap" if data.get("mode") == "tree" else f"{data.get('mode')} tree",
            _number(data["tokens_per_second"], 1),
            _ms(data["seconds_per_token"], intervals.get("seconds_per_token")),
            _number(data["tokens_per_step"], 3, intervals.get("tokens_per_step")),
            _number(data["speedup"], 3, intervals.get("speedup")),
        )
    console.print(table)
    if data.get("mode") != "baseline":
        _prediction(console, data)
        accepted_ranks(console, data.get("observed_acceptance") or (), data.get("profiled_acceptance"))
    if data.get("breakdown"):
        _breakdown(console, data["breakdown"], data["steps"])
    alone = data.get("tokens_without_draft")
    if alone:
        _line(
            console,
            f"{alone:,} of {data['tokens']:,} tokens {'was' if alone == 1 else 'were'} decoded without the draft, which has no positions for longer texts",
        )
    if data.get("mode") != "baseline":
        if (data.get("tree") or {}).get("depth") == 0:
            _line(console, "the tree is the root alone: nothing is drafted, and every step is an autoregressive one")
        _line(console, verdict(data))


def _drafting(data: Mapping[str, Any]) -> str:
    """Return the words for the way in which children were drafted; they are empty for the draft's most likely tokens."""
    if not (data.get("drafting") in RULES and RULES[data["drafting"]].sampled):
        return ""
    temperature = data["draft_temperature"]
    at = "" if temperature is None else f" at draft temperature {temperature:g}"
    return f", {data['drafting']}{at}, {data['verifier']} verification"


def _prediction(console: Console, data: Mapping[str, Any]) -> None:
    predicted = data["predicted"]
    if predicted["tokens_per_step"] is None:
        return
    comparison = _titled(console, "prediction")
    for column in ("", "predicted", "measured"):
        comparison.add_column(column, justify="right" if column else "left")
    comparison.add_row("tokens per step", _number(predicted["tokens_per_step"], 3), _number(data["tokens_per_step"], 3))
    if predicted["seconds_per_step"] is not None:
        comparison.add_row("ms per step", _ms(predicted["seconds_per_step"]), _ms(data.get("measured_seconds_per_step")))
    console.print(comparison)


def accepted_ranks(
    console: Console, observed: Sequence[Mapping[str, Any]], profiled: Sequence[Sequence[float]] | None, *, ranks: int = 6
) -> None:
    """Draw for each depth the share of the visited nodes with a child of each rank whose child was accepted, then the profiled chances.

    Under `none` stands the share of the nodes with children that ended there. If it is not known which children the nodes had (dynamic
    trees), shares are of all visited nodes.
    """
    if not any(row["visits"] for row in observed):
        return
    known = all(row.get("offered") is not None for row in observed)
    if not known and not any(sum(row["accepted"]) for row in observed):
        _line(console, "no drafted token was accepted")
        return
    most = max(len(row["offered"] if known else row["accepted"]) for row in observed)
    shown = min(most, ranks)
    table = _titled(console, f"accepted rank by depth, share of the visited nodes{' that had such a child' if known else ''}")
    for column in ("depth", "visits", *(f"rank {rank}" for rank in range(shown)), *(["later"] if most > shown else []), "none"):
        table.add_column(column, justify="right")
    rows = [(str(row["depth"]), row["visits"], row["accepted"], row["offered"] if known else [row["visits"]] * most) for row in observed]
    rows.append(("all", sum(row[1] for row in rows), sums([row[2] for row in rows]), sums([row[3] for row in rows])))
    promised: list[list[float]] = []
    if profiled and known:
        promised = [expected(row[3], profiled[min(depth, len(profiled) - 1)]) for depth, row in enumerate(rows[:-1])]
        promised.append(sums(promised))
    for place, (depth, visits, accepted, base) in enumerate(rows):
        last = place == len(rows) - 1
        table.add_row(depth, f"{visits:,}", *share_cells(accepted, base, shown, most), end_section=place == len(rows) - 2)
        if promised and profiled and (last or len(profiled) > 1):
            table.add_row("profiled", "", *share_cells(promised[place], base, shown, most), end_section=place == len(rows) - 2)
    console.print(table)


def _breakdown(console: Console, parts: Mapping[str, float], steps: int) -> None:
    """Draw the seconds in each part of the steps: in all, per step, and as shares of the whole."""
    whole = sum(parts.values())
    table = _titled(console, f"breakdown of {counted(steps, 'step', form=',')}")
    for column in ("", "seconds", "ms/step", "share"):
        table.add_column(column, justify="right" if column else "left")
    for place, (part, seconds) in enumerate([*parts.items(), ("all", whole)]):
        share = f"{100 * seconds / whole:.1f} %" if whole else "-"
        table.add_row(part, f"{seconds:.3f}", _ms(seconds / steps if steps else None), share, end_section=place == len(parts) - 1)
    console.print(table)


def training(console: Console, data: Mapping[str, Any]) -> None:
    """Draw loss and first-choice acceptance, before and after; for a run that is not finished, draw its settings."""
    if not data["finished"]:
        pairs(console, data["settings"])
        _line(console, f"not finished; the same train-draft with --resume -o {data['folder']} goes on")
        return
    table = _titled(
        console,
        f"training: {counted(data['steps'], 'step', form=',')} on {counted(data['texts'], 'text', form=',')}, {data['seconds']:.0f} s",
    )
    for column in ("", "before", "after"):
        table.add_column(column, justify="right" if column else "left")
    table.add_row("loss (nats per token)", _number(data["loss"]["first"], 4), _number(data["loss"]["last"], 4))
    found = [data["rank1_acceptance"][when] for when in ("before", "after")]
    shown = ["-" if one is None else f"{one['probability']:.4f} +- {_number(one['standard_error'], 4)}" for one in found]
    table.add_row("first-choice acceptance, held-out texts", *shown)
    console.print(table)
    _line(console, f"--draft {data['folder']}")


def trained(console: Console, data: Mapping[str, Any]) -> None:
    """Draw a run from its record: its settings, then its figures."""
    if data["finished"]:
        pairs(console, data["settings"])
    training(console, data)


def growmap(console: Console, data: Mapping[str, Any], *, max_nodes: int = 48) -> None:
    """Draw the tree with its path probabilities, at most `max_nodes` of its nodes, the likeliest ones."""
    figures = _figures(console, "growmap")
    for name, key in (("size (root included)", "size"), ("depth", "depth"), ("most children", "max_branch")):
        figures.add_row(name, str(data[key]))
    figures.add_row("level widths", " ".join(str(w) for w in data["level_widths"]))
    metadata = data.get("metadata", {})
    _add_promise(figures, {**metadata, "expected_tokens_per_step": data.get("expected_tokens_per_step")})
    for key, value in metadata.items():
        if isinstance(value, str | int | float) and key not in ("size", "depth", *_PROMISE):
            figures.add_row(key.replace("_", " "), f"{value:.6g}" if isinstance(value, float) else str(value))
    console.print(figures)
    chances: Sequence[float] = data.get("path_probability") or ()
    paths = [tuple(path) for path in data["paths"]]
    order = sorted(range(len(paths)), key=lambda i: (-chances[i] if chances else 0.0, i))
    shown = sorted(order[: max(0, max_nodes - 1)])  # a parent is never less likely than its child and comes before it
    drawn = {(): Tree("root")}
    for i in shown:
        path = paths[i]
        label = f"{path[-1]}  {chances[i]:.4f}" if chances else str(path[-1])
        drawn[path] = drawn[path[:-1]].add(label)
    console.print(drawn[()])
    _line(console, "each line: rank among its siblings" + (", chance that the accepted path goes through it" if chances else ""))
    if hidden := len(paths) - len(shown):
        _line(console, f"{counted(hidden, 'more node is', 'more nodes are')} not drawn; --max-nodes {data['size']} draws all")


def library(console: Console, data: Mapping[str, Any]) -> None:
    """Draw the growmaps that come with treeopt, a row each."""
    table = _titled(console, f"growmaps in {data['folder']}")
    for column in ("name", "size", "depth", "tokens/step", "ms/step", "temperature", "drafting", "source"):
        table.add_column(column, justify="left" if column in ("name", "drafting", "source") else "right", overflow="fold")
    for row in data["growmaps"]:
        figures = (f"{row['expected_tokens_per_step']:.4f}", _ms(row["predicted_seconds_per_step"]), f"{row['temperature']:g}")
        shown = (row["name"], str(row["size"]), str(row["depth"]), *figures, row["drafting"], row["source"].rpartition(", ")[2])
        table.add_row(*shown)
    console.print(table)
    _line(console, "expected tokens and predicted ms per step; a name stands for its file: evaluate --growmap NAME, inspect NAME")
    for source in sorted({row[key] for row in data["growmaps"] for key in ("source", "latency_source") if row[key]}):
        _line(console, f"measured by {source}")


def potential(console: Console, data: Mapping[str, Any]) -> None:
    """Draw the drafts by rank: their distance from the target, and the tokens per step that single chains of theirs imply."""
    positions = f"{counted(data['positions'], 'position', form=',')} of {counted(data['prompts'], 'prompt')}"
    _line(console, f"{positions}, {data['method']}; distributions at temperature {data['distribution_temperature']:g}")
    table = _titled(console, "KL(target || draft), nats per token, 95 % intervals over prompts")
    for column in ("draft", "KL", "above the best", "reverse KL", "total variation", "same top-1"):
        table.add_column(column, justify="left" if column == "draft" else "right")
    for place, draft in enumerate(data["drafts"]):
        kl, above, reverse = draft["kl"], draft["kl_above_best"], draft["reverse_kl"]
        table.add_row(
            draft["draft"],
            _number(kl["mean"], 4, kl["interval_95"]),
            _number(above["mean"], 4, above["interval_95"]) if place else "-",
            _number(None if reverse is None else reverse["mean"], 4),
            _number(draft["total_variation"]["mean"], 4),
            _number(draft["top1_agreement"]["mean"], 4),
        )
    console.print(table)
    first = data["drafts"][0]["implied"]["sampled_child"]["tokens_per_step"]
    table = _titled(console, "implied tokens per step of chains, if every drafted token is accepted with the same chance")
    for column in ("draft", "child", "temperature", "accepted", *(f"chain of {point['chain']}" for point in first)):
        table.add_column(column, justify="left" if column in ("draft", "child") else "right")
    for draft in data["drafts"]:
        for child, chain in draft["implied"].items():
            points = (_number(point["tokens_per_step"], 3) for point in chain["tokens_per_step"])
            chance = f"{chain['temperature']:g}", _number(chain["acceptance"], 4)
            table.add_row(draft["draft"], child.removesuffix("_child"), *chance, *points)
    console.print(table)


def pairs(console: Console, data: Mapping[str, Any]) -> None:
    """Draw a flat object as two columns."""
    table = _figures(console, "")
    for key, value in data.items():
        shown = ", ".join(str(v) for v in value) if isinstance(value, list | tuple) else value
        table.add_row(key.replace("_", " "), "-" if shown in (None, "") else str(shown))
    console.print(table)


def _more(console: Console, count: int, what: str) -> None:
    """Say how many things a table does not show, if there are any."""
    if count > 0:
        _line(console, f"{counted(count, f'more {what} is', f'more {what}s are')} not shown; --format json has all")


def _titled(console: Console, title: str, *, show_header: bool = True) -> Table:
    """Print the title as a line of its own, which rich would break at the table's width, and return the empty table."""
    if title:
        console.print(title, style="italic", highlight=False, markup=False, soft_wrap=True)
    return Table(show_header=show_header)


def _figures(console: Console, title: str) -> Table:
    table = _titled(console, title, show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    return table


def _line(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def _ms(seconds: float | None, interval: Sequence[float] | None = None) -> str:
    return _number(None if seconds is None else 1e3 * seconds, 3, None if interval is None else [1e3 * s for s in interval])


def _number(value: float | None, digits: int, interval: Sequence[float] | None = None) -> str:
    if value is None:
        return "-"
    around = f" [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]" if interval else ""
    return f"{value:.{digits}f}{around}"
