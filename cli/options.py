"""Groups of options about models and rows that several commands share; a group reaches its command as one dataclass."""

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from treeopt.cli.flags import with_flags
from treeopt.cli.help import Command, under, words_of
from treeopt.cli.settings import bundle
from treeopt.cli.tensor_parallel import own_place, take_part
from treeopt.cli.values import NATURAL, OUTPUT_FILE, POSITIVE, device_name, dtype_name, named_value
from treespec.data.slices import PROMPT_LEN, WHOLE_PROMPT_LEN, ChatOptions, DatasetSlice
from treespec.errors import SettingsError
from treespec.models.ngram import reads_corpus
from treespec.models.offload import require_gpu
from treespec.models.parallel.launch import require_one_way


@dataclass(frozen=True)
class ModelOptions:
    """The models to load, their device and their number type."""

    target: str
    draft: str | None = None
    revision: str | None = None
    draft_revision: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    offload: bool = False
    adapter: str | None = None
    draft_adapter: str | None = None
    corpus: tuple[str, ...] = ()
    tensor_parallel: int = 1

    def __post_init__(self) -> None:
        if self.offload:
            require_gpu(self.device)
        if self.offload and self.tensor_parallel > 1:
            require_one_way()


@dataclass(frozen=True)
class DraftsOptions:
    """One target and several drafts."""

    target: str
    drafts: tuple[str, ...]
    revision: str | None
    device: str
    dtype: str
    adapter: str | None = None
    corpus: tuple[str, ...] = ()
    tensor_parallel: int = 1

    def __post_init__(self) -> None:
        twice = [draft for i, draft in enumerate(self.drafts) if draft in self.drafts[:i]]
        if twice:
            raise click.UsageError(f"--draft {twice[0]} is given twice; drop one.")

    def with_draft(self, draft: str | None) -> ModelOptions:
        """Return the options of the target with one of the drafts, or with none."""
        corpus = self.corpus if draft is not None and reads_corpus(draft) else ()
        more: dict[str, Any] = {"adapter": self.adapter, "corpus": corpus, "tensor_parallel": self.tensor_parallel}
        return ModelOptions(self.target, draft, self.revision, None, self.device, self.dtype, **more)


@dataclass(frozen=True)
class PromptOptions:
    """The data set, the rows to take from it, and how much of each row. `start` and `prompt_len` are None if they were not given."""

    dataset: str
    num_prompts: int
    prompt_len: int | None
    whole_prompts: bool
    start: int | None
    end: int | None
    prompt: str | None
    chat: bool
    system: str | None
    chat_args: tuple[tuple[str, Any], ...]
    field: str | None
    skip_bad_rows: bool

    def __post_init__(self) -> None:
        if self.prompt is not None and not self.prompt.strip():
            raise click.UsageError("--prompt is empty; pass what is to be asked about pictures, or leave it out for a question.")
        DatasetSlice(self.dataset, self.field, self.start or 0, self.end)  # checks `start` and `end`
        check_chat_args(self.chat_args)
        _ = self.chat_options  # checks the names

    @property
    def chat_options(self) -> ChatOptions:
        """The additions to every conversation."""
        return ChatOptions(self.system, dict(self.chat_args))


def check_chat_args(given: Sequence[tuple[str, Any]]) -> None:
    """Raise a usage error for an argument of the chat template that is given twice."""
    names = [name for name, _ in given]
    if twice := next((name for i, name in enumerate(names) if name in names[:i]), None):
        raise click.UsageError(f"--chat-arg {twice} is given twice; drop one.")


def _format_option(forms: Sequence[str], told: str) -> Callable[[Command], Command]:
    """Return the option `--format` with these forms."""
    kind = click.Choice(list(forms))
    return under("Output", click.option("--format", "output_format", type=kind, default=forms[0], show_default=True, help=told))


format_option = _format_option(
    ("rich", "json", "csv", "markdown"),
    "Form of the result on stdout: tables for people, one JSON object, or the tables as CSV or Markdown.",
)
text_format_option = _format_option(("rich", "json"), "Form of the result on stdout: the text as it is made, or one JSON object.")

device_option = click.option(
    "--device",
    type=device_name,
    metavar="DEVICE",
    default="auto",
    show_default=True,
    help="Device to run on: cpu, cuda, cuda:N, mps, xpu, xpu:N or auto, which is the CUDA GPU if there is one, else the CPU.",
)


