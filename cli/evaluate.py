"""`treeopt evaluate`: run a growmap end to end beside autoregressive decoding."""

from pathlib import Path

import click

from treeopt.cli.options import (
    INPUT_FILE,
    POSITIVE,
    check_rows,
    format_option,
    model_options,
    output_option,
    prompt_options,
    resolve_device,
    sampling_options,
)
from treeopt.cli.output import Progress, emit, note
from treeopt.cli.profile_command import journal_of


@click.command()
@model_options(draft_required=False)
@click.option("--growmap", type=INPUT_FILE, help="Growmap to run (.pt).")
@click.option("--mode", type=click.Choice(["tree", "baseline"]), default="tree", show_default=True, help="baseline: autoregressive decoding alone.")
@prompt_options(num_prompts=16)
@click.option("--gen-len", type=POSITIVE, default=128, show_default=True, help="Tokens to generate per prompt.")
@click.option("--max-length", type=POSITIVE, help="Cache slots: prompt, generated tokens and tree. [default: as many as needed]")
@sampling_options()
@click.option("--save-tokens", is_flag=True, help="Keep the generated ids in the report and the JSON.")
@click.option("--breakdown", is_flag=True, help="Also time the parts of a step.")
@output_option("report.json")
@format_option
def evaluate(
    target: str,
    draft: str | None,
    revision: str | None,
    draft_revision: str | None,
    device: str,
    dtype: str,
    growmap: Path | None,
    mode: str,
    dataset: str,
    num_prompts: int,
    prompt_len: int,
    start: int,
    end: int | None,
    gen_len: int,
    max_length: int | None,
    temperature: float,
    top_p: float,
    drafting: str,
    seed: int,
    save_tokens: bool,
    breakdown: bool,
    output: Path,
    output_format: str,
) -> None:
    """Tokens per step, time per token and speed-up of a growmap, beside what it promised.

    Both ways of decoding run in turn on each prompt, by the same engine. At temperature 0 the outputs must be equal.
    """
    check_rows(start, end)
    if mode == "baseline" and growmap is not None:
        raise click.UsageError("--mode baseline runs no tree; drop --growmap, or drop --mode baseline to compare both.")
    if mode == "tree" and growmap is None:
        raise click.UsageError("what is to be run? Pass --growmap FILE, or --mode baseline.")
    if mode == "tree" and draft is None:
        raise click.UsageError("a growmap needs a draft model; pass --draft.")
    if max_length is not None and max_length <= prompt_len:
        raise click.UsageError(f"--max-length {max_length} leaves no room after a prompt of {prompt_len} tokens; pass {prompt_len + gen_len} or more.")
    from treeopt.cli import tables
    from treeopt.cli.results import evaluation_summary
    from treespec.files import check_writable
    from treespec.growmap import read_growmap
    from treespec.models.loading import load_pair, load_tokenizer
    from treespec.prompts import load_prompts
    from treespec.verification.report import Prediction
    from treespec.verification.runner import EvaluationSettings
    from treespec.verification.runner import evaluate as run

    check_writable(output)
    grown = None if growmap is None else read_growmap(growmap)
    settings = EvaluationSettings(
        gen_len=gen_len,
        max_length=max_length,
        temperature=temperature,
        top_p=top_p,
        drafting=drafting,
        seed=seed,
        save_tokens=save_tokens,
        breakdown=breakdown,
    )
    tokenizer = load_tokenizer(target, revision=revision)
    prompts = load_prompts(dataset, tokenizer, num_prompts=num_prompts, prompt_len=prompt_len, start=start, end=end)
    pair = load_pair(
        target,
        draft if mode == "tree" else None,
        device=resolve_device(device),
        dtype=dtype,
        revision=revision,
        draft_revision=draft_revision,
    )
    predicted = None
    if grown is not None:
        promised = grown.metadata
        predicted = Prediction(_figure(promised.get("expected_tokens_per_step")), _figure(promised.get("predicted_seconds_per_step")))
    with Progress() as progress:
        report = run(
            pair, None if grown is None else grown.tree, prompts, settings, predicted=predicted, journal=journal_of(output), progress=progress
        )
    report.write(output)
    note(f"wrote {output}")
    emit(output_format, evaluation_summary(report), tables.evaluation)


def _figure(value: object) -> float | None:
    """A number from a growmap's metadata, which anyone may have written."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
