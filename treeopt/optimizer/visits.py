"""Visits: at which depth of a tree each token of a trace met the draft, and from that the chance of each rank by depth. No torch.

Steps cut a text into pieces, so every position belongs to one step and stands at one depth of its tree: 0 if it follows the step's root, d if it
follows d accepted tokens. Roots are not average positions: a root is a token that the draft did not propose, or one behind a whole accepted
path. So a tree sees other chances at its root than the text has on average, and others again below.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from treeopt.optimizer.frontier import Rows
from treeopt.optimizer.replay import Replay
from treeopt.profiles.trace import UNKNOWN, Trace

Counts = NDArray[np.int64]

STRENGTHS = (*(float(4**power) for power in range(9)), math.inf)
"""Strengths of shrinkage that are tried, in positions. An infinite one leaves the average row at every depth."""


def visits(replayed: Replay, trace: Trace, ranks: int) -> Counts:
    """Return how often each rank followed a node at each depth of a replayed tree, int64 [texts, tree depth + 1, ranks + 1].

    The last rank counts the tokens of all further ranks. Below a leaf, the rank of the target's own token counts: a child of that rank would
    have been accepted. So all positions are counted, each once; only what stands below the last level of a head is not.
    """
    texts, depths = len(trace.texts), replayed.tree.depth + 1
    before = np.vstack([np.zeros((1, texts), dtype=np.int64), replayed.nodes[:-1]])
    depth = np.asarray(replayed.tree.depths)[before]
    text = np.broadcast_to(np.arange(texts), depth.shape)
    drafted = replayed.ranks != UNKNOWN
    cells = ((text * depths + depth) * (ranks + 1) + np.minimum(replayed.ranks, ranks))[drafted]
    return np.bincount(cells, minlength=texts * depths * (ranks + 1)).reshape(texts, depths, ranks + 1)


def average_row(counts: Counts) -> NDArray[np.float64]:
    """Return the chance of each rank over all depths and of none of them, [ranks + 1], from counts [depths, ranks + 1].

    One position in all is added, spread evenly (Perks' prior), so that what was never seen is not impossible.
    """
    seen = counts.sum(0)
    row: NDArray[np.float64] = (seen + 1 / len(seen)) / (seen.sum() + 1)
    return row


def shrunk(counts: Counts, strength: float, average: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """Return the chance of each rank by depth, [depths, ranks + 1], from counts of the same shape.

    The estimate is the mean of a Dirichlet posterior whose prior is the `average` row, or one for each depth, as if that had been seen at `strength`
    positions of each depth: (counts + strength * average) / (visits + strength). Where visits are few, the average row stays. None is the `average_row`.
    """
    average = average_row(counts) if average is None else average
    if math.isinf(strength):
        return np.broadcast_to(average, counts.shape)
    found: NDArray[np.float64] = (counts + strength * average) / (counts.sum(1, keepdims=True) + strength)
    return found


@dataclass(frozen=True, eq=False)
class RowsByDepth:
    """Chances by depth, how strongly they were shrunk, and what they say more than the average row."""

    rows: Rows
    """[depths + 1, ranks]; below the tree that was replayed, the average row stands for all depths. A head has a row for each of its levels."""
    strength: float
    nats: float
    """Gain in log-likelihood per position over the average row, on prompts that were held out."""


def rows_by_depth(counts: Counts, folds: Sequence[Sequence[int]], levels: Counts | None = None) -> RowsByDepth:
    """Return the chances by depth, shrunk as strongly as predicts held-out texts best, from counts [texts, depths, ranks + 1].

    For every fold of texts the chances are estimated from the others, with each of `STRENGTHS`; the strength of the largest likelihood in all
    folds together is taken, and of equal ones the largest strength (empirical Bayes by cross-validation).

    A head says other things at each level, wherever a step stands. So its chances shrink towards those of their level over all roots, whose counts are
    `levels` int64 [levels, texts, ranks + 1], at least as many as there are depths: see `Trace.rank_counts`.
    """

    def averages(texts: Sequence[int]) -> NDArray[np.float64]:
        if levels is None:
            return average_row(counts[texts].sum(0))[None]
        return np.stack([average_row(level[texts].sum(0, keepdims=True)) for level in levels])

    every, depths = list(range(len(counts))), counts.shape[1]
    whole = counts.sum(0)
    scores = np.zeros(len(STRENGTHS))
    for fold in folds:
        held_out, average = counts[list(fold)].sum(0), averages(sorted(set(every) - set(fold)))
        scores += [float((held_out * np.log(shrunk(whole - held_out, strength, average[:depths]))).sum()) for strength in STRENGTHS]
    best = len(scores) - 1 - int(np.argmax(scores[::-1]))
    strength, average = STRENGTHS[best], averages(every)
    own = [] if math.isinf(strength) else [shrunk(whole, strength, average[:depths])]
    found = np.vstack([*own, average if levels is None or not own else average[depths:]])[:, :-1]
    return RowsByDepth(found, strength, float(scores[best] - scores[-1]) / max(1, int(whole.sum())))


def folds_of(trace: Trace, most: int) -> list[list[int]]:
    """Return the places of a trace's texts in folds, `most` of them or as many as there are different prompts.

    Equal prompts fall into one fold, and so do neighbours, which are often of one document.
    """
    prompts: dict[str, int] = {}
    for one in trace.texts:
        prompts.setdefault(one.prompt_sha256, len(prompts))
    folds = min(most, len(prompts))
    found: list[list[int]] = [[] for _ in range(folds)]
    for place, one in enumerate(trace.texts):
        found[prompts[one.prompt_sha256] * folds // len(prompts)].append(place)
    return found
