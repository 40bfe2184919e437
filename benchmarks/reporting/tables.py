"""Tables of results that stand in pages which people write: the lines that begin with a table's head are made anew, and nothing else."""

from collections.abc import Sequence


def with_table(text: str, head: Sequence[str], rows: Sequence[Sequence[str]], page: str, below: str | None = None) -> str:
    """Return a page with the table of this head made anew, and with the paragraph `below` in the place of that which follows it (None: it stays).

    Raises ValueError where the page has no such table, or several.
    """
    start = f"| {' | '.join(head)} |"
    lines = text.split("\n")
    starts = [number for number, line in enumerate(lines) if line == start]
    if len(starts) != 1:
        raise ValueError(f"{page} has {len(starts)} tables that begin with `{start}`, but one is to be made anew")
    end = starts[0]
    while end < len(lines) and lines[end].startswith("|"):
        end += 1
    table = [start, "|---" * len(head) + "|", *(f"| {' | '.join(row)} |" for row in rows)]
    if below is not None:
        table += ["", below]
        end += 1
        while end < len(lines) and lines[end]:
            end += 1
    return "\n".join([*lines[: starts[0]], *table, *lines[end:]])
