"""Traces of ranks that are made up, and steps that are walked token by token."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from treeopt.profiles.trace import Trace
from treeopt.profiles.traced_text import TracedText
from treespec.trees.tree import SpeculationTree

MISSED = 90
"""A rank that no tree of the tests has a child of."""


def ranked(texts: Sequence[Sequence[int]], prompts: Sequence[object] | None = None, **changes: Any) -> Trace:
    """The trace of texts whose tokens after the first had these ranks; `prompts` are what their prompts are told apart by."""
    gen_len = max(map(len, texts)) + 1
    named = range(len(texts)) if prompts is None else prompts
    rows = [
        TracedText(place, f"{name:>016}", 8, len(ranks) + 1, len(ranks) + 1 < gen_len)
        for place, (ranks, name) in enumerate(zip(texts, named, strict=True))
    ]
    rank = np.array([rank for ranks in texts for rank in ranks], dtype=np.uint32)
    top = np.full(len(rank), np.log(0.5), dtype=np.float32)
    chosen = np.where(rank == 0, top, np.float32(np.log(0.01)))
    return Trace(tuple(rows), rank, chosen, top, gen_len=gen_len, **{"vocabulary_size": 100, "temperature": 0.0, "top_p": 1.0, **changes})


def walked(tree: SpeculationTree, ranks: Sequence[int]) -> list[int]:
    """The depth at which the draft met each token of a text: 0 behind a root, d behind d accepted tokens."""
    known, path, depths = set(tree.paths), (), []
    for rank in ranks:
        depths.append(len(path))
        path = (*path, rank) if (*path, rank) in known else ()
    return depths


def by_depth(rng: np.random.Generator, tree: SpeculationTree, rows: np.ndarray, tokens: int) -> list[int]:
    """The ranks of a text whose source knows the steps of a tree: behind d accepted tokens, rank k has the chance rows[d, k], else none of them."""
    known, path, ranks = set(tree.paths), (), []
    for _ in range(tokens):
        row = rows[min(len(path), len(rows) - 1)]
        rank = int(rng.choice(len(row) + 1, p=[*row, 1 - row.sum()]))
        ranks.append(MISSED if rank == len(row) else rank)
        path = (*path, rank) if (*path, rank) in known else ()
    return ranks


def in_turns(rng: np.random.Generator, rounds: int) -> list[int]:
    """Ranks for which depth is everything: three times the first choice, any of eight, and none; again and again."""
    return [rank for _ in range(rounds) for rank in (0, 0, 0, int(rng.integers(8)), MISSED)]


def alike(rng: np.random.Generator, row: Sequence[float], tokens: int) -> list[int]:
    """Ranks that are drawn one by one, whatever went before."""
    found = rng.choice(len(row) + 1, size=tokens, p=[*row, 1 - sum(row)])
    return np.where(found == len(row), MISSED, found).tolist()


def of_head(levels: Sequence[Sequence[Sequence[int]]], **changes: Any) -> Trace:
    """The trace of a head whose level d gave these ranks: of each text, one for every root from the first on, d fewer than on the first level."""
    plain = ranked(levels[0], **changes)
    for depth, level in enumerate(levels):
        assert [len(ranks) for ranks in level] == [max(0, len(first) - depth) for first in levels[0]]
    deeper = [rank for level in levels[1:] for ranks in level for rank in ranks]
    return replace(plain, levels=len(levels), deeper_rank=np.array(deeper, dtype=np.uint32))


def drawn_of_head(rng: np.random.Generator, rows: np.ndarray, texts: int, tokens: int) -> Trace:
    """The trace of a head that has drafted a token of rank k at level d, wherever its root, with the chance rows[d, k], else none of them."""
    chances = np.hstack([rows, 1 - rows.sum(axis=1, keepdims=True)])
    ranks = [*range(rows.shape[1]), MISSED]
    drawn = [[rng.choice(ranks, max(0, tokens - depth), p=row).tolist() for _ in range(texts)] for depth, row in enumerate(chances)]
    return of_head(drawn)
