"""Options that are settings: the command line builds the library's own objects, with their defaults; what they refuse is wrong usage."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import click

from treeopt.cli.flags import with_flags
from treeopt.cli.unused import without_dropped
from treeopt.cli.values import NATURAL, POSITIVE, Finite
from treeopt.profiling.settings import METHODS
from treespec.decoding.drafting import Drafting
from treespec.decoding.rules import RULES, Sampling
from treespec.decoding.verifiers import VERIFIERS
from treespec.errors import SettingsError

Command = Callable[..., Any]
"""A function that becomes a command."""


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


def measuring_options(kind: type, *others: Callable[[Command], Command], method: str) -> Callable[[Command], Command]:
    """`--gen-len --method --seed --batch-size` and the `others` as `settings`: how models are measured. `method` is the help of one of them."""
    return bundle(
        "settings",
        kind,
        setting(kind, "gen_len", type=click.IntRange(min=2), help="Tokens per prompt; the first is never drafted."),
        *others,
        setting(kind, "method", type=click.Choice(METHODS), help=method),
        seed_option(kind),
        setting(kind, "batch_size", type=POSITIVE, help="Prompts per forward pass."),
    )


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
