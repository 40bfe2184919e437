"""`treeopt train-draft`: make a draft for a target."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from treeopt.cli.options import Command, bundle, device_option, format_option
from treeopt.cli.output import Progress, emit, note
from treeopt.cli.values import NATURAL, POSITIVE, Finite, dtype_name

_TOKENS = click.IntRange(min=2)


@dataclass(frozen=True)
class SourceOptions:
    """Which models, and which rows to train and to measure on."""

    target: str
    draft: str | None
    config: str | None
    revision: str | None
    draft_revision: str | None
    dataset: str
    start: int
    end: int | None
    num_rows: int
    eval_dataset: str | None
    field: str | None
    eval_field: str | None
    skip_bad_rows: bool

    def __post_init__(self) -> None:
        if (self.draft is None) == (self.config is None):
            raise click.UsageError("pass exactly one of --draft, a model to train further, and --config, the shape of a new one.")
        if self.end is not None and self.end <= self.start:
            raise click.UsageError(f"--end {self.end} leaves no rows from --start {self.start}; pass --end {self.start + 1} or more.")
        if self.eval_dataset is None:
            if self.eval_field is not None:
                raise click.UsageError("--eval-field is for --eval-dataset; rows of --dataset have their text under --field.")
            return
        from treespec.data.sources import same_dataset

        if same_dataset(self.eval_dataset, self.dataset):
            raise click.UsageError(f"--eval-dataset {self.eval_dataset} is trained on; leave it out, and its first rows are held out.")


@dataclass(frozen=True)
class ObjectiveOptions:
    """What is minimised, and on whose text; None where it was not given."""

    objective: str
    divergence: str | None
    text: str | None
    temperature: float | None
    text_temperature: float | None

    def __post_init__(self) -> None:
        if self.objective == "ce":
            given: dict[str, object] = {"--divergence": self.divergence, "--text": self.text, "--temperature": self.temperature}
            given["--text-temperature"] = self.text_temperature
            odd = next((name for name, value in given.items() if value is not None), None)
            if odd:
                raise click.UsageError(f"{odd} is for --objective distill: ce learns the data set's own text.")
        if self.divergence == "sampled-ce" and self.text == "own":
            raise click.UsageError("--divergence sampled-ce learns the target's own samples; leave --text out.")
        if self.divergence == "sampled-ce" and self.temperature is not None:
            raise click.UsageError("--divergence sampled-ce compares no distributions; --text-temperature is that of the samples.")
        if self.written_by == "own" and self.text_temperature is not None:
            raise click.UsageError("--text-temperature is that of the target's texts; pass --text target as well.")

    @property
    def written_by(self) -> str:
        """`own` or `target`."""
        return self.text or ("target" if self.divergence == "sampled-ce" else "own")

    def settings(self) -> dict[str, Any]:
        """Those of TrainSettings that were given."""
        given: dict[str, Any] = {"objective": self.objective, "divergence": self.divergence, "text": self.written_by}
        given |= {"temperature": self.temperature, "text_temperature": self.text_temperature}
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class RunOptions:
    """For how long and in which portions."""

    steps: int | None
    epochs: float | None
    batch_size: int
    gradient_accumulation: int
    seq_len: int
    learning_rate: float
    warmup: float
    dtype: str
    seed: int

    def __post_init__(self) -> None:
        if self.steps is not None and self.epochs is not None:
            raise click.UsageError("pass one of --steps and --epochs.")
        steps = 1000 if self.steps is None else self.steps
        if self.epochs is None and int(self.warmup) >= steps:
            raise click.UsageError(f"--warmup {self.warmup:g} takes all of the {steps} steps; lower it, or raise --steps.")
        if self.dtype == "float16":
            raise click.UsageError("--dtype float16 overflows without loss scaling; pass bfloat16 or float32.")


@dataclass(frozen=True)
class CheckOptions:
    """What is measured and saved on the way."""

    eval_prompts: int
    prompt_len: int
    gen_len: int
    eval_steps: int
    save_steps: int
    save_limit: int
    text_batch: int


def source_options() -> Callable[[Command], Command]:
    """`--target --draft --config --dataset ...` as `sources`."""
    return bundle(
        "sources",
        SourceOptions,
        click.option(
            "--target", required=True, metavar="MODEL", help="Folder or hub id of the target: its tokenizer, and what it teaches."
        ),
        click.option("--draft", metavar="MODEL", help="Folder or hub id of the draft to train further."),
        click.option(
            "--config", metavar="NAME|FILE", help="Shape of a new draft: llama-68m, llama-160m, or a config.json of transformers."
        ),
        click.option("--revision", metavar="REV", help="Hub revision of the target."),
        click.option("--draft-revision", metavar="REV", help="Hub revision of the draft."),
        click.option(
            "--dataset", default="stdlib", show_default=True, metavar="NAME|PATH", help="Rows to train on, as for the other commands."
        ),
        click.option("--start", type=NATURAL, default=0, show_default=True, help="First row to read."),
        click.option("--end", type=POSITIVE, help="Row to stop before."),
        click.option("--num-rows", type=POSITIVE, default=10_000, show_default=True, help="Rows to train on at most."),
        click.option(
            "--eval-dataset",
            metavar="NAME|PATH",
            help="Rows to measure acceptance on. [default: the first of --dataset, left out of training]",
        ),
        click.option("--field", metavar="NAME", help="Key or column that holds the text of --dataset, where it is none of the usual ones."),
        click.option("--eval-field", metavar="NAME", help="The same for --eval-dataset."),
        click.option(
            "--skip-bad-rows", is_flag=True, help="Go on without rows that cannot be read, and name them; else the first ends the run."
        ),
    )


def objective_options() -> Callable[[Command], Command]:
    """`--objective --divergence --text --temperature --text-temperature` as `goal`."""
    return bundle(
        "goal",
        ObjectiveOptions,
        click.option(
            "--objective",
            type=click.Choice(["ce", "distill"]),
            default="distill",
            show_default=True,
            help="Cross-entropy with the data set's text, or come near the target.",
        ),
        click.option(
            "--divergence",
            type=click.Choice(["forward-kl", "reverse-kl", "sampled-ce"]),
            help="What distilling lowers; sampled-ce is cross-entropy with the target's own samples. [default: forward-kl]",
        ),
        click.option(
            "--text",
            type=click.Choice(["own", "target"]),
            help="Distil on the data set's own text, or on the target's continuations of its rows. [default: own; target for sampled-ce]",
        ),
        click.option("--temperature", type=Finite(min=0, min_open=True), help="Of both distributions in a divergence. [default: 1]"),
        click.option("--text-temperature", type=Finite(min=0), help="That the target writes texts at; 0 is greedy. [default: 1]"),
    )


def run_options() -> Callable[[Command], Command]:
    """`--steps --epochs --batch-size ...` as `length`."""
    return bundle(
        "length",
        RunOptions,
        click.option("--steps", type=POSITIVE, help="Optimizer steps. [default: 1000]"),
        click.option("--epochs", type=Finite(min=0, min_open=True), help="Passes over the texts, in place of --steps."),
        click.option("--batch-size", type=POSITIVE, default=8, show_default=True, help="Texts per pass and process."),
        click.option("--gradient-accumulation", type=POSITIVE, default=1, show_default=True, help="Passes per step."),
        click.option("--seq-len", type=_TOKENS, default=512, show_default=True, help="Tokens of a training text."),
        click.option("--learning-rate", type=Finite(min=0, min_open=True), default=3e-4, show_default=True, help="At its highest."),
        click.option(
            "--warmup",
            type=Finite(min=0),
            default=0.05,
            show_default=True,
            help="Share of the steps, or their number from 1 on; then a cosine to 0.",
        ),
        click.option(
            "--dtype",
            type=dtype_name,
            metavar="DTYPE",
            default="auto",
            show_default=True,
            help="float32, bfloat16 or auto: bfloat16 arithmetic on a GPU that has it, the target as for the other commands. The draft is saved in float32.",
        ),
        click.option(
            "--seed",
            type=click.IntRange(0, 2**32 - 1),
            default=0,
            show_default=True,
            help="Of new weights, the order of texts, and samples.",
        ),
    )


def check_options() -> Callable[[Command], Command]:
    """`--eval-prompts --prompt-len --gen-len --eval-steps --save-steps --save-limit --text-batch` as `checks`."""
    return bundle(
        "checks",
        CheckOptions,
        click.option("--eval-prompts", type=NATURAL, default=64, show_default=True, help="Rows to measure acceptance on; 0 measures none."),
        click.option("--prompt-len", type=POSITIVE, default=128, show_default=True, help="Tokens of a row that the target continues."),
        click.option("--gen-len", type=_TOKENS, default=128, show_default=True, help="Tokens that acceptance is measured on, per row."),
        click.option("--eval-steps", type=POSITIVE, default=100, show_default=True, help="Steps between measurements."),
        click.option("--save-steps", type=POSITIVE, default=100, show_default=True, help="Steps between checkpoints."),
        click.option("--save-limit", type=POSITIVE, default=2, show_default=True, help="Checkpoints to keep."),
        click.option("--text-batch", type=POSITIVE, default=32, show_default=True, help="Rows that the target continues at once."),
    )


@click.command("train-draft")
@source_options()
@objective_options()
@run_options()
@check_options()
@device_option
@click.option("--resume", is_flag=True, help="Go on from the newest checkpoint in the folder, if there is one.")
@click.option(
    "-o", "--output", type=click.Path(file_okay=False, path_type=Path), default="draft", show_default=True, help="Folder for the draft."
)
@format_option
def train_draft(
    sources: SourceOptions,
    goal: ObjectiveOptions,
    length: RunOptions,
    checks: CheckOptions,
    device: str,
    resume: bool,
    output: Path,
    output_format: str,
) -> None:
    """Pretrain, fine-tune or distil a draft; what it saves is a model folder that --draft takes.

    Rank-1 acceptance is measured on the target's own greedy continuations of rows that are not trained on: before, every
    --eval-steps, and after. Several GPUs: accelerate launch -m treeopt train-draft ...
    """
    from dataclasses import asdict

    from treeopt.cli.inputs import check_hub, note_revisions, resolve_device
    from treeopt.cli.options import ModelOptions

    models = ModelOptions(sources.target, sources.draft, sources.revision, sources.draft_revision, device, length.dtype)
    first = os.environ.get("RANK", "0") == "0"  # launchers number the processes
    if first:
        note_revisions(models)
        _note_unmeasured(goal, checks)
    for dataset in filter(None, (sources.dataset, sources.eval_dataset if checks.eval_prompts else None)):
        check_hub(models, dataset)
    from treeopt.cli import tables
    from treeopt.cli.results import training_summary
    from treeopt.training.settings import TrainSettings
    from treeopt.training.sources import TrainSources
    from treeopt.training.train import train_draft as train
    from treespec.errors import TrainingError

    settings = TrainSettings(**goal.settings(), **asdict(length), **asdict(checks))
    try:
        with Progress() as progress:
            result = train(
                TrainSources(**asdict(sources)),
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
    emit(output_format, training_summary(result, result.record, output), tables.training)


def _note_unmeasured(goal: ObjectiveOptions, checks: CheckOptions) -> None:
    """Say on stderr which options change nothing where acceptance is not measured."""
    if checks.eval_prompts:
        return
    unused = ["gen_len", "eval_steps", "eval_dataset", "eval_field"]
    if goal.written_by == "own":  # else the target continues rows to train on
        unused += ["prompt_len", "text_batch"]
    given = click.get_current_context().get_parameter_source
    for name in unused:
        if given(name) is click.core.ParameterSource.COMMANDLINE:
            note(f"--eval-prompts 0 measures nothing, so --{name.replace('_', '-')} changes nothing")
