"""Results of `benchmarks.budgets`: the chosen budget of dynamic trees beside others, all run end to end."""

from benchmarks.reporting.beside import Row, by_speed, decoded, headline, judged, lead, over_picked
from benchmarks.reporting.markdown import counted, device, origin, paragraph, parts, table
from benchmarks.reporting.run import Data, Kind, Run
from benchmarks.reporting.verdicts import Check, Goal

CHOICE = Goal(3, "%")
"""Most that a budget may be faster than the chosen one."""


def checks_of(data: Data) -> list[Check]:
    """Return the figure that has a goal."""
    return [Check("lead of the fastest budget over the chosen one", lead(by_speed(data)[0]), CHOICE, 1)]


def limits(row: Row) -> str:
    """Return the size, depth and width of a budget."""
    return f"({row['size']}, {row['depth']}, {row['width']})"


def named(row: Row) -> str:
    """Return the size, depth and width of a budget, and what it is called if that says more."""
    return limits(row) if row["name"] == limits(row) else f"{row['name']} {limits(row)}"


def _error(value: float | None) -> str:
    return "" if value is None else f"{100 * value:+.1f} %"


def _figure(value: float | None, digits: int, factor: float = 1.0) -> str:
    return "" if value is None else f"{factor * value:.{digits}f}"


def _cells(row: Row) -> list[str]:
    told, found, errors = row["predicted"], row["measured"], row["errors"]
    return [
        named(row),
        f"{found['tokens_per_step']:.3f}",
        _figure(told["tokens_per_step"], 3),
        _error(errors["tokens_per_step"]),
        f"{1e3 * found['seconds_per_step']:.3f}",
        _figure(told["seconds_per_step"], 3, 1e3),
        _error(errors["seconds_per_step"]),
        f"{1e3 * found['seconds_per_token']:.3f}",
        over_picked(row),
    ]


def _body(run: Run) -> str:
    data, settings = run.data, run.data["settings"]
    chosen, drift, alone = data["rows"][0], data["chosen_seconds_per_token"], data["autoregressive"]
    columns = (
        "budget",
        "tokens per step",
        "predicted",
        "error",
        "ms per step",
        "predicted",
        "error",
        "ms per token",
        "x the chosen budget",
    )
    seconds = ", ".join(f"{name} {took:.0f}" for name, took in data["seconds"].items())
    return parts(
        origin(data["provenance"], run.command, run.file),
        paragraph(
            f"The steps of dynamic trees were counted on {counted(settings['counted'], 'prompt')}, and",
            f"{counted(data['choice']['compared'], 'budget')} compared, as `treeopt grow --dynamic` does. The chosen one, {limits(chosen)}, and",
            f"{counted(len(data['rows']) - 1, 'other')} decoded {counted(settings['prompts'], 'other prompt')}, {settings['gen_len']} tokens each, in",
            f"{counted(settings['rounds'], 'round')}.",
            f"Autoregressive decoding took {1e3 * alone['seconds_per_token']:.3f} ms per token.",
            f"Seconds of the run: {seconds}." if seconds else "",
            f"The latency profile said: {data['unstable']}." if data["unstable"] else "",
            "The columns give the one figure that has a goal.",
        ),
        judged(checks_of(data)),
        paragraph(
            "The columns give the budget (size, depth, width), the fastest first; its tokens per step and milliseconds per step as measured and as",
            "predicted, with the error of the prediction; the measured milliseconds per token; and the speed beside the chosen budget in the same",
            f"group of runs, where it took {1e3 * min(drift):.3f} to {1e3 * max(drift):.3f} ms per token. Nothing is predicted of widths, depths and",
            "sizes that were not counted or timed. [predicting.md](predicting.md#the-audit) says why the fastest of many looks too fast.",
        ),
        table(columns, map(_cells, by_speed(data))),
    )


def _headlines(data: Data) -> list[str]:
    chosen = data["rows"][0]
    speedup = data["autoregressive"]["seconds_per_token"] / chosen["measured"]["seconds_per_token"]
    return [
        f"the chosen budget {limits(chosen)}: {speedup:.2f} x autoregressive decoding",
        headline(data, "budget", named(by_speed(data)[0]), "chosen"),
    ]


def _title(data: Data) -> str:
    return f"The choice of a budget of dynamic trees, on {device(data['provenance'])}"


BUDGETS = Kind(title=_title, body=_body, headlines=_headlines, checks=checks_of, prompts=decoded)
"""What a file of `benchmarks.budgets` says."""
