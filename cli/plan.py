"""The plan of `evaluate`: a growmap's tree, a dynamic tree or no tree for every step, its settings, and what the growmap promised."""

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from treeopt.cli.help import Command, under
from treeopt.cli.options import ModelOptions, PromptOptions
from treeopt.cli.output import note
from treeopt.cli.settings import bundle, wrong_usage
from treeopt.cli.values import GROWMAP_FILE, INPUT_FILE, POSITIVE
from treespec.decoding.drafting import Drafting
from treespec.decoding.plans import DynamicBudget, require_draft
from treespec.errors import listed
from treespec.evaluation.settings import EvaluationSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    from treespec.decoding.chosen import ChosenBudget
    from treespec.decoding.plans import Plan
    from treespec.evaluation.predicted import Prediction
    from treespec.trees.growmap import GrowMap


@dataclass(frozen=True)
class TreeOptions:
    """The trees to draft, if any are named."""

    growmap: Path | None
    dynamic: bool
    size: int | None
    depth: int | None
    width: int | None
    budget: Path | None

    def __post_init__(self) -> None:
        if self.budget is not None:
            others = [name for name in ("growmap", "dynamic", "size", "depth", "width") if getattr(self, name)]
            if others:
                raise click.UsageError(f"--budget says all about the trees; drop {listed([f'--{name}' for name in others])}, or --budget.")
            return
        budget = [f"--{name}" for name in ("size", "depth", "width") if getattr(self, name) is not None]
        if budget and not self.dynamic:
            bound = "bounds" if len(budget) == 1 else "bound"
            raise click.UsageError(f"{' and '.join(budget)} {bound} dynamic trees only; pass --dynamic as well, or drop them.")
        if self.dynamic and self.growmap is None and (self.size is None or self.depth is None):
            raise click.UsageError("--dynamic needs a budget; pass --size N and --depth D, or a growmap to take them from.")

    @property
    def named(self) -> bool:
        """Whether trees are named."""
        return self.growmap is not None or self.dynamic or self.budget is not None

    def check(self, drafting: Drafting, draft: str | None) -> None:
        """Raise a usage error for a plan that does not go with the other options."""
        with wrong_usage():
            if self.dynamic or self.budget is not None:
                drafting.require_kind(DynamicBudget)
            if self.named:
                require_draft(draft)


@dataclass(frozen=True)
class PlanOptions(TreeOptions):
    """The trees to draft, or none."""

    mode: str

    def __post_init__(self) -> None:
        if self.mode == "baseline" and self.named:
            extra = "--growmap" if self.growmap is not None else "--dynamic" if self.dynamic else "--budget"
            raise click.UsageError(f"--mode baseline runs no tree; drop {extra}, or drop --mode baseline to compare both.")
        super().__post_init__()
        if self.mode == "tree" and not self.named:
            raise click.UsageError(
                "what is to be run? Pass --growmap FILE, --budget FILE, --dynamic --size N --depth D, or --mode baseline."
            )


def plan_options() -> "Callable[[Command], Command]":
    """Add `--growmap --mode --dynamic --size --depth --width --budget` as `plan`."""
    mode = click.option(
        "--mode",
        type=click.Choice(["tree", "baseline"]),
        default="tree",
        show_default=True,
        help="Way of decoding: with a tree and without, or (baseline) autoregressive decoding alone, which needs no draft.",
    )
    return tree_options(mode, kind=PlanOptions)


against_option = under(
    "Tree",
    click.option(
        "--against",
        metavar="chain[:DEPTH,...]",
        help="Chains to run beside the tree: the growmap's best one (chain), or those of given depths (chain:3,5); the report says what the tree is "
        "worth beyond the fastest.",
    ),
)
"""Adds `--against`."""


def tree_options(*others: "Callable[[Command], Command]", kind: type[TreeOptions] = TreeOptions) -> "Callable[[Command], Command]":
    """Add `--growmap`, the `others` and `--dynamic --size --depth --width --budget` as `plan`."""
    return bundle(
        "plan",
        kind,
        click.option(
            "--growmap",
            type=GROWMAP_FILE,
            metavar="FILE|NAME",
            help="Growmap to run (.pt), or the name of one that comes with treeopt (treeopt inspect --list shows them); "
            "trees in the formats of `treeopt convert` are taken too.",
        ),
        *others,
        click.option(
            "--dynamic",
            is_flag=True,
            help="Trees that are grown anew at every step, by the draft's own probabilities; --size and --depth bound them, or a growmap does.",
        ),
        click.option("--size", type=POSITIVE, help="Nodes of a dynamic tree, the root included. [default: the growmap's]"),
        click.option("--depth", type=POSITIVE, help="Edges from the root of a dynamic tree, at most. [default: the growmap's]"),
        click.option("--width", type=POSITIVE, help="Nodes kept per level of a dynamic tree. [default: twice the mean level]"),
        click.option(
            "--budget", type=INPUT_FILE, help="Budget of dynamic trees that `treeopt grow --dynamic` chose, in place of all of these."
        ),
        heading="Tree",
    )


@dataclass(frozen=True)
class Named:
    """The growmap or the budget that the options name, if they name one, and the line that says which settings were taken from it."""

    growmap: "GrowMap | ChosenBudget | None" = None
    taken: str | None = None


_MADE_FOR = ("temperature", "top_p", "drafting", "draft_temperature", "verifier")


