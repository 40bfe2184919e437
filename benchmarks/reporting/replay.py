"""Results of `benchmarks.replay`: how long a trace is read, and a tree replayed on it."""

from benchmarks.reporting.markdown import counted, day, details, device, paragraph, parts, table
from benchmarks.reporting.run import Data, Kind, Run
from benchmarks.reporting.verdicts import Check, Goal, verdict


def checks_of(data: Data) -> list[Check]:
    """Return the figures that have a goal."""
    return [check for row in data["results"] for check in _checks(row)]


def _checks(row: Data) -> list[Check]:
    return [] if row["goal"] is None else [Check(row["what"], 1e3 * row["seconds"], Goal(1e3 * row["goal"], "ms"))]


def _body(run: Run) -> str:
    known, trace = run.data["provenance"], run.data["trace"]
    texts = f"{counted(trace['texts'], 'text')} of {counted(trace['tokens'], 'token')}"
    rows = []
    for row in run.data["results"]:
        checks = _checks(row)
        tokens = row.get("tokens_per_step")
        figure = checks[0].figure if checks else f"{1e3 * row['seconds']:.2f}"
        rows.append([row["what"], str(row.get("depth", "")), figure, "" if tokens is None else f"{tokens:.2f}", verdict(checks)])
    return parts(
        paragraph(
            f"Measured on {device(known)} ({details(known)}) on {day(known)} by `{run.command}`, with Python {known['python']}, torch {known['torch']}.",
            f"The load average was {run.data['load_average'][0]:.1f}. The file is `benchmarks/results/{run.file}`.",
        ),
        paragraph(
            f"The trace has {texts}, with ranks drawn from a published acceptance vector, and its file {trace['bytes_per_position']:.1f} bytes a position.",
            "Every replay was first compared with a walk through the tree, token by token. Each row is a piece of work. The columns give the depth of",
            "its tree, its median milliseconds, the tokens per step that were replayed, and the goal that was set.",
        ),
        table(("work", "depth", "ms", "tokens per step", "goal"), rows),
    )


def _headlines(data: Data) -> list[str]:
    return [f"file of a trace: {data['trace']['bytes_per_position']:.1f} bytes a position"]


REPLAY = Kind(title=lambda data: "Replay of traces", body=_body, headlines=_headlines, checks=checks_of)
"""What a file of `benchmarks.replay` says."""
