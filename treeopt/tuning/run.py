"""A tuning run: profile every candidate, choose the fastest, evaluate it. What is finished is in the folder, and is not done again."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from treeopt.pictures.page import page
from treeopt.pictures.writing import write
from treeopt.profiles.acceptance import read_acceptance
from treeopt.profiles.latency import read_latency
from treeopt.profiles.trace import read_trace
from treeopt.profiling.acceptance import require_fit
from treeopt.profiling.grid import Grid
from treeopt.profiling.latency import require_fit as require_latency_fit
from treeopt.tuning.folder import FILES, PAGE, Folder, claimed, versions
from treeopt.tuning.prompts import Parts, longest_of
from treeopt.tuning.result import Score, Tuning, basis, candidates_table, doubt
from treeopt.tuning.settings import TuneSettings
from treeopt.tuning.sharing import Crew
from treeopt.tuning.stages import Progress, Stages
from treespec.errors import counted
from treespec.evaluation.report import read_report
from treespec.files.load import note_crowding, threads
from treespec.files.processes import ALONE, Processes
from treespec.models.pairs import Pair, PairInfo

_PARTS = ("choose", "profile", "evaluate")
_STAGES = {
    "acceptance.json": "profile acceptance",
    "latency.json": "profile latency",
    "choice.json": "choose",
    "report.json": "evaluate",
    PAGE: "page",
}
"""The stage that makes a file; all others are of growing."""


def tune(
    pairs: Sequence[Pair],
    parts: Parts,
    out: Path,
    settings: TuneSettings,
    *,
    record: Mapping[str, Any],
    loading: float = 0.0,
    commands: Sequence[str] = (),
    processes: Processes = ALONE,
    progress: Progress = lambda what, done, total: None,
    notice: Callable[[str], None] | None = None,
) -> Tuning:
    """Take all stages that are not finished in the folder `out`, and return the result of all of them.

    `pairs` are the drafts beside one target. `record` are the settings as people gave them, which the folder keeps and compares; `loading` is
    the time that the models took, and `commands` are the lines by which people make it again, for the page. Of several `processes` the first one
    calls this, and the others `Crew.serve`. Raises OutputError, before any work, for a folder of other settings, versions, models, prompts or
    another machine, and for one that another run is in; else the errors of
    the stages.
    """
    notice = None if notice is None else _once(notice)
    out = pairs[0].own(out) or out
    with claimed(out):
        folder = Folder(out)
        for pair in pairs:
            require_fit_of(pair, parts, settings)
            settings.require_timed(Grid.of(settings.latency(longest_of(parts)), pair.target.device.type, pair.vocabulary_size).sizes)
        crew = Crew(pairs, processes)
        run = Stages(crew, parts, folder, settings, progress, notice)
        folder.begin(
            {
                "settings": record,
                "versions": versions(),
                "machine": _machine(pairs[0]),
                "models": {f"draft {number}": pair.sha256 for number, pair in enumerate(pairs, 1)},
                "prompts": {what: some.fingerprint for what, some in zip(_PARTS, parts, strict=True) if some is not None},
            }
        )
        note_crowding(pairs[0].target.device.type, notice)
        scores = run.scores(loading)
        result = _finish(run, scores, run.report(scores[0]), loading, commands)
        crew.dismiss()
        return result


def require_fit_of(info: Pair | PairInfo, parts: Parts, settings: TuneSettings) -> None:
    """Raise CapacityError or ProfileError for prompts or settings that a pair, which need not be loaded, cannot be tuned with."""
    for candidate in settings.candidates(1):
        for prompts in parts:
            if prompts is not None:
                require_fit(info, prompts, settings.acceptance(candidate))
    require_latency_fit(info, settings.latency(longest_of(parts)))


def _finish(run: Stages, scores: tuple[Score, ...], report: str, loading: float, commands: Sequence[str]) -> Tuning:
    """Write the page of the whole result, record that all is done, and return the result."""
    out, best = run.folder.out, scores[0]
    _write_page(run.folder, report, scores, commands)
    seconds: dict[str, float] = {"load": loading} if loading else {}
    for file, took in run.folder.data["seconds"].items():
        stage = _STAGES.get(file.rpartition("/")[2], "grow")
        seconds[stage] = seconds.get(stage, 0.0) + took
    compared = basis(scores) if len(scores) > 1 else None
    said = [*best.generated.notes, *best.generated.doubts, compared, doubt(scores), _temperatures(scores), _spent(run, loading)]
    result = Tuning(
        out,
        scores,
        best.generated.growmap,
        read_acceptance(out / "acceptance.json"),
        read_latency(out / "latency.json"),
        read_report(out / report),
        tuple(name for name in FILES if (out / name).is_file()),
        tuple(dict.fromkeys(sentence for sentence in said if sentence is not None)),
        seconds,
    )
    run.folder.finish(
        chosen=best.summary(),
        candidates=[score.summary() for score in scores],
        prompts={
            what: some.describe() for what, some in zip(_PARTS, (run.choose, run.profile, run.evaluated), strict=True) if some is not None
        },
        provenance=run.pairs[best.candidate.draft - 1].provenance(seed=run.settings.seed),
    )
    return result


def _write_page(folder: Folder, report: str, scores: Sequence[Score], commands: Sequence[str]) -> None:
    """Write the page of the result as a stage of its own, made of the files that it shows; the figures of candidates come from all of theirs."""
    out, several = folder.out, len(scores) > 1
    own = ("acceptance.json", "latency.json", "trace.json", "tree.pt", report)
    shown = [name for name in folder.data["files"] if name in own or (several and "candidates/" in name)]
    notes = [basis(scores), doubt(scores), _temperatures(scores)] if several else []

    def make(journal: Path) -> None:
        found = page(
            acceptance=read_acceptance(out / "acceptance.json"),
            latency=read_latency(out / "latency.json"),
            growmap=scores[0].generated.growmap,
            report=read_report(out / report),
            trace=read_trace(out / "trace.json") if "trace.json" in shown else None,
            candidates=candidates_table(scores) if several else None,
            candidate_notes=[sentence for sentence in notes if sentence is not None],
            commands=commands,
        )
        write(out / PAGE, found)

    folder.stage([PAGE], shown, make)


def _temperatures(scores: Sequence[Score]) -> str | None:
    if len({score.candidate.sampling for score in scores}) < 2:
        return None
    return "the candidates differ in temperature or top-p, and so do the texts that they write: the fastest was chosen, not the best text"


def _spent(run: Stages, loading: float) -> str | None:
    found = run.folder.data["notes"].get("allotment")
    if found is None:
        return None
    out = len(run.candidates) - len(found["racing"])
    left = f"; {counted(out, 'candidate')} {'was' if out == 1 else 'were'} certainly slower and got no more than the pilot" if out else ""
    minutes = (run.folder.spent + loading) / 60
    assert run.settings.minutes is not None
    over = (
        f"; with {minutes:.1f} min the run was longer: pilots and evaluation alone take that here"
        if minutes > 1.1 * run.settings.minutes
        else ""
    )
    return (
        f"after the pilots, the budget of {run.settings.minutes:g} min was spent on {counted(found['prompts'], 'prompt')} and "
        f"{found['repetitions']} samples of each latency{left}{over}"
    )


def _once(notice: Callable[[str], None]) -> Callable[[str], None]:
    """Return a notice that says each sentence once, whatever stage says it."""
    said: set[str] = set()

    def say(sentence: str) -> None:
        if sentence not in said:
            said.add(sentence)
            notice(sentence)

    return say


def _machine(pair: Pair) -> dict[str, Any]:
    facts = pair.provenance()
    on_cpu = pair.target.device.type == "cpu"
    known = {"device": pair.place, "processor": facts["gpu"] or facts["cpu"], "dtype": facts["dtype"]}
    return known | ({"threads": threads()} if on_cpu else {})
