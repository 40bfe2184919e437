"""Results for people: tables and lines, as plain data. Here they become text or HTML; the command line draws them with boxes."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby

from treespec.printable import printable


@dataclass(frozen=True)
class Table:
    """A title over rows of cells. Nothing of it is clean: whoever shows it makes its text `printable`."""

    title: str
    columns: Sequence[str]
    """The heads of the columns. They are not shown if all are empty."""
    rows: Sequence[Sequence[str]]
    left: Collection[str] = ("",)
    """Heads of the columns whose cells begin at the left. Those of the others, which hold figures, end at the right."""
    totals: int = 0
    """The number of the last rows that sum up the others. A line sets them apart."""
    left_out: Sequence[str] = ()
    """Sentences that say how much is not shown."""

    @property
    def headed(self) -> bool:
        """Return whether its columns have heads to show."""
        return any(self.columns)

    @property
    def sections(self) -> list[Sequence[Sequence[str]]]:
        """Return the rows, parted where a line is drawn."""
        border = len(self.rows) - self.totals
        return [rows for rows in (self.rows[:border], self.rows[border:]) if rows]


Parts = Sequence[Table | str]
"""The tables and lines of a drawing. A string is a sentence on a line of its own, or a picture of several lines."""


class Drawing(tuple[Table | str, ...]):
    """The tables and lines that people are shown of a result. `print` shows them as text, and a notebook as HTML."""

    def __str__(self) -> str:
        return as_text(self)

    def _repr_html_(self) -> str:
        return as_html(self)


class Drawn(ABC):
    """A result that `print` and notebooks show by its drawing."""

    @abstractmethod
    def drawing(self) -> Drawing:
        """Return what people are shown of it."""

    def __str__(self) -> str:
        return as_text(self.drawing())

    def _repr_html_(self) -> str:
        return as_html(self.drawing())


def figures(title: str, pairs: Iterable[tuple[str, str]]) -> Table:
    """Return a table of names and their values, without heads."""
    return Table(title, ("", ""), tuple(pairs))


class Figure(str):
    """A cell that shows a number, rounded, and holds it whole: `value`, and its `interval` if one is known."""

    __slots__ = ("interval", "value")
    value: float | None
    interval: tuple[float, float] | None

    def __new__(cls, text: str, value: float | None, interval: Sequence[float] | None = None) -> "Figure":
        """Return the cell that is shown as this text."""
        made = super().__new__(cls, text)
        made.value = value
        made.interval = None if interval is None else (interval[0], interval[1])
        return made


def number(value: float | None, digits: int, interval: Sequence[float] | None = None, *, sign: bool = False) -> str:
    """Return a number as a cell, with its interval if one is known; `-` for None. With `sign`, numbers above 0 have one too.

    >>> number(2.34567, 3, (2, 3)), number(None, 3), number(0.5, 1, sign=True)
    ('2.346 [2.000, 3.000]', '-', '+0.5')
    """
    if value is None:
        return Figure("-", None)
    form = f"{'+' if sign else ''}.{digits}f"
    around = f" [{interval[0]:{form}}, {interval[1]:{form}}]" if interval else ""
    return Figure(f"{value:{form}}{around}", value, interval)


def milliseconds(seconds: float | None, interval: Sequence[float] | None = None) -> str:
    """Return seconds as a cell of milliseconds, as `number` does."""
    return number(None if seconds is None else 1e3 * seconds, 3, None if interval is None else [1e3 * s for s in interval])


def in_short(thing: object, **facts: object) -> str:
    """Return one line for the `repr` of an object that holds too much to be printed whole: the facts that are known, with rounded numbers.

    >>> in_short(Table("", (), ()), name="a", speedup=1.23456, gap=None)
    "Table(name='a', speedup=1.235)"
    """
    known = (
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value!r}" for name, value in facts.items() if value is not None
    )
    return f"{type(thing).__name__}({', '.join(known)})"


def as_text(parts: Parts) -> str:
    """Return a drawing as plain text without control characters: columns are aligned by spaces, and empty lines part tables from the rest.

    >>> print(as_text([Table("passes", ("", "ms"), [("target", "12.5"), ("draft", "0.8")]), "two models"]))
    passes
              ms
    ------  ----
    target  12.5
    draft    0.8
    <BLANKLINE>
    two models
    """
    blocks = []
    for tables, block in groupby(parts, lambda part: isinstance(part, Table)):
        texts = [_table_text(part) if isinstance(part, Table) else printable(part) for part in block]
        blocks.append(("\n\n" if tables else "\n").join(texts))
    return "\n\n".join(blocks)


def as_html(parts: Parts) -> str:
    """Return a drawing as HTML, which a notebook gives its own style. Text is escaped, and holds no control characters."""
    return "\n".join(_table_html(part) if isinstance(part, Table) else _line_html(part) for part in parts)


def _cell(text: str) -> str:
    """Return text that stays on one line and in its column."""
    return printable(text).replace("\t", r"\t").replace("\n", r"\n")


def _table_text(table: Table) -> str:
    sections = [[[_cell(cell) for cell in row] for row in rows] for rows in ([table.columns], *table.sections)]
    widths = [max(map(len, column)) for column in zip(*(row for rows in sections for row in rows), strict=True)]

    def line(row: Sequence[str]) -> str:
        places = zip(row, widths, table.columns, strict=True)
        return "  ".join(cell.ljust(width) if head in table.left else cell.rjust(width) for cell, width, head in places).rstrip()

    rule = "\n" + "  ".join("-" * width for width in widths) + "\n"
    body = rule.join("\n".join(map(line, rows)) for rows in sections[0 if table.headed else 1 :])
    return "\n".join(filter(None, (_cell(table.title), body, *map(_cell, table.left_out))))


def _table_html(table: Table) -> str:
    title = f"<caption>{escape(_cell(table.title))}</caption>" if table.title else ""
    head = f"<thead>{_row_html(table, table.columns, 'th')}</thead>" if table.headed else ""
    bodies = (f"<tbody>{''.join(_row_html(table, row, 'td') for row in rows)}</tbody>" for rows in table.sections)
    return "\n".join(["<table>", *filter(None, (title, head)), *bodies, "</table>", *map(_line_html, table.left_out)])


def _row_html(table: Table, row: Sequence[str], tag: str) -> str:
    sides = ("left" if head in table.left else "right" for head in table.columns)
    cells = (f'<{tag} style="text-align: {side}">{escape(_cell(cell))}</{tag}>' for cell, side in zip(row, sides, strict=True))
    return f"<tr>{''.join(cells)}</tr>"


def _line_html(text: str) -> str:
    tag = "pre" if "\n" in text else "p"
    return f"<{tag}>{escape(printable(text))}</{tag}>"
