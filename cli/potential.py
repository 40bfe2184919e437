"""`treeopt potential`: how close drafts come to a target, before anything is tuned."""

from dataclasses import asdict
from pathlib import Path

import click

from treeopt.cli.options import (
    DraftsOptions,
    PromptOptions,
    TargetSamplingOptions,
    drafts_options,
    format_option,
    output_option,
    prompt_options,
    target_sampling_options,
)
from treeopt.cli.output import Progress, claimed, discard_journals, emit, journal_of, note
from treeopt.cli.values import POSITIVE


@click.command()
@drafts_options()
@prompt_options(num_prompts=64)
@click.option(
    "--gen-len", type=click.IntRange(min=2), default=256, show_default=True, help="Tokens per prompt; the first is never drafted."
)
@click.option(
    "--method",
    type=click.Choice(["teacher-forced", "on-policy"]),
    default="teacher-forced",
    show_default=True,
    help="Compare on the data set's own text, or on the target's continuations, which decoding meets.",
)
@target_sampling_options()
@click.option("--batch-size", type=POSITIVE, default=16, show_default=True, help="Prompts per forward pass.")
@output_option(None)
@format_option
def potential(
    models: DraftsOptions,
    rows: PromptOptions,
    gen_len: int,
    method: str,
    sampling: TargetSamplingOptions,
    batch_size: int,
    output: Path | None,
    output_format: str,
) -> None:
    """Rank drafts by their KL divergence from the target, in nats per token.

    Also total variation, agreement of the most likely tokens, and the tokens per step that these imply for single chains.
    """
    from treeopt.cli import tables
    from treeopt.cli.inputs import check_hub, converse, load, note_revisions, note_unused_top_p, outline_of, read_prompts, resolve_device

    note_unused_top_p(sampling)
    note_revisions(models.with_draft(None))
    for draft in models.drafts:
        check_hub(models.with_draft(draft), rows.dataset)
    from treeopt.cli.results import potential_summary
    from treeopt.profiles.potential import SCHEMA
    from treeopt.profiling.potential import PotentialSettings, measure_potential, require_fit
    from treespec.files.writing import check_writable
    from treespec.models.outlines import drafts_of
    from treespec.models.pairs import load_drafts

    if output is not None:
        check_writable(output, SCHEMA)
    settings = PotentialSettings(**asdict(sampling), method=method, gen_len=gen_len, batch_size=batch_size)
    alone = outline_of(models.with_draft(None))
    known = drafts_of(alone.target, models.drafts)

    own_text = method == "teacher-forced"
    prompts = read_prompts(alone, rows, continuation_len=gen_len if own_text else 0)
    require_fit(alone.target, known, prompts, settings)
    target = load(alone, models.with_draft(None))
    drafts = load_drafts(target, models.drafts, device=resolve_device(models.device), dtype=models.dtype)
    with claimed(output):
        if not own_text:
            prompts = converse(target, prompts, rows, gen_len, output)
        with Progress() as progress:
            report = measure_potential(target, drafts, prompts, settings, journal=journal_of(output), progress=progress)
        if output is not None:
            report.write(output)
            discard_journals(output)
            note(f"wrote {output}")
    emit(output_format, potential_summary(report), tables.potential)
