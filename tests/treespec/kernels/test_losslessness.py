"""Sampled steps by kernels are lossless: by exact enumeration of the chains, with planted mistakes, and by whole texts that are decoded."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import chi2, chisquare
from torch import Tensor

from tests.reference.enumeration import Tables, sampled_outcome, target_distribution, total_variation
from tests.reference.mutants import changed_module
from tests.reference.on_cuda import on_cuda, seeds
from tests.reference.tabular import TabularModel
from treespec.decoding.drafting import Drafting
from treespec.decoding.loop import Request, decode_speculative
from treespec.decoding.rules import Sampling
from treespec.decoding.sampling import prompt_generator
from treespec.decoding.verifiers.base import SampledVerifier, Verdict
from treespec.decoding.verifiers.sequential import Sequential
from treespec.decoding.verifiers.traversal import Traversal
from treespec.kernels import dispatch, plain, residual
from treespec.trees.placement import Placement
from treespec.trees.tensors import StaticTensors
from treespec.trees.tree import SpeculationTree

pytestmark = [pytest.mark.usefixtures("poison"), pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")]
RULES = [(replacement, verifier) for replacement in (False, True) for verifier in ("sequential", "traversal")]
VERIFIERS: dict[str, Callable[[], Sequential | Traversal]] = {"sequential": Sequential, "traversal": Traversal}
KINDS = {
    "dense": (3, SpeculationTree.from_paths([(0, 0), (1,)])),
    "few": (4, SpeculationTree.from_paths([(0, 0), (1,), (2,)])),
    "sharp": (3, SpeculationTree.from_paths([(0, 0), (1,)])),
}
"""Vocabulary and tree. few: the draft knows fewer tokens than a node has children. sharp: it is sure of one token, and all others have 1e-18."""
ROUNDING = 3e-6


@dataclass(frozen=True)
class ByKernel(SampledVerifier):
    """A verifier whose nodes are weighed by the kernel of residual chains; the draws are decided by its twin."""

    twin: Sequential | Traversal
    device: str
    module: Any = residual

    def weigh(self, tokens: Tensor, p: Tensor, q: Tensor, tree: StaticTensors, *, replacement: bool) -> Verdict:
        on_device = StaticTensors.on(tree.tree, self.device)
        rest = p.to(self.device, copy=True)
        seed = torch.tensor([1], device=self.device)
        leaves_first = self.twin.order == "leaves first"
        chains = self.module.run_chains(
            rest, q.to(self.device), tokens.to(self.device), on_device, seed, replacement=replacement, leaves_first=leaves_first
        )
        cut = F.pad(chains.cut.cpu(), (0, tree.size - len(q)))
        return Verdict(tree, chains.chance.cpu(), cut, rest.cpu(), q, tokens, True)  # the kernel has taken chosen children out of p

    def last(self, verdict: Verdict, uniforms: Tensor) -> Tensor:
        return self.twin.last(verdict, uniforms)

    def mean_accepted(self, verdict: Verdict) -> Tensor:
        return self.twin.mean_accepted(verdict)


def models(kind: str) -> Tables:
    """A target and a draft that part often."""
    vocabulary, tree = KINDS[kind]
    generator = torch.Generator().manual_seed(3)
    p, q = ([2 * torch.randn(vocabulary**depth, vocabulary, generator=generator) for depth in range(tree.depth + 1)] for _ in range(2))
    if kind == "few":
        q = [logits.index_fill(1, torch.arange(1, vocabulary - depth), -torch.inf) for depth, logits in enumerate(q)]
    if kind == "sharp":
        q = [
            logits + 42 * torch.eye(vocabulary).repeat(vocabulary**depth // vocabulary + 1, 1)[: len(logits)]
            for depth, logits in enumerate(q)
        ]
    return Tables(tuple(logits.softmax(-1) for logits in p), tuple(logits.softmax(-1) for logits in q))


def distance(kind: str, replacement: bool, verifier: str, device: str, module: Any = residual) -> float:
    """How far a step's outcome is from the target's distribution."""
    tables, tree = models(kind), KINDS[kind][1]
    outcome = sampled_outcome(tree, tables, replacement=replacement, verifier=ByKernel(VERIFIERS[verifier](), device, module))
    return total_variation(outcome.distribution, target_distribution(tables, tree.depth + 1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("replacement", "verifier"), RULES)
def test_steps_by_the_kernel_emit_the_targets_distribution(kind: str, replacement: bool, verifier: str, device: str) -> None:
    assert distance(kind, replacement, verifier, device) < ROUNDING


MISTAKES = {
    "residual not renormalised": ("above = tl.where(remaining > 0, remaining, above)", "above = above", "dense", RULES),
    "rejected token not removed from the draft": ("left = mass_of_others +", "left = 1.0 + 0.0 *", "dense", RULES[:2]),
    "verified as though without replacement": ("REPLACEMENT=replacement", "REPLACEMENT=False", "dense", RULES[2:]),
    "next token drawn from p": ("tl.store(cut_ptr + node, cut)", "tl.store(cut_ptr + node, 0.0)", "dense", RULES),
    "accepts too eagerly": (
        "tl.minimum(tl.maximum(accepted, 0.0), 1.0)",
        "tl.sqrt(tl.minimum(tl.maximum(accepted, 0.0), 1.0))",
        "dense",
        RULES,
    ),
    "weight of a rejected subtree not renormalised": ("surplus / whole", "surplus", "dense", RULES[1::2]),
    "weight of the path forgotten": ("weight = (entered >> 1)", "weight = 1.0 + 0.0 * (entered >> 1)", "dense", RULES[1::2]),
    "small masses of the draft are rounded": (
        "mass_of_others = receive_exactly(sums_ptr + FAMILY, SPLITS)",
        "mass_of_others = tl.floor(receive_exactly(sums_ptr + FAMILY, SPLITS) * 18014398509481984.0) / 18014398509481984.0",
        "sharp",
        RULES[:2],
    ),
    "chosen token not taken out before the next child": ("p = tl.where(column == _at(token, rank, k), 0.0, p)", "pass", "few", RULES[:2]),
    "chosen token not taken out of the rest": (
        "tl.store(p_row + token, 0.0, mask",
        "tl.store(p_row + token, child_p, mask",
        "few",
        RULES[:2],
    ),
}
"""Name -> (the right code, the wrong code, with which models it shows, for which (replacement, verifier) it is wrong)."""


ONE_OF_EACH = [(name, *wrong[turn % len(wrong)]) for turn, (name, (_, _, _, wrong)) in enumerate(MISTAKES.items())]


@pytest.mark.parametrize(("mistake", "replacement", "verifier"), ONE_OF_EACH)
def test_mistakes_are_seen(mistake: str, replacement: bool, verifier: str, tmp_path: Path, device: str) -> None:
    right, wrong, kind, _ = MISTAKES[mistake]
    module = changed_module(residual, right, wrong, tmp_path)
    assert distance(kind, replacement, verifier, device, module) > 1e-3


# -- whole texts: drafting and verification ask `dispatch`, which is made to choose the kernels here --

VOCABULARY = 3
CHANCES = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.2, 0.7], [0.2, 0.7, 0.1]])
"""The target's distribution after each token."""
DRAFTED = torch.tensor([[0.1, 0.1, 0.8], [0.7, 0.2, 0.1], [0.1, 0.2, 0.7]])


