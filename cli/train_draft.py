"""The command `treeopt train-draft`: make a draft for a target."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import click

from treeopt.cli.help import Command, TreeoptCommand, example, under
from treeopt.cli.joining import OWN
from treeopt.cli.options import (
    ModelOptions,
    device_option,
    draft_revision_option,
    end_option,
    folder_option,
    format_option,
    revision_option,
    skip_bad_rows_option,
    threads_option,
)
from treeopt.cli.output import emit, note
from treeopt.cli.progress import Progress
from treeopt.cli.settings import bundle, setting
from treeopt.cli.unused import note_unused
from treeopt.cli.values import NATURAL, POSITIVE, Finite, dtype_name
from treeopt.training.settings import (
    CONFIGS,
    DEFAULT_LEVELS,
    DEFAULT_STEPS,
    DIVERGENCES,
    KINDS,
    MAX_SEED,
    OBJECTIVES,
    TEXTS,
    TrainSettings,
    TrainSources,
)
from treespec.files.processes import Place

_TOKENS = click.IntRange(min=2)
_ABOVE_0 = Finite(min=0, min_open=True)


def source_options() -> Callable[[Command], Command]:
    """Add `--target --draft --config --kind --dataset ...` as `sources`."""
    return bundle(
        "sources",
        TrainSources,
        click.option(
            "--target",
            required=True,
            metavar="MODEL",
            help="Folder, GGUF file or hub id of the target, which gives the tokenizer and teaches.",
        ),
        click.option("--draft", metavar="MODEL", help="Folder, GGUF file or hub id of the draft to train further."),
        click.option(
            "--config", metavar="NAME|FILE", help=f"Shape of a new draft: {', '.join(CONFIGS)}, or a config.json of transformers."
        ),
        click.option(
            "--kind",
            type=click.Choice(KINDS),
            help="Kind of a new head, a draft that reads the target's hidden states, in place of --draft and --config.",
        ),
        click.option(
            "--levels",
            type=POSITIVE,
            help="Levels that a head is trained for; of Medusa, the number of heads; of DFlash, that of a block's masks. "
            f"[default: {', '.join(f'{levels} for {kind}' for kind, levels in DEFAULT_LEVELS.items())}]",
        ),
        click.option(
            "--draft-vocabulary",
            type=POSITIVE,
            metavar="N",
            help="Draft tokens of an EAGLE-3 head, the most frequent ones of the training texts. [default: all tokens of the target]",
        ),
        revision_option,
        draft_revision_option,
        under(
            "Data",
            click.option(
                "--dataset",
                default="stdlib-train",
                show_default=True,
                metavar="NAME|PATH",
                help="Data set to train on, as for the other commands.",
            ),
            setting(TrainSources, "start", type=NATURAL, help="First row to read."),
            end_option,
            setting(TrainSources, "num_rows", type=POSITIVE, help="Most rows to train on."),
            click.option(
                "--eval-dataset",
                metavar="NAME|PATH",
                help="Data set to measure acceptance on. [default: the first rows of --dataset, left out of training]",
            ),
            click.option(
                "--field", metavar="NAME", help="Key or column that holds the text of --dataset, if it has none of the usual names."
            ),
            click.option(
                "--eval-field",
                metavar="NAME",
                help="Key or column that holds the text of --eval-dataset, if it has none of the usual names.",
            ),
            skip_bad_rows_option,
        ),
        heading="Models",
    )


def train_options() -> Callable[[Command], Command]:
    """Add `--objective --divergence ... --steps ... --eval-prompts ... --seed` as `settings`."""
    option = partial(setting, TrainSettings)
    return bundle(
        "settings",
        TrainSettings,
        option(
            "objective",
            type=click.Choice(OBJECTIVES),
            help="Loss to lower: ce, the cross-entropy with the data set's text, or distill, a distance from the target.",
        ),
        click.option(
            "--divergence",
            type=click.Choice(DIVERGENCES),
            help="Distance that distill lowers; sampled-ce is the cross-entropy with the target's own samples. "
            f"[default: {TrainSettings.divergence}]",
        ),
        click.option(
            "--text",
            type=click.Choice(TEXTS),
            help="Text to distil on: the data set's own, or the target's continuations of its rows. "
            f"[default: {TrainSettings.text}; target for sampled-ce]",
        ),
        click.option(
            "--temperature",
            type=_ABOVE_0,
            help=f"Softmax temperature of both models in the divergence. [default: {TrainSettings.temperature:g}]",
        ),
        click.option(
            "--text-temperature",
            type=Finite(min=0),
            help=f"Sampling temperature of the target's texts; 0 is greedy. [default: {TrainSettings.text_temperature:g}]",
        ),
        option("steps", type=POSITIVE, help=f"Optimizer steps. [default: {DEFAULT_STEPS}]"),
        option("epochs", type=_ABOVE_0, help="Passes over the texts, in place of --steps."),
        option("batch_size", type=POSITIVE, help="Texts per forward pass and process."),
        option("gradient_accumulation", type=POSITIVE, help="Forward passes per optimizer step."),
        option("seq_len", type=_TOKENS, help="Tokens per training text."),
        option("learning_rate", type=_ABOVE_0, help="Peak learning rate."),
        option("warmup", type=Finite(min=0), help="Warm-up: a share of the steps, or their number from 1 on; a cosine to 0 follows."),
        option(
            "dtype",
            type=dtype_name,
            metavar="DTYPE",
            help="Number type of the arithmetic: float32, bfloat16 or auto, which is bfloat16 on a GPU that has it. The target is loaded as for the "
            "other commands; the draft is saved in float32.",
        ),
        option("seed", type=click.IntRange(0, MAX_SEED), help="Seed of new weights, of the order of texts, and of samples."),
        option("eval_prompts", type=NATURAL, help="Rows to measure acceptance on; 0 skips the measurement."),
        option("prompt_len", type=POSITIVE, help="First tokens of a row, which the target continues."),
        option("gen_len", type=_TOKENS, help="Tokens behind the prompt of each held-out row to measure acceptance on."),
        option("eval_steps", type=POSITIVE, help="Steps between measurements."),
        option("save_steps", type=POSITIVE, help="Steps between checkpoints."),
        option("save_limit", type=POSITIVE, help="Checkpoints to keep."),
        option("text_batch", type=POSITIVE, help="Rows that the target continues at once."),
        heading="Training",
        make=TrainSettings.of,
    )


@click.command(
    "train-draft",
    cls=TreeoptCommand,
    processes=OWN,
    epilog=example("treeopt train-draft --target embedded-target --draft embedded-draft --dataset stdlib-train --steps 100 -o draft"),
)
@source_options()
@train_options()
@under("Models", device_option, threads_option)
@under("Training", click.option("--resume", is_flag=True, help="Go on from the newest checkpoint in the folder, if there is one."))
@folder_option("draft", "Folder to write the draft into.")
@format_option
def train_draft(
    sources: TrainSources,
    settings: TrainSettings,
    device: str,
    resume: bool,
    output: Path,
    output_format: str,
) -> None:
    """Pretrain, fine-tune or distil a draft for a target, or train a head on its states.

    Required are --target and one of --draft, which is trained further, --config, the shape of a new one, and --kind, that of a new head. All else
    has a default.

    The draft is saved as a model folder, which --draft of the other commands takes; a head in the published layout of its kind.
    First-choice acceptance is measured on the target's own greedy continuations of rows that are not trained on: before the
    training, every --eval-steps, and after it.
    Start it on several GPUs with: accelerate launch -m treeopt train-draft ...
    """
    from treeopt.cli.hub import check_hub
    from treeopt.cli.inputs import note_stored, resolve_device

    models = ModelOptions(sources.target, sources.draft, sources.revision, sources.draft_revision, device, settings.dtype)
    first = Place.of().first
    if first:
        note_unused()
    for dataset in filter(None, (sources.dataset, sources.eval_dataset if settings.eval_prompts else None)):
        check_hub(models, dataset)
    from treeopt.cli import tables
    from treeopt.cli.results import training_summary
    from treeopt.training.train import train_draft as train
    from treespec.errors import TrainingError
    from treespec.models.loading import quantization_of

    for role, name, revision in (("target", sources.target, sources.revision), ("draft", sources.draft, sources.draft_revision)):
        if first and name is not None:
            note_stored(role, name, quantization_of(name, revision))
    try:
        with Progress() as progress:
            result = train(
                sources,
                settings,
                output,
                device=resolve_device(device),
                resume=resume,
                progress=progress if first else lambda what, done, total: None,
                notice=note,
            )
    except KeyboardInterrupt as e:
        raise TrainingError("interrupted; run the same with --resume to go on with what is finished") from e
    if not first:
        return
    note(f"wrote {output}")
    data = training_summary(result, result.record, output)
    emit(output_format, data, tables.training(data))
