"""Results of `benchmarks.train_draft`: a weak draft trained by each objective."""

from benchmarks.reporting.markdown import counted, device, origin, paragraph, parts, table
from benchmarks.reporting.run import Data, Kind, Run

BEFORE, WHOLE = "weak, before training", "embedded draft, as it comes"
"""The rows of drafts that were not trained in the run."""

NAMES = {
    BEFORE: "before training",
    "ce, own text": "`--objective ce`",
    "forward-kl, own text": "`--divergence forward-kl`",
    "forward-kl, target's text": "`--divergence forward-kl --text target`",
    "reverse-kl, target's text": "`--divergence reverse-kl --text target`",
    "sampled-ce, target's text": "`--divergence sampled-ce --text target`",
    WHOLE: "the embedded draft without noise",
}


def _body(run: Run) -> str:
    data, settings = run.data, run.data["settings"]
    rows = [
        [
            NAMES[row["name"]],
            f"{row['rank1_acceptance']:.3f} ± {row['standard_error']:.3f}",
            f"{row['tokens_per_step']:.2f}",
            *(
                "" if row[key] is None else f"{row[key]:.{digits}f}"
                for key, digits in (("loss_first", 3), ("loss_last", 3), ("seconds", 1))
            ),
        ]
        for row in data["rows"]
    ]
    columns = ("draft", "first-choice acceptance", "predicted tokens per step", "loss, first step", "loss, last steps", "seconds")
    return parts(
        origin(data["provenance"], run.command, run.file),
        paragraph(
            f"The weak draft is the embedded one with noise of {settings['noise']:g} standard deviations on its matrices.",
            f"It was trained for {counted(settings['steps'], 'step')} of {counted(settings['batch_size'], 'window')} of text on at most",
            f"{counted(settings['rows'], 'row')} of the data set `stdlib-train`, and measured on {counted(settings['prompts'], 'row')} of `stdlib`, on",
            f"128 + {settings['gen_len']} tokens.",
        ),
        paragraph(
            "Each row is a draft, named by the options of `train-draft` that made it. The columns give its",
            "[first-choice acceptance](glossary.md#first-choice-acceptance) with the standard error over prompts, the tokens per step that its profile",
            f"predicts for the best tree of {counted(settings['size'], 'node')} and depth {settings['depth']}, the loss at the first step and over",
            "the last ones, which is another quantity for each objective, and the seconds of training.",
        ),
        table(columns, rows),
    )


def _headlines(data: Data) -> list[str]:
    found = {row["name"]: row for row in data["rows"]}
    trained = max((row for name, row in found.items() if name not in (BEFORE, WHOLE)), key=lambda row: float(row["rank1_acceptance"]))
    before, after, whole = (row["rank1_acceptance"] for row in (found[BEFORE], trained, found[WHOLE]))
    name = NAMES[trained["name"]]
    return [f"first-choice acceptance: {before:.3f} before training, {after:.3f} after {name}, {whole:.3f} without noise"]


TRAINING = Kind(
    title=lambda data: f"Training a weak draft on {device(data['provenance'])}",
    body=_body,
    headlines=_headlines,
    prompts=lambda data: int(data["settings"]["prompts"]),
)
"""What a file of `benchmarks.train_draft` says."""
