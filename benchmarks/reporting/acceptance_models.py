"""Results of `benchmarks.acceptance_models`: what chances by depth, and replay itself, are worth beyond chances by rank."""

from benchmarks.reporting.markdown import counted, day, details, device, interval, paragraph, parts, table
from benchmarks.reporting.run import Data, Kind, Run


def _body(run: Run) -> str:
    known, even = run.data["provenance"], run.data["even"]
    rows = [_row(row) for row in run.data["results"]]
    columns = ("prompts", "tree", "by rank", "promised", "by depth", "replay", "taken")
    return parts(
        paragraph(
            f"Measured on {device(known)} ({details(known)}) on {day(known)} by `{run.command}`, with Python {known['python']}, torch {known['torch']}.",
            f"The file is `benchmarks/results/{run.file}`.",
        ),
        paragraph(
            f"The trace is of the embedded pair on the rows of `{run.data['dataset']}`, with {counted(run.data['gen_len'], 'token')} to a text. Each row is a",
            "cross-validation over prompts for trees of one size and largest depth, whose steps all cost the same. The columns give the tokens per step on",
            "prompts held out of trees for the chances by rank, with the 95 % interval; what these chances expect of the tree for all prompts (promised); by",
            "what factor the trees of the other two models were better on the same prompts; and the model that `grow` takes.",
        ),
        table(columns, rows, left=2),
        paragraph(
            f"Of {counted(even['sources'], 'made-up source')} whose ranks are drawn one by one, whatever went before ({counted(even['texts'], 'text')} of",
            f"{counted(even['tokens'], 'token')} each), {even['taken']} were taken for one of a richer model: noise that looked like depth.",
        ),
    )


def _row(row: Data) -> list[str]:
    plain, *richer = row["models"]
    tokens = plain["held_out_tokens_per_step"]
    leads = [_with_ends(one["lead"], 3) for one in richer]
    return [
        str(row["prompts"]),
        f"({row['size']}, {row['depth']})",
        _with_ends(tokens, 2),
        f"{plain['promised_tokens_per_step']:.2f}",
        *leads,
        row["chosen"],
    ]


def _with_ends(figure: Data, digits: int) -> str:
    return interval(figure["mean"], figure["interval_95"], digits)


def _headlines(data: Data) -> list[str]:
    most = max(data["results"], key=lambda row: max(one["lead"]["mean"] for one in row["models"]))
    best = max(most["models"], key=lambda one: one["lead"]["mean"])
    taken = sum(row["chosen"] != "by-rank" for row in data["results"])
    return [
        f"richer models taken in {taken} of {len(data['results'])} cases",
        f"the largest lead was {best['lead']['mean']:.3f} x ({best['model']}, {most['size']} nodes, {most['prompts']} prompts)",
    ]


ACCEPTANCE_MODELS = Kind(title=lambda data: "Acceptance by rank, by depth, and by replay", body=_body, headlines=_headlines)
"""What a file of `benchmarks.acceptance_models` says."""
