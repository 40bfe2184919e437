"""The commands `treeopt profile acceptance` and `treeopt profile latency`: measure a pair on this machine."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from treeopt.cli.errors import TreeoptGroup
from treeopt.cli.help import TreeoptCommand, example, under
from treeopt.cli.joining import SHARED, processes, saved
from treeopt.cli.options import ModelOptions, PromptOptions, format_option, model_options, output_option, prompt_options
from treeopt.cli.output import claimed, discard_journals, emit, is_there, journal_of, note, note_doubt, note_written
from treeopt.cli.progress import Progress
from treeopt.cli.settings import (
    RuleOptions,
    bundle,
    drafting_options,
    measuring_options,
    rule_options,
    sampling_options,
    setting,
    wrong_usage,
)
from treeopt.cli.tensor_parallel import own_place
from treeopt.cli.unused import note_unused
from treeopt.cli.values import OUTPUT_FILE, POSITIVE, int_list
from treeopt.profiles.budget_grid import BudgetGrid
from treeopt.profiles.samples import BURST
from treeopt.profiling.settings import AcceptanceSettings, LatencySettings

_PAIR = "--target embedded-target --draft embedded-draft"


@click.group(cls=TreeoptGroup, epilog=example(f"treeopt profile latency {_PAIR} -o latency.json"))
def profile() -> None:
    """Measure the acceptance and the latency of a pair.

    An acceptance profile says how often drafted tokens are accepted; a latency profile says how long passes take.
    """


@profile.command(
    cls=TreeoptCommand,
    processes=SHARED,
    epilog=example(f"treeopt profile acceptance {_PAIR} --dataset stdlib --num-prompts 64 -o acceptance.json"),
)
@model_options()
@prompt_options(num_prompts=64)
@sampling_options()
@drafting_options()
@measuring_options(
    AcceptanceSettings,
    setting(AcceptanceSettings, "max_branch", type=POSITIVE, help="Ranks to profile."),
    setting(AcceptanceSettings, "draws", type=POSITIVE, help="Samples of the children of each position, if children are sampled."),
    method="Text to profile on: the target's own continuations, which decoding meets (on-policy), or the data set's (teacher-forced).",
)
@under(
    "Dynamic trees",
    click.option(
        "--dynamic",
        is_flag=True,
        help="Also count the steps of dynamic trees of many budgets on the same texts, for `treeopt grow --dynamic`. Only the draft runs for it; "
        "for a head, the target too, once a text.",
    ),
    click.option(
        "--widths",
        type=int_list,
        metavar="N,N,...",
        help=f"Level widths to grow, one after the other. [default: {','.join(map(str, BudgetGrid.widths))}]",
    ),
    click.option("--max-depth", type=POSITIVE, help=f"Largest depth of dynamic trees. [default: {BudgetGrid.max_depth}]"),
    click.option("--max-size", type=POSITIVE, help=f"Largest size of dynamic trees. [default: {BudgetGrid.max_size}]"),
)
@output_option("acceptance.json")
@under(
    "Output",
    click.option(
        "--trace",
        type=OUTPUT_FILE,
        callback=own_place,
        help="File for the trace as well: what the draft said of every token that the target chose, for `treeopt replay`. [default: none]",
    ),
)
@format_option
def acceptance(
    models: ModelOptions,
    rows: PromptOptions,
    settings: AcceptanceSettings,
    dynamic: bool,
    widths: tuple[int, ...] | None,
    max_depth: int | None,
    max_size: int | None,
    output: Path,
    trace: Path | None,
    output_format: str,
) -> None:
    """Measure how often the target accepts a child of each rank.

    It is measured along the target's continuations of a data set's rows, or along the rows' own text.
    """
    from treeopt.cli.hub import check_hub
    from treeopt.cli.inputs import complete_conversations, load, note_not_applied, note_rows, pair_info_of, read_prompts

    if trace is not None:
        if trace.resolve() == output.resolve():
            raise click.UsageError(f"--trace and -o both name {trace}; give the trace a file of its own.")
        with wrong_usage():
            settings.require_traceable()
    grid = _grid(dynamic, settings, {"widths": widths, "max_depth": max_depth, "max_size": max_size})
    note_unused()
    check_hub(models, rows.dataset)
    from treeopt.profiles.acceptance import ACCEPTANCE_SCHEMA
    from treeopt.profiles.trace import TRACE_SCHEMA
    from treeopt.profiling.acceptance import profile_acceptance, require_fit, trace_acceptance
    from treespec.files.load import note_crowding
    from treespec.files.writing import check_writable, write_json_together

    check_writable(output, ACCEPTANCE_SCHEMA)
    if trace is not None:
        check_writable(trace, TRACE_SCHEMA)
    earlier = is_there(output), is_there(trace)
    own_text, gen_len = settings.method == "teacher-forced", settings.gen_len
    known = pair_info_of(models)
    prompts = read_prompts(known, rows, gen_len, own_text=own_text)
    require_fit(known, prompts, settings)
    if grid is not None:
        with wrong_usage():
            grid = grid.of_vocabulary(known.vocabulary_size)
    note_rows(known, rows, prompts)
    if not own_text:
        note_not_applied(known, settings.sampling)
    pair = load(known, models)
    note_crowding(pair.target.device.type, note)
    with claimed(output), claimed(trace):
        if not own_text:
            prompts = complete_conversations(pair, prompts, rows, gen_len, output)
        with Progress() as progress:
            journal, several = journal_of(output), processes()
            if trace is None:
                measured = profile_acceptance(pair, prompts, settings, dynamic=grid, journal=journal, processes=several, progress=progress)
                files = [(output, measured.to_json())]
            else:
                measured, traced = trace_acceptance(
                    pair, prompts, settings, dynamic=grid, journal=journal, processes=several, progress=progress
                )
                files = [(output, measured.to_json()), (trace, traced.to_json())]
        saved(output, lambda: write_json_together(files))
    for path, replaced in zip((output, trace), earlier, strict=True):
        if path is not None:
            note_written(path, replaced)
    if settings.sampling.temperature <= 1:
        note_doubt(measured.rank_probability[0] * measured.positions, measured.positions, known.target.vocabulary_size)
    emit(output_format, measured.summary(), measured.drawing())


def _grid(dynamic: bool, settings: AcceptanceSettings, given: Mapping[str, Any]) -> BudgetGrid | None:
    """Return the budgets of dynamic trees to measure, None if they are not asked for. Raises a usage error."""
    named = {name: value for name, value in given.items() if value is not None}
    if not dynamic:
        if named:
            flags = " and ".join("--" + name.replace("_", "-") for name in named)
            raise click.UsageError(f"{flags} {'is' if len(named) == 1 else 'are'} of dynamic trees; pass --dynamic as well, or drop it.")
        return None
    with wrong_usage():
        settings.require_traceable("dynamic")
        return BudgetGrid(**named)


@profile.command(cls=TreeoptCommand, epilog=example(f"treeopt profile latency {_PAIR} --context 256,1024 -o latency.json"))
@model_options()
@rule_options()
@bundle(
    "settings",
    LatencySettings,
    setting(
        LatencySettings,
        "sizes",
        type=int_list,
        metavar="N,N,...",
        help="Tree sizes to time the target with; 1, an autoregressive step, is always timed. "
        "[default: from 1 to the largest worth while here, closest where the time jumps]",
    ),
    setting(
        LatencySettings,
        "widths",
        type=int_list,
        metavar="N,N,...",
        help="Level widths to time the draft with. [default: as for --sizes]",
    ),
    setting(
        LatencySettings,
        "contexts",
        "--context",
        "--contexts",
        "contexts",
        type=int_list,
        metavar="N,N,...",
        help="Numbers of tokens in the cache to measure at.",
    ),
    setting(
        LatencySettings, "repetitions", type=POSITIVE, help=f"Samples of each point, rounded up to a multiple of {BURST}; all are kept."
    ),
    heading="Measurement",
)
@output_option("latency.json")
@format_option
def latency(
    models: ModelOptions,
    rules: RuleOptions,
    settings: LatencySettings,
    output: Path,
    output_format: str,
) -> None:
    """Measure how long the parts of a step take.

    These are a target pass by tree size, a draft pass by level width, and the rest of a step. Greedy steps (topk, temperature 0) are always
    timed. Other rules take other times: name those that are to be run, and dynamic trees, and they are timed as well.
    """
    settings = replace(settings, samplings=rules.samplings, draftings=rules.draftings, dynamic=rules.dynamic)
    from treeopt.cli.hub import check_hub
    from treeopt.cli.inputs import load, pair_info_of

    note_unused()
    check_hub(models)
    from treeopt.profiles.latency import LATENCY_SCHEMA
    from treeopt.profiling.latency import profile_latency, require_fit
    from treespec.files.writing import check_writable

    check_writable(output, LATENCY_SCHEMA)
    earlier = is_there(output)
    known = pair_info_of(models)
    require_fit(known, settings)
    pair = load(known, models)
    with claimed(output):
        with Progress() as progress:
            measured = profile_latency(pair, settings, journal=journal_of(output), progress=progress, notice=note)
        measured.write(output)
        discard_journals(output)
    note_written(output, earlier)
    if output_format == "json" and measured.warning is not None:  # the drawing has it
        note(measured.warning)
    emit(output_format, measured.summary(), measured.drawing())
