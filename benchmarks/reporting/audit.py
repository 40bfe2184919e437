"""Results of `benchmarks.audit`: trees end to end, beside replay and predictions from other prompts, and the tree that the profiles picked."""

import math

from benchmarks.reporting.beside import Row, by_speed, decoded, headline, judged, lead, over_picked
from benchmarks.reporting.markdown import counted, device, interval, link, origin, paragraph, parts, table
from benchmarks.reporting.run import Data, Kind, Run
from benchmarks.reporting.verdicts import Check, Goal

REPLAY = Goal(1, "%")
"""Largest error of replayed tokens per step, on the prompts that were decoded."""
AGREED = Goal(90, "% of halves", at_most=False)
SECONDS = Goal(5, "%")
"""Largest error of predicted seconds per token."""
CHOICE = Goal(2, "%")
"""Most that a tree may be faster than the picked one."""
GOALS, PREDICTED, CHOSEN = "An audit's goals", "Predictions in an audit", "The choice in an audit"
HOW_TO_READ = {
    GOALS: paragraph(
        "[predicting.md](predicting.md#the-audit) explains what is held against what. The columns give the figures that have a goal, and whether they met it.",
        "Halves are random ones of all prompts: one predicts what the other gives.",
    ),
    PREDICTED: paragraph(
        "The columns give, for each tree (size, depth), the measured tokens per step with their interval, the error of replay",
        "on the same prompts, what the other prompts predict, and whether that interval holds the measured figure; then, of the",
        "halves, the share in which the prediction agrees with what is replayed on the",
        "other half within the interval of their difference, the share in which the predicted interval alone holds it (83 % where nothing but",
        "chance is wrong), and the mean error of the prediction; the share and the error again where not the chances of ranks but a replay on",
        "one half predicts, as `grow --trace` and `tune` do; at last the measured milliseconds per token, the error of those predicted by chances of",
        "ranks and by a replay of the profiled prompts, which have in them that the prompts are other ones, and the error of the predicted milliseconds",
        "per step, which has not. The interval of a difference has",
        "both chances in it, that of the prompts that were profiled and that of those that were decoded.",
    ),
    CHOSEN: paragraph(
        "The columns give the speed of all trees, the fastest first, how fast each was beside the picked one, and its tokens per step. Speeds are",
        "compared with the picked tree in the same group of runs. The largest of many quotients is too large by chance.",
    ),
}
"""How to read the tables that only these files have."""
GRID = ("picked", "best", "grid")
"""Kinds that are best trees of a size, or of a size and a depth."""


def audited(data: Data) -> list[Row]:
    """Return the rows whose predictions are audited."""
    return [row for row in data["rows"] if row["audited"]]


def checks_of(data: Data) -> list[Check]:
    """Return all figures that have a goal. The halves are those of all audited trees together."""
    rows = audited(data)
    seconds = {
        how: [abs(error) for error in (row.get(figure) for row in rows) if error is not None]
        for how, figure in (("chances of ranks", "seconds_per_token_error"), ("replay", "seconds_per_token_error_by_replay"))
    }
    return [
        Check("largest error of replayed tokens per step", 100 * max(abs(row["replay_error"]) for row in rows), REPLAY),
        Check("predictions that agree with the tokens per step of other prompts, by chances of ranks", share(rows, "agreed"), AGREED, 1),
        Check("predictions that agree with the tokens per step of other prompts, by replay", share(rows, "agreed_by_replay"), AGREED, 1),
        *(
            Check(f"largest error of predicted seconds per token, by {how}", 100 * max(errors), SECONDS, 1)
            for how, errors in seconds.items()
            if errors  # files of before 2026-12 have none by replay
        ),
        Check("lead of the fastest tree over the picked one", max(lead(row) for row in data["rows"]), CHOICE, 1),
    ]


def share(rows: list[Row], what: str) -> float:
    """Return the share of the halves of all trees together that have something in common, in percent."""
    halves = [row["splits"] for row in rows]
    return float(100 * sum(split[what] for split in halves) / sum(split["splits"] for split in halves))


def agrees(row: Row) -> bool:
    """Return whether predicted and measured tokens per step differ by no more than chance: by the interval of their difference."""
    told, found = row["predicted"], row["measured"]
    wide = [0.5 * (high - low) for low, high in (told["tokens_interval_95"], found["tokens_per_step_interval_95"] or (0.0, 0.0))]
    return bool(abs(told["tokens_per_step"] - found["tokens_per_step"]) <= math.hypot(*wide))


