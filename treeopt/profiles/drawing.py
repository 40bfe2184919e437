"""Profiles and potentials for people: tables from their summaries."""

from collections.abc import Mapping, Sequence
from typing import Any

from treespec.errors import counted
from treespec.tables import Parts, Table, milliseconds, number

_MOST_ROWS, _MOST_COLUMNS = 256, 12
"""Most rows and contexts that a table shows: there may be tens of thousands in a file."""


_READ_RESTS = (
    "rest of a step: the sum of 'with one' and each share times its count in the tree; it comes on top of the passes and is fitted to whole steps",
    "a link is a child on the longest residual chain of a static tree, or a candidate of a dynamic one",
    "a negative share takes back a little of the passes, which take longer timed one by one than in a row; each share counts beside the others, not alone",
)


def acceptance(data: Mapping[str, Any], ranks: int | None = None) -> Parts:
    """Draw rank probabilities with standard errors and running sums for the first `ranks` ranks.

    Ranks that accept nothing are left out, and a line says so.
    """
    temperature = "" if data["temperature"] is None else f", temperature {data['temperature']:g}"
    title = f"acceptance by rank: {_measured(data)}, {data['drafting']}{temperature}"
    chances, errors = data["rank_probability"], data["standard_error"]
    rows, total, unseen, most = [], 0.0, False, min(ranks or _MOST_ROWS, _MOST_ROWS)
    for rank, value in enumerate(chances):
        total += value
        if value == 0 and rank > 0:
            unseen = True
        elif rank < most:
            rows.append((str(rank), number(value, 4), number(errors[rank] if rank < len(errors) else None, 4), number(total, 4)))
    left_out = [] if ranks else _more(len(chances) - most, "rank")
    return [
        Table(title, ("rank", "P(accepted)", "standard error", "cumulative"), rows, left_out=left_out),
        "cumulative: the chance that the drafted token of this rank, or one of an earlier rank, is accepted",
        f"no rank accepted: {data['none_accepted']:.4f}{'; ranks that were never accepted are not shown' if unseen else ''}",
        *([] if not data.get("by_category") else [_categories(data["by_category"])]),
    ]


def _categories(found: Sequence[Mapping[str, Any]]) -> Table:
    """Draw the acceptance of each category, a row each."""
    rows = []
    for one in found[:_MOST_ROWS]:
        chances, errors = one["rank_probability"], one["standard_error"]
        first, error, some = (None, None, None) if chances is None else (chances[0], None if errors is None else errors[0], sum(chances))
        rows.append(
            (
                one["category"] or "-",
                str(one["prompts"]),
                f"{one['positions']:,}",
                *(number(value, 4) for value in (first, error, some)),
            )
        )
    columns = ("category", "prompts", "positions", "first choice accepted", "standard error", "some rank accepted")
    return Table("acceptance by category", columns, rows, left=("category",), left_out=_more(len(found) - _MOST_ROWS, "category"))


def trace(data: Mapping[str, Any]) -> Parts:
    """Draw how often each rank was the target's choice, how sure the draft was of its first choice, and how texts ended."""
    rows, total = [], 0
    for rank, count in enumerate(data["rank_counts"]):
        total += count
        if count or rank == 0:
            rows.append((str(rank), f"{count:,}", *(number(part / max(1, data["positions"]), 4) for part in (count, total))))
    last = len(data["rank_counts"]) - 1
    deep = (
        [f"a head drafted the text from every root, {counted(data['levels'], 'level')} deep; these are of the first"]
        if "levels" in data
        else []
    )
    sure = f"the draft gave its first choice a mean probability of {number(data['first_choice_probability'], 4)}"
    return [
        Table(
            f"draft rank of the target's choice: {_measured(data)}, {data['drafting']}, temperature {data['temperature']:g}",
            ("rank", "positions", "share", "cumulative"),
            rows,
        ),
        *deep,
        f"beyond rank {last}: {counted(data['later_ranks'], 'position', form=',')}; ranks that were never chosen are not shown",
        f"{sure}; the target chose it at {number(data['first_choice_acceptance'], 4)} of the positions",
        f"{data['ended_by_eos']} of {counted(data['prompts'], 'text')} ended with an EOS, the others after {counted(data['gen_len'], 'token')}",
    ]


