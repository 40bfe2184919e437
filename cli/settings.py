"""Options that are settings: the command line builds the library's own objects, with their defaults. A value that they refuse is wrong usage."""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import click

from treeopt.cli.flags import with_flags
from treeopt.cli.help import Command, under
from treeopt.cli.unused import without_dropped
from treeopt.cli.values import NATURAL, POSITIVE, Finite, name_list, names_metavar, number_list, share_list
from treeopt.profiling.settings import METHODS
from treespec.decoding.drafting import Drafting
from treespec.decoding.rules import RULES, Sampling
from treespec.decoding.verifiers import VERIFIERS
from treespec.errors import SettingsError


def sampling_options() -> Callable[[Command], Command]:
    """Add `--temperature --top-p` as `sampling`: how the target chooses tokens."""
    return bundle(
        "sampling",
        Sampling,
        setting(Sampling, "temperature", type=Finite(min=0), help="Sampling temperature of the target; 0 is greedy decoding."),
        setting(
            Sampling,
            "top_p",
            type=Finite(min=0, max=1, min_open=True),
            help="Probability mass of the target's nucleus, which is sampled from; 1 is all of it.",
        ),
        heading="Sampling",
    )


def drafting_options(*, verifier: bool = False) -> Callable[[Command], Command]:
    """Add `--drafting --draft-temperature`, and with `verifier` also `--verifier`, as `drafting`: how the draft chooses tokens."""
    rules = "; ".join(f"{name}: {rule.help}" for name, rule in RULES.items())
    verifiers = "; ".join(f"{name}: {entry.help}" for name, entry in VERIFIERS.items())
    options = [
        setting(Drafting, "rule", "--drafting", type=click.Choice(list(RULES)), help=f"Rule by which children are chosen. {rules}."),
        setting(
            Drafting,
            "temperature",
            "--draft-temperature",
            type=Finite(min=0),
            help="Temperature of the distribution that children are sampled from. [default: the target's]",
        ),
        setting(
            Drafting,
            "verifier",
            type=click.Choice(list(VERIFIERS)),
            help=f"Rule by which children are verified. {verifiers}. Children that are not sampled (topk, dynamic trees) are always matched.",
        ),
    ]
    shown = options[: 3 if verifier else 2]
    return bundle("drafting", Drafting, *shown, heading="Drafting", rule="drafting", temperature="draft_temperature")


@dataclass(frozen=True)
class RuleOptions:
    """The rules of steps to time: every combination that goes together."""

    temperature: tuple[float, ...]
    top_p: tuple[float, ...]
    drafting: tuple[tuple[str, ...], ...]
    draft_temperature: float | None
    verifier: tuple[tuple[str, ...], ...]
    dynamic: bool = False

    def __post_init__(self) -> None:
        with wrong_usage():
            self.samplings, self.draftings  # noqa: B018

    @property
    def samplings(self) -> tuple[Sampling, ...]:
        """The ways in which the target chooses."""
        return tuple(Sampling(temperature, top_p) for temperature in self.temperature for top_p in self.top_p)

    @property
    def draftings(self) -> tuple[Drafting, ...]:
        """The ways to draft and verify children. Raises SettingsError if no rule goes with a verifier."""
        rules, verifiers = _flat(self.drafting) or (Drafting.rule,), _flat(self.verifier) or (Drafting.verifier,)
        found, fits, refused = [], set(), None
        for rule in rules:
            for verifier in verifiers:
                try:
                    found.append(Drafting(rule, self.draft_temperature, verifier))
                except SettingsError as error:
                    refused = error
                    continue
                fits |= {rule, verifier}
        if refused is not None and not fits.issuperset((*rules, *verifiers)):
            raise refused
        return tuple(found)


