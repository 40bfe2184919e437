"""The command `treeopt generate`, also called `treeopt grow`: from profiles to the fastest tree, as a growmap."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from treeopt.cli.errors import RUN
from treeopt.cli.flags import is_given
from treeopt.cli.help import TreeoptCommand, example, under
from treeopt.cli.options import format_option, output_option
from treeopt.cli.output import emit, is_there, note, note_written
from treeopt.cli.progress import Progress
from treeopt.cli.settings import wrong_usage
from treeopt.cli.values import INPUT_FILE, POSITIVE
from treespec.decoding.verifiers import VERIFIERS
from treespec.errors import MissingRuleError, ProfileError

if TYPE_CHECKING:
    from treespec.files.reading import PipeablePath


@click.command(
    cls=TreeoptCommand, epilog=example("treeopt grow --acceptance acceptance.json --latency latency.json --max-size 64 -o tree.pt")
)
@under(
    "Profiles",
    click.option(
        "--acceptance",
        type=INPUT_FILE,
        multiple=True,
        help="Acceptance profile, or an acceptance vector of Sequoia (.pt). It may be given several times, such as once for each drafting rule: "
        "the one with the fastest tree is taken. [required without --trace or --sequoia-config]",
    ),
    click.option(
        "--trace",
        type=INPUT_FILE,
        help="Trace that `treeopt profile acceptance` wrote, beside one --acceptance of the same pair and sampling or in place of it. Cross-validation over "
        "its prompts tells whether the chances of ranks by depth, or replay itself, find faster trees. [default: none]",
    ),
    click.option(
        "--latency",
        type=INPUT_FILE,
        help="Latency profile, by which the size and the depth with the least time per token are found. "
        "[required without --size and --depth, or --sequoia-config]",
    ),
    click.option(
        "--verifier",
        type=click.Choice(list(VERIFIERS)),
        help="Verifier of sampled children, whose times are taken; others are always matched. [default: sequential]",
    ),
    click.option("--context", type=POSITIVE, help="Context of the latency profile to optimise for. [default: the smallest measured]"),
    click.option(
        "--extrapolate",
        is_flag=True,
        help="Take a --context beyond the measured ones: times go on along the line through the two largest, and the growmap says so.",
    ),
    click.option("--sequoia-config", type=INPUT_FILE, help="Sequoia's own JSON, in its own meaning, in place of profiles and limits."),
)
@under(
    "Limits",
    click.option("--size", type=POSITIVE, help="Exact number of nodes, the root included; goes with --depth."),
    click.option("--depth", type=POSITIVE, help="Most edges from the root; goes with --size."),
    click.option("--max-size", type=POSITIVE, help="Largest size to consider. [default: the largest size in the latency profile]"),
    click.option("--max-depth", type=POSITIVE, help="Largest depth to consider. [default: 32, or what the size allows]"),
    click.option("--max-branch", type=POSITIVE, help="Most children of a node. [default: as many as the profile has ranks]"),
)
@under(
    "Search",
    click.option(
        "--solver",
        type=click.Choice(["auto", "best-first", "dp"]),
        default="auto",
        show_default=True,
        help="Solver that finds the tree: best-first search, which is exact if no probability increases with rank, or dynamic programming (dp), "
        "which always is; auto is best-first if that is exact, else dp.",
    ),
    click.option(
        "--smoothing",
        type=click.Choice(["none", "isotonic"]),
        default="none",
        show_default=True,
        help="Smoothing of the acceptance profile; isotonic regression makes it non-increasing in rank.",
    ),
)
@under(
    "Dynamic trees",
    click.option(
        "--dynamic",
        is_flag=True,
        help="Choose the budget of dynamic trees (size, depth and level width) in place of a tree, by profiles that were both measured with --dynamic.",
    ),
    click.option("--max-width", type=POSITIVE, help="Largest level width to consider. [default: the largest in the acceptance profile]"),
)
@under(
    "Output",
    click.option("--frontier", is_flag=True, help="Also print the best tree of every size and depth bound."),
    output_option("tree.pt"),
    format_option,
)
@click.pass_context
def generate(
    ctx: click.Context,
    acceptance: tuple[Path, ...],
    trace: Path | None,
    latency: Path | None,
    verifier: str | None,
    context: int | None,
    extrapolate: bool,
    size: int | None,
    depth: int | None,
    max_size: int | None,
    max_depth: int | None,
    max_branch: int | None,
    solver: str,
    smoothing: str,
    frontier: bool,
    sequoia_config: Path | None,
    dynamic: bool,
    max_width: int | None,
    output: Path,
    output_format: str,
) -> None:
    """Grow the best tree and write it as a growmap.

    Required are --acceptance FILE (or --trace FILE) and either --latency FILE, by which the size and the depth that decode fastest are found, or
    --size N --depth D, which say them; or --sequoia-config FILE alone. All else has a default. With --dynamic, the budget of dynamic trees
    that decodes fastest is written instead, to budget.json by default. The commands `treeopt grow`
    and `treeopt generate` are the same.
    """
    _check_usage(ctx)
    if dynamic:
        assert latency is not None  # as has been checked
        bounds = {"max_size": max_size, "max_depth": max_depth, "max_width": max_width}
        written = output if is_given(ctx, "output") else Path("budget.json")
        _budget(acceptance[0], latency, written, output_format, bounds, context=context, extrapolate=extrapolate)
        return
    from treeopt import growmap_making
    from treeopt.cli import tables
    from treeopt.cli.results import candidates_summary, generation_summary, models_summary
    from treespec.files.reading import PipeablePath
    from treespec.trees.growmap import check_growmap_writable

    check_growmap_writable(output)
    found: tuple[growmap_making.Generated, ...]
    if sequoia_config is not None:
        found = (growmap_making.generate_as_sequoia(sequoia_config, solver=solver, smoothing=smoothing),)
    else:
        limits = growmap_making.Limits(size=size, depth=depth, max_size=max_size, max_depth=max_depth, max_branch=max_branch)
        how: dict[str, Any] = {"context": context, "extrapolate": extrapolate, "limits": limits, "solver": solver, "smoothing": smoothing}
        given = [PipeablePath(path) for path in acceptance]
        times = None if latency is None else PipeablePath(latency)
        known = None if trace is None else PipeablePath(trace)
        with _naming_the_command(given, times, known), wrong_usage(), Progress() as progress:
            found = growmap_making.generate_fastest(given, latency=times, verifier=verifier, trace=known, progress=progress, **how)
    made = found[0]
    earlier = is_there(output)
    made.growmap.write(output)
    note_written(output, earlier)
    for sentence in growmap_making.notes_of(found):
        note(sentence)
    data = generation_summary(made.result, frontier=frontier) | candidates_summary(found) | models_summary(made)
    data |= {key: made.growmap.metadata.get(key) for key in ("context", "extrapolated_from", "best_chain")}
    emit(output_format, data, tables.generation(data))


def _budget(
    acceptance: Path,
    latency: Path,
    output: Path,
    output_format: str,
    limits: Mapping[str, int | None],
    *,
    context: int | None,
    extrapolate: bool,
) -> None:
    """Choose the budget of dynamic trees, write it and print it."""
    from treeopt.budget_making import make_budget
    from treeopt.cli import tables
    from treespec.decoding.chosen import BUDGET_SCHEMA
    from treespec.files.reading import PipeablePath
    from treespec.files.writing import check_writable

    check_writable(output, BUDGET_SCHEMA)
    given, times = PipeablePath(acceptance), PipeablePath(latency)
    with _naming_the_command([given], times, None), wrong_usage():
        made = make_budget(given, times, context=context, extrapolate=extrapolate, **limits)
    made.chosen.write(output)
    note(f"wrote {output}")
    for sentence in made.notes:
        note(sentence)
    emit(output_format, made.summary(), tables.budget(made.summary()))


@contextmanager
def _naming_the_command(
    acceptance: "Sequence[PipeablePath]", latency: "PipeablePath | None", trace: "PipeablePath | None"
) -> Iterator[None]:
    """Put the latency profile and the command to run into the message of rules that the profile lacks. All of them have been read."""
    try:
        yield
    except MissingRuleError as error:
        if not error.settings or latency is None:
            raise
        from treeopt.cli.latency_command import latency_command
        from treeopt.profiles.acceptance import read_acceptance
        from treeopt.profiles.latency import read_latency
        from treeopt.profiles.trace import read_trace

        models: dict[str, str] = {} if trace is None else dict(read_trace(trace).provenance.get("models") or {})
        for path in reversed(acceptance):
            models |= (read_acceptance(path).provenance or {}).get("models") or {}
        command = latency_command(read_latency(latency), str(latency), error.settings, models)
        raise ProfileError(f"{latency}: {error.what}{RUN}{command}") from error


def _check_usage(ctx: click.Context) -> None:
    """Raise a usage error for options that do not go together."""
    given = {name for name, value in ctx.params.items() if value is not None and is_given(ctx, name)}
    output: Path = ctx.params["output"]
    if "dynamic" in given:
        _check_dynamic(given, len(ctx.params["acceptance"]), output)
        return
    if "max_width" in given:
        raise click.UsageError(
            "--max-width bounds dynamic trees; pass --dynamic as well, or drop it (--max-branch bounds the children of a node)."
        )
    if output.suffix == ".json":
        instead = shlex.quote(str(output.with_suffix(".pt")))
        raise click.UsageError(f"-o {output} names the growmap, and its JSON goes beside it; pass -o {instead}.")
    if "sequoia_config" in given:
        others = given & {"acceptance", "trace", "latency", "verifier", "context", "size", "depth", "max_size", "max_depth", "max_branch"}
        if others:
            raise click.UsageError(f"--sequoia-config holds everything itself; drop {_flags(others)}.")
        return
    if not given & {"acceptance", "trace"}:
        raise click.UsageError("--acceptance FILE is missing (or --trace FILE, or --sequoia-config FILE).")
    if "trace" in given and len(ctx.params["acceptance"]) > 1:
        raise click.UsageError("--trace is of one drafting rule; pass a single --acceptance beside it, or none.")
    exact = given & {"size", "depth"}
    if len(exact) == 1:
        missing = "--depth" if "size" in exact else "--size"
        raise click.UsageError(
            f"{_flags(exact)} goes together with {missing}; to bound a search with --latency use --max-size and --max-depth."
        )
    if exact and given & {"max_size", "max_depth"}:
        raise click.UsageError(f"--size and --depth leave nothing to search; drop {_flags(given & {'max_size', 'max_depth'})}.")
    if not exact and "latency" not in given:
        raise click.UsageError("how large may the tree be? Pass --latency FILE, or --size N --depth D.")
    if len(ctx.params["acceptance"]) > 1 and "latency" not in given:
        raise click.UsageError("several --acceptance are told apart by their speed; pass --latency FILE too, or one of them alone.")
    if "verifier" in given and "latency" not in given:
        raise click.UsageError("--verifier picks the times of a latency profile; pass --latency FILE too, or drop it.")
    if ctx.params["extrapolate"] and "context" not in given:
        raise click.UsageError("--extrapolate is for a --context beyond the measured ones; pass --context N too, or drop it.")
    if "context" in given and "latency" not in given:
        raise click.UsageError("--context picks a context of a latency profile; pass --latency FILE too, or drop it.")


def _check_dynamic(given: set[str], profiles: int, output: Path) -> None:
    """Raise a usage error for options that do not go with --dynamic."""
    others = given & {"size", "depth", "max_branch", "solver", "smoothing", "frontier", "sequoia_config", "verifier", "trace"}
    if others:
        bounds = "; bound the search with --max-size, --max-depth and --max-width" if others & {"size", "depth", "max_branch"} else ""
        raise click.UsageError(f"--dynamic chooses a budget, not a tree, so it has no use for {_flags(others)}; drop it{bounds}.")
    if profiles != 1 or "latency" not in given:
        raise click.UsageError("--dynamic needs one --acceptance FILE and --latency FILE, both measured with --dynamic.")
    if output.suffix == ".pt" and "output" in given:
        raise click.UsageError(
            f"-o {output} names a growmap, but a budget is JSON; pass -o {shlex.quote(str(output.with_suffix('.json')))}."
        )


def _flags(names: set[str]) -> str:
    return " and ".join("--" + name.replace("_", "-") for name in sorted(names))
