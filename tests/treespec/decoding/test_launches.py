"""How many launches stand between the passes of a sampled step: as many as docs/engine.md says, whatever the tree."""

from typing import Any

import pytest
import torch
from torch import Tensor

from treespec.decoding.drafters.base import DrafterSetup
from treespec.decoding.drafters.static import StaticDrafter
from treespec.decoding.drafting import Drafting
from treespec.decoding.rules import Sampling
from treespec.decoding.timing import NoTimer
from treespec.decoding.verifiers import VERIFIERS
from treespec.trees.placement import Prefix
from treespec.trees.tree import SpeculationTree

pytestmark = pytest.mark.gpu
VOCABULARY = 32_000
TREES = [SpeculationTree.chain(4), SpeculationTree.from_branches([[3], [2, 1, 0], [2, 0, 1], [1, 1, 0]])]
"""Two trees of the same depth."""
MORE_IN_DRAFTING, MORE_WITH_TOP_P = 4, 2


class FixedDraft:
    """A draft that launches nothing: it gives logits that are there already."""

    def __init__(self, logits: Tensor) -> None:
        self.logits, self.vocabulary_size, self.device = logits, logits.shape[1], logits.device

    def forward(self, tokens: Tensor, place: object, keep: Tensor | None = None) -> Tensor:
        return self.logits[: tokens.shape[0]]


def launches(what: Any) -> int:
    """What runs on the device in one call, copies and fills included."""
    what()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        what()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profile.events())


@torch.inference_mode()
def between_passes(tree: SpeculationTree, sampling: Sampling, drafting: Drafting) -> tuple[int, int]:
    """(launches of drafting beside the draft's passes, launches after the target's pass)."""
    generator = torch.Generator("cuda").manual_seed(0)
    logits = torch.randn(64, VOCABULARY, device="cuda", dtype=torch.float16)
    draft: Any = FixedDraft(logits)
    drafter = StaticDrafter(tree, DrafterSetup(draft, torch.device("cuda"), VOCABULARY, sampling, drafting))
    last, length = torch.tensor([1, 4], device="cuda"), torch.tensor([2], device="cuda")

    def propose() -> Any:
        return drafter.propose(last, Prefix(length), 1 << 30, generator, NoTimer())

    verifier, proposal = VERIFIERS[drafting.verifier].make(), propose()
    return launches(propose), launches(lambda: verifier.verify(proposal, logits[: tree.size], sampling, length, generator))


@pytest.mark.parametrize("verifier", ["sequential", "traversal"])
@pytest.mark.parametrize("rule", ["swor", "swr"])
def test_a_sampled_step_takes_the_same_launches_whatever_the_tree(rule: str, verifier: str) -> None:
    drafting = Drafting(rule, verifier=verifier)
    (greedy, after_greedy), *_ = (between_passes(tree, Sampling(), Drafting()) for tree in TREES)
    assert after_greedy == 3
    for tree in TREES:
        assert between_passes(tree, Sampling(0.6), drafting) == (greedy + MORE_IN_DRAFTING, 7)
        assert between_passes(tree, Sampling(0.6, 0.9), drafting) == (greedy + MORE_IN_DRAFTING, 7 + MORE_WITH_TOP_P)


def test_a_sampled_choice_takes_four_launches_and_four_more_with_top_p() -> None:
    for tree in TREES:
        assert between_passes(tree, Sampling(0.6), Drafting())[1] == 4
        assert between_passes(tree, Sampling(0.6, 0.9), Drafting())[1] == 8
