"""Pictures of a report, and the words of its sample texts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from treeopt.pictures.canvas import BLUE, ORANGE, PAPER, WIDTH, Canvas, Titles
from treespec.evaluation.report import EvaluationReport
from treespec.evaluation.results import PromptResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure


TOKENS_PER_STEP = "tokens per step"


@dataclass(frozen=True)
class Pair:
    """A figure as it was predicted and as it was measured, with its 95 % intervals as far as they are known."""

    name: str
    predicted: float
    measured: float
    predicted_interval: Sequence[float] | None = None
    measured_interval: Sequence[float] | None = None

    @property
    def timed(self) -> bool:
        """Whether its prediction needs times."""
        return self.name != TOKENS_PER_STEP


def pairs(report: EvaluationReport) -> list[Pair]:
    """Return the figures that were both predicted and measured: tokens per step, milliseconds per step and the speed-up."""
    promised, spans = report.predicted, report.intervals
    rows = (
        (TOKENS_PER_STEP, promised.tokens_per_step, report.tokens_per_step, promised.tokens_per_step_interval, "tokens_per_step", 1.0),
        ("ms per step", promised.seconds_per_step, report.seconds_per_step, promised.seconds_per_step_interval, "seconds_per_step", 1e3),
        ("speed-up, x", promised.speedup, report.speedup, promised.speedup_interval, "speedup", 1.0),
    )
    return [
        Pair(name, unit * predicted, unit * measured, _times(unit, span), _times(unit, spans[key]))
        for name, predicted, measured, span, key, unit in rows
        if predicted is not None and measured is not None
    ]


def _times(unit: float, interval: Sequence[float] | None) -> list[float] | None:
    return None if interval is None else [unit * end for end in interval]


def prediction(found: Sequence[Pair]) -> Canvas:
    """Return the picture of predicted figures (hollow squares) over measured ones (filled circles), a panel for each of one or more figures."""

    def draw(figure: "Figure") -> Titles:
        titles = {}
        for place, pair in enumerate(found):
            axes = figure.add_subplot(1, len(found), place + 1)
            both = (
                ("predicted", pair.predicted, pair.predicted_interval, ORANGE, "s"),
                ("measured", pair.measured, pair.measured_interval, BLUE, "o"),
            )
            ends = [pair.predicted, pair.measured]
            for row, (name, value, span, colour, marker) in enumerate(both):
                face = PAPER if name == "predicted" else colour
                if span is not None:
                    axes.hlines(row, span[0], span[1], color=colour, linewidth=2, zorder=2)
                    axes.vlines(span, row - 0.12, row + 0.12, color=colour, linewidth=2, zorder=2)
                    ends += span
                (dot,) = axes.plot(
                    [value],
                    [row],
                    marker=marker,
                    markersize=9,
                    color=colour,
                    markerfacecolor=face,
                    linestyle="none",
                    markeredgewidth=2,
                    zorder=3,
                )
                dot.set_gid(f"figure-{place}-{row}")
                around = "" if span is None else f", 95 % interval {span[0]:.3f} to {span[1]:.3f}"
                titles[f"figure-{place}-{row}"] = f"{pair.name}, {name}: {value:.3f}{around}"
            room = 0.12 * (max(ends) - min(ends)) or 0.1 * abs(max(ends)) or 1.0
            axes.set_xlim(min(ends) - room, max(ends) + room)
            axes.set_ylim(1.6, -0.6)
            axes.set_yticks([0, 1], ["predicted", "measured"] if place == 0 else ["", ""])
            axes.locator_params(axis="x", nbins=3)
            axes.set_title(pair.name, fontsize=10)
        return titles

    around = any(pair.predicted_interval or pair.measured_interval for pair in found)
    return Canvas(
        WIDTH, 1.7, draw, "Predicted beside measured figures" + (" with their 95 % intervals, where there are some" if around else "")
    )


@dataclass(frozen=True)
class Word:
    """The text of one token of a sample, and where it is from."""

    text: str
    kind: str
    """"prompt", "first", "later", "target" or "alone"."""
    title: str


_TITLES = {
    "prompt": "the first token, which comes from the prompt pass",
    "target": "the target's own token, which ends the step",
    "alone": "decoded by the target alone: the draft had no positions left",
}


def words(result: PromptResult) -> Iterator[Word]:
    """Yield the words of a result that has kept its `pieces`: which tokens were proposed by the draft and accepted, and which are the target's own."""
    for piece, (kind, title) in zip(result.pieces, _sources(result), strict=False):
        yield Word(piece, kind, title)


def _sources(result: PromptResult) -> Iterator[tuple[str, str]]:
    """Yield the kind of each token and what a reader is told of it, in their order."""
    yield "prompt", _TITLES["prompt"]
    for step, ranks in enumerate(result.accepted_ranks, 1):
        for place, rank in enumerate(ranks, 1):
            kind = "first" if rank == 0 else "later"
            yield kind, f"step {step}: proposed by the draft (rank {rank}) and accepted, {place} of {len(ranks)}"
        yield "target", f"step {step}: {_TITLES['target']}"
    for _ in range(result.undrafted):
        yield "alone", _TITLES["alone"]
