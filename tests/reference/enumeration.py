"""Every random outcome of one step on a tiny vocabulary, with its probability; the production functions decide each of them.

All assignments of tokens to the tree's nodes are rows of one batch (`torch.vmap`). For each, all patterns of draws below and above
the nodes' chances are tried. Nothing here knows how a verifier works.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from treespec.decoding.verifiers import VERIFIERS
from treespec.decoding.verifiers.base import SampledVerifier
from treespec.kernels.plain import last_matching
from treespec.trees.tensors import StaticTensors
from treespec.trees.tree import SpeculationTree


@dataclass(frozen=True)
class Tables:
    """A target and a draft that are functions of all tokens after the root. The token tuple t has code sum(t_i V^(d-1-i))."""

    p: tuple[Tensor, ...]
    """Per depth d: [V^d, V]; the target's next-token distribution after every tuple of d tokens."""
    q: tuple[Tensor, ...]
    """Likewise, the draft's."""

    @property
    def vocabulary(self) -> int:
        return self.p[0].shape[1]

    def to(self, dtype: torch.dtype) -> "Tables":
        return Tables(tuple(row.to(dtype) for row in self.p), tuple(row.to(dtype) for row in self.q))


@dataclass(frozen=True)
class Outcome:
    """What one step does, all randomness summed up."""

    distribution: Tensor
    """[V^(depth + 1)]; of the next depth + 1 tokens, where the target continues what the step emitted."""
    accepted: float
    """Expected number of accepted drafted tokens."""
    mass: float
    """Of all outcomes; 1 unless some are lost."""


def target_distribution(tables: Tables, length: int) -> Tensor:
    """[V^length]: what the target alone does."""
    found = torch.ones(1, dtype=torch.float64)
    for depth in range(length):
        found = (found[:, None] * tables.p[depth].double()).flatten()
    return found


def total_variation(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().sum()) / 2


