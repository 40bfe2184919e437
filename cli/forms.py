"""Other forms of drawings than boxes: CSV, whose numbers are whole and whose intervals have columns of their own, and Markdown."""

import csv
import io
import re
from collections.abc import Iterator, Sequence

from treeopt.cli.flags import with_own_flags
from treespec.printable import printable
from treespec.tables import Figure, Parts, Table

_THOUSANDS = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d+)?")
"""A number whose thousands are set apart, as tables for people have them."""

_MARKS = re.compile(r"[\\|`*_<&]|(?<=\])(?=\()")
"""The characters that Markdown reads as marks, in a table's cell or in a line."""


def as_csv(drawing: Parts) -> str:
    """Return the tables of a drawing as CSV (RFC 4180, but with line feeds). Sentences and pictures have no place in it: see `sentences`.

    Each table is a block of its own, with heads; empty lines part them, and the first column has the table's title. Numbers are not rounded.
    Where a column has intervals, their ends stand in two more columns, HEAD low and HEAD high. Cells without a value are empty.
    """
    out = io.StringIO()
    write = csv.writer(out, lineterminator="\n").writerow
    for number, table in enumerate(part for part in drawing if isinstance(part, Table)):
        if number:
            out.write("\n")
        spans = [any(_interval(row[at]) is not None for row in table.rows) for at in range(len(table.columns))]
        write(["table", *_heads(table.columns, spans)])
        for row in table.rows:
            cells = [cell for at, text in enumerate(row) for cell in _cells(text, spans[at], table.columns[at] in table.left)]
            write([table.title, *cells])
    return out.getvalue().removesuffix("\n")


def sentences(drawing: Parts) -> Iterator[str]:
    """Yield the lines of a drawing that stand in no table, and what its tables leave out. Pictures of several lines are left out."""
    for part in drawing:
        if isinstance(part, Table):
            yield from (f"{left}; --format json has all" for left in part.left_out)
        elif "\n" not in part:
            yield part


def as_markdown(drawing: Parts) -> str:
    """Return a drawing as Markdown: tables as GitHub and others show them, sentences as paragraphs, pictures as blocks of text."""
    return "\n\n".join(block for part in drawing for block in (_table(part) if isinstance(part, Table) else [_paragraph(part)]))


def _heads(columns: Sequence[str], spans: Sequence[bool]) -> list[str]:
    """Return the heads of a table in CSV. Those that are empty get a name."""
    found = []
    for at, (head, spanned) in enumerate(zip(columns, spans, strict=True)):
        name = head or ("value" if at else "name")
        found += [name, f"{name} low", f"{name} high"] if spanned else [name]
    return found


def _interval(cell: str) -> tuple[float, float] | None:
    return cell.interval if isinstance(cell, Figure) else None


def _cells(cell: str, spanned: bool, is_text: bool) -> list[str]:
    """Return what stands for a cell in CSV: its value, and in a column with intervals the two ends."""
    if isinstance(cell, Figure):
        value = "" if cell.value is None else repr(float(cell.value))
    elif is_text:
        value = cell
    else:
        value = "" if cell == "-" else cell.replace(",", "") if _THOUSANDS.fullmatch(cell) else cell
    ends = _interval(cell)
    return [value, *(map(repr, map(float, ends)) if ends else ("", ""))] if spanned else [value]


def _table(table: Table) -> Iterator[str]:
    """Yield the title, the table and the sentences below it."""
    if table.title:
        yield f"**{_inline(table.title)}**"
    left = [head in table.left for head in table.columns]
    rule = "|".join(":---" if side else "---:" for side in left)
    lines = [_line(table.columns), f"|{rule}|", *map(_line, table.rows)]
    yield "\n".join(lines)
    yield from (_inline(f"{sentence}; --format json has all") for sentence in table.left_out)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_inline, cells))} |"


def _paragraph(text: str) -> str:
    """Return a sentence, or a picture between fences that are longer than any in it."""
    text = with_own_flags(text)
    if "\n" not in text:
        return _inline(text)
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}text\n{printable(text)}\n{fence}"


def _inline(text: str) -> str:
    """Return text on one line in which no character is a mark."""
    return _MARKS.sub(lambda found: "\\" + found.group(), printable(text).replace("\t", r"\t").replace("\n", r"\n"))