def with_growmaps_settings(command: Command) -> Command:
    """Give options that are not on the line the values that the named growmap was made for, and hand the growmap to the command, as `named`.

    So it does with a budget. It stands above the options whose values it completes. Raises GrowMapError for a file that is neither.
    """

    @functools.wraps(command)
    def completed(**values: Any) -> Any:
        grown = read_named(values.get("growmap"), values.get("budget"))
        if grown is None:
            return command(**values, named=Named())
        from treespec.evaluation.made_for import settings_of, taken_line

        ctx = click.get_current_context()
        given = {name: values[name] for name in _MADE_FOR if ctx.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT}
        taken = settings_of(grown.metadata, given, sampling_alone=values["dynamic"] or values["budget"] is not None)
        ctx.params.update(taken)  # for those who look at all options
        return command(**{**values, **taken}, named=Named(grown, taken_line(taken, grown.noun)))

    return completed


def resolve(
    plan: PlanOptions, grown: "GrowMap | ChosenBudget | None", models: ModelOptions, settings: EvaluationSettings
) -> "tuple[Plan | None, Prediction | None]":
    """Return what to draft and what the growmap promised for it, which is None if nothing was promised.

    `grown` is the growmap or the chosen budget that the options name. If it was made for other models, another sampling or another drafting than those
    that run, its promise does not hold; if its times were taken on another device, or with other threads, its time per step does not. A line on stderr says so,
    and what does not hold is left out. Raises a usage error for a budget that no tree meets.
    """
    from treeopt.cli.inputs import hardware_of
    from treespec.evaluation.prediction import prediction_of
    from treespec.files.load import threads
    from treespec.models.ngram.corpus import name_of

    drafted = planned(plan, grown)
    if plan.dynamic:
        if grown is not None:
            note("a dynamic tree takes no more than its budget from the growmap, whose prediction does not apply: there is none")
        return drafted, None
    if grown is None:
        return None, None
    names = {"target": models.target} | ({} if models.draft is None else {"draft": name_of(models.draft, models.corpus)})
    names |= {role: name for role in ("adapter", "draft_adapter") if (name := getattr(models, role)) is not None}
    device, own = hardware_of(models.device), threads()  # torch is loaded: it has read the growmap
    predicted, said = prediction_of(grown, names, device, settings.sampling, settings.drafting, own, models.tensor_parallel)
    for sentence in said:
        note(sentence)
    return drafted, predicted


def read_named(growmap: Path | None, budget: Path | None) -> "GrowMap | ChosenBudget | None":
    """Return the growmap or the chosen budget of these files, if there is one. Raises GrowMapError."""
    if growmap is not None:
        from treespec.trees.growmap import read_growmap

        return read_growmap(growmap)
    if budget is None:
        return None
    from treespec.decoding.chosen import read_budget

    return read_budget(budget)


def planned(plan: TreeOptions, grown: "GrowMap | ChosenBudget | None") -> "Plan | None":
    """Return what to draft, or None if nothing is named. Raises a usage error for a budget that no tree meets.

    `grown` is the growmap or the chosen budget that the options name.
    """
    if not plan.dynamic:
        return None if grown is None else grown.plan
    size, depth = (grown.plan.size, grown.plan.depth) if grown is not None else (0, 0)
    if depth == 0 and (plan.size is None or plan.depth is None):
        raise click.UsageError("the growmap is the root alone and gives no budget to a dynamic tree; pass --size 2 or more, and --depth.")
    with wrong_usage():
        return DynamicBudget.of(plan.size or size, plan.depth or depth, plan.width)


def note_other_chat(promised: Mapping[str, Any], rows: PromptOptions) -> None:
    """Note on stderr that the conversations, on which a growmap's acceptance was profiled, were written in another way than those of this run."""
    made, runs = promised.get("profiled_chat"), rows.chat
    if made is None:  # it was not profiled on rows, or by a version that did not say
        return
    others = [] if made == runs else [f"{'with' if made else 'without'} `chat`"]
    if made and runs:
        used = rows.chat_options
        for name, before, now in (
            ("system", promised.get("profiled_system"), used.system),
            ("chat_args", promised.get("profiled_chat_args") or {}, used.arguments),
        ):
            if before != now:
                others.append(f"with `{name}` {_in_short(before)} (this run has {_in_short(now)})" if before else f"without `{name}`")
    if others:
        note(f"the growmap was profiled {listed(others)}: other prompts, whose acceptance may be another")


def _in_short(value: object) -> str:
    """Return an option's value as JSON of at most 60 characters, or `none`."""
    text = json.dumps(value) if value else "none"
    return text if len(text) <= 60 else f"{text[:56]} ..."


@dataclass(frozen=True)
class ProfiledRows:
    """The rows `start` to `end` - 1 of a data set, on which the acceptance of a growmap or a budget was profiled."""

    dataset: str
    start: int
    end: int
    row: int = 0
    """One of these rows; `row_sha256` is the SHA-256 of its content, if the growmap has it."""
    row_sha256: str | None = None
    of: str = "growmap"
    """The word for what was made of them."""


def profiled_rows(metadata: Mapping[str, Any], of: str = "growmap") -> ProfiledRows | None:
    """Return the profiled rows that the metadata of a growmap or a budget (`of`) name, or None if they name none."""
    dataset, start, end, row, digest = (metadata.get(f"profiled_{key}") for key in ("dataset", "start", "end", "row", "row_sha256"))
    if dataset is None or start is None or end is None or start >= end:
        return None
    if row is None or digest is None:
        row, digest = 0, None
    return ProfiledRows(dataset, start, end, row, digest, of)