_MOST_THREADS = 4096
"""Largest number of threads that may be asked for: more than processors have cores."""


def _give_threads(ctx: click.Context, parameter: click.Parameter, value: int | None) -> None:
    """Set the number of torch's threads in this process: by what torch reads when it is loaded, and in torch itself if it is loaded already."""
    if value is None:
        return
    for library in ("OMP", "MKL"):
        os.environ[f"{library}_NUM_THREADS"] = str(value)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(value)


threads_option = click.option(
    "--threads",
    type=click.IntRange(1, _MOST_THREADS),
    callback=_give_threads,
    expose_value=False,
    help="Threads that torch computes with on the CPU; on a busy machine, as many as there are idle cores. [default: torch's own]",
)


def output_option(default: str | None) -> Callable[[Command], Command]:
    """Return the option `-o FILE`. Without a default, nothing is written unless it is given."""
    kind = OUTPUT_FILE
    whole = "File to write, whole or not at all." + ("" if default else " [default: none]")
    return under("Output", click.option("-o", "--output", type=kind, default=default, show_default=True, callback=own_place, help=whole))


def folder_option(default: str, told: str) -> Callable[[Command], Command]:
    """Return the option `-o FOLDER` with its default and its help."""
    kind = click.Path(file_okay=False, path_type=Path)
    return under("Output", click.option("-o", "--output", type=kind, default=default, show_default=True, callback=own_place, help=told))


def _begin_together(ctx: click.Context, parameter: click.Parameter, value: int) -> int:
    """Raise a usage error unless this is one of so many processes that a launcher has started."""
    if value == 1 or ctx.resilient_parsing:
        return value
    line = shlex.join(["-m", "--", *ctx.command_path.split(), *words_of(ctx)])  # `--`: torchrun would take --start for its own
    try:
        take_part(value, line)
    except SettingsError as error:
        raise click.UsageError(with_flags(str(error), ctx.command)) from error
    return value


_tensor_parallel = click.option(
    "--tensor-parallel",
    type=POSITIVE,
    default=1,
    show_default=True,
    is_eager=True,  # before the outputs, whose places depend on it
    callback=_begin_together,
    help="Processes that hold the target together, each a part of it on a GPU of its own; start them with torchrun --nproc-per-node N.",
)
_target = click.option(
    "--target", required=True, metavar="MODEL", help="Folder, GGUF file or hub id of the target; embedded-target comes with treeopt."
)
revision_option = click.option("--revision", metavar="REV", help="Hub revision of the target.")
_dtype = click.option(
    "--dtype",
    type=dtype_name,
    metavar="DTYPE",
    default="auto",
    show_default=True,
    help="Number type of the weights: float32, float16, bfloat16 or auto, which is float32 on a CPU and the checkpoint's half precision on a GPU.",
)
draft_revision_option = click.option("--draft-revision", metavar="REV", help="Hub revision of the draft.")
adapter_option = click.option("--adapter", metavar="FOLDER", help="Folder of a LoRA adapter to merge into the target; needs peft.")
_draft_adapter = click.option("--draft-adapter", metavar="FOLDER", help="Folder of a LoRA adapter to merge into the draft; needs peft.")
_corpus = click.option(
    "--corpus",
    multiple=True,
    metavar="FILE",
    help="Text file (UTF-8) that is counted beforehand for n-grams, such as earlier answers. May be given several times. [default: none]",
)
end_option = click.option("--end", type=POSITIVE, help="Row to stop before.")
chat_arg_option = click.option(
    "--chat-arg",
    "chat_args",
    type=named_value,
    multiple=True,
    metavar="NAME=VALUE",
    help="Argument of the chat template, such as enable_thinking=false; VALUE is JSON or text. May be given several times.",
)
skip_bad_rows_option = click.option(
    "--skip-bad-rows", is_flag=True, help="Skip rows that cannot be read, and name them; without this the first one ends the run."
)


