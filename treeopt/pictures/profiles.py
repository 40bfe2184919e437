"""Pictures of profiles and traces: acceptance by rank and depth, and the staircase of latency."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from treeopt.pictures.canvas import BLUE, INK, LEGEND_LINE, LINES, MARKERS, MUTED, ORANGE, PAPER, SERIES, WIDTH, Canvas, Titles, legend
from treeopt.profiles.acceptance import AcceptanceProfile
from treeopt.profiles.intervals import of_chance
from treeopt.profiles.latency import LatencyProfile
from treeopt.profiles.samples import LatencySample
from treeopt.profiles.trace import Trace
from treespec.errors import counted
from treespec.evaluation.observed import DepthAcceptance
from treespec.tables import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_RANKS = 32
"""Ranks that are drawn: later ones are accepted too rarely to be seen."""
_LEAST = 0.01
"""Smallest share of the largest chance that can be seen in the picture."""
_MOST_DEPTHS = 4
_MOST_CONTEXTS = 4
_FEWEST_VISITS = 10
"""Fewest visited nodes whose share is drawn: of fewer, it says nothing."""

Row = tuple[str, Sequence[float], Sequence[tuple[float, float]] | None]
"""A name, the chance of each rank, and the 95 % interval of each, if they are known."""


def acceptance_rows(profile: AcceptanceProfile) -> list[Row]:
    """Return the rows that are drawn of a profile: that of all positions, and those of the first depths if they were measured apart."""
    chances, errors = profile.rank_probability, profile.standard_error
    spans = [of_chance(p, e, profile.prompts) for p, e in zip(chances, errors, strict=True)] if errors else None
    rows: list[Row] = [("profile, all positions", chances, spans)]
    depths = profile.by_depth or ()
    last = min(len(depths), _MOST_DEPTHS) - 1
    for depth, row in enumerate(depths[: last + 1]):
        deeper = " and deeper" if depth == last and depth == len(depths) - 1 and last > 0 else ""
        rows.append((f"profile, children at depth {depth + 1}{deeper}", row, None))
    return rows


def trace_row(traced: Trace) -> Row:
    """Return the share of the positions of a trace at which each rank was the target's choice."""
    data = traced.summary()
    return "trace, all positions", [count / max(1, data["positions"]) for count in data["rank_counts"]], None


def observed_rows(observed: Sequence[DepthAcceptance]) -> list[Row]:
    """Return the shares that a run observed at the first depths; of ranks that few visited nodes had, there is no share."""
    rows: list[Row] = []
    for row in observed[:_MOST_DEPTHS]:
        base = row.offered if row.offered is not None else (row.visits,) * len(row.accepted)
        shares = [a / b for a, b in zip(row.accepted, base, strict=False) if b >= _FEWEST_VISITS]
        if shares:
            rows.append((f"observed, children at depth {row.depth + 1}", shares, None))
    return rows


def acceptance(profile: AcceptanceProfile) -> Canvas:
    """Return the picture of an acceptance profile: the chance that the child of each rank is accepted, by depth where depths were measured apart."""
    return acceptance_of(acceptance_rows(profile))


def trace(traced: Trace) -> Canvas:
    """Return the picture of a trace: the share of the positions at which each rank was the target's choice."""
    return acceptance_of([trace_row(traced)])


def acceptance_of(rows: Sequence[Row]) -> Canvas:
    """Return the picture of chances by rank, a line per row."""
    rows = rows[: len(SERIES)]
    shown = min(MOST_RANKS, max(_last_seen(row) for _, row, _ in rows) + 1)
    apart = min(0.14, 0.6 / len(rows))  # rows stand side by side at each rank, so that none hides another

    def draw(figure: "Figure") -> Titles:
        axes = figure.add_subplot()
        titles = {}
        for place, (name, row, spans) in enumerate(rows):
            values = list(row[:shown])
            style: dict[str, Any] = {"color": SERIES[place], "marker": MARKERS[place], "linestyle": LINES[place], "label": name}
            hollow: dict[str, Any] = {"markerfacecolor": PAPER} if name.startswith("observed") else {}
            places = [rank + (place - (len(rows) - 1) / 2) * apart for rank in range(len(values))]
            axes.plot(places, values, markersize=5.5, linewidth=0.9, zorder=3, **style, **hollow)
            if spans is not None:
                low, high = zip(*(spans[: len(values)]), strict=True)
                axes.vlines(places, low, high, color=SERIES[place], linewidth=1.4, zorder=2)
            for rank, value in enumerate(values):
                part = f"chance-{place}-{rank}"
                span = "" if spans is None else f", 95 % interval {spans[rank][0]:.4f} to {spans[rank][1]:.4f}"
                _spot(axes, places[rank], value, part)
                titles[part] = f"rank {rank}, {name}: {value:.4f}{span}"
        axes.set(xlabel="rank among siblings (0: the draft's first choice)", ylabel="chance of being accepted")
        axes.set_ylim(bottom=0)
        axes.set_xlim(-0.5, shown - 0.5)
        axes.locator_params(axis="x", integer=True, min_n_ticks=1)
        legend(figure)
        return titles

    first = number(rows[0][1][0], 3)
    return Canvas(
        WIDTH, 2.8 + LEGEND_LINE * len(rows), draw, f"Acceptance by rank: the draft's first choice is accepted with a chance of {first}"
    )


