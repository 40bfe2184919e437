"""Results of `benchmarks.sampling`: every drafting rule and verifier at every temperature, end to end."""

from typing import Any

from benchmarks.reporting.markdown import day, device, interval, listed, origin, paragraph, section, table, temperature

Row = dict[str, Any]


def sampling(data: dict[str, Any], command: str, file: str) -> str:
    """Return the section of one file of `benchmarks.sampling`."""
    best, fixed = best_and_fixed(data["rows"])
    prompts = len(data["rows"][0]["tokens_and_steps"])
    temperatures = listed([temperature(value) for value in sorted({row["temperature"] for row in best})])
    return section(
        f"Drafting rules and verifiers on {device(data['provenance'])}, {day(data['provenance'])}, temperatures {temperatures}",
        origin(data["provenance"], command, file),
        paragraph(
            f"Each row decodes the same {prompts} prompts of 128 + 128 tokens with the best tree for its rule's own profile (a dynamic tree has the size",
            "and depth of the best `topk` tree): the columns give the tokens per step and the speed-up over autoregressive decoding in the same run,",
            "both with 95 % intervals over prompts, the tokens per step that the profile promised, the milliseconds per token, and the p-value of",
            "a chi-square test of profiled against observed ranks on the contexts that decoding visited. That test takes contexts to be",
            "independent, which those of one text are not. A cell is empty where nothing was promised or tested.",
        ),
        table(COLUMNS, [_cells(row) for row in best], left=4),
        _budgets(fixed),
        _profiling(data.get("profiling_seconds")),
    )


COLUMNS = ("temperature", "rule", "tree", "verifier", "tokens per step", "promised", "ms per token", "speed-up", "p-value")


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
    return "static" if isinstance(row["plan"], list) else "dynamic"


def _cells(row: Row) -> list[str]:
    intervals, visited, promised = row["intervals_95"], row["visited"], row["expected_tokens_per_step"]
    return [
        temperature(row["temperature"]),
        f"`{row['drafting']['rule']}`",
        f"{shape(row)} ({row['size']}, {row['depth']})",
        row["drafting"]["verifier"],
        interval(row["tokens_per_step"], intervals["tokens_per_step"]),
        "" if promised is None else f"{promised:.2f}",
        f"{1e3 * row['seconds_per_token']:.2f}",
        interval(row["speedup"], intervals["speedup"]),
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
                *(interval(row["speedup"], row["intervals_95"]["speedup"]) for row in (static, dynamic)),
            ]
        )
    columns = ("(size, depth)", "static", "dynamic", "gain", "speed-up, static", "speed-up, dynamic")
    says = paragraph(
        f"Each row is a size and depth that was given, at temperature {temperature(rows[0]['temperature'])} with `topk`:",
        "the columns give the tokens per step of the best static tree and of the dynamic tree, what the dynamic tree gains in them,",
        "and the speed-up of both over autoregressive decoding.",
    )
    return f"{says}\n\n{table(columns, cells)}"


def _profiling(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    says = paragraph(
        f"The columns give the seconds that the acceptance profile of a rule takes beyond the forward passes, on {found['prompts']} prompts of",
        f"{found['positions']} positions, {found['vocabulary']:,} tokens in the vocabulary, {found['ranks']} ranks and {found['draws']} draws.",
    )
    return f"{says}\n\n{table(('`swor`, s', '`swr`, s'), [[f'{found[rule]:.2f}' for rule in ('swor', 'swr')]], left=0)}"
