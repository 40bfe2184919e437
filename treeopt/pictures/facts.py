"""The words of the page: its title and headline, how the figures were measured, and what is in doubt."""

import re
from collections.abc import Mapping
from typing import Any

from treeopt.pictures.sentences import grounds, promised
from treeopt.profiles.acceptance import AcceptanceProfile
from treeopt.profiles.intervals import of_chance
from treeopt.profiles.latency import LatencyProfile
from treeopt.profiles.trace import Trace
from treespec.errors import counted
from treespec.evaluation.report import EvaluationReport
from treespec.evaluation.verdicts import no_step, verdict
from treespec.files.provenance import Provenance
from treespec.tables import Table, milliseconds, number
from treespec.trees.growmap import GrowMap

Found = AcceptanceProfile | LatencyProfile | GrowMap | EvaluationReport | Trace | None
"""A result that a page may show."""
_SOLVERS = {"dp": "dynamic programming"}
"""Solvers whose names are not their words."""


def title(*results: Found) -> str:
    """Return the title of a page: the models that some result names."""
    models: Mapping[str, str] = next((names for result in results if (names := record(result).get("models"))), {})
    draft, target = models.get("draft"), models.get("target")
    pair = f"{draft} drafts for {target}" if draft and target else target or draft
    return f"treeopt: {pair}" if pair else "treeopt"


def headline(report: EvaluationReport | None, grown: GrowMap | None, acceptance: AcceptanceProfile | None) -> tuple[str, str, list[str]]:
    """Return the figure at the head of a page, the words beside it, and the sentences below."""
    tree = [_tree(grown)] if grown is not None else [] if report is None or report.mode == "tree" else _budget(report)
    if report is not None and not report.steps:
        return "No step", "was measured", [no_step(report.to_json()), *tree]
    if report is not None and report.mode == "baseline":
        speed = None if not report.seconds_per_token else 1 / report.seconds_per_token
        per_token = f"{milliseconds(report.seconds_per_token, report.intervals['seconds_per_token'])} ms per token."
        return number(speed, 1), "tokens per second", [per_token, "Autoregressive decoding alone: no tree was run."]
    if report is not None:
        spans = report.intervals
        seconds = milliseconds(report.seconds_per_step, spans["seconds_per_step"])
        alone = spans["tokens_per_step"] is None
        brackets = "one prompt is too few for 95 % intervals" if alone else "brackets hold 95 % intervals over prompts"
        per_step = f"{number(report.tokens_per_step, 2, spans['tokens_per_step'])} tokens per step, {seconds} ms per step; {brackets}."
        return *_speedup(report), [*_with_prompts(report), per_step, *promised(report, grown), verdict(report.to_json()), *tree]
    if grown is not None:
        speedup, source = grown.promise.speedup, grounds(grown)
        figure = (
            ("A tree", "without a predicted speed-up")
            if speedup is None
            else (f"{speedup:.2f} x", "predicted over autoregressive decoding")
        )
        return *figure, [*tree, f"It was not run: these figures are predictions{f', from {source}' if source else ''}."]
    if acceptance is not None:
        profiled = f"Profiled at {counted(acceptance.positions, 'position', form=',')} of {counted(acceptance.prompts, 'prompt')}."
        return f"{acceptance.rank_probability[0]:.3f}", "first-choice acceptance", [profiled]
    return "Latency", "of the passes of a step", []


def _speedup(report: EvaluationReport) -> tuple[str, str]:
    """Return the speed-up and the words beside it."""
    span, found = report.intervals["speedup"], report.speedup
    if found is None:
        return "-", "the speed-up is not known"
    if span is None:
        return f"{found:.2f} x", "over autoregressive decoding"
    told = "faster" if span[0] > 1 else "slower" if span[1] < 1 else "which may be faster or slower"
    return f"{found:.2f} x", f"[{span[0]:.2f}, {span[1]:.2f}] over autoregressive decoding: {told}"


