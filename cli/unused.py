"""Options that were given and change nothing: one table says which, when and why, and a note on stderr says it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import click

from treeopt.cli.flags import is_given
from treeopt.cli.output import note
from treeopt.training.settings import TrainSettings
from treespec.decoding.rules import RULES
from treespec.models.ngram import model_beside, reads_corpus

Values = Mapping[str, Any]
"""The options of the running command by name."""


@dataclass(frozen=True)
class Unused:
    """Options that change nothing `when` the other options are so. `said` names the option, its `value` and any other option's value."""

    options: tuple[str, ...]
    when: Callable[[Values], bool]
    said: str
    dropped: bool = False
    """True if the value is left out of what the command is given; it need not even make sense then."""


def _drafts_nothing(values: Values) -> bool:
    return values.get("mode") == "baseline"


def _takes_likeliest(values: Values) -> bool:
    return not any(RULES[name].sampled for name in _names(values["drafting"]))


def _draws_nothing(values: Values) -> bool:
    """Return whether sampling without replacement is asked for, and no temperature at which it differs from the most likely tokens."""
    if not any(RULES[name].sampled and not RULES[name].replacement for name in _names(values["drafting"])):
        return False
    own, heat = values.get("draft_temperature"), values["temperature"]
    return not any(heat if isinstance(heat, tuple) else (heat,)) if own is None else own == 0


def _names(given: Any) -> tuple[str, ...]:
    """Return one name, or the names of lists of which several may be given, in one flat list."""
    return (given,) if isinstance(given, str) else tuple(name for names in given for name in names)


def _is_greedy(values: Values) -> bool:
    heat, mass = values["temperature"], values["top_p"]
    return heat in (0, (0,)) and (min(mass) if isinstance(mass, tuple) else mass) < 1


def _measures_nothing(values: Values) -> bool:
    return values.get("eval_prompts") == 0


def _trains_on_own_text(values: Values) -> bool:
    return TrainSettings.of(**{name: values[name] for name in ("objective", "divergence", "text")}).text == "own"


def _is_no_hub_name(name: str | None) -> bool:
    from treeopt.cli.hub import is_hub_name

    return name is not None and not is_hub_name(model_beside(name) or name)


def _counts_nothing(values: Values) -> bool:
    return not any(reads_corpus(name) for name in (values.get("draft"), *values.get("drafts", ())) if name is not None)


UNUSED = (
    Unused(
        ("draft", "draft_revision", "draft_adapter", "corpus", "drafting", "draft_temperature", "verifier"),
        _drafts_nothing,
        "`mode` baseline drafts nothing, so {option} {value} changes nothing",
        dropped=True,
    ),
    Unused(("require_lossless",), _drafts_nothing, "`mode` baseline has no other output to compare, so {option} changes nothing"),
    Unused(
        ("drafting", "draft_temperature", "verifier"),
        lambda values: values.get("draft", "") is None,
        "without `draft` nothing is drafted, so {option} {value} changes nothing",
    ),
    Unused(("corpus",), _counts_nothing, "only n-grams read a corpus, so {option} {value} changes nothing", dropped=True),
    Unused(
        ("top_p",),
        _is_greedy,
        "at `temperature` 0 the most likely token is taken, so {option} {value} changes nothing",
    ),
    Unused(
        ("drafting",),
        _draws_nothing,
        "at draft temperature 0, {option} swor drafts the most likely tokens: its steps are those of topk",
    ),
    Unused(
        ("draft_temperature",),
        _takes_likeliest,
        "topk drafts the most likely tokens at any draft temperature, so {option} changes nothing",
    ),
    Unused(
        ("system", "chat_args"), lambda values: not values["chat"], "without `chat` there is no chat template, so {option} changes nothing"
    ),
    Unused(("whole_prompts",), lambda values: values["chat"], "`chat` takes whole conversations anyway, so {option} changes nothing"),
    Unused(("draws",), _takes_likeliest, "{drafting} samples no children, so {option} changes nothing"),
    Unused(("revision",), lambda values: _is_no_hub_name(values["target"]), "{option} {value} changes nothing: {target} is not on the hub"),
    Unused(
        ("draft_revision", "draft_adapter"),
        lambda values: values["draft"] is None,
        "{option} {value} changes nothing: there is no `draft`",
    ),
    Unused(
        ("draft_revision",), lambda values: _is_no_hub_name(values["draft"]), "{option} {value} changes nothing: {draft} is not on the hub"
    ),
    Unused(
        ("gen_len", "eval_steps", "eval_dataset", "eval_field"),
        _measures_nothing,
        "`eval_prompts` 0 measures nothing, so {option} changes nothing",
    ),
    Unused(
        ("prompt_len", "text_batch"),
        lambda values: _measures_nothing(values) and _trains_on_own_text(values),  # else the target continues rows to train on
        "`eval_prompts` 0 measures nothing, so {option} changes nothing",
    ),
)
"""The table. If several of its rows hold for an option, the first one is told."""


def unused(ctx: click.Context) -> Iterator[tuple[str, Unused]]:
    """Yield the options that were given to the running command and change nothing, each with its row of the table."""
    for name, value in ctx.params.items():
        if value is None or not _is_chosen(ctx, name):
            continue
        row = next((row for row in UNUSED if name in row.options and row.when(ctx.params)), None)
        if row is not None:
            yield name, row


def _is_chosen(ctx: click.Context, name: str) -> bool:
    """Return whether an option was given; a file of settings may hold all options, so of it only other values than the defaults count."""
    if ctx.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT_MAP:
        return is_given(ctx, name)
    option = next(one for one in ctx.command.params if one.name == name)
    if not isinstance(option.default, bool | int | float | str | tuple | list):  # it has none
        return True
    return bool(ctx.params[name] != option.type_cast_value(ctx, option.default))


def note_unused() -> None:
    """Say on stderr which options of the running command change nothing."""
    ctx = click.get_current_context()
    for name, row in unused(ctx):
        shown = {key: _shown(value) for key, value in ctx.params.items()}
        note(row.said.format(**{**shown, "option": f"`{name}`", "value": shown[name]}))


def _shown(value: Any) -> Any:
    """Return a value as a note shows it: numbers in short, lists with commas."""
    if isinstance(value, float):
        return f"{value:g}"
    return ",".join(str(_shown(part)) for part in value) if isinstance(value, tuple) else value


def without_dropped(ctx: click.Context, values: Values) -> dict[str, Any]:
    """Return a command's values without those that are dropped."""
    dropped = {name for name, row in unused(ctx) if row.dropped}
    return {name: value for name, value in values.items() if name not in dropped}
