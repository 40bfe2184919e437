"""One self-contained page of HTML that shows all that is known of a run: no network, no scripts, and every text from outside escaped."""

import re
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from treeopt.pictures import evaluations, facts, profiles, sentences, trees
from treeopt.pictures.canvas import Canvas, dark_style
from treeopt.pictures.writing import GENERATOR
from treeopt.profiles.acceptance import AcceptanceProfile
from treeopt.profiles.latency import LatencyProfile
from treeopt.profiles.trace import Trace
from treespec.errors import TreeoptError, counted
from treespec.evaluation.drawing import speeds
from treespec.evaluation.report import EvaluationReport
from treespec.evaluation.results import PromptResult
from treespec.printable import printable
from treespec.tables import Table, number
from treespec.trees.growmap import GrowMap
from treespec.trees.tree import SpeculationTree

_MOST_PROMPTS = 256
_PICTURES = ("prediction", "acceptance", "latency", "speedup", "tree")
_SMALLEST, _LARGEST = 0.75, 1.2
"""The sizes that a page may give a picture, beside its own: its words stay readable, and no larger than those of the page."""
_REM_PER_INCH = 6
"""A page has 96 pixels to the inch, and 16 to the rem."""


def page(
    *,
    acceptance: AcceptanceProfile | None = None,
    latency: LatencyProfile | None = None,
    growmap: GrowMap | None = None,
    report: EvaluationReport | None = None,
    trace: Trace | None = None,
    candidates: Table | None = None,
    candidate_notes: Sequence[str] = (),
    commands: Sequence[str] = (),
    command_notes: Sequence[str] = (),
    missing: Sequence[str] = (),
) -> str:
    """Return the page of whatever is given, as HTML. A section whose results are missing is left out.

    `candidates` is a table of those that were compared, the chosen one first, with `candidate_notes` below it. `commands` are the lines by which
    all of it is made again, with `command_notes` below them; `missing` are sentences about what is left out.
    The speed-up over size and depth needs both profiles, the sample texts a report that holds some (`sample_texts` of its settings).
    """
    import jinja2
    from markupsafe import Markup, escape

    drawn, said = _pictures(acceptance, latency, growmap, report, trace)
    figure, rest, lines = facts.headline(report, growmap, acceptance)
    speed = None if report is None or not report.steps else speeds(report.summary())
    pairs = [] if report is None else evaluations.pairs(report)
    kinds, shown = facts.categories(acceptance, report), _tree(growmap, report)
    results = [] if report is None or report.mode == "baseline" else [result for result in report.results if result.steps]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["printable"] = lambda text: printable(str(text))
    environment.filters["figure"] = lambda text: text.replace(", ", ",\u00a0")  # lines end before intervals and not in them
    environment.filters["sentence"] = lambda text: Markup(
        re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(printable(facts.sentence(sentences.in_words(text))))))
    )
    environment.globals["number"] = number
    template = environment.from_string(files("treeopt.pictures").joinpath("page.html").read_text(encoding="utf-8"))
    return template.render(
        generator=GENERATOR,
        title=facts.title(report, growmap, acceptance, latency),
        pictures_style=Markup(dark_style()),
        headline={"figure": figure, "rest": rest, "lines": lines},
        warnings=facts.warnings(report, latency),
        facts=facts.facts(acceptance, latency, growmap, report, trace),
        speeds=speed,
        candidates=candidates,
        candidate_notes=candidate_notes,
        pairs=pairs,
        pictures={name: Markup(drawn[name].inline(name)) if name in drawn else "" for name in _PICTURES},
        spans={name: _span(canvas) for name, canvas in drawn.items()},
        bars=_bars(results[:_MOST_PROMPTS]),
        bars_left_out=_left_out(len(results) - _MOST_PROMPTS),
        categories=kinds,
        notes={
            "speeds": "" if speed is None else sentences.speeds(speed),
            "prediction": sentences.prediction(pairs, growmap, acceptance, latency),
            "acceptance": sentences.acceptance(acceptance, report),
            "latency": "" if latency is None else sentences.latency(latency, starred=shown is not None),
            "speedup": sentences.speedups(growmap),
            "categories": "" if kinds is None else sentences.categories(kinds),
        },
        samples=[_sample(result) for result in results if result.pieces],
        commands=commands,
        command_notes=command_notes,
        missing=[*missing, *said],
    )


def _pictures(
    acceptance: AcceptanceProfile | None,
    latency: LatencyProfile | None,
    growmap: GrowMap | None,
    report: EvaluationReport | None,
    trace: Trace | None,
) -> tuple[dict[str, Canvas], list[str]]:
    """Return the pictures of a page by the names of its template (`_PICTURES`), and sentences on those that could not be drawn."""
    said: list[str] = []
    drawn: dict[str, Canvas] = {}
    if report is not None and (found := evaluations.pairs(report)):
        drawn["prediction"] = evaluations.prediction(found)
    rows = [] if acceptance is None else profiles.acceptance_rows(acceptance)
    if acceptance is None and growmap is not None and growmap.promise.rank_probability:
        rows = [("profile, as the growmap has it", growmap.promise.rank_probability[0], None)]
    rows += [] if trace is None or acceptance is not None else [profiles.trace_row(trace)]
    rows += [] if report is None else profiles.observed_rows(report.observed)
    if rows:
        drawn["acceptance"] = profiles.acceptance_of(rows)
    tree = _tree(growmap, report)
    if latency is not None:
        size, context = (None if tree is None else tree.tree.size), (None if tree is None else tree.metadata.get("context"))
        drawn["latency"] = profiles.latency(latency, size=size, context=context)
    if acceptance is not None and latency is not None:
        try:
            drawn["speedup"] = trees.speedups(trees.grid(acceptance, latency, growmap))
        except TreeoptError as error:
            said.append(f"The speed-up over size and depth is left out: {error}.")
    if tree is not None:
        drawn["tree"] = trees.growmap(tree)
    return drawn, said


def _span(canvas: Canvas) -> tuple[float, float]:
    """Return the least and the largest width of a picture on the page, in rem."""
    return round(_REM_PER_INCH * _SMALLEST * canvas.width, 2), round(_REM_PER_INCH * _LARGEST * canvas.width, 2)


def _tree(growmap: GrowMap | None, report: EvaluationReport | None) -> GrowMap | None:
    """Return the growmap, or else the static tree that a report names."""
    if growmap is not None or report is None or "parents" not in (report.tree or {}):
        return growmap
    assert report.tree is not None
    chances = report.predicted.rank_probability
    return GrowMap(SpeculationTree(tuple(report.tree["parents"])), {} if chances is None else {"rank_probability": chances})


def _bars(results: Sequence[PromptResult]) -> list[dict[str, Any]]:
    rates = [(result.tokens - 1) / result.steps for result in results]
    return [
        {
            "name": result.name,
            "title": f"{result.name} (row {result.row}): {counted(result.tokens, 'token')} in {counted(result.steps, 'step')}"
            + (f"; category {result.category}" if result.category else ""),
            "value": rate,
            "share": round(100 * rate / max(rates), 1),
        }
        for result, rate in zip(results, rates, strict=True)
    ]


def _left_out(count: int) -> str:
    return f"{counted(count, 'more prompt is', 'more prompts are')} not shown; the report has them." if count > 0 else ""


def _sample(result: PromptResult) -> dict[str, Any]:
    cut = "" if len(result.pieces) >= result.tokens else f"; the first {len(result.pieces)} are shown"
    line = f"{counted(result.tokens, 'token')} in {counted(result.steps, 'step')}{cut}"
    return {"name": result.name, "line": line, "words": list(evaluations.words(result))}
