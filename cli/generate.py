"""The command `treeopt generate`, also called `treeopt grow`: from profiles to the fastest tree, as a growmap."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from treeopt.cli.help import TreeoptCommand, example, under
from treeopt.cli.options import format_option, output_option
from treeopt.cli.output import emit, note
from treeopt.cli.values import INPUT_FILE, POSITIVE
from treespec.decoding.verifiers import VERIFIERS
from treespec.errors import MissingRuleError, ProfileError

if TYPE_CHECKING:
    from treeopt.growmap_making import Generated
    from treeopt.optimizer.search import OptimizationResult


@click.command(
    cls=TreeoptCommand, epilog=example("treeopt grow --acceptance acceptance.json --latency latency.json --max-size 64 -o tree.pt")
)
@under(
    "Profiles",
    click.option(
        "--acceptance",
        type=INPUT_FILE,
        multiple=True,
        help="Acceptance profile, or an acceptance vector of Sequoia (.pt). Of several, such as one for each drafting rule, the one with the "
        "fastest tree is taken. [required without --sequoia-config]",
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
    "Output",
    click.option("--frontier", is_flag=True, help="Also print the best tree of every size and depth bound."),
    output_option("tree.pt"),
    format_option,
)
@click.pass_context
def generate(
    ctx: click.Context,
    acceptance: tuple[Path, ...],
    latency: Path | None,
    verifier: str | None,
    context: int | None,
    size: int | None,
    depth: int | None,
    max_size: int | None,
    max_depth: int | None,
    max_branch: int | None,
    solver: str,
    smoothing: str,
    frontier: bool,
    sequoia_config: Path | None,
    output: Path,
    output_format: str,
) -> None:
    """Grow the best tree and write it as a growmap.

    Required are --acceptance FILE and either --latency FILE, by which the size and the depth that decode fastest are found, or
    --size N --depth D, which say them; or --sequoia-config FILE alone. All else has a default. The commands `treeopt grow`
    and `treeopt generate` are the same.
    """
    _check_usage(ctx)
    from treeopt import growmap_making
    from treeopt.cli import tables
    from treeopt.cli.results import candidates_summary, generation_summary
    from treespec.trees.growmap import check_growmap_writable

    check_growmap_writable(output)
    found: tuple[growmap_making.Generated, ...]
    if sequoia_config is not None:
        found = (growmap_making.generate_as_sequoia(sequoia_config, solver=solver, smoothing=smoothing),)
    else:
        limits = growmap_making.Limits(size=size, depth=depth, max_size=max_size, max_depth=max_depth, max_branch=max_branch)
        how = {"context": context, "limits": limits, "solver": solver, "smoothing": smoothing}
        with _naming_the_command(acceptance[0]):
            found = growmap_making.generate_fastest(acceptance, latency=latency, verifier=verifier, **how)
    made = found[0]
    made.growmap.write(output)
    note(f"wrote {output}")
    if made.assumed and made.rule is not None:
        note(f"the acceptance vector does not say its rule: the times are those of ({made.rule.name})")
    _note_noise(made.result)
    if made.result.tree.size == 1 and latency is not None:
        note("speculation with this draft does not pay on this hardware: no tree is faster than autoregressive decoding" + _under(made))
    data = generation_summary(made.result, frontier=frontier) | candidates_summary(found)
    emit(output_format, data, tables.generation(data))


def _under(made: "Generated") -> str:
    return "" if made.rule is None else f" ({made.rule.name})"


@contextmanager
def _naming_the_command(acceptance: Path) -> Iterator[None]:
    """Put the command to run into the message of a rule that the latency profile lacks."""
    try:
        yield
    except MissingRuleError as error:
        if not error.settings:
            raise
        from treeopt.profiles.acceptance import read_acceptance

        known = (read_acceptance(acceptance).provenance or {}).get("models") or {}
        models = f"--target {known.get('target', 'TARGET')} --draft {known.get('draft', 'DRAFT')}"
        flags = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in error.settings.items())
        raise ProfileError(f"{error.what}; run: treeopt profile latency {models} {flags}") from error


def _note_noise(result: "OptimizationResult") -> None:
    """Say so if a prediction can only come from noise: a step with the tree, which does more, would take less time than one without."""
    tokens, speedup = result.expected_tokens_per_step, result.predicted_speedup
    if speedup is not None and speedup > tokens:
        note(
            f"the latency profile is noisy: a speed-up of {speedup:.2f} x from {tokens:.2f} tokens per step would need passes over a tree "
            "that are faster than passes over one token; stop what else runs here and profile the latency again"
        )


def _check_usage(ctx: click.Context) -> None:
    """Raise a usage error for options that do not go together."""
    given = {name for name, value in ctx.params.items() if value is not None and _is_given(ctx, name)}
    output: Path = ctx.params["output"]
    if output.suffix == ".json":
        raise click.UsageError(f"-o {output} names the growmap, and its JSON goes beside it; pass -o {output.with_suffix('.pt')}.")
    if "sequoia_config" in given:
        others = given & {"acceptance", "latency", "verifier", "context", "size", "depth", "max_size", "max_depth", "max_branch"}
        if others:
            raise click.UsageError(f"--sequoia-config holds everything itself; drop {_flags(others)}.")
        return
    if "acceptance" not in given:
        raise click.UsageError("--acceptance FILE is missing (or --sequoia-config FILE).")
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
    if "context" in given and "latency" not in given:
        raise click.UsageError("--context picks a context of a latency profile; pass --latency FILE too, or drop it.")


def _is_given(ctx: click.Context, name: str) -> bool:
    return ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE


def _flags(names: set[str]) -> str:
    return " and ".join("--" + name.replace("_", "-") for name in sorted(names))
