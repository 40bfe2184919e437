"""docs/results.md as a whole: which file each section is made of, what reads it, which command wrote it, and which runs are earlier ones."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.reporting.acceptance_models import ACCEPTANCE_MODELS
from benchmarks.reporting.audit import AUDIT
from benchmarks.reporting.budgets import BUDGETS
from benchmarks.reporting.calls import CALLS
from benchmarks.reporting.decoding import DECODING
from benchmarks.reporting.drafts import DRAFTS, LEVELS
from benchmarks.reporting.engine import ENGINE
from benchmarks.reporting.growth import GROWTH
from benchmarks.reporting.loop import LOOP
from benchmarks.reporting.markdown import link, paragraph
from benchmarks.reporting.multi_gpu import MULTI_GPU
from benchmarks.reporting.offload import OFFLOAD
from benchmarks.reporting.optimizer import OPTIMIZER
from benchmarks.reporting.predictions import PREDICTIONS
from benchmarks.reporting.prompts import with_fewer
from benchmarks.reporting.reading import TITLE as READING
from benchmarks.reporting.reading import reading
from benchmarks.reporting.replay import REPLAY
from benchmarks.reporting.rules import RULES
from benchmarks.reporting.run import Kind, Run
from benchmarks.reporting.same_tree import SAME_TREE
from benchmarks.reporting.sampling import SAMPLING
from benchmarks.reporting.summary import EARLIER as EARLIER_RUNS
from benchmarks.reporting.summary import Entry, summary
from benchmarks.reporting.tensor_parallel import TENSOR_PARALLEL
from benchmarks.reporting.training import TRAINING
from benchmarks.reporting.vision import VISION


@dataclass(frozen=True)
class Source:
    """One file of benchmarks/results."""

    file: str
    kind: Kind
    command: str
    """What wrote the file, without `--out`."""


@dataclass(frozen=True)
class Superseded:
    """Why a run is an earlier one."""

    by: str
    """The file of the run that took its place."""
    why: str
    """One sentence or two."""


PAGE = (
    Source("engine.json", ENGINE, "python -m benchmarks.engine"),
    Source("rules-h200.json", RULES, "python -m benchmarks.rules"),
    Source("predictions-7b-h200.json", PREDICTIONS, "python -m benchmarks.predictions --inflate"),
    Source("predictions-small-h200.json", PREDICTIONS, "python -m benchmarks.predictions --small"),
    Source("loop-h200.json", LOOP, 'python -m benchmarks.loop --folder "$work"'),
    Source("audit-h200.json", AUDIT, "python -m benchmarks.audit --inflate"),
    Source("audit-40-h200.json", AUDIT, "python -m benchmarks.audit --inflate --prompts 40 --choices 0"),
    Source("budgets-h200.json", BUDGETS, "python -m benchmarks.budgets --inflate"),
    Source("levels-h200.json", LEVELS, "python -m benchmarks.drafts --levels"),
    Source("multi-gpu-h200.json", MULTI_GPU, "python -m benchmarks.multi_gpu"),
    Source("calls-gpu.json", CALLS, "python -m benchmarks.calls --inflate"),
    Source("offload-gpu.json", OFFLOAD, "python -m benchmarks.offload"),
    Source("sampling-gpu.json", SAMPLING, "python -m benchmarks.sampling --inflate --prompts 8 --no-budgets --temperatures 0 1"),
    Source("sampling-gpu-mid.json", SAMPLING, "python -m benchmarks.sampling --inflate --prompts 6 --no-budgets --temperatures 0.2 0.6"),
    Source("sampling-gpu-h200.json", SAMPLING, "python -m benchmarks.sampling --inflate --prompts 6 --no-budgets --temperatures 0.6"),
    Source("vision-gpu.json", VISION, "python -m benchmarks.vision"),
    Source("training-gpu.json", TRAINING, "python -m benchmarks.train_draft"),
    Source("decoding-cpu.json", DECODING, "python -m benchmarks.decoding"),
    Source("sampling-cpu.json", SAMPLING, "python -m benchmarks.sampling"),
    Source("same-tree-cpu.json", SAME_TREE, "python -m benchmarks.same_tree"),
    Source("drafts-cpu.json", DRAFTS, "python -m benchmarks.drafts --prompts 48"),
    Source("audit-cpu.json", AUDIT, "python -m benchmarks.audit --small"),
    Source("optimizer.json", OPTIMIZER, "python -m benchmarks.optimizer"),
    Source("growth.json", GROWTH, "python -m benchmarks.growth"),
    Source("replay.json", REPLAY, "python -m benchmarks.replay"),
    Source("acceptance-models.json", ACCEPTANCE_MODELS, "python -m benchmarks.acceptance_models"),
    Source("tensor-parallel.json", TENSOR_PARALLEL, "python -m benchmarks.tensor_parallel"),
    Source("engine-h200.json", ENGINE, "python -m benchmarks.engine --prompts 4"),
    Source("decoding-gpu.json", DECODING, "python -m benchmarks.decoding --inflate"),
)
"""All files, in the order of their sections; earlier runs stand at the end."""

EARLIER = {
    "engine-h200.json": Superseded(
        "engine.json",
        "This run was made with older kernels. It is kept because no later run of the engine was on an H200; what today's kernels reach there was not"
        " measured.",
    ),
    "decoding-gpu.json": Superseded(
        "engine.json",
        "In this run treeopt ran the models' own modules eagerly; since then it captures its steps. It is kept to show what capturing brought; its rates say"
        " nothing of today's.",
    ),
}
"""The runs that a later one superseded, by file, and why."""

HEAD = (
    "# Results",
    "<!-- Made by `python -m benchmarks.report` from benchmarks/results; edits belong there. -->",
    paragraph(
        "What was measured, with the machine, the day and the command of each measurement. This page is made from the files",
        "in `benchmarks/results` by `python -m benchmarks.report`, and a test holds it to them. A figure is the one that its file gives, rounded.",
        f"{link(READING)} explains the columns, each once. What was tried on the way, and what it gained or lost, is in",
        "[benchmarks/log](../benchmarks/log/README.md).",
    ),
)


def page(files: Mapping[str, dict[str, Any]]) -> str:
    """Return docs/results.md from what the files hold, by name.

    Raises ValueError for a file without a section, a section without its file, or a run that is said to be superseded by one that is no later.
    """
    if wrong := set(files) ^ {source.file for source in PAGE}:
        raise ValueError(f"files and sections do not match: {', '.join(sorted(wrong))}; name every file in `PAGE`")
    entries = entries_of(files)
    now, earlier = ([entry for entry in entries if entry.earlier == which] for which in (False, True))
    titles = {entry.run.file: entry.title for entry in entries}
    return (
        "\n\n".join(
            [
                *HEAD,
                summary([*now, *earlier]),
                reading(),
                *(f"## {entry.title}\n\n{entry.kind.body(entry.run)}" for entry in now),
                f"## {EARLIER_RUNS}",
                paragraph("A later run took the place of each of these."),
                *(f"### {entry.title}\n\n{_why(entry, titles, files)}\n\n{entry.kind.body(entry.run)}" for entry in earlier),
            ]
        )
        + "\n"
    )


def entries_of(files: Mapping[str, dict[str, Any]]) -> list[Entry]:
    """Return the runs in the order of the page, with what is known of each beside the others."""
    runs = {source.file: Run(source.file, source.command, files[source.file]) for source in PAGE}
    found = []
    for source in PAGE:
        others = [runs[other.file] for other in PAGE if other.kind is source.kind and other.file != source.file]
        found.append(Entry(with_fewer(runs[source.file], source.kind, others), source.kind, source.file in EARLIER))
    return found


def _why(entry: Entry, titles: Mapping[str, str], files: Mapping[str, dict[str, Any]]) -> str:
    found = EARLIER[entry.run.file]
    mine, later = (files[file]["provenance"]["utc"] for file in (entry.run.file, found.by))
    if later <= mine:
        raise ValueError(f"{entry.run.file} cannot be superseded by {found.by}, which is no later: see `EARLIER`")
    return paragraph(f"Superseded by {link(titles[found.by])} of {later[:10]}. {found.why}")