def _with_prompts(report: EvaluationReport) -> list[str]:
    """Return the sentence on the speed-up of whole texts, if the times of prompt passes are known."""
    found = report.speedup_with_prompts
    if found is None:
        return []
    return [f"With the prompt passes, the draft's too, it is {number(found, 2, report.intervals['speedup_with_prompts'])} x."]


def _budget(report: EvaluationReport) -> list[str]:
    """Return the sentence on trees that are grown anew for every step."""
    known = report.tree or {}
    if not {"size", "depth", "width"} <= known.keys():
        return []
    return [
        f"A tree is grown for every step: {counted(known['size'], 'node')}, depth {known['depth']}, and at most {known['width']} nodes of a level get children."
    ]


def _tree(grown: GrowMap) -> str:
    tree, gap = grown.tree, grown.promise.certified_gap
    if tree.size == 1:
        return "The tree is the root alone: nothing is drafted, and every step is an autoregressive one."
    shape = (
        f"is a chain of depth {tree.depth}" if tree.size == tree.depth + 1 else f"has {counted(tree.size, 'node')} and depth {tree.depth}"
    )
    said = "" if gap is None else f"; no other fixed tree within the same limits saves more than {100 * gap:.2f} % of the predicted time"
    return f"The tree {shape}{said}."


def facts(
    acceptance: AcceptanceProfile | None,
    latency: LatencyProfile | None,
    grown: GrowMap | None,
    report: EvaluationReport | None,
    trace: Trace | None,
) -> list[tuple[str, str]]:
    """Return how the figures were measured, as names and values."""
    main = next((known for result in (report, latency, acceptance, grown) if (known := record(result))), {})
    rows: list[tuple[str, str | None]] = [(role, name) for role, name in (main.get("models") or {}).items()]
    rows += [
        ("device", main.get("gpu") or main.get("cpu")),
        ("number type", main.get("dtype")),
        ("threads, cores, load", _joined(main, "threads", "cores", "load_average")),
    ]
    if report is not None:
        settings = report.settings
        rows += [
            ("sampling", _sampling(report.temperature, settings.get("top_p"))),
            ("drafting, verification", None if report.mode == "baseline" else f"{settings.get('drafting')}, {report.verifier}"),
            (
                "evaluated on",
                f"{_rows(main.get('dataset')) or 'prompts'}: {counted(len(report.results), 'prompt')}, at most {settings.get('gen_len')} tokens each",
            ),
            ("decoding steps", None if settings.get("engine") is None else str(settings["engine"])),
        ]
    elif acceptance is not None and acceptance.temperature is not None:
        rows += [("sampling", _sampling(acceptance.temperature, acceptance.top_p)), ("drafting", acceptance.drafting)]
    if acceptance is not None:
        data = _rows(record(acceptance).get("dataset"))
        where = f" of {data}" if data else ""
        rows.append(
            (
                "acceptance profiled on",
                f"{counted(acceptance.positions, 'position', form=',')} of {counted(acceptance.prompts, 'prompt')}{where}",
            )
        )
    if latency is not None:
        sizes = counted(len({sample.nodes for sample in latency.target}), "tree size")
        contexts = ", ".join(map(str, latency.contexts))
        rows.append(("latency profiled at", f"{sizes}, context {contexts}; {_date(record(latency)) or 'date unknown'}"))
    if trace is not None:
        rows.append(("trace of", f"{counted(trace.positions, 'position', form=',')} of {counted(len(trace.texts), 'prompt')}"))
    if grown is not None and "solver" in grown.metadata:
        rows.append(("tree found by", _search(grown.metadata)))
    versions = (("treeopt", "treeopt"), ("torch", "torch"), ("transformers", "transformers"), ("Python", "python"))
    rows += [
        ("versions", ", ".join(f"{name} {main[key]}" for name, key in versions if main.get(key)) or None),
        ("commit", str(main.get("git_commit") or "")[:16]),
        ("date", _date(main)),
    ]
    return [(name, str(value)) for name, value in rows if value not in (None, "")]