class OnCudaModel(TabularModel):
    """Looks at the last token alone, and says that its logits are on a GPU."""

    def __init__(self, chances: Tensor) -> None:
        rows = chances.log().tolist()
        super().__init__(VOCABULARY, lambda context: rows[context[-1]])

    def prefill(self, tokens: Tensor, pixels: Tensor | None = None) -> Tensor:
        return on_cuda(super().prefill(tokens, pixels))

    def forward(self, tokens: Tensor, place: Placement, keep: Tensor | None = None) -> Tensor:
        return on_cuda(super().forward(tokens, place, keep))


def p_value(tokens: list[int]) -> float:
    """Chi-square over what follows each token in a text."""
    counts = torch.zeros(VOCABULARY, VOCABULARY)
    for before, after in pairwise(tokens):
        counts[before, after] += 1
    found = chisquare(counts, CHANCES * counts.sum(1, keepdim=True), axis=1).statistic.sum()
    return float(chi2.sf(found, VOCABULARY * (VOCABULARY - 1)))


def decoded(replacement: bool, verifier: str, length: int, monkeypatch: pytest.MonkeyPatch) -> tuple[list[int], int]:
    """A text of so many tokens by kernels alone, and how many drafted tokens were accepted."""
    monkeypatch.setattr(dispatch, "seeds", seeds)
    for name in ("sample_children", "distribution", "race"):
        monkeypatch.setattr(plain, name, None)
    monkeypatch.setattr(VERIFIERS[verifier], "weigh", None)
    tree = SpeculationTree.from_paths([(0, 0), (1,)])
    drafting = Drafting("swr" if replacement else "swor", verifier=verifier)
    target, draft = OnCudaModel(CHANCES), OnCudaModel(DRAFTED)
    request = Request((0,), length, sampling=Sampling(1.0))
    records = list(decode_speculative(target, draft, tree, request, prompt_generator(0, 0, "cpu"), drafting=drafting))
    return [token for record in records for token in record.tokens], sum(len(record.accepted or ()) for record in records)


ON_CPU = pytest.mark.skipif(torch.cuda.is_available(), reason="the models are on the CPU")


@ON_CPU
@pytest.mark.parametrize(("replacement", "verifier"), RULES)
def test_texts_by_kernels_follow_the_target(replacement: bool, verifier: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, accepted = decoded(replacement, verifier, 48, monkeypatch)
    assert accepted > 12
    assert p_value([0, *tokens]) > 1e-2


@ON_CPU
def test_a_mistake_is_seen_in_a_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right, wrong, _, _ = MISTAKES["accepts too eagerly"]
    monkeypatch.setattr(residual, "run_chains", changed_module(residual, right, wrong, tmp_path).run_chains)
    tokens, _ = decoded(False, "sequential", 80, monkeypatch)
    assert p_value([0, *tokens]) < 1e-4
