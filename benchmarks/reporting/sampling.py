"""Results of `benchmarks.sampling`: every drafting rule and verifier at every temperature, end to end."""

from typing import Any

from benchmarks.reporting.markdown import counted, day, device, interval, link, origin, paragraph, parts, table, temperature
from benchmarks.reporting.run import Data, Kind, Run
from benchmarks.reporting.verdicts import Slower, speedup, told
from benchmarks.reporting.ways import verifier_of
from treespec.errors import listed

Row = dict[str, Any]

COLUMNS = ("temperature", "rule", "tree", "verifier", "tokens per step", "predicted", "ms per token", "speed-up", "p-value")
HOW_TO_READ = {
    "Rules and verifiers": paragraph(
        "Each row decodes the same prompts with one [drafting rule](glossary.md#drafting-rules) and the best tree for that rule's own profile; a",
        "[dynamic tree](glossary.md#dynamic-tree) has the size and depth of the best static tree for `topk`. Children that were not sampled are always",
        "verified by [matching](glossary.md#matching): those of `topk`, and at temperature 0 those of `swor`, which are the same, so that its two rows",
        "there differ by noise alone. The columns give the tokens per step with their interval, the tokens per step that the profile predicted, the",
        "milliseconds per token, the speed-up over autoregressive decoding in the same run with its interval, and the p-value of a chi-square test",
        "of profiled against observed ranks on the contexts that decoding visited: a small one says that the profile does not fit. That test",
        "takes contexts to be independent, which those of one text are not.",
    ),
    "Seconds of profiling": paragraph(
        "The columns give the seconds that the acceptance profile of a rule takes beyond the forward passes, on random logits.",
    ),
}
"""How to read the tables that only these files have, by title."""


def best_and_fixed(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """Return (rows of each rule's best trees by temperature, rows of sizes and depths that were given), each in the file's order.

    The first row of a rule, plan and verifier at a temperature is that of the best tree; what comes after it was given.
    """
    best: list[Row] = []
    fixed: list[Row] = []
    seen: set[tuple[Any, ...]] = set()
    for row in rows:
        key = (row["temperature"], row["drafting"]["rule"], row["drafting"]["verifier"], shape(row))
        (fixed if key in seen else best).append(row)
        seen.add(key)
    return sorted(best, key=lambda row: float(row["temperature"])), fixed


def shape(row: Row) -> str:
    """Return "static" for a tree that is the same at every step, else "dynamic"."""
    plan = row["plan"]
    return "static" if isinstance(plan, list) or "parents" in plan else "dynamic"  # older files hold only the parents


def verifier(row: Row) -> str:
    """Return the verifier that decided in a row, which is not always the one that its setting names."""
    return verifier_of(row["drafting"]["rule"], row["drafting"]["verifier"], row["temperature"], row["drafting"]["temperature"])


def name_of(row: Row) -> str:
    """Return what a sentence calls a row."""
    tree = f"{shape(row)} tree ({row['size']}, {row['depth']})"
    return f"temperature {temperature(row['temperature'])}, `{row['drafting']['rule']}`, {tree}, {verifier(row)}"


def slower_of(rows: list[Row]) -> list[Slower]:
    """Return the rows that were slower than autoregressive decoding."""
    return [
        Slower(name_of(row), row["speedup"], "autoregressive decoding", row["intervals_95"]["speedup"])
        for row in rows
        if row["speedup"] < 1
    ]


def _speedup(row: Row) -> str:
    return speedup(row["speedup"], row["intervals_95"]["speedup"])


def _cells(row: Row) -> list[str]:
    visited, predicted = row["visited"], row["expected_tokens_per_step"]
    return [
        temperature(row["temperature"]),
        f"`{row['drafting']['rule']}`",
        f"{shape(row)} ({row['size']}, {row['depth']})",
        verifier(row),
        interval(row["tokens_per_step"], row["intervals_95"]["tokens_per_step"]),
        "" if predicted is None else f"{predicted:.2f}",
        f"{1e3 * row['seconds_per_token']:.2f}",
        _speedup(row),
        "" if visited is None else f"{visited['p_value']:.2f}",
    ]


def _budgets(rows: list[Row]) -> str:
    """Return the table of fixed sizes and depths: a dynamic tree follows the static one of the same."""
    if not rows:
        return ""
    cells = []
    for static, dynamic in zip(rows[::2], rows[1::2], strict=True):
        assert (static["size"], static["depth"], shape(static)) == (dynamic["size"], dynamic["depth"], "static")
        cells.append(
            [
                f"({static['size']}, {static['depth']})",
                f"{static['tokens_per_step']:.2f}",
                f"{dynamic['tokens_per_step']:.2f}",
                f"{100 * (dynamic['tokens_per_step'] / static['tokens_per_step'] - 1):+.0f} %",
                _speedup(static),
                _speedup(dynamic),
            ]
        )
    columns = ("(size, depth)", "static", "dynamic", "gain", "speed-up, static", "speed-up, dynamic")
    says = paragraph(
        f"Each row is a size and depth that was given instead of chosen, at temperature {temperature(rows[0]['temperature'])} with `topk`.",
        "The columns give the tokens per step of the best static tree and of the dynamic tree, what the dynamic tree gains in them,",
        "and the speed-up of both over autoregressive decoding.",
    )
    return parts(says, table(columns, cells), told(slower_of(rows)))


def _profiling(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    says = paragraph(
        f"{link('Seconds of profiling')}, on {counted(found['prompts'], 'prompt')} of {counted(found['positions'], 'position')},",
        f"with {found['vocabulary']:,} tokens in the vocabulary, {counted(found['ranks'], 'rank')} and {counted(found['draws'], 'draw')}.",
    )
    return parts(says, table(("`swor`, s", "`swr`, s"), [[f"{found[rule]:.2f}" for rule in ("swor", "swr")]], left=0))


def prompts_of(data: Data) -> int:
    """Return how many prompts were decoded."""
    return len(data["rows"][0]["tokens_and_steps"])


def _title(data: Data) -> str:
    found = sorted({row["temperature"] for row in data["rows"]})
    word = "temperature" if len(found) == 1 else "temperatures"
    temperatures = listed([temperature(value) for value in found])
    return f"Drafting rules and verifiers on {device(data['provenance'])}, {day(data['provenance'])}, {word} {temperatures}"


def _body(run: Run) -> str:
    data = run.data
    best, fixed = best_and_fixed(data["rows"])
    return parts(
        origin(data["provenance"], run.command, run.file),
        paragraph(f"{link('Rules and verifiers')}, on {counted(prompts_of(data), 'prompt')} of 128 + 128 tokens.", run.fewer),
        table(COLUMNS, [_cells(row) for row in best], left=4),
        told(slower_of(best)),
        _budgets(fixed),
        _profiling(data.get("profiling_seconds")),
    )


def _headlines(data: Data) -> list[str]:
    best = best_and_fixed(data["rows"])[0]
    ends = {"fastest": max(best, key=lambda row: float(row["speedup"])), "slowest": min(best, key=lambda row: float(row["speedup"]))}
    return [f"{which}: {name_of(row)}: {_speedup(row)} x autoregressive decoding" for which, row in ends.items()]


SAMPLING = Kind(
    title=_title,
    body=_body,
    headlines=_headlines,
    slower=lambda data: slower_of([row for rows in best_and_fixed(data["rows"]) for row in rows]),
    prompts=prompts_of,
)
"""What a file of `benchmarks.sampling` says."""