def sampled_outcome(tree: SpeculationTree, tables: Tables, *, replacement: bool, verifier: str | SampledVerifier) -> Outcome:
    """Of children that are drawn from the draft. `verifier`: a name in `VERIFIERS`, or a verifier that weighs one draft at a time."""
    judge = VERIFIERS[verifier].make() if isinstance(verifier, str) else verifier
    assert isinstance(judge, SampledVerifier), f"{verifier} is no SampledVerifier, whose parts are what is enumerated"
    tokens, chances = _drafts(tree, tables, replacement)
    codes = _codes(tree, tokens, tables.vocabulary)
    p = torch.stack([tables.p[depth][codes[:, node]] for node, depth in enumerate(tree.depths)], dim=1)
    read = tree.levels[-1].start
    q = torch.zeros(len(tokens), 0, tables.vocabulary, dtype=p.dtype)
    if read:
        q = torch.stack([tables.q[tree.depths[node]][codes[:, node]] for node in range(read)], dim=1)
    tensors = StaticTensors.on(tree, "cpu")
    patterns = torch.tensor(list(itertools.product([False, True], repeat=tree.size - 1)), dtype=torch.bool).view(
        2 ** (tree.size - 1), tree.size - 1
    )

    def decide(tokens: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(chance [n] of each node to be the last accepted, [n, V] what follows each, [] expected accepted tokens)."""
        verdict = judge.weigh(tokens, p, q, tensors, replacement=replacement)
        chance = verdict.chance[1:].double()
        draws = torch.where(patterns, chance / 2, (1 + chance) / 2)
        last = judge.last(verdict, torch.cat([torch.zeros(len(patterns), 1), draws], dim=1))
        weight = torch.where(patterns, chance, 1 - chance).prod(1)
        ends = (weight[:, None] * (last[:, None] == torch.arange(tree.size))).sum(0)
        return ends, torch.stack([verdict.rest(torch.tensor(node)) for node in range(tree.size)]), judge.mean_accepted(verdict)

    ends, rest, means = (torch.vmap(decide) if isinstance(verifier, str) else _one_by_one(decide))(tokens, p, q)
    assert torch.allclose(
        means.double(), ends @ torch.tensor(tree.depths, dtype=ends.dtype), atol=1e-5 if p.dtype == torch.float32 else 1e-12
    )
    totals = rest.double().sum(-1, keepdim=True)
    assert ((totals[..., 0] > 0) | (ends < 1e-6)).all(), "nothing is left to draw from"
    return _gather(tree, tables, codes, ends * chances[:, None], rest.double() / totals.where(totals > 0, 1.0))


def _one_by_one(decide: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, ...]]:
    """What `torch.vmap` would do, for a function that it cannot look into."""
    return lambda *batches: tuple(map(torch.stack, zip(*itertools.starmap(decide, zip(*batches, strict=True)), strict=True)))


def matched_outcome(tree: SpeculationTree, tables: Tables, tokens: Tensor | None = None) -> Outcome:
    """Of given `tokens` int64 [n], distinct among siblings, where the target's choice decides. None: the draft's most likely ones."""
    tokens = _most_likely(tree, tables) if tokens is None else tokens[None]
    codes = _codes(tree, tokens, tables.vocabulary)
    choices = torch.cartesian_prod(*[torch.arange(tables.vocabulary)] * tree.size).view(-1, tree.size)
    chances = torch.ones(len(choices), dtype=torch.float64)
    for node, depth in enumerate(tree.depths):
        chances *= tables.p[depth][codes[0, node]].double()[choices[:, node]]
    tensors = StaticTensors.on(tree, "cpu")
    last = torch.vmap(lambda chosen: last_matching(tokens[0], chosen, tensors))(choices)
    ends = (last[:, None] == torch.arange(tree.size)) * chances[:, None]
    follows = torch.nn.functional.one_hot(choices, tables.vocabulary).double()
    return _gather(tree, tables, codes.expand(len(choices), -1), ends, follows)


def matched_samples(tree: SpeculationTree, tables: Tables) -> Outcome:
    """Of children that are drawn without replacement, where the target's choice decides among them."""
    drafts, chances = _drafts(tree, tables, replacement=False)
    found = [matched_outcome(tree, tables, tokens) for tokens in drafts]
    return Outcome(
        sum((float(c) * o.distribution for c, o in zip(chances, found, strict=True)), torch.zeros_like(found[0].distribution)),
        sum(float(c) * o.accepted for c, o in zip(chances, found, strict=True)),
        sum(float(c) * o.mass for c, o in zip(chances, found, strict=True)),
    )


def _most_likely(tree: SpeculationTree, tables: Tables) -> Tensor:
    """int64 [1, n]: a tree of the draft's most likely tokens."""
    tokens = torch.zeros(1, tree.size, dtype=torch.int64)
    for node, children in enumerate(tree.children):
        code = _codes(tree, tokens, tables.vocabulary)[0, node]
        if children:
            tokens[0, list(children)] = tables.q[tree.depths[node]][code].topk(len(children)).indices
    return tokens


def _drafts(tree: SpeculationTree, tables: Tables, replacement: bool) -> tuple[Tensor, Tensor]:
    """All drafted trees of positive probability: (tokens [m, n], probability [m])."""
    size, vocabulary = tree.size, tables.vocabulary
    tokens = torch.zeros(vocabulary ** (size - 1), size, dtype=torch.int64)
    if size > 1:
        tokens[:, 1:] = torch.cartesian_prod(*[torch.arange(vocabulary)] * (size - 1)).view(-1, size - 1)
    codes = _codes(tree, tokens, vocabulary)
    chances = torch.ones(len(tokens), dtype=torch.float64)
    for node, children in enumerate(tree.children):
        if not children:
            continue
        left = tables.q[tree.depths[node]][codes[:, node]].double()
        unused = torch.ones_like(left, dtype=torch.bool)
        for child in children:
            token = tokens[:, child, None]
            total = left.sum(-1, keepdim=True)
            # once the support is used up, an arbitrary token that no sibling carries stands for an absent child
            absent = torch.nn.functional.one_hot(unused.int().argmax(-1), vocabulary).double()
            chances *= torch.where(total > 0, left / total, absent).gather(1, token)[:, 0]
            if not replacement:
                left.scatter_(1, token, 0.0)
                unused.scatter_(1, token, False)
    return tokens[chances > 0], chances[chances > 0]


def _codes(tree: SpeculationTree, tokens: Tensor, vocabulary: int) -> Tensor:
    """[m, n]: the code of the tokens from below the root to each node."""
    codes = torch.zeros_like(tokens)
    for node in range(1, tree.size):
        codes[:, node] = codes[:, tree.parents[node]] * vocabulary + tokens[:, node]
    return codes


def _gather(tree: SpeculationTree, tables: Tables, codes: Tensor, ends: Tensor, follows: Tensor) -> Outcome:
    """`ends` [m, n]: probability that a draft is drawn and ends at a node; `follows` [m, n, V]: of the token after it."""
    vocabulary = tables.vocabulary
    carried = torch.zeros(1, dtype=torch.float64)
    for depth, level in enumerate(tree.levels):
        carried = (carried[:, None] * tables.p[depth].double()).flatten() if depth else torch.zeros(vocabulary, dtype=torch.float64)
        for node in level:
            places = codes[:, node, None] * vocabulary + torch.arange(vocabulary)
            carried.index_add_(0, places.flatten(), (ends[:, node, None] * follows[:, node]).flatten())
    accepted = float((ends.sum(0) * torch.tensor(tree.depths)).sum())
    return Outcome(carried, accepted, float(ends.sum()))


def outcomes_of_every_rule(tree: SpeculationTree, models: Tables) -> list[Outcome]:
    """The outcomes of a step by matching, and by both verifiers of children that were sampled without and with replacement."""
    return [
        matched_outcome(tree, models),
        *(
            sampled_outcome(tree, models, replacement=replacement, verifier=verifier)
            for replacement in (False, True)
            for verifier in ("sequential", "traversal")
        ),
    ]
