"""Residual chains and the end of a sampled step in kernels, against the verifiers that define them, draw for draw."""

from itertools import product

import pytest
import torch
from torch import Tensor

from treespec.decoding.rules import Sampling
from treespec.decoding.sampling import distribution
from treespec.decoding.verifiers.sequential import Sequential
from treespec.decoding.verifiers.traversal import Traversal
from treespec.kernels.noise import reference_bits, reference_exponential
from treespec.kernels.plain import draw, draw_distinct, settle
from treespec.kernels.residual import run_chains
from treespec.kernels.settling_sampled import settle_sampled
from treespec.trees.tensors import StaticTensors
from treespec.trees.tree import SpeculationTree

pytestmark = [pytest.mark.usefixtures("poison"), pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")]
VERIFIERS = pytest.mark.parametrize("verifier", [Sequential(), Traversal()], ids=["sequential", "traversal"])
REPLACEMENT = pytest.mark.parametrize("replacement", [False, True], ids=["swor", "swr"])
TREES = {
    "root": SpeculationTree((-1,)),
    "chain": SpeculationTree.chain(4),
    "star": SpeculationTree.from_branches([[9]]),
    "mixed": SpeculationTree.from_parents([-1, 0, 0, 0, 1, 1, 3, 4, 4, 4, 6, 7]),
    "wide": SpeculationTree.from_parents([-1, *[0] * 5, *[1] * 17, *[2] * 3, 6, 6, 22]),
}
HEATS = {
    "warm": (Sampling(1.0), Sampling(1.0)),
    "top-p": (Sampling(0.6, 0.9), Sampling(0.6)),
    "sharp draft": (Sampling(0.8), Sampling(0.02)),
    "sharp both": (Sampling(0.02), Sampling(0.05)),
}


def step(
    tree: SpeculationTree, vocabulary: int, shared: int, heats: tuple[Sampling, Sampling], replacement: bool, seed: int
) -> tuple[Tensor, ...]:
    """Return (tokens, p, q) of a step; the draft knows the first `shared` tokens."""
    generator = torch.Generator().manual_seed(seed)
    above = tree.levels[-1].start
    target = torch.randn(tree.size, vocabulary, generator=generator) * 3
    drafted = target[:above, :shared] + torch.randn(above, shared, generator=generator)
    p, q = distribution(target, heats[0]), distribution(drafted, heats[1])
    tokens = torch.zeros(tree.size, dtype=torch.int64)
    for node, children in enumerate(tree.children[:above]):
        if children:
            row = slice(node, node + 1)
            count = len(children)
            found = draw(q[row], count, generator) if replacement else draw_distinct(q[row], drafted[row], count, generator)
            tokens[list(children)] = found[0]
    return tokens, p, q


def ends(verifier: Sequential | Traversal, chance: Tensor, tree: StaticTensors) -> Tensor:
    """Return the probability that each node is the last one, float64 [n]. Chances behind what has no probability may be anything."""
    chance = chance.double().clone()
    if isinstance(verifier, Traversal):
        chance[0] = 1  # the root is last if no other node is
        order = tree.bottom_up.argsort()
        before = (1 - chance[order]).cumprod(0).roll(1)
        before[0] = 1
        return torch.zeros_like(chance).index_copy(0, order, before * chance[order])
    taken = chance * (1 - chance)[None].expand(len(chance), -1).where(tree.elder, 1.0).prod(-1)
    taken[0] = 1
    reached = taken[None].expand(len(chance), -1).where(tree.ancestors, 1.0).prod(-1)
    below = torch.zeros_like(reached).index_add(0, tree.parents[1:], reached[1:])
    return reached - below


@VERIFIERS
@REPLACEMENT
@pytest.mark.parametrize(("shape", "heat"), list(product(TREES, HEATS)))
def test_a_step_is_the_verifier_s(shape: str, heat: str, replacement: bool, verifier: Sequential | Traversal, device: str) -> None:
    """The nodes end a step as often, and leave the same rest, to rounding; with the same numbers, the same node is last and the same token follows.

    Cases in the interpreter, which is slow, take the vocabularies in turn.
    """
    tree, leaves_first = StaticTensors.on(TREES[shape], device), verifier.order == "leaves first"
    turn = list(HEATS).index(heat) + 4 * replacement + 8 * leaves_first
    for number, (vocabulary, shared) in enumerate(((60, 60), (60, 50), (2100, 2100))):
        if device == "cpu" and number != (turn + list(TREES).index(shape)) % 3:
            continue
        tokens, p, q = (part.to(device) for part in step(TREES[shape], vocabulary, shared, HEATS[heat], replacement, number))
        verdict = verifier.weigh(tokens, p, torch.nn.functional.pad(q, (0, vocabulary - shared)), tree, replacement=replacement)
        seed = 1 + 77 * (number + 3 * turn)  # other draws in every case
        on_device, overwritten = torch.tensor([seed], device=device), p.clone()
        chains = run_chains(overwritten, q, tokens, tree, on_device, replacement=replacement, leaves_first=leaves_first)
        if len(q):
            wanted = ends(verifier, verdict.chance, tree)
            torch.testing.assert_close(ends(verifier, chains.chance, tree), wanted, rtol=0, atol=1e-5)
            likely = wanted[: len(q)] > 1e-3  # where a rest is drawn from
            torch.testing.assert_close(chains.cut[likely], verdict.cut[: len(q)][likely], rtol=1e-3, atol=1e-4)
        largest, drafted = torch.randn(tree.size, device=device), torch.randn(len(q), device=device)
        length = torch.tensor([41], device=device)
        found = settle_sampled(tokens, overwritten, q, chains, tree, on_device, largest, drafted, length, leaves_first=leaves_first)
        uniforms = (reference_bits(seed, 0, torch.arange(tree.size) * 4).double() * 2.0**-32).to(device)
        last = verifier.last(verdict, uniforms)
        clocks = reference_exponential(reference_bits(seed, 1, torch.arange(vocabulary))).to(device)
        expected = settle(tokens, last, (verdict.rest(last) / clocks).argmax(), tree, largest, drafted, length)
        for one, other in ((found.path, expected.path), (found.report, expected.report), (found.state, expected.state)):
            assert one.tolist() == other.tolist()


def test_damaged_logits_end_in_a_report_that_says_so(device: str) -> None:
    """NaN everywhere must neither hang a chain nor give a token outside the vocabulary."""
    tree = StaticTensors.on(TREES["mixed"], device)
    tokens, p, q = (part.to(device) for part in step(TREES["mixed"], 60, 60, HEATS["warm"], False, 0))
    seed, length = torch.tensor([3], device=device), torch.tensor([9], device=device)
    for leaves_first in (False, True):
        bad = torch.full_like(p, float("nan"))
        chains = run_chains(bad, q, tokens, tree, seed, replacement=False, leaves_first=leaves_first)
        largest = torch.full((tree.size,), float("nan"), device=device)
        report = settle_sampled(
            tokens, bad, q, chains, tree, seed, largest, torch.zeros(len(q), device=device), length, leaves_first=leaves_first
        ).read()
        assert not report.target_sound
        assert all(0 <= token < 60 for token in report.tokens)


def test_the_draft_s_rows_stay_as_they_are(device: str) -> None:
    tree = StaticTensors.on(TREES["wide"], device)
    tokens, p, q = (part.to(device) for part in step(TREES["wide"], 60, 60, HEATS["sharp draft"], False, 0))
    before = q.clone()
    run_chains(p, q, tokens, tree, torch.tensor([1], device=device), replacement=False, leaves_first=True)
    assert torch.equal(q, before)
