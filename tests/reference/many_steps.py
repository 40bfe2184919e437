"""Very many independent steps at once: the production functions, mapped over sequences by `torch.vmap`.

Target and draft look at the last token only, so that a sequence is given by its last token.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from treespec.decoding.drafting import Drafting
from treespec.decoding.rules import Sampling
from treespec.decoding.sampling import choose, distribution
from treespec.decoding.verifiers import VERIFIERS
from treespec.decoding.verifiers.base import SampledVerifier
from treespec.kernels.outcome import ReportLayout
from treespec.kernels.plain import draw_children, last_matching, race, settle
from treespec.trees.tensors import StaticTensors
from treespec.trees.tree import SpeculationTree


@dataclass(frozen=True)
class Markov:
    """Logits [V, V] after each token."""

    target: Tensor
    draft: Tensor

    @classmethod
    def random(cls, vocabulary: int, seed: int, spread: float = 2.0, noise: float = 1.0) -> "Markov":
        """A draft that agrees with the target to a degree; every fourth token is impossible for one of the two."""
        generator = torch.Generator().manual_seed(seed)
        target = spread * torch.randn(vocabulary, vocabulary, generator=generator)
        draft = target + noise * torch.randn(vocabulary, vocabulary, generator=generator)
        for logits in (target, draft):
            logits[torch.rand(vocabulary, vocabulary, generator=generator) < 0.125] = -torch.inf
        return cls(target, draft)


def step(
    models: Markov, tree: SpeculationTree, sampling: Sampling, drafting: Drafting, roots: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """One step after every root [m]: (emitted int64 [m, depth + 1], how many accepted int64 [m])."""
    tensors = StaticTensors.on(tree, "cpu")
    p, q = distribution(models.target, sampling), distribution(models.draft, drafting.sampling(sampling))
    matching = not drafting.samples(sampling)
    tokens = torch.zeros(len(roots), tree.size, dtype=torch.int64)
    tokens[:, 0] = roots
    for depth, (level, branches) in enumerate(zip(tree.levels[:-1], tensors.branches, strict=True)):
        parents = tokens[:, level.start : level.stop].flatten()
        if matching:
            children = models.draft[parents].topk(branches, dim=-1).indices
        else:
            children = draw_children(q[parents], branches, generator, replacement=drafting.kind.replacement)
        above, ranks = tensors.source[depth]
        below = tree.levels[depth + 1]
        tokens[:, below.start : below.stop] = children.view(len(roots), len(level), branches)[:, above, ranks]
    if matching:
        choices = choose(models.target[tokens.flatten()], sampling, generator).view_as(tokens)
        last = torch.vmap(lambda t, c: last_matching(t, c, tensors))(tokens, choices)
        following = choices.gather(1, last[:, None])[:, 0]
    else:
        judge = VERIFIERS[drafting.verifier].make()
        assert isinstance(judge, SampledVerifier)

        def decide(t: Tensor, p: Tensor, q: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
            verdict = judge.weigh(t, p, q, tensors, replacement=drafting.kind.replacement)
            last = judge.last(verdict, uniforms)
            return last, verdict.rest(last)

        read = tokens[:, : tree.levels[-1].start]
        uniforms = torch.rand(tokens.shape, dtype=torch.float64, generator=generator)
        last, rest = torch.vmap(decide)(tokens, p[tokens], q[read], uniforms)
        following = race(rest, generator).argmax(-1)

    def commit(t: Tensor, node: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
        outcome = settle(t, node, token, tensors, torch.zeros(tree.size), torch.zeros(1), torch.zeros(1, dtype=torch.int64))
        return outcome.tokens, outcome.report[ReportLayout(tree.depth).count]

    return torch.vmap(commit)(tokens, last, following)


def sequences(
    models: Markov, tree: SpeculationTree, sampling: Sampling, drafting: Drafting, root: int, length: int, count: int, seed: int
) -> tuple[Tensor, int, float]:
    """`count` sequences of `length` tokens after `root`: (int64 [count, length], steps taken, accepted drafted tokens per step)."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.full((count, length + tree.depth + 1), root)
    have = torch.zeros(count, dtype=torch.int64)
    steps, accepted = 0, 0
    while len(going := (have < length).nonzero().flatten()):
        for rows in going.split(20_000):
            roots = torch.where(have[rows] > 0, found[rows, (have[rows] - 1).clamp_min(0)], root)
            emitted, more = step(models, tree, sampling, drafting, roots, generator)
            places = have[rows, None] + torch.arange(tree.depth + 1)  # what lies beyond the emitted tokens is overwritten later
            found[rows[:, None], places] = emitted
            have[rows] += more + 1
            steps += len(rows)
            accepted += int(more.sum())
    return found[:, :length], steps, accepted / steps
