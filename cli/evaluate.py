"""`treeopt evaluate`: run a growmap end to end beside autoregressive decoding."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from treeopt.cli.options import (
    INPUT_FILE,
    POSITIVE,
    ModelOptions,
    PromptOptions,
    SamplingOptions,
    format_option,
    model_options,
    output_option,
    prompt_options,
    sampling_options,
)
from treeopt.cli.output import Progress, emit, note
from treeopt.cli.profile_command import journal_of


@click.command()
@model_options(draft_required=False)
@click.option("--growmap", type=INPUT_FILE, help="Growmap to run (.pt).")
@click.option(
    "--mode", type=click.Choice(["tree", "baseline"]), default="tree", show_default=True, help="baseline: autoregressive decoding alone."
)
@prompt_options(num_prompts=16)
@click.option("--gen-len", type=POSITIVE, default=128, show_default=True, help="Tokens to generate per prompt.")
@click.option("--max-length", type=POSITIVE, help="Cache slots: prompt, generated tokens and tree. [default: as many as needed]")
@sampling_options()
@click.option("--save-tokens", is_flag=True, help="Keep the generated ids in the report and the JSON.")
@click.option("--breakdown", is_flag=True, help="Also time the parts of a step.")
@output_option("report.json")
@format_option
def evaluate(
    models: ModelOptions,
    growmap: Path | None,
    mode: str,
    rows: PromptOptions,
    gen_len: int,
    max_length: int | None,
    sampling: SamplingOptions,
    save_tokens: bool,
    breakdown: bool,
    output: Path,
    output_format: str,
) -> None:
    """Tokens per step, time per token and speed-up of a growmap, beside what it promised.

    Both ways of decoding run in turn on each prompt, by the same engine. At temperature 0 the outputs must be equal.
    """
    if mode == "baseline" and growmap is not None:
        raise click.UsageError("--mode baseline runs no tree; drop --growmap, or drop --mode baseline to compare both.")
    if mode == "tree" and growmap is None:
        raise click.UsageError("what is to be run? Pass --growmap FILE, or --mode baseline.")
    if mode == "tree" and models.draft is None:
        raise click.UsageError("a growmap needs a draft model; pass --draft.")
    if max_length is not None and max_length < rows.prompt_len + gen_len:
        raise click.UsageError(
            f"--max-length {max_length} is too short for {rows.prompt_len} prompt and {gen_len} generated tokens; pass {rows.prompt_len + gen_len} or more."
        )
    from treeopt.cli import tables
    from treeopt.cli.inputs import check_hub, load_inputs

    check_hub(models, rows)
    from treeopt.cli.results import evaluation_summary
    from treespec.files import check_writable
    from treespec.growmap import read_growmap
    from treespec.journal import discard
    from treespec.verification.report import Prediction
    from treespec.verification.runner import EvaluationSettings
    from treespec.verification.runner import evaluate as run

    check_writable(output)
    tree, predicted = None, None
    if growmap is not None:
        grown = read_growmap(growmap)
        tree, promised = grown.tree, grown.metadata
        _warn_of_other_sampling(promised, sampling)
        predicted = Prediction(_figure(promised.get("expected_tokens_per_step")), _figure(promised.get("predicted_seconds_per_step")))
    settings = EvaluationSettings(**asdict(sampling), gen_len=gen_len, max_length=max_length, save_tokens=save_tokens, breakdown=breakdown)
    pair, prompts = load_inputs(models if tree is not None else replace(models, draft=None), rows)
    with Progress() as progress:
        report = run(pair, tree, prompts, settings, predicted=predicted, journal=journal_of(output), progress=progress)
    report.write(output)
    discard(journal_of(output))
    note(f"wrote {output}")
    emit(output_format, evaluation_summary(report), tables.evaluation)


def _figure(value: object) -> float | None:
    """A number from a growmap's metadata, which anyone may have written."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _warn_of_other_sampling(promised: Mapping[str, Any], sampling: SamplingOptions) -> None:
    """A growmap's promise holds for the sampling that its acceptance was profiled with."""
    for name, used in (("temperature", sampling.temperature), ("top_p", sampling.top_p)):
        made_for = _figure(promised.get(name))
        if made_for is not None and made_for != used:
            note(f"the growmap was made for {name} {made_for:g}, this run has {used:g}: its prediction does not hold here")