def categories(acceptance: AcceptanceProfile | None, report: EvaluationReport | None) -> Table | None:
    """Return the table of categories: what was measured on each, and profiled. It is None where there is one category or none."""
    measured = [] if report is None or report.mode == "baseline" else report.to_json()["by_category"]
    profiled = [] if acceptance is None else acceptance.by_category
    by_name = [{row["category"]: row for row in rows} for rows in (measured, profiled)]
    names = list(dict.fromkeys(name for rows in by_name for name in rows))
    if len(names) < 2:
        return None
    heads, rows = ["category"], [[name or "-"] for name in names]
    if measured:
        heads += ["prompts", "tokens per step", "speed-up"]
        for row, name in zip(rows, names, strict=True):
            found = by_name[0].get(name)
            figures = ("tokens_per_step", "speedup")
            row += (
                ["-"] * 3 if found is None else [str(found["prompts"]), *(number(found[f], 2, found["intervals_95"][f]) for f in figures)]
            )
    if profiled:
        heads += ["prompts profiled", "first choice accepted"]
        for row, name in zip(rows, names, strict=True):
            found = by_name[1].get(name)
            row += ["-"] * 2 if found is None else [str(found["prompts"]), _first_choice(found)]
    return Table("by category", heads, rows)


def _first_choice(category: Mapping[str, Any]) -> str:
    """Return the acceptance of the draft's first choice in a category, with its interval if it has more than one prompt."""
    chances, errors = category["rank_probability"], category["standard_error"]
    if chances is None:
        return "-"
    return number(chances[0], 2, None if errors is None else of_chance(chances[0], errors[0], category["prompts"]))


def warnings(report: EvaluationReport | None, latency: LatencyProfile | None) -> list[str]:
    """Return the sentences on what the figures do not tell, or may tell wrongly."""
    said = [] if report is None else list(report.to_json()["notes"])
    return [*said, *([] if latency is None or latency.warning is None else [latency.warning])]


def record(result: Found) -> Mapping[str, Any]:
    """Return the provenance of a result; it is empty if none is known, and for traces."""
    known: Any = getattr(result, "provenance", None)
    found: Mapping[str, Any] = known.to_json() if isinstance(known, Provenance) else known or {}
    return found


def _date(data: Mapping[str, Any]) -> str | None:
    """Return when a result was measured, to the minute."""
    utc = data.get("utc")
    return f"{utc[:16].replace('T', ' ')} UTC" if isinstance(utc, str) and utc.endswith("+00:00") else utc


def _rows(dataset: str | None) -> str | None:
    """Return the name of a data set in words: `stdlib[4:12]`, as records have it, are rows 4 to 11 of stdlib."""
    found = re.fullmatch(r"(.+)\[(\d+):(\d+)\]", dataset or "")
    return dataset if found is None else f"{found[1]}, rows {found[2]} to {int(found[3]) - 1}"


def _search(metadata: Mapping[str, Any]) -> str:
    """Return by which solver and smoothing a tree was found."""
    solver, smoothing = metadata["solver"], metadata.get("smoothing", "none")
    return f"{_SOLVERS.get(solver, solver)}, {'without' if smoothing == 'none' else smoothing} smoothing"


def _sampling(temperature: float, top_p: float | None) -> str:
    if temperature == 0:
        return "greedy (temperature 0)"
    return f"temperature {temperature:g}" + ("" if top_p in (None, 1) else f", top-p {top_p:g}")


def _joined(data: Mapping[str, Any], *keys: str) -> str:
    return ", ".join("-" if data.get(key) is None else str(data[key]) for key in keys)


def sentence(text: str) -> str:
    """Return a line as a sentence: with a capital and a full stop."""
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")
