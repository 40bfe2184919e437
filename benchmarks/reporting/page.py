"""docs/results.md as a whole: which file each section is made of, by which function, and which command wrote the file."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.reporting.decoding import decoding
from benchmarks.reporting.engine import engine
from benchmarks.reporting.markdown import paragraph
from benchmarks.reporting.offload import offload
from benchmarks.reporting.optimizer import optimizer
from benchmarks.reporting.same_tree import same_tree
from benchmarks.reporting.sampling import sampling
from benchmarks.reporting.training import training
from benchmarks.reporting.vision import vision


@dataclass(frozen=True)
class Source:
    """One file of benchmarks/results."""

    file: str
    section: Callable[[dict[str, Any], str, str], str]
    """Takes (what the file holds, the command, the file's name) and returns the section."""
    command: str
    """What wrote the file, without `--out`."""
    remark: str = ""
    """What a reader must know beside it."""


OLDER_KERNELS = "This run is older than the kernels of the run on an H100 above."
BEFORE_CAPTURE = "This run is older than captured steps: treeopt ran the models' own modules eagerly, so its rates say nothing of today's."

PAGE = (
    Source("engine.json", engine, "python -m benchmarks.engine"),
    Source("engine-h200.json", engine, "python -m benchmarks.engine --prompts 4", OLDER_KERNELS),
    Source("offload-gpu.json", offload, "python -m benchmarks.offload"),
    Source("training-gpu.json", training, "python -m benchmarks.train_draft"),
    Source("vision-gpu.json", vision, "python -m benchmarks.vision"),
    Source("decoding-cpu.json", decoding, "python -m benchmarks.decoding"),
    Source("decoding-gpu.json", decoding, "python -m benchmarks.decoding --inflate", BEFORE_CAPTURE),
    Source("same-tree-cpu.json", same_tree, "python -m benchmarks.same_tree"),
    Source("sampling-cpu.json", sampling, "python -m benchmarks.sampling"),
    Source("sampling-gpu.json", sampling, "python -m benchmarks.sampling --inflate --prompts 8 --no-budgets --temperatures 0 1"),
    Source("sampling-gpu-mid.json", sampling, "python -m benchmarks.sampling --inflate --prompts 6 --no-budgets --temperatures 0.2 0.6"),
    Source("optimizer.json", optimizer, "python -m benchmarks.optimizer"),
)

HEAD = (
    "# Results",
    "<!-- Made by `python -m benchmarks.report` from benchmarks/results; edits belong there. -->",
    paragraph(
        "What was measured, with the machine, the date and the command of each measurement. This page is made from the files",
        "in `benchmarks/results` by `python -m benchmarks.report`, and a test holds it to them. A figure is the one that its file gives, rounded.",
        "What was tried on the way, and what it gained or lost, is in [benchmarks/log](../benchmarks/log/README.md).",
    ),
)


def page(files: Mapping[str, dict[str, Any]]) -> str:
    """Return docs/results.md from what the files hold, by name.

    Raises ValueError for a file without a section, or a section without its file.
    """
    if wrong := set(files) ^ {source.file for source in PAGE}:
        raise ValueError(f"files and sections do not match: {', '.join(sorted(wrong))}; name every file in `PAGE`")
    parts = [part for source in PAGE for part in (source.section(files[source.file], source.command, source.file), source.remark) if part]
    return "\n\n".join([*HEAD, *parts]) + "\n"
