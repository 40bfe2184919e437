"""The command `treeopt evaluate`: run a tree end to end beside autoregressive decoding."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from treeopt.cli.help import TreeoptCommand, example, under
from treeopt.cli.joining import SHARED, processes, saved
from treeopt.cli.options import ModelOptions, PromptOptions, format_option, model_options, output_option, prompt_options
from treeopt.cli.output import claimed, emit, is_there, journal_of, note, note_doubt, note_written, say
from treeopt.cli.page import check_page, html_option, write_page
from treeopt.cli.plan import (
    Named,
    PlanOptions,
    against_option,
    note_other_chat,
    plan_options,
    profiled_rows,
    resolve,
    with_growmaps_settings,
)
from treeopt.cli.progress import Progress
from treeopt.cli.settings import bundle, drafting_options, processors_option, sampling_options, seed_option, setting, wrong_usage
from treeopt.cli.unused import note_unused
from treeopt.cli.values import NATURAL, POSITIVE
from treespec.errors import counted
from treespec.evaluation.settings import EvaluationSettings
from treespec.files.processes import Place

if TYPE_CHECKING:
    from treespec.evaluation.report import EvaluationReport


@click.command(
    cls=TreeoptCommand,
    processes=SHARED,
    epilog=example("treeopt evaluate --target embedded-target --draft embedded-draft --growmap tree.pt -o report.json"),
)
@with_growmaps_settings
@model_options(draft_required=False)
@plan_options()
@prompt_options(num_prompts=16, start_default="0; the row after those that the growmap was profiled on, if they are of the same data set")
@sampling_options()
@drafting_options(verifier=True)
@bundle(
    "settings",
    EvaluationSettings,
    setting(EvaluationSettings, "gen_len", type=POSITIVE, help="Most tokens to generate per prompt; an end-of-text token ends it earlier."),
    setting(
        EvaluationSettings, "max_length", type=POSITIVE, help="Cache slots: prompt, generated tokens and tree. [default: as many as needed]"
    ),
    seed_option(EvaluationSettings),
    setting(EvaluationSettings, "save_tokens", help="Keep the generated ids in the report and the JSON."),
    setting(
        EvaluationSettings,
        "sample_texts",
        type=NATURAL,
        help="Prompts whose generated text is kept in the report, token by token, for the page of --html; 0 keeps none.",
    ),
    setting(EvaluationSettings, "breakdown", help="Also time the parts of a step: drafting, target, acceptance, cache, other."),
    processors_option(EvaluationSettings),
    heading="Measurement",
)
@against_option
@under(
    "Output",
    click.option(
        "--require-lossless",
        is_flag=True,
        help="Exit with code 1, after everything is written and printed, if an output differs from the baseline's by more than rounding.",
    ),
    html_option,
)
@output_option("report.json")
@format_option
def evaluate(
    models: ModelOptions,
    plan: PlanOptions,
    rows: PromptOptions,
    settings: EvaluationSettings,
    against: str | None,
    require_lossless: bool,
    html: Path | None,
    output: Path,
    output_format: str,
    named: Named,
) -> None:
    """Run a tree beside autoregressive decoding.

    One of --growmap FILE, --budget FILE, --dynamic --size N --depth D, and --mode baseline is required. --draft is required with each but
    --mode baseline.

    The result has the tokens per step, the time per token and the speed-up, beside what the growmap promised. Both ways of
    decoding run in turn on each prompt, by the same engine; with --against chain, a chain runs in turn with them, and the report says what the
    tree is worth beyond it. At temperature 0 the outputs must be equal; --require-lossless makes the
    exit code say so.

    Temperature, top-p, drafting, draft temperature and verifier that are not given are those that the growmap was made for.
    """
    from treeopt.cli.hub import check_hub
    from treeopt.cli.inputs import complete_conversations, info_of, load, note_not_applied, note_rows, read_prompts

    plan.check(settings.drafting, models.draft)
    if against is not None and not plan.named:
        raise click.UsageError("--against chain holds a tree against a chain, and --mode baseline runs no tree; drop one of them.")
    note_unused()
    check_hub(models, rows.dataset)
    from treespec.evaluation.chains import chains_of
    from treespec.evaluation.report import SCHEMA
    from treespec.evaluation.runner import check_fits
    from treespec.evaluation.runner import evaluate as run
    from treespec.files.writing import check_writable
    from treespec.models.loading import shape_of
    from treespec.trees.growmap import GrowMap

    gen_len, max_length = settings.gen_len, settings.max_length
    text = (rows.prompt_len or 0) + gen_len
    whole = rows.chat or rows.whole_prompts or rows.prompt_len is None
    if max_length is not None and not whole and max_length <= text and shape_of(models.target, models.revision) is None:
        enough = f"{text} plus the tree's size" if plan.named else str(text + 1)
        raise click.UsageError(
            f"--max-length {max_length} is too short for {rows.prompt_len} prompt and {counted(gen_len, 'generated token')}; "
            f"pass {enough} or more."
        )
    check_writable(output, SCHEMA)
    earlier = is_there(output)
    check_page(html)
    grown = named.growmap
    growmap = grown if isinstance(grown, GrowMap) else None
    with wrong_usage():
        chains = chains_of(against, growmap)
    tree, predicted = resolve(plan, grown, models, settings)
    profiled = None if grown is None else profiled_rows(grown.metadata, "budget" if growmap is None else "growmap")
    if grown is not None:
        note_other_chat(grown.metadata, rows)

    known = info_of(models)
    largest = max(1 if one is None else one.size for one in (tree, *chains))
    room = None if max_length is None else max_length - gen_len - largest
    prompts = read_prompts(known, rows, gen_len, profiled=profiled, room=room if room is None or room > 0 else None)
    for prompt in prompts:
        for one in (tree, *chains):
            check_fits(known, one, prompt.ids, settings)
    if named.taken is not None:
        note(named.taken)
    note_rows(known, rows, prompts)
    note_not_applied(known, settings.sampling, processed=settings.processors)
    pair = load(known, models)
    with claimed(output):
        prompts = complete_conversations(pair, prompts, rows, gen_len, output, room)
        with Progress() as progress:
            report = run(
                *(pair, tree, prompts, settings),
                against=chains,
                predicted=predicted,
                journal=journal_of(output),
                processes=processes(),
                progress=progress,
                notice=note,
            )
        saved(output, lambda: report.write(output))
    note_written(output, earlier)
    if processes().place.first:
        write_page(html, report, growmap, plan.growmap)
    if settings.sampling.temperature <= 1:  # above, even the right draft's first choice is rarely drawn
        note_doubt(*report.first_choices, known.target.vocabulary_size)
    emit(output_format, report.summary(), report.drawing())
    if require_lossless:
        _require_lossless(report, output)


def _require_lossless(report: "EvaluationReport", output: Path) -> None:
    """End the command with exit code 1 for a report of outputs that are not the baseline's, and say it if outputs were not compared.

    Of several processes the first alone does so: one that ends with an error ends the others, and the first may still be printing.
    """
    if not Place.of().first:
        return
    if report.lossless == "mismatch":
        differ = f"{report.mismatches} of {counted(len(report.results), 'output')}"
        say(f"error: {differ} differ from autoregressive decoding by more than rounding; {output} says where", err=True)
        click.get_current_context().exit(1)
    if report.lossless == "not-applicable" and report.mode != "baseline":
        note("outputs are random at this temperature and were not compared, so `require_lossless` has checked nothing")