def step_error(row: Row) -> float | None:
    """Return the error of the predicted seconds per step of a tree; None without a prediction."""
    told = row["predicted"]["seconds_per_step"]
    return None if told is None else float(told / row["measured"]["seconds_per_step"] - 1)


def _percent(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{100 * value:+.{digits}f} %"


def _predictions(data: Data) -> str:
    cells = []
    for row in audited(data):
        told, found, split = row["predicted"], row["measured"], row["splits"]
        cells.append(
            [
                f"{row['name']} ({row['size']}, {row['depth']})",
                interval(found["tokens_per_step"], found["tokens_per_step_interval_95"] or [found["tokens_per_step"]] * 2),
                _percent(row["replay_error"], 2),
                interval(told["tokens_per_step"], told["tokens_interval_95"]),
                "yes" if row["inside"] else "no",
                f"{100 * split['agreed'] / split['splits']:.0f} %",
                f"{100 * split['held'] / split['splits']:.0f} %",
                f"{100 * split['bias']:+.1f} %",
                f"{100 * split['agreed_by_replay'] / split['splits']:.0f} %",
                f"{100 * split['bias_by_replay']:+.1f} %",
                f"{1e3 * found['seconds_per_token']:.3f}",
                _percent(row["seconds_per_token_error"]),
                _percent(row.get("seconds_per_token_error_by_replay")),
                _percent(step_error(row)),
            ]
        )
    columns = ("tree", "tokens per step", "replay", "predicted", "inside", "agreed", "held", "bias", "agreed by replay", "its bias")
    return table((*columns, "ms per token", "predicted", "by replay", "ms per step"), cells)


def _choice(data: Data) -> str:
    cells = []
    for row in by_speed(data):
        found = row["measured"]
        cells.append(
            [
                f"{row['name']} ({row['size']}, {row['depth']})",
                f"{1 / found['seconds_per_token']:.1f}",
                over_picked(row),
                f"{found['tokens_per_step']:.3f}",
            ]
        )
    return table(("tree", "tokens per second", "x the picked tree", "tokens per step"), cells)


def _body(run: Run) -> str:
    data, settings = run.data, run.data["settings"]
    checks, rows = checks_of(data), audited(data)
    best = len([row for row in data["rows"] if row["kind"] in GRID])
    inside, agree = (sum(map(bool, held)) for held in ((row["inside"] for row in rows), map(agrees, rows)))
    by_replay = [row["inside_by_replay"] for row in rows if row.get("inside_by_replay") is not None]
    drift = data["picked_seconds_per_token"]
    return parts(
        origin(data["provenance"], run.command, run.file),
        paragraph(
            f"{link(GOALS)}: {counted(settings['profiled'], 'prompt')} were profiled and {settings['prompts']} others decoded,",
            f"{settings['gen_len']} tokens each, in {counted(settings['rounds'], 'round')}; {settings['splits']} halves for each tree.",
            f"The latency profile said: {data['unstable']}." if data["unstable"] else "",
            f"The run was stopped before {counted(data['not_run'], 'more tree')} had been decoded." if data.get("not_run") else "",
        ),
        judged(checks),
        paragraph(
            f"{link(PREDICTED)}. Predicted intervals hold {inside} of {len(rows)} measured figures, and intervals of differences {agree}.",
            f"Those of a replay of the profiled prompts hold {sum(by_replay)} of {len(by_replay)}." if by_replay else "",
        ),
        _predictions(data),
        paragraph(
            f"{link(CHOSEN)}: {best} are best trees of a size and a depth. The picked tree took",
            f"{1e3 * min(drift):.3f} to {1e3 * max(drift):.3f} ms per token in these groups.",
        ),
        _choice(data),
    )


def _headlines(data: Data) -> list[str]:
    worst = max(abs(row["replay_error"]) for row in audited(data))
    steps = max(abs(error) for row in audited(data) if (error := step_error(row)) is not None)
    return [
        f"replay is off by at most {100 * worst:.2f} % of the measured tokens per step, on {counted(len(audited(data)), 'tree')}",
        f"predicted seconds per step are off by at most {100 * steps:.1f} %",
        headline(data, "tree", by_speed(data)[0]["name"], "picked"),
    ]


def _title(data: Data) -> str:
    return f"Audit of predictions and of the choice among {counted(len(data['rows']), 'tree')}, on {device(data['provenance'])}"


AUDIT = Kind(title=_title, body=_body, headlines=_headlines, checks=checks_of, prompts=decoded)
"""What a file of `benchmarks.audit` says."""