def latency(data: Mapping[str, Any]) -> Parts:
    """Draw median milliseconds of target passes and draft levels with their intervals, a column per context, and a warning of unstable times."""
    rules = data["rules"]
    fitted = len(rules) > 1 or any(seconds for part, seconds in rules[0]["rest_seconds"].items() if part != "step")
    overhead = f"overhead per step: {milliseconds(data['overhead_seconds'])} ms"
    rests: Parts = [_rests(rules), *_READ_RESTS] if fitted else [overhead]
    warning = [] if data["warning"] is None else [data["warning"]]
    elsewhere = [f"measured in {data['engine']} with {counted(data['batch'], 'sequence')} per pass"] if "engine" in data else []
    below = [
        f"width 1 is the root; over one node below it, a draft pass takes {milliseconds(rule['below_root_seconds'])} ms ({rule['name']})"
        for rule in rules[:1]
        if "below_root_seconds" in rule
    ]
    return [
        *elsewhere,
        _medians("target pass by tree size", "size", data["target"]),
        _medians("draft pass by level width", "width", data["draft"]),
        *below,
        *rests,
        *warning,
    ]


def _rests(rules: Sequence[Mapping[str, Any]]) -> Table:
    """Draw what steps take beside their passes, a row per rule."""
    rows = [
        (rule["name"], milliseconds(rule["autoregressive_overhead_seconds"]), *(milliseconds(s) for s in rule["rest_seconds"].values()))
        for rule in rules[:_MOST_ROWS]
    ]
    columns = ("rule", "without a tree", "with one", "and per node", "per link", "per level")
    return Table("rest of a step by rule, ms", columns, rows, left=("rule",))


def _medians(title: str, what: str, measured: Sequence[Mapping[str, Any]]) -> Table:
    contexts, sizes = (sorted({row[key] for row in measured}) for key in ("context", what))
    by_place = {(row[what], row["context"]): milliseconds(row["median_seconds"], row["interval_95"]) for row in measured}
    shown = contexts[:_MOST_COLUMNS]
    rows = [(str(size), *(by_place.get((size, context), "-") for context in shown)) for size in sizes[:_MOST_ROWS]]
    left_out = _more(len(sizes) - _MOST_ROWS, what) + _more(len(contexts) - _MOST_COLUMNS, "context")
    return Table(f"{title}, median ms [95 % interval]", (what, *(f"context {context}" for context in shown)), rows, left_out=left_out)


def potential(data: Mapping[str, Any]) -> Parts:
    """Draw the drafts by rank: their distance from the target, and the tokens per step that single chains of theirs imply."""
    lengths = [point["chain"] for point in data["drafts"][0]["implied"]["sampled_child"]["tokens_per_step"]]
    return [
        f"{_measured(data)}, {data['method']}; distributions at temperature {data['distribution_temperature']:g}",
        Table(
            "KL(target || draft), nats per token, 95 % intervals over prompts",
            ("draft", "KL", "above the best", "reverse KL", "total variation", "same top-1"),
            [_distances(draft, best=place == 0) for place, draft in enumerate(data["drafts"])],
            left=("draft",),
        ),
        Table(
            "implied tokens per step of chains, if every drafted token is accepted with the same chance",
            ("draft", "child", "temperature", "accepted", *(f"chain of {length}" for length in lengths)),
            [_implied(draft["draft"], child, chain) for draft in data["drafts"] for child, chain in draft["implied"].items()],
            left=("draft", "child"),
        ),
    ]


def _distances(draft: Mapping[str, Any], *, best: bool) -> tuple[str, ...]:
    kl, above, reverse = draft["kl"], draft["kl_above_best"], draft["reverse_kl"]
    return (
        draft["draft"],
        number(kl["mean"], 4, kl["interval_95"]),
        "-" if best else number(above["mean"], 4, above["interval_95"]),
        number(None if reverse is None else reverse["mean"], 4),
        number(draft["total_variation"]["mean"], 4),
        number(draft["top1_agreement"]["mean"], 4),
    )


def _implied(draft: str, child: str, chain: Mapping[str, Any]) -> tuple[str, ...]:
    points = (number(point["tokens_per_step"], 3) for point in chain["tokens_per_step"])
    return (draft, child.removesuffix("_child"), f"{chain['temperature']:g}", number(chain["acceptance"], 4), *points)


def _measured(data: Mapping[str, Any]) -> str:
    return f"{counted(data['positions'], 'position', form=',')} of {counted(data['prompts'], 'prompt')}"


def _more(count: int, what: str) -> list[str]:
    """Say how many things a table does not show, if there are any."""
    return [f"{counted(count, f'more {what} is', f'more {what}s are')} not shown"] if count > 0 else []
