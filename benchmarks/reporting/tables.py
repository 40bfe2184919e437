"""Tables of results that stand in pages which people write: the lines that begin with a table's head are made anew, and nothing else."""

from collections.abc import Sequence


def with_table(text: str, head: Sequence[str], rows: Sequence[Sequence[str]], page: str) -> str:
    """Return a page with the table of this head made anew. Raises ValueError where it has none, or several."""
    start = f"| {' | '.join(head)} |"
    lines = text.split("\n")
    starts = [number for number, line in enumerate(lines) if line == start]
    if len(starts) != 1:
        raise ValueError(f"{page} has {len(starts)} tables that begin with `{start}`, but one is to be made anew")
    end = starts[0]
    while end < len(lines) and lines[end].startswith("|"):
        end += 1
    table = [start, "|---" * len(head) + "|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join([*lines[: starts[0]], *table, *lines[end:]])
