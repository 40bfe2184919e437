"""Drawings on a terminal: tables with boxes, and lines with flags in place of the names of parameters."""

from typing import TYPE_CHECKING

from treeopt.cli.flags import with_own_flags
from treespec.tables import Parts, Table

if TYPE_CHECKING:
    from rich.console import Console

_ASCII = str.maketrans("│├└─", "|+`-")
"""Other characters for the pictures of trees, for terminals that have no box characters."""


def draw(console: "Console", drawing: Parts) -> None:
    """Draw tables and lines. What tables leave out, JSON has."""
    for part in drawing:
        if isinstance(part, Table):
            _table(console, part)
            for sentence in part.left_out:
                _line(console, f"{sentence}; --format json has all")
        else:
            text = with_own_flags(part)
            _line(console, text.translate(_ASCII) if console.options.ascii_only else text)


def _table(console: "Console", table: Table) -> None:
    """Draw a table under its title, which is a line of its own, since rich would break it at the table's width."""
    from rich.table import Table as Box

    if table.title:
        console.print(table.title, style="italic", highlight=False, markup=False, soft_wrap=True)
    box = Box(show_header=table.headed)
    for head in table.columns:
        box.add_column(head, justify="left" if head in table.left else "right", overflow="fold")
    for rows in table.sections:
        box.add_section()
        for row in rows:
            box.add_row(*row)
    console.print(box)


def _line(console: "Console", text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
