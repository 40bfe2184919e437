"""Shares of the nodes that had a child of each rank, as cells of a table."""

from collections.abc import Sequence

from treespec.tables import number


def expected(offered: Sequence[int], chances: Sequence[float]) -> list[float]:
    """Return how often each rank should be accepted among so many nodes with a child of that rank."""
    return [count * (chances[rank] if rank < len(chances) else 0.0) for rank, count in enumerate(offered)]


def sums(rows: Sequence[Sequence[float]]) -> list[float]:
    """Return the sum for each rank over rows that may stop early."""
    return [sum(row[rank] for row in rows if rank < len(row)) for rank in range(max(map(len, rows), default=0))]


def share_cells(counts: Sequence[float], base: Sequence[float], shown: int, most: int) -> list[str]:
    """Return the shares of the first ranks, of all later ones together if there are any, and of none; `-` where there is nothing to share."""
    counts = [*counts, *[0] * (most - len(counts))]
    base = [*base, *[0] * (most - len(base))]
    pairs = [*zip(counts[:shown], base[:shown], strict=True)]
    first = base[0] if base else 0
    pairs += [(sum(counts[shown:]), first)] if most > shown else []
    pairs += [(first - sum(counts), first)]
    return [number(count / of if of else None, 4) for count, of in pairs]