def model_options(*, draft_required: bool = True) -> Callable[[Command], Command]:
    """Add options as `models`, and `--threads`.

    They are `--target --draft --corpus --revision --draft-revision --adapter --draft-adapter --device --dtype --offload --tensor-parallel`.
    """
    return bundle(
        "models",
        ModelOptions,
        _target,
        click.option(
            "--draft",
            required=draft_required,
            metavar="MODEL",
            help="Folder, GGUF file or hub id of the draft, or a head's folder; embedded-draft and embedded-eagle3, a head, come "
            "with treeopt; ngram needs no model, and MODEL+ngram has n-grams beside one."
            + ("" if draft_required else " [required for a tree]"),
        ),
        _corpus,
        revision_option,
        draft_revision_option,
        adapter_option,
        _draft_adapter,
        device_option,
        threads_option,
        _dtype,
        click.option("--offload", is_flag=True, help="Keep the target's layers in host memory and copy them to the GPU in every pass."),
        _tensor_parallel,
        heading="Models",
    )


def drafts_options() -> Callable[[Command], Command]:
    """Add `--target --draft (any number) --corpus --revision --adapter --device --dtype --tensor-parallel` as `models`, and `--threads`."""
    return bundle(
        "models",
        DraftsOptions,
        _target,
        click.option(
            "--draft",
            "drafts",
            required=True,
            multiple=True,
            metavar="MODEL",
            help="Folder, GGUF file or hub id of a draft, a head's folder, embedded-draft, embedded-eagle3, ngram, or MODEL+ngram; may be "
            "given several times.",
        ),
        _corpus,
        revision_option,
        adapter_option,
        device_option,
        threads_option,
        _dtype,
        _tensor_parallel,
        heading="Models",
    )


def _known_dataset(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Return the data set, which is the standard library's source for the embedded target alone. Raises a usage error that names the choices."""
    if value is not None or ctx.resilient_parsing:
        return value
    target = ctx.params.get("target")
    if target == "embedded-target":
        return "stdlib"
    from treespec.data.sources import DATASET_NAMES

    raise click.UsageError(
        f"--dataset is missing: acceptance depends on the text, and there is none that fits {target}; pass one of {', '.join(DATASET_NAMES)}, "
        "a data set of the hub as OWNER/NAME, or the path of a file or folder."
    )


def prompt_options(*, num_prompts: int, start_default: str = "0") -> Callable[[Command], Command]:
    """Add `--dataset --num-prompts --prompt-len --whole-prompts --start --end --prompt --chat --system --chat-arg --field --skip-bad-rows` as `rows`."""
    return bundle(
        "rows",
        PromptOptions,
        click.option(
            "--dataset",
            callback=_known_dataset,
            metavar="NAME|PATH",
            help="Data set: stdlib, stdlib-train, cnn, openwebtext, c4, wikitext, mt-bench, spec-bench or speed-bench; another of the "
            "hub as OWNER/NAME, OWNER/NAME:CONFIG or OWNER/NAME:CONFIG:SPLIT; a .jsonl, .json, .parquet or .txt file; "
            "a folder saved by `datasets`, or a folder of pictures. [default: stdlib for embedded-target; required for other models]",
        ),
        click.option(
            "--num-prompts",
            type=POSITIVE,
            default=num_prompts,
            show_default=True,
            help="Most rows to use; with --chat each row makes a prompt per turn of the user.",
        ),
        click.option(
            "--prompt-len",
            type=POSITIVE,
            help="First tokens of a row to keep; shorter rows are skipped. For whole prompts: most tokens of one; longer ones are skipped. "
            f"[default: {PROMPT_LEN}, but whole rows where too few are so long; {WHOLE_PROMPT_LEN} with --chat or pictures]",
        ),
        click.option("--whole-prompts", is_flag=True, help="Whole rows as prompts, whatever their length, as --chat and pictures have it."),
        click.option("--start", type=NATURAL, help=f"First row to read. [default: {start_default}]"),
        end_option,
        click.option(
            "--prompt",
            metavar="TEXT",
            help="Question to ask about the pictures of a data set that brings no questions; <image> stands for the picture. It has no "
            "part in data sets of text. [default: What is in this picture?]",
        ),
        click.option("--chat", is_flag=True, help="Whole conversations as prompts, in the tokenizer's chat template."),
        click.option(
            "--system",
            metavar="TEXT",
            help="System prompt for --chat, in front of conversations that have none of their own. [default: none]",
        ),
        chat_arg_option,
        click.option(
            "--field",
            metavar="NAME",
            help="Key or column that holds the rows' text, or the question about a picture, if it has none of the usual names.",
        ),
        skip_bad_rows_option,
        heading="Data",
    )
