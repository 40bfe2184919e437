"""Groups of options that several commands share; a group reaches its command as one dataclass.

Where that is a dataclass of settings, its fields' defaults are those of the options, and what it refuses is wrong usage.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import click

from treeopt.cli.flags import with_flags
from treeopt.cli.unused import without_dropped
from treeopt.cli.values import NATURAL, POSITIVE, Finite, device_name, dtype_name
from treespec.data.slices import DatasetSlice
from treespec.decoding.drafting import Drafting
from treespec.decoding.rules import RULES, Sampling
from treespec.decoding.verifiers import VERIFIERS
from treespec.errors import SettingsError
from treespec.models.offload import require_gpu

Command = Callable[..., Any]
"""A function that becomes a command."""

PROMPT_LEN, WHOLE_PROMPT_LEN = 128, 1024
"""Defaults of --prompt-len without and with --chat."""


@dataclass(frozen=True)
class ModelOptions:
    """Which models to load, where and how precise."""

    target: str
    draft: str | None = None
    revision: str | None = None
    draft_revision: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    offload: bool = False

    def __post_init__(self) -> None:
        if self.offload:
            require_gpu(self.device)


@dataclass(frozen=True)
class DraftsOptions:
    """One target and several drafts."""

    target: str
    drafts: tuple[str, ...]
    revision: str | None
    device: str
    dtype: str

    def __post_init__(self) -> None:
        twice = [draft for i, draft in enumerate(self.drafts) if draft in self.drafts[:i]]
        if twice:
            raise click.UsageError(f"--draft {twice[0]} is given twice; drop one.")

    def with_draft(self, draft: str | None) -> ModelOptions:
        """The target with one of the drafts, or with none."""
        return ModelOptions(self.target, draft, self.revision, None, self.device, self.dtype)


@dataclass(frozen=True)
class PromptOptions:
    """Which rows of which data set to take, and how much of each. `start` and `prompt_len` are None where they were not given."""

    dataset: str
    num_prompts: int
    prompt_len: int | None
    start: int | None
    end: int | None
    prompt: str | None
    chat: bool
    field: str | None
    skip_bad_rows: bool

    def __post_init__(self) -> None:
        if self.prompt is not None and not self.prompt.strip():
            raise click.UsageError("--prompt is empty; pass what is to be asked about pictures, or leave it out for a question.")
        DatasetSlice(self.dataset, self.field, self.start or 0, self.end)  # checks `start` and `end`

    def longest(self, pictures: bool = False) -> int:
        """Tokens of a prompt; of conversations, and of what is asked about pictures, the most that one may have."""
        return self.prompt_len or (WHOLE_PROMPT_LEN if self.chat or pictures else PROMPT_LEN)


format_option = click.option(
    "--format",
    "output_format",
    type=click.Choice(["rich", "json"]),
    default="rich",
    show_default=True,
    help="Tables for people, or one JSON object.",
)

device_option = click.option(
    "--device",
    type=device_name,
    metavar="DEVICE",
    default="auto",
    show_default=True,
    help="cpu, cuda, cuda:N or auto: the GPU if there is one.",
)


def output_option(default: str | None) -> Callable[[Command], Command]:
    """`-o FILE`; without a default, nothing is written unless it is given."""
    kind = click.Path(dir_okay=False, path_type=Path)
    return click.option("-o", "--output", type=kind, default=default, show_default=True, help="File to write, whole or not at all.")


_target = click.option(
    "--target", required=True, metavar="MODEL", help="Folder or hub id of the target; embedded-target is the one that comes along."
)
revision_option = click.option("--revision", metavar="REV", help="Hub revision of the target.")
_dtype = click.option(
    "--dtype",
    type=dtype_name,
    metavar="DTYPE",
    default="auto",
    show_default=True,
    help="float32, float16, bfloat16 or auto: float32 on CPU, the checkpoint's half precision on GPU.",
)
draft_revision_option = click.option("--draft-revision", metavar="REV", help="Hub revision of the draft.")
end_option = click.option("--end", type=POSITIVE, help="Row to stop before.")
skip_bad_rows_option = click.option(
    "--skip-bad-rows", is_flag=True, help="Go on without rows that cannot be read, and name them; else the first ends the run."
)


def model_options(*, draft_required: bool = True) -> Callable[[Command], Command]:
    """`--target --draft --revision --draft-revision --device --dtype --offload` as `models`."""
    return bundle(
        "models",
        ModelOptions,
        _target,
        click.option(
            "--draft",
            required=draft_required,
            metavar="MODEL",
            help="Folder or hub id of the draft; embedded-draft is the one that comes along.",
        ),
        revision_option,
        draft_revision_option,
        device_option,
        _dtype,
        click.option("--offload", is_flag=True, help="Keep the target's layers in host memory and copy them to the GPU in every pass."),
    )


def drafts_options() -> Callable[[Command], Command]:
    """`--target --draft (any number) --revision --device --dtype` as `models`."""
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
            help="Folder or hub id of a draft, or embedded-draft; may be given several times.",
        ),
        revision_option,
        device_option,
        _dtype,
    )


def prompt_options(*, num_prompts: int, start_default: str = "0") -> Callable[[Command], Command]:
    """`--dataset --num-prompts --prompt-len --start --end --chat --field --skip-bad-rows` as `rows`."""
    return bundle(
        "rows",
        PromptOptions,
        click.option(
            "--dataset",
            default="stdlib",
            show_default=True,
            metavar="NAME|PATH",
            help="stdlib, stdlib-train, cnn, openwebtext, c4, wikitext, mt-bench; a .jsonl, .json, .parquet or .txt file; "
            "a folder saved by `datasets` or of pictures.",
        ),
        click.option(
            "--num-prompts",
            type=POSITIVE,
            default=num_prompts,
            show_default=True,
            help="Rows to use at most; with --chat a prompt per turn.",
        ),
        click.option(
            "--prompt-len",
            type=POSITIVE,
            help="First tokens of a row to keep; shorter rows are skipped. With --chat or pictures, the most tokens of a whole prompt; longer ones are. "
            f"[default: {PROMPT_LEN}; {WHOLE_PROMPT_LEN} with --chat or pictures]",
        ),
        click.option("--start", type=NATURAL, help=f"First row to read. [default: {start_default}]"),
        end_option,
        click.option("--prompt", metavar="TEXT", help="Asked about pictures that come without a prompt; <image> stands for the picture."),
        click.option("--chat", is_flag=True, help="Prompts are whole conversations in the tokenizer's chat template."),
        click.option(
            "--field",
            metavar="NAME",
            help="Key or column of the rows' text, or of what is asked about pictures, where it is none of the usual.",
        ),
        skip_bad_rows_option,
    )


def sampling_options() -> Callable[[Command], Command]:
    """`--temperature --top-p` as `sampling`: how the target chooses tokens."""
    return bundle(
        "sampling",
        Sampling,
        setting(Sampling, "temperature", type=Finite(min=0), help="Temperature of the target; 0 is greedy decoding."),
        setting(Sampling, "top_p", type=Finite(min=0, max=1, min_open=True), help="Nucleus of the target's distribution."),
    )


def drafting_options(*, verifier: bool = False) -> Callable[[Command], Command]:
    """`--drafting --draft-temperature`, and `--verifier` where it matters, as `drafting`: how the draft does."""
    rules = "; ".join(f"{name}: {rule.help}" for name, rule in RULES.items())
    verifiers = "; ".join(f"{name}: {entry.help}" for name, entry in VERIFIERS.items())
    options = [
        setting(Drafting, "rule", "--drafting", type=click.Choice(list(RULES)), help=f"Choice of children. {rules}."),
        setting(
            Drafting,
            "temperature",
            "--draft-temperature",
            type=Finite(min=0),
            help="Temperature of the distribution that children are sampled from. [default: the target's]",
        ),
        setting(Drafting, "verifier", type=click.Choice(list(VERIFIERS)), help=f"Verification of sampled children. {verifiers}."),
    ]
    return bundle("drafting", Drafting, *options[: 3 if verifier else 2], rule="drafting", temperature="draft_temperature")


def seed_option(kind: type) -> Callable[[Command], Command]:
    """`--seed` of settings."""
    return setting(kind, "seed", type=NATURAL, help="Seed of the random streams; prompt i draws from that of (seed, i).")


def setting(kind: type, field: str, *flags: str, **attributes: Any) -> Callable[[Command], Command]:
    """Return the option of a field of settings: its flag, unless there are other `flags`, and its default are the field's."""
    default = next(known.default for known in fields(kind) if known.name == field)
    if isinstance(default, tuple):
        default = ",".join(map(str, default))
    shown = default is not None and not isinstance(default, bool)
    return click.option(
        *(flags or ["--" + field.replace("_", "-")]), default=default, show_default=shown, is_flag=default is False, **attributes
    )


def bundle(
    name: str, kind: type, *options: Callable[[Command], Command], make: Callable[..., Any] | None = None, **called: str
) -> Callable[[Command], Command]:
    """Return a decorator that adds `options` to a command and hands them to it as one `kind`, under `name`.

    A field takes the option, or the bundle from a decorator above, of its own name or of the name that it is `called`, and else keeps
    its default. `make` is for a `kind` that has a constructor for options which may not have been given.
    """

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def bundled(**values: Any) -> Any:
            values = without_dropped(click.get_current_context(), values)
            names = {field.name: called.get(field.name, field.name) for field in fields(kind)}
            with wrong_usage():
                made = (make or kind)(**{field: values.pop(option) for field, option in names.items() if option in values})
            return command(**{**values, name: made})

        decorated: Command = bundled
        for option in reversed(options):
            decorated = option(decorated)
        return decorated

    return decorate


@contextmanager
def wrong_usage() -> Iterator[None]:
    """Within, settings that make no sense are wrong usage of the running command."""
    try:
        yield
    except SettingsError as error:
        raise click.UsageError(with_flags(str(error), click.get_current_context().command)) from error