def latency(profile: LatencyProfile, *, size: int | None = None, context: int | None = None) -> Canvas:
    """Return the picture of a latency profile: milliseconds of a target pass by tree size, and of a draft pass by level width.

    Times of sizes between the measured ones are those of the next larger one: a staircase. A chosen `size` is marked at its `context` (None: the
    smallest). Intervals of 95 % are drawn as bars, and further contexts as further lines.
    """
    contexts = profile.contexts[:_MOST_CONTEXTS]

    def draw(figure: "Figure") -> Titles:
        from matplotlib.ticker import FuncFormatter

        axes = figure.add_subplot()
        titles: dict[str, str] = {}
        for what, unit, samples in (("target", "tree size", profile.target), ("draft", "level width", profile.draft)):
            for place, at in enumerate(c for c in contexts if any(s.context == c for s in samples)):
                chosen = sorted((s for s in samples if s.context == at), key=lambda s: s.nodes)
                named = f"{what} pass by {unit}" + (f", context {at}" if len(profile.contexts) > 1 else "")
                _stairs(axes, chosen, named, BLUE if what == "target" else ORANGE, place, titles, f"{what}-{place}")
        if size is not None and size <= profile.at_context(context).largest_size:
            seconds = profile.at_context(context).target_seconds(size)
            axes.axvline(size, color=INK, linewidth=1, linestyle=":", zorder=1)
            (star,) = axes.plot(
                [size], [1e3 * seconds], marker="*", markersize=16, color=INK, linestyle="none", zorder=5, label=f"chosen size {size}"
            )
            star.set_gid("chosen")
            titles["chosen"] = f"the chosen size {size}: {1e3 * seconds:.3f} ms"
        axes.set_xscale("log", base=2)
        axes.set(xlabel="nodes in the pass (powers of two)", ylabel="median ms of a pass")
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        legend(figure)
        return titles

    least = min(s.median_seconds for s in profile.target)
    lines = 2 * len(contexts) + (size is not None)
    alt = f"Latency of passes by their number of nodes; the fastest target pass takes {1e3 * least:.3f} ms"
    return Canvas(WIDTH, 2.8 + LEGEND_LINE * lines, draw, alt)


def _stairs(axes: "Axes", samples: Sequence[LatencySample], name: str, color: str, place: int, titles: dict[str, str], part: str) -> None:
    nodes, medians = [s.nodes for s in samples], [1e3 * s.median_seconds for s in samples]
    style: dict[str, Any] = {"color": color, "linestyle": LINES[place], "drawstyle": "steps-pre", "linewidth": 1.5}
    marker = ("o" if color == BLUE else "s") if place == 0 else MARKERS[place + 1]
    axes.plot(nodes, medians, marker=marker, markersize=5, label=name, zorder=3, **style)
    for sample, median in zip(samples, medians, strict=True):
        span = sample.interval
        if span is not None:
            axes.vlines(sample.nodes, 1e3 * span[0], 1e3 * span[1], color=color, linewidth=1.2, zorder=2)
        _spot(axes, sample.nodes, median, f"{part}-{sample.nodes}")
        around = "" if span is None else f", 95 % interval {1e3 * span[0]:.3f} to {1e3 * span[1]:.3f}"
        titles[f"{part}-{sample.nodes}"] = f"{name}: {counted(sample.nodes, 'node')}, {median:.3f} ms{around}"


def _spot(axes: "Axes", x: float, y: float, part: str) -> None:
    """Add an unseen spot that readers can point at."""
    (spot,) = axes.plot([x], [y], marker="o", markersize=11, color=MUTED, alpha=0, linestyle="none", zorder=6)
    spot.set_gid(part)


def _last_seen(row: Sequence[float]) -> int:
    """Return the last rank whose chance can be seen beside that of the likeliest."""
    return max((rank for rank, value in enumerate(row) if value > _LEAST * max(row)), default=0)
