"""Comparison of profiled acceptance with the acceptance in decoding, on the same contexts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from treeopt.profiling.chances import draft_levels, rank_chances, target_chances
from treeopt.profiling.settings import AcceptanceSettings
from treespec.data.prompts import PromptSet
from treespec.decoding.sampling import prompt_generator
from treespec.errors import ProfileError
from treespec.evaluation.results import PromptResult
from treespec.models.pairs import Pair
from treespec.trees.tree import SpeculationTree

_FEW = 5
"""With smaller expected counts, chi-square tests find differences that do not exist (Cochran's rule)."""


@dataclass(frozen=True)
class VisitedAcceptance:
    """Rank counts over visited nodes with children. Ranks that a node has no child of are not counted."""

    visits: int
    observed: tuple[int, ...]
    """Number of times that each rank was accepted."""
    expected: tuple[float, ...]
    """Sum of the profiled chances of each rank on the same contexts."""
    p_value: float
    """The p-value of one chi-square test over all ranks, with rare ones pooled; 1 if all chances are 0 or 1 and were met."""
    everywhere: tuple[float, ...]
    """Mean chance of each rank over all positions of the same texts, visited or not."""


def visited_acceptance(
    pair: Pair, tree: SpeculationTree, prompts: PromptSet, results: Sequence[PromptResult], settings: AcceptanceSettings
) -> VisitedAcceptance:
    """Profile the outputs of an evaluation of a static tree, verified sequentially, and compare with the tokens that it accepted.

    `results` must hold outputs (`save_tokens`); `settings` are those of the evaluation, with their own draws. Steps are
    martingale increments, so their covariances add up; the profile's draws add at most a share of 1 / draws to them.
    Raises ModelError, ProfileError.
    """
    if any(not r.output for r in results):
        raise ProfileError("the evaluation kept no outputs; evaluate with `save_tokens`")
    ranks = settings.max_branch
    observed, expected, spread = np.zeros(ranks), np.zeros(ranks), np.zeros((ranks, ranks))
    everywhere, positions, visits = np.zeros(ranks), 0, 0
    for index, (prompt, result) in enumerate(zip(prompts, results, strict=True)):
        if len(result.output) < 2:
            continue
        texts = torch.tensor([[*prompt.ids, *result.output]], device=pair.target.device)
        valid = torch.ones(1, len(result.output) - 1, dtype=torch.bool, device=texts.device)
        stream = prompt_generator(settings.seed + 1, index, texts.device)
        with torch.inference_mode():
            logits, p = next(draft_levels(pair, texts, valid)), target_chances(pair, texts, valid, settings)
            chances = rank_chances(logits, p, valid, settings, [stream])[0].cpu().numpy()
        everywhere += chances.sum(0)
        positions += len(chances)
        for context, children, rank in _visits(tree, result):
            if not children or context > len(chances):  # the last token's successor is unknown
                continue
            row = chances[context - 1].copy()
            row[children:] = 0
            if rank >= 0:
                observed[rank] += 1
            expected += row
            spread += np.diag(row) - np.outer(row, row)
            visits += 1
    if not visits:
        raise ProfileError("no step was decoded on these prompts, so nothing can be compared; use longer outputs")
    sampled = settings.drafting.samples(settings.sampling)
    p_value = _p_value(observed, expected, spread * (1 + 1 / settings.draws if sampled else 1))
    return VisitedAcceptance(
        visits, tuple(int(n) for n in observed), tuple(expected.tolist()), p_value, tuple((everywhere / positions).tolist())
    )


def _visits(tree: SpeculationTree, result: PromptResult) -> Iterator[tuple[int, int, int]]:
    """Yield (generated tokens before the node's children, children, accepted rank or -1) of every node on every accepted path."""
    before = 1  # the first generated token comes from the prompt pass
    for accepted in result.accepted_ranks:
        node = 0
        for depth, rank in enumerate((*accepted, -1)):
            children = tree.children[node]
            yield before + depth, len(children), rank
            if rank >= 0:
                node = children[rank]
        before += len(accepted) + 1


def _p_value(observed: NDArray[np.float64], expected: NDArray[np.float64], covariance: NDArray[np.float64]) -> float:
    """Return the p-value of a chi-square test. It needs enough expected counts, so neighbouring ranks are pooled until they have them."""
    certain = np.diag(covariance) <= 1e-9 * max(1.0, float(covariance.max()))
    if np.abs(observed - expected)[certain].max(initial=0.0) > 1e-6:
        return 0.0  # what was certain did not happen
    pools = _pools(expected)
    values, vectors = np.linalg.eigh(pools @ covariance @ pools.T)
    along = vectors.T @ (pools @ (observed - expected))
    free = values > 1e-9 * max(1.0, float(values.max()))
    if np.abs(along[~free]).max(initial=0.0) > 1e-6:
        return 0.0
    return float(stats.chi2.sf((along[free] ** 2 / values[free]).sum(), int(free.sum()))) if free.any() else 1.0


def _pools(expected: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return [pools, ranks], 1 if a rank belongs to a pool. Each pool has an expected count of at least `_FEW` if the total allows it."""
    pools: list[NDArray[np.float64]] = [np.zeros_like(expected)]
    for rank in range(len(expected)):
        if pools[-1] @ expected >= _FEW and expected[rank:].sum() >= _FEW:
            pools.append(np.zeros_like(expected))
        pools[-1][rank] = 1
    return np.array(pools)
