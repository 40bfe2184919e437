"""The summary at the top of docs/results.md: what was run, on what and when, the main figures, and the goals beside them."""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.reporting.markdown import bullets, counted, day, device, link, paragraph, parts, table
from benchmarks.reporting.prompts import prompts_cell
from benchmarks.reporting.run import Kind, Run
from benchmarks.reporting.verdicts import MARK, Check, Slower
from treespec.errors import listed

COLUMNS = ("section", "machine, day", "prompts", "main figures", "goal")
EARLIER = "Earlier runs"


@dataclass(frozen=True)
class Entry:
    """A run with its kind, as the page has it."""

    run: Run
    kind: Kind
    earlier: bool = False
    """Whether a later run superseded it."""

    @property
    def title(self) -> str:
        """Return the title of its section."""
        return self.kind.title(self.run.data)

    @property
    def machine(self) -> str:
        """Return what measured, without "one"."""
        provenance = self.run.data.get("provenance")
        return provenance["gpu"] or "CPU" if provenance else "CPU"

    @property
    def short_title(self) -> str:
        """Return the title without the machine and the day, which stand beside it."""
        found = self.title
        if "provenance" in self.run.data:
            for known in (f" on {device(self.run.data['provenance'])}", f", {self.date}"):
                found = found.replace(known, "")
        return found.removesuffix(",")

    @property
    def date(self) -> str:
        """Return the day of the run, or an empty text where the file has none."""
        return day(self.run.data["provenance"]) if "provenance" in self.run.data else ""

    @property
    def checks(self) -> list[Check]:
        """Return all figures that have a goal."""
        return self.kind.checks(self.run.data)

    @property
    def slower(self) -> list[Slower]:
        """Return all ways to speculate that were slower."""
        return self.kind.slower(self.run.data)

    @property
    def place(self) -> str:
        """Return the machine and whether the run is an earlier one, for a sentence."""
        return f"{self.machine}, {self.date}{', an earlier run' if self.earlier else ''}"


def summary(entries: Sequence[Entry]) -> str:
    """Return the section."""
    checks = [(entry, check) for entry in entries for check in entry.checks]
    missed = [(entry, check) for entry, check in checks if not check.met]
    slower = [(entry, one) for entry in entries for one in entry.slower]
    lost = [(entry, one) for entry, one in slower if one.lost]
    return parts(
        "## Summary",
        _what_was_run(entries),
        table(COLUMNS, [row for entry in entries for row in _rows(entry)], left=5),
        paragraph(
            f"Goals were set for {counted(len(checks), 'figure')}:",
            f"{len(checks) - len(missed)} met theirs, and {_missed_count(len(missed))}",
            "The figures that missed theirs are all of earlier runs:" if missed and all(entry.earlier for entry, _ in missed) else "",
        ),
        bullets(f"{MARK}{check.what} ({entry.place}): {check.words}." for entry, check in missed),
        paragraph(f"Speculation lost in {counted(len(lost), 'case')}, that is, the same engine was faster without a draft:")
        if lost
        else "",
        bullets(f"{MARK}{one.what} ({entry.place}): {one.words}" for entry, one in lost),
        _unclear([(entry, one) for entry, one in slower if not one.lost]),
    )


def _missed_count(count: int) -> str:
    return "none missed it." if not count else f"{count} missed {'its goal' if count == 1 else 'theirs'}."


def _what_was_run(entries: Sequence[Entry]) -> str:
    days = sorted(entry.date for entry in entries if entry.date)
    machines = sorted({entry.machine for entry in entries}, key=lambda name: (name == "CPU", name))
    earlier = sum(entry.earlier for entry in entries)
    return paragraph(
        f"This page has {counted(len(entries), 'run')}, on {listed([f'one {name}' if name != 'CPU' else 'CPUs' for name in machines])}, made from",
        f"{days[0]} to {days[-1]}.",
        _earlier_words(earlier) if earlier else "",
        "No run had the weights of a large model: the models are a tiny pair, that pair inside the matrices of large models, or large shapes with",
        "random weights. So the times are what the hardware does with models of these shapes, but the tokens per step, and every speed-up that",
        "comes of them, belong to the tiny pair, and yours will have others.",
        "The first column leads to each run's section. The table has the run's main figures. Of its figures with a goal, the table has all that",
        "missed it; if all met it, the one that met it most narrowly.",
        _fewer_words(entries),
    )


def _earlier_words(count: int) -> str:
    verbs = "was superseded; it stands" if count == 1 else "were superseded; they stand"
    return f"Of these, {count} {verbs} at the end under {link(EARLIER)}, marked here as earlier."


def _fewer_words(entries: Sequence[Entry]) -> str:
    found = [entry for entry in entries if entry.run.most is not None]
    if not found:
        return ""
    cell = prompts_cell(found[0].run, found[0].kind)
    first, most = cell.split(" of ")
    return f'"{cell}" prompts are the first {first} of the {most} that another run of the same kind decoded.'


def _rows(entry: Entry) -> list[list[str]]:
    """Return the rows of one run; only the first one names it."""
    found = [(figure, "none set") for figure in entry.kind.headlines(entry.run.data)]
    missed = [check for check in entry.checks if not check.met]
    narrowest = sorted(entry.checks, key=lambda check: check.share)[-1:]
    for check in missed or narrowest:
        found.append((f"{check.what}: {check.figure} {check.goal.unit}".rstrip(), check.words))
    name = link(entry.title, entry.short_title) + (" (earlier)" if entry.earlier else "")
    first = [name, f"{entry.machine}, {entry.date or 'day not recorded'}", prompts_cell(entry.run, entry.kind)]
    return [[*(first if index == 0 else [""] * 3), *row] for index, row in enumerate(found)]


def _unclear(found: Sequence[tuple[Entry, Slower]]) -> str:
    if not found:
        return ""
    where = listed(list(dict.fromkeys(link(entry.title) for entry, _ in found)))
    return paragraph(
        f"In {counted(len(found), 'more case')} a tree was slower than autoregressive decoding on the prompts that were decoded, but the 95 % interval",
        f"reaches 1; they are named in {where}.",
    )
