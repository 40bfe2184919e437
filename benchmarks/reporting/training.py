"""Results of `benchmarks.train_draft`: a weak draft trained by each objective."""

from typing import Any

from benchmarks.reporting.markdown import device, origin, paragraph, section, table

NAMES = {
    "weak, before training": "before training",
    "ce, own text": "`--objective ce`",
    "forward-kl, own text": "`--divergence forward-kl`",
    "forward-kl, target's text": "`--divergence forward-kl --text target`",
    "reverse-kl, target's text": "`--divergence reverse-kl --text target`",
    "sampled-ce, target's text": "`--divergence sampled-ce --text target`",
    "embedded draft, as it comes": "the embedded draft without noise",
}


def training(data: dict[str, Any], command: str, file: str) -> str:
    """Return the section of one file of `benchmarks.train_draft`."""
    settings = data["settings"]
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
    columns = ("draft", "first-choice acceptance", "tokens per step", "loss, first step", "loss, last steps", "seconds")
    return section(
        f"Training a weak draft on {device(data['provenance'])}",
        origin(data["provenance"], command, file),
        paragraph(
            f"The weak draft is the embedded one with noise of {settings['noise']:g} standard deviations on its matrices.",
            f"It was trained for {settings['steps']} steps of {settings['batch_size']} windows on at most {settings['rows']:,} rows of the",
            f"standard library's modules, and measured on {settings['prompts']} rows of other modules, on 128 + {settings['gen_len']} tokens.",
        ),
        paragraph(
            "Each row is a draft, named by the options of `train-draft` that made it: the columns give the acceptance of its first choice",
            "with the standard error over prompts, the tokens per step that the exact tree of",
            f"{settings['size']} nodes and depth {settings['depth']} promises, the loss at the first step and over the last ones,",
            "and the seconds of training.",
        ),
        table(columns, rows),
    )
