"""`treeopt profile acceptance` and `treeopt profile latency`: measure a pair on this machine."""

from dataclasses import asdict
from functools import partial
from pathlib import Path

import click

from treeopt.cli.errors import TreeoptGroup
from treeopt.cli.options import (
    ModelOptions,
    PromptOptions,
    SamplingOptions,
    format_option,
    model_options,
    output_option,
    prompt_options,
    sampling_options,
)
from treeopt.cli.output import Progress, claimed, discard_journals, emit, journal_of, note
from treeopt.cli.values import POSITIVE, int_list


@click.group(cls=TreeoptGroup)
def profile() -> None:
    """Measure a pair: how often drafts are accepted, and how long passes take."""


@profile.command()
@model_options()
@prompt_options(num_prompts=64)
@click.option(
    "--gen-len", type=click.IntRange(min=2), default=128, show_default=True, help="Tokens per prompt; the first is never drafted."
)
@sampling_options()
@click.option("--max-branch", type=POSITIVE, default=32, show_default=True, help="Ranks to profile.")
@click.option("--draws", type=POSITIVE, help="How often the children of a position are sampled (swor, swr). [default: 8]")
@click.option(
    "--method",
    type=click.Choice(["on-policy", "teacher-forced"]),
    default="on-policy",
    show_default=True,
    help="Profile on the target's own continuations, which decoding meets, or on the data set's.",
)
@click.option("--batch-size", type=POSITIVE, default=16, show_default=True, help="Prompts per forward pass.")
@output_option("acceptance.json")
@format_option
def acceptance(
    models: ModelOptions,
    rows: PromptOptions,
    sampling: SamplingOptions,
    gen_len: int,
    max_branch: int,
    draws: int | None,
    method: str,
    batch_size: int,
    output: Path,
    output_format: str,
) -> None:
    """How often the target accepts a node's rank-k child, on a data set."""
    from treeopt.cli import tables
    from treeopt.cli.inputs import check_hub, converse, load_inputs, note_revisions, note_unused

    note_unused(sampling, draws=draws)
    note_revisions(models)
    check_hub(models, rows.dataset)
    from treeopt.cli.results import acceptance_summary
    from treeopt.profiles.acceptance import ACCEPTANCE_SCHEMA
    from treeopt.profiling.acceptance import AcceptanceSettings, profile_acceptance, require_fit
    from treespec.files.writing import check_writable

    check_writable(output, ACCEPTANCE_SCHEMA)
    settings = AcceptanceSettings(
        **asdict(sampling),
        draws=draws or AcceptanceSettings.draws,
        gen_len=gen_len,
        max_branch=max_branch,
        method=method,
        batch_size=batch_size,
    )
    own_text = method == "teacher-forced"
    continuation_len = gen_len if own_text else 0
    pair, prompts = load_inputs(models, rows, partial(require_fit, settings=settings), continuation_len=continuation_len)
    with claimed(output):
        if not own_text:
            prompts = converse(pair, prompts, rows, gen_len, output)
        with Progress() as progress:
            measured = profile_acceptance(pair, prompts, settings, journal=journal_of(output), progress=progress)
        measured.write(output)
        discard_journals(output)
    note(f"wrote {output}")
    emit(output_format, acceptance_summary(measured), tables.acceptance)


@profile.command()
@model_options()
@click.option(
    "--sizes",
    type=int_list,
    metavar="N,N,...",
    help="Tree sizes to time the target with. [default: up to the edges of the hardware's tiles]",
)
@click.option("--widths", type=int_list, metavar="N,N,...", help="Level widths to time the draft with. [default: likewise]")
@click.option(
    "--context", "--contexts", "contexts", type=int_list, metavar="N,N,...", default="256", show_default=True, help="Tokens in the cache."
)
@click.option("--repetitions", type=POSITIVE, default=20, show_default=True, help="Samples of each point; all are kept.")
@output_option("latency.json")
@format_option
def latency(
    models: ModelOptions,
    sizes: tuple[int, ...] | None,
    widths: tuple[int, ...] | None,
    contexts: tuple[int, ...],
    repetitions: int,
    output: Path,
    output_format: str,
) -> None:
    """How long a target pass takes per tree size, a draft pass per level width, and the rest of a step."""
    from treeopt.cli import tables
    from treeopt.cli.inputs import check_hub, load, note_revisions, outline_of, resolve_device

    note_revisions(models)
    check_hub(models)
    from treeopt.cli.results import latency_summary
    from treeopt.profiles.latency import LATENCY_SCHEMA
    from treeopt.profiling.latency import LatencySettings, default_sizes, default_widths, profile_latency, require_fit, vocabulary_of
    from treespec.files.writing import check_writable

    check_writable(output, LATENCY_SCHEMA)
    device, known = resolve_device(models.device), outline_of(models)
    vocabulary = vocabulary_of(known)
    settings = LatencySettings(
        sizes=sizes or default_sizes(device, vocabulary),
        widths=widths or default_widths(device, vocabulary),
        contexts=contexts,
        repetitions=repetitions,
    )
    require_fit(known, settings)
    pair = load(known, models)
    with claimed(output):
        with Progress() as progress:
            measured = profile_latency(pair, settings, journal=journal_of(output), progress=progress, notice=note)
        measured.write(output)
        discard_journals(output)
    note(f"wrote {output}")
    emit(output_format, latency_summary(measured), tables.latency)
