"""Tables and the sentences that say where figures come from, as Markdown."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from treespec import errors

WIDTH = 140
"""Characters at which paragraphs are wrapped."""


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> str:
    """Return a table; the first `left` columns are words, the others figures. Raises ValueError for a row of another length."""
    lines = [_line(columns), "|" + "---|" * left + "---:|" * (len(columns) - left)]
    for row in rows:
        if len(row) != len(columns):
            raise ValueError(f"a row of {len(row)} cells under {len(columns)} columns: {row}")
        lines.append(_line(row))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "|" + "".join(f" {cell} |" if cell else " |" for cell in cells)


def paragraph(*sentences: str) -> str:
    """Return sentences wrapped as the pages are. Code in backticks, links and intervals are never cut at a space."""
    words = _words(" ".join(sentence for sentence in sentences if sentence))
    lines = [words[0]]
    for word in words[1:]:
        if len(lines[-1]) + 1 + len(word) <= WIDTH:
            lines[-1] += " " + word
        else:
            lines.append(word)
    return "\n".join(lines)


def _words(text: str) -> list[str]:
    found: list[str] = []
    inside = False
    for word in text.split():
        if inside:
            found[-1] += " " + word
        else:
            found.append(word)
        inside = found[-1].count("`") % 2 == 1 or found[-1].count("[") > found[-1].count("]")
    return found


def bullets(items: Iterable[str]) -> str:
    """Return a list with a line per item, or nothing for no items."""
    return "\n".join("- " + paragraph(item).replace("\n", "\n  ") for item in items)


def parts(*blocks: str) -> str:
    """Return blocks as Markdown parts them, those that are empty left out."""
    return "\n\n".join(block for block in blocks if block)


def link(title: str, words: str = "") -> str:
    """Return a link to the heading `title` of the same page, which shows `words`, or the title.

    >>> link("Whole steps")
    '[Whole steps](#whole-steps)'
    """
    anchor = re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
    return f"[{words or title}](#{anchor})"


def counted(count: int, noun: str) -> str:
    """Return a count with its noun, which takes an s unless there is one of it.

    >>> counted(1, "prompt"), counted(1500, "row")
    ('1 prompt', '1,500 rows')
    """
    return errors.counted(count, noun, form=",")


def origin(provenance: dict[str, Any], command: str, file: str) -> str:
    """Return the sentences that say on what a file was measured, when, with which command, and from which code.

    `provenance` is what `treespec.files.provenance.Provenance` writes.
    """
    models = errors.listed(list(provenance["models"].values()))
    versions = f"Python {provenance['python']}, torch {provenance['torch']}, transformers {provenance['transformers']}"
    commit = provenance["git_commit"]
    changed = " with changes that were not committed" if commit and commit.endswith("+") else ""
    return paragraph(
        f"Measured on {device(provenance)} ({details(provenance)}) on {day(provenance)} by `{command}`, with {versions}, in {provenance['dtype']}.",
        f"The models are {models}.",
        f"The prompts are the rows `{provenance['dataset']}`." if provenance["dataset"] else "",
        f"The code was that of commit `{commit.removesuffix('+')[:10]}`{changed}." if commit else "",
        f"The file is `benchmarks/results/{file}`.",
    )


def device(provenance: dict[str, Any]) -> str:
    """Return what measured, as a title says it: one GPU or several by name, or a CPU where there was none."""
    processes = provenance.get("processes") or 1
    several = f"{processes} x {provenance['gpu']}" if processes > 1 else f"one {provenance['gpu']}"
    return several if provenance["gpu"] else "a CPU"


def details(provenance: dict[str, Any]) -> str:
    """Return what a title leaves out of the device: the driver of a GPU, or the name of a CPU."""
    return f"driver {provenance['driver']}" if provenance["gpu"] else str(provenance["cpu"])


def day(provenance: dict[str, Any]) -> str:
    """Return the date in UTC."""
    return str(provenance["utc"])[:10]


def temperature(value: float) -> str:
    """Return a temperature without zeros at its end."""
    return f"{value:g}"


def interval(value: float, bounds: Sequence[float], digits: int = 2) -> str:
    """Return a figure and its 95 % interval."""
    return f"{value:.{digits}f} [{bounds[0]:.{digits}f}, {bounds[1]:.{digits}f}]"
