"""The command `treeopt tune`: from models and a data set to the fastest tree and its report, in one process."""

import shlex
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import click

from treeopt.cli.help import TreeoptCommand, example, under, words_of
from treeopt.cli.joining import SHARED, processes, saved
from treeopt.cli.options import DraftsOptions, PromptOptions, drafts_options, folder_option, format_option, prompt_options
from treeopt.cli.output import REPLIES, emit, note, note_doubt
from treeopt.cli.progress import Progress
from treeopt.cli.settings import RuleOptions, bundle, rule_options, seed_option, setting, wrong_usage
from treeopt.cli.settings_file import recorded_settings
from treeopt.cli.unused import note_unused
from treeopt.cli.values import POSITIVE, Finite, int_list
from treeopt.profiles.samples import BURST
from treeopt.tuning.settings import TuneSettings

_MOST_ROWS = 256
"""Rows to profile at most with a budget of minutes, unless their number is given."""


@click.command(
    cls=TreeoptCommand,
    processes=SHARED,
    epilog=example("treeopt tune --target embedded-target --draft embedded-draft --dataset stdlib -o tuned"),
)
@drafts_options()
@prompt_options(num_prompts=64)
@rule_options(dynamic=False)
@bundle(
    "settings",
    TuneSettings,
    setting(TuneSettings, "gen_len", type=click.IntRange(min=2), help="Tokens behind each prompt to profile on, and to generate at most."),
    setting(TuneSettings, "choose_prompts", type=POSITIVE, help="Further rows to compare candidates on, if there are several."),
    setting(TuneSettings, "evaluate_prompts", type=POSITIVE, help="Further rows to evaluate the chosen tree on."),
    setting(TuneSettings, "max_branch", type=POSITIVE, help="Ranks to profile."),
    setting(TuneSettings, "draws", type=POSITIVE, help="Samples of the children of each position, if children are sampled."),
    setting(TuneSettings, "sizes", type=int_list, metavar="N,N,...", help="Tree sizes to time. [default: those that are needed here]"),
    setting(TuneSettings, "widths", type=int_list, metavar="N,N,...", help="Level widths to time. [default: those that are needed here]"),
    setting(
        TuneSettings,
        "context",
        type=click.IntRange(min=2),
        help="Tokens in the cache to time at. [default: the longest prompt and half of --gen-len]",
    ),
    setting(TuneSettings, "repetitions", type=POSITIVE, help=f"Samples of each latency, rounded up to a multiple of {BURST}."),
    setting(TuneSettings, "max_size", type=POSITIVE, help="Largest tree to consider. [default: the largest that was timed]"),
    setting(TuneSettings, "max_depth", type=POSITIVE, help="Largest depth to consider. [default: 32, or what the size allows]"),
    seed_option(TuneSettings),
    setting(TuneSettings, "batch_size", type=POSITIVE, help="Prompts per forward pass; 64 where passes are captured, else 16."),
    setting(
        TuneSettings,
        "minutes",
        type=Finite(min=0, min_open=True),
        help="Budget of the whole run, spent where the uncertainty is largest: on prompts, up to --num-prompts "
        f"({_MOST_ROWS} if it is not given), or on samples of the latencies. [default: none]",
    ),
    heading="Measurement",
)
@folder_option("tuned", "Folder to write. The same command goes on with what is unfinished in it.")
@under(
    "Output",
    click.option("--dry-run", is_flag=True, help="Print the plan, with rough estimates of the time and the memory; no weight is read."),
)
@format_option
@click.pass_context
def tune(
    ctx: click.Context,
    models: DraftsOptions,
    rows: PromptOptions,
    rules: RuleOptions,
    settings: TuneSettings,
    output: Path,
    dry_run: bool,
    output_format: str,
) -> None:
    """Find the fastest tree for models and a data set.

    It profiles acceptance and latency, grows a tree and evaluates it, with the models loaded once. Several drafts, drafting
    rules, verifiers, temperatures and values of top-p may be given: every combination is a candidate, and the one with the most expected tokens per
    second is chosen. Rows to profile, to choose on and to evaluate are different ones.
    """
    with wrong_usage():
        settings = replace(settings, samplings=rules.samplings, draftings=rules.draftings)
    from treeopt.cli.flags import is_given
    from treeopt.cli.hub import check_hub
    from treeopt.cli.inputs import (
        complete_conversations,
        info_of,
        load_several,
        note_not_applied,
        note_rows,
        read_prompts,
        resolve_device,
    )

    note_unused()
    for draft in models.drafts:
        check_hub(models.with_draft(draft), rows.dataset)
    from treeopt.tuning.folder import Folder, versions
    from treeopt.tuning.plan import plan_of
    from treeopt.tuning.prompts import divided
    from treeopt.tuning.run import require_fit_of
    from treeopt.tuning.run import tune as run
    from treeopt.tuning.sharing import Crew
    from treespec.models.info import drafts_of
    from treespec.models.pairs import Pair, PairInfo

    if settings.minutes is not None and not is_given(ctx, "num_prompts"):
        rows = replace(rows, num_prompts=_MOST_ROWS)
    unsaid = {"tensor_parallel": 1}  # folders of one process do not have it
    record = {name: value for name, value in recorded_settings(ctx).items() if name != "output" and unsaid.get(name) != value}
    record |= {"num_prompts": rows.num_prompts}
    folder = Folder(output)
    folder.compare("settings", record)
    folder.compare("versions", versions())
    started = perf_counter()
    alone = info_of(models.with_draft(None))
    known, left_out = drafts_of(alone.target, models.drafts, models.corpus)
    for reason in left_out.values():
        note(f"left out: {reason}")
    several = len(settings.candidates(len(known))) > 1
    wanted = rows.num_prompts + settings.evaluate_prompts + (settings.choose_prompts if several else 0)
    prompts = read_prompts(alone, replace(rows, num_prompts=wanted), settings.gen_len)
    parts = divided(prompts, rows.num_prompts, settings, len(known))
    for info in known:
        require_fit_of(PairInfo(alone.target, info), parts, settings)
    plan = plan_of(alone.target, known, parts, settings, device=resolve_device(models.device), dtype=models.dtype)
    settings.require_timed(plan.sizes)
    plan.require_minutes()
    note_rows(alone, replace(rows, num_prompts=wanted), prompts)
    for sampling in settings.samplings:
        note_not_applied(alone, sampling)
    if dry_run:
        emit(output_format, plan.summary(), plan.drawing())
        return
    target, drafts = load_several(alone, known, models)
    pairs = [Pair(target.target, target.tokenizer, target.eos_token_ids, target.pictures, draft=draft) for draft in drafts]
    loading = perf_counter() - started
    if any(prompt.turns for prompt in prompts):
        from treespec.files.writing import make_folder

        replies = make_folder(output) / REPLIES
        prompts = complete_conversations(pairs[0], prompts, rows, settings.gen_len, replies)
        parts = divided(prompts, rows.num_prompts, settings, len(known))
    again = shlex.join([*ctx.command_path.split(), *words_of(ctx)])
    if not processes().place.first:
        Crew(pairs, processes()).serve()
        saved(output / REPLIES)
        return
    with Progress() as progress:
        result = run(
            *(pairs, parts, output, settings),
            record=record,
            loading=loading,
            commands=[again],
            processes=processes(),
            progress=progress,
            notice=note,
        )
    saved(output / REPLIES)
    if result.chosen.candidate.sampling.temperature <= 1:
        note_doubt(*result.report.first_choices, alone.target.vocabulary_size)
    emit(output_format, result.summary(), result.drawing())
