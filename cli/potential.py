"""The command `treeopt potential`: how close drafts come to a target, before anything is tuned."""

from pathlib import Path

import click

from treeopt.cli.help import TreeoptCommand, example
from treeopt.cli.joining import SHARED, processes, saved
from treeopt.cli.options import DraftsOptions, PromptOptions, drafts_options, format_option, output_option, prompt_options
from treeopt.cli.output import claimed, emit, is_there, journal_of, note, note_doubt, note_written
from treeopt.cli.progress import Progress
from treeopt.cli.settings import measuring_options, sampling_options
from treeopt.cli.unused import note_unused
from treeopt.profiling.settings import PotentialSettings


@click.command(
    cls=TreeoptCommand,
    processes=SHARED,
    epilog=example("treeopt potential --target embedded-target --draft embedded-draft --num-prompts 16"),
)
@drafts_options()
@prompt_options(num_prompts=64)
@sampling_options()
@measuring_options(
    PotentialSettings,
    method="Text to compare on: the data set's own (teacher-forced), or the target's continuations, which decoding meets (on-policy).",
)
@output_option(None)
@format_option
def potential(
    models: DraftsOptions,
    rows: PromptOptions,
    settings: PotentialSettings,
    output: Path | None,
    output_format: str,
) -> None:
    """Rank drafts by their divergence from a target.

    They are ranked by the KL divergence in nats per token. The table also has the total variation, the agreement of the most
    likely tokens, and the tokens per step that these imply for single chains.
    """
    from treeopt.cli.hub import check_hub
    from treeopt.cli.inputs import complete_conversations, info_of, load_several, note_not_applied, note_rows, read_prompts

    note_unused()
    for draft in models.drafts:
        check_hub(models.with_draft(draft), rows.dataset)
    from treeopt.profiles.potential import SCHEMA
    from treeopt.profiling.potential import measure_potential, require_fit, without_room
    from treespec.files.writing import check_writable
    from treespec.models.info import drafts_of

    if output is not None:
        check_writable(output, SCHEMA)
    alone = info_of(models.with_draft(None))
    known, left_out = drafts_of(alone.target, models.drafts, models.corpus)
    own_text, gen_len = settings.method == "teacher-forced", settings.gen_len
    prompts = read_prompts(alone, rows, gen_len, own_text=own_text)
    short = without_room(known, prompts)
    if len(short) < len(known):
        left_out |= short
        known = tuple(draft for draft in known if draft.name not in short)
    for reason in left_out.values():
        note(f"left out: {reason}")
    require_fit(alone.target, known, prompts, settings)
    note_rows(alone, rows, prompts)
    if not own_text:
        note_not_applied(alone, settings.sampling)
    target, drafts = load_several(alone, known, models)
    with claimed(output):
        if not own_text:
            prompts = complete_conversations(target, prompts, rows, gen_len, output)
        with Progress() as progress:
            report = measure_potential(
                *(target, drafts, prompts, settings),
                left_out=left_out,
                journal=journal_of(output),
                processes=processes(),
                progress=progress,
            )
        if output is not None:
            earlier, path = is_there(output), output
            saved(output, lambda: report.write(path))
            note_written(output, earlier)
    for measured in report.drafts:
        agreed = sum(measured.sums["top1_agreement"] or ())
        note_doubt(agreed, sum(report.positions), alone.target.vocabulary_size, f"the draft {measured.draft}")
    emit(output_format, report.summary(), report.drawing())