def rule_options(*, dynamic: bool = True) -> Callable[[Command], Command]:
    """Add `--temperature --top-p --drafting --draft-temperature --verifier` as `rules`, the rules of steps to time, and with `dynamic` `--dynamic`."""
    options = [
        click.option(
            "--temperature",
            type=number_list,
            default="0",
            show_default=True,
            metavar="X,X,...",
            help="Sampling temperatures of the target; all above 0 take the same time.",
        ),
        click.option(
            "--top-p",
            type=share_list,
            default="1",
            show_default=True,
            metavar="X,X,...",
            help="Masses of the target's nucleus, numbers above 0 and up to 1; 1 is all of it. All below 1 take the same time.",
        ),
        click.option(
            "--drafting",
            type=name_list(RULES),
            metavar=names_metavar(RULES),
            multiple=True,
            help="Rules by which children are chosen, timed with every verifier that goes with them. [default: topk]",
        ),
        click.option(
            "--draft-temperature",
            type=Finite(min=0),
            help="Temperature of the distribution that children are sampled from. [default: the target's]",
        ),
        click.option(
            "--verifier",
            type=name_list(VERIFIERS),
            metavar=names_metavar(VERIFIERS),
            multiple=True,
            help="Rules by which sampled children are verified. [default: sequential]",
        ),
        click.option(
            "--dynamic",
            is_flag=True,
            help="Also time steps with dynamic trees, whose levels have the widths of --widths up to 64, or all if none is that narrow.",
        ),
    ]
    return bundle("rules", RuleOptions, *(options if dynamic else options[:-1]), heading="Rules")


def _flat(given: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Return the names of all lists that were given, each once."""
    return tuple(dict.fromkeys(name for names in given for name in names))


def measuring_options(kind: type, *others: Callable[[Command], Command], method: str) -> Callable[[Command], Command]:
    """Add `--gen-len --method --seed --batch-size` and the `others` as `settings`: how models are measured.

    `method` is the help text of `--method`.
    """
    return bundle(
        "settings",
        kind,
        setting(
            kind,
            "gen_len",
            type=click.IntRange(min=2),
            help="Tokens behind each prompt to measure on; the first of them comes with the prompt pass and is left out.",
        ),
        *others,
        setting(kind, "method", type=click.Choice(METHODS), help=method),
        seed_option(kind),
        setting(
            kind, "batch_size", type=POSITIVE, help="Prompts per forward pass; 64 where passes are captured or read whole texts, else 16."
        ),
        heading="Measurement",
    )


def seed_option(kind: type) -> Callable[[Command], Command]:
    """Return the option `--seed` of settings."""
    return setting(kind, "seed", type=NATURAL, help="Seed of the random streams; prompt i draws from the stream of (seed, i).")


def processors_option(kind: type) -> Callable[[Command], Command]:
    """Return the option `--processors/--no-processors` of settings."""
    told = "Whether logits pass through the processors that the target's generation config asks for. [default: they do]"
    return setting(kind, "processors", "--processors/--no-processors", help=told)


def setting(kind: type, field: str, *flags: str, **attributes: Any) -> Callable[[Command], Command]:
    """Return the option of a field of settings. Its default is the field's, and so is its flag unless `flags` are given."""
    default = next(known.default for known in fields(kind) if known.name == field)
    if isinstance(default, tuple):
        default = ",".join(map(str, default))
    shown = default is not None and not isinstance(default, bool)
    return click.option(
        *(flags or ["--" + field.replace("_", "-")]), default=default, show_default=shown, is_flag=isinstance(default, bool), **attributes
    )


def bundle(
    name: str,
    kind: type,
    *options: Callable[[Command], Command],
    heading: str,
    make: Callable[..., Any] | None = None,
    **called: str,
) -> Callable[[Command], Command]:
    """Return a decorator that adds `options` to a command and hands them to it as one `kind`, under `name`.

    A field takes the option of its own name, or of the name that it is `called`; it may also be a bundle from a decorator above. A
    field without an option keeps its default. `make` replaces the constructor of a `kind` that must know which options were given.
    The help lists the options under `heading`.
    """

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def bundled(**values: Any) -> Any:
            values = without_dropped(click.get_current_context(), values)
            names = {field.name: called.get(field.name, field.name) for field in fields(kind)}
            with wrong_usage():
                made = (make or kind)(**{field: values.pop(option) for field, option in names.items() if option in values})
            return command(**{**values, name: made})

        return under(heading, *options)(bundled)

    return decorate


@contextmanager
def wrong_usage() -> Iterator[None]:
    """Turn a SettingsError that is raised in this block into wrong usage of the running command."""
    try:
        yield
    except SettingsError as error:
        raise click.UsageError(with_flags(str(error), click.get_current_context().command)) from error
