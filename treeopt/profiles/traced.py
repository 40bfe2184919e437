"""The acceptance profile of a trace: how often the target's token had each of the draft's ranks, over all positions. No torch."""

import numpy as np
from numpy.typing import NDArray

from treeopt.profiles.acceptance import AcceptanceProfile
from treeopt.profiles.level_sums import LevelSums
from treeopt.profiles.ratio import ratio
from treeopt.profiles.trace import Trace
from treespec.errors import ProfileError

RANKS = 32
"""Ranks that a profile has where nobody asks for another number."""


def acceptance_of(trace: Trace, ranks: int | None = None) -> AcceptanceProfile:
    """Return the profile of the texts of a trace, of so many ranks (None: 32, or the whole vocabulary if that is smaller).

    The chance of a rank is its share of the positions, which all weigh alike, wherever a step may have stood; a head's is that of each level. Raises
    ProfileError for a trace without a position.
    """
    ranks = min(RANKS, trace.vocabulary_size) if ranks is None else ranks
    if not trace.positions:
        raise ProfileError("the trace has no position: every text ended with its first token; profile other prompts")
    drafted = [one.drafted for one in trace.texts]
    counts = trace.rank_counts(ranks)
    sums = counts[0].astype(np.float64)
    mean, error = ratio(sums, drafted)
    first, deeper = tuple(mean[:-1].tolist()), _deeper(counts)
    return AcceptanceProfile(
        drafting=trace.drafting,
        temperature=trace.temperature,
        top_p=trace.top_p,
        rank_probability=first,
        none_accepted=float(mean[-1]),
        standard_error=() if error is None else tuple(error[:-1].tolist()),
        positions=trace.positions,
        prompts=len(trace.texts),
        method=trace.method,
        by_depth=None if trace.levels is None else (first, *(level.chances for level in deeper)),
        deeper=deeper,
        prompt_sums=tuple(map(tuple, sums[:, :-1].tolist())),
        prompt_positions=tuple(drafted),
        provenance=trace.provenance or None,
        prompt_set=trace.prompt_set or None,
        pair_sha256=trace.pair_sha256,
    )


def _deeper(counts: NDArray[np.int64]) -> tuple[LevelSums, ...]:
    """Return the sums of each text at the levels of a head below the first, as far as the texts have any, from counts [levels, texts, ranks + 1]."""
    return tuple(
        LevelSums(tuple(map(tuple, level[:, :-1].astype(float).tolist())), tuple(level.sum(1).tolist()))
        for level in counts[1:]
        if level.any()
    )
