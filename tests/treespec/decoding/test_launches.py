"""How many launches stand between the passes of a sampled step: as many as docs/engine.md says, for a tree of 256 nodes as for one of 16."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.reference.fixed import FixedModel
from tests.reference.on_cuda import on_cuda, seeds
from treespec.decoding.drafters.base import DrafterSetup
from treespec.decoding.drafters.static import StaticDrafter
from treespec.decoding.drafting import Drafting
from treespec.decoding.engine import CapturedSteps
from treespec.decoding.rules import Sampling
from treespec.decoding.step import Step, StepSpec
from treespec.decoding.timing import NoTimer
from treespec.decoding.verifiers import VERIFIERS
from treespec.kernels import dispatch
from treespec.trees.placement import Prefix
from treespec.trees.tree import SpeculationTree

VOCABULARY, DEPTH = 32_000, 5
WAYS = pytest.mark.parametrize(
    ("drafting", "sampling"),
    [(Drafting(rule, verifier=verifier), Sampling(0.7, top_p)) for rule, verifier, top_p in (
        ("swor", "sequential", 1.0), ("swor", "traversal", 0.9), ("swr", "sequential", 0.9), ("swr", "traversal", 1.0)
    )],
    ids=lambda way: f"{way.rule} {way.verifier}" if isinstance(way, Drafting) else f"{way.top_p:g}",
)  # fmt: skip
PER_LEVEL, MORE_IN_DRAFTING, AFTER_THE_TARGET, MORE_WITH_TOP_P = 2, 4, 7, 2
OF_OUR_OWN = {1.0: 7, 0.9: 8}
"""By top-p, the kernels of our own beside those of the levels. The others are draws of seeds, words that are set to 0, and the copy of the logits."""


def tree_of(width: int) -> SpeculationTree:
    """A tree with so many nodes on every level below its root."""
    tree = SpeculationTree.from_parents([-1, *[0] * width, *range(1, 1 + width * (DEPTH - 1))])
    assert (tree.size, tree.depth) == (1 + width * DEPTH, DEPTH)
    return tree


SMALL, LARGE = tree_of(3), tree_of(51)
UNEVEN = SpeculationTree.from_branches([[3], [2, 1, 0], [2, 0, 1], [1, 1, 0], [0, 1]])


# -- on a GPU, launches are counted --


def launches(what: Any) -> list[str]:
    """The names of what runs on the device in one call, copies and fills included."""
    what()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        what()
        torch.cuda.synchronize()
    return [event.name for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]


@torch.inference_mode()
def between_passes(tree: SpeculationTree, sampling: Sampling, drafting: Drafting) -> tuple[int, int]:
    """(launches of drafting beside the draft's passes, launches after the target's pass)."""
    generator = torch.Generator("cuda").manual_seed(0)
    model: Any = FixedModel.random(tree.size, VOCABULARY, "cuda")
    drafter = StaticDrafter(tree, DrafterSetup(model, torch.device("cuda"), VOCABULARY, sampling, drafting))
    last, length = torch.tensor([1, 4], device="cuda"), torch.tensor([2], device="cuda")

    def propose() -> Any:
        return drafter.propose(last, Prefix(length), 1 << 30, generator, NoTimer())

    verifier, proposal = VERIFIERS[drafting.verifier].make(), propose()
    after = launches(lambda: verifier.verify(proposal, model.logits, sampling, length, generator))
    return len(launches(propose)), len(after)


@pytest.mark.gpu
@pytest.mark.parametrize("tree", [SMALL, UNEVEN, LARGE], ids=["small", "uneven", "large"])
def test_greedy_steps_and_sampled_choices(tree: SpeculationTree) -> None:
    drafting, after = between_passes(tree, Sampling(), Drafting())
    assert after == 3
    assert between_passes(tree, Sampling(0.6), Drafting()) == (drafting, 4)
    assert between_passes(tree, Sampling(0.6, 0.9), Drafting()) == (drafting, 8)


@pytest.mark.gpu
@WAYS
def test_sampled_steps_take_the_same_launches_whatever_the_tree(drafting: Drafting, sampling: Sampling) -> None:
    greedy, _ = between_passes(SMALL, Sampling(), Drafting())
    after = AFTER_THE_TARGET + (MORE_WITH_TOP_P if sampling.top_p < 1 else 0)
    for tree in (SMALL, UNEVEN, LARGE):
        assert between_passes(tree, sampling, drafting) == (greedy + MORE_IN_DRAFTING, after)


@pytest.mark.gpu
@WAYS
def test_captured_steps_take_them_too(drafting: Drafting, sampling: Sampling) -> None:
    """Beside those between the passes, a step copies its state and its report, and seeds its generator."""

    def launched(tree: SpeculationTree) -> list[str]:
        model: Any = FixedModel.random(tree.size, VOCABULARY, "cuda")
        steps = CapturedSteps(StepSpec(tree, sampling, drafting).build(model, model), torch.device("cuda"))
        steps.begin(torch.tensor([1, 4], device="cuda"), 9, None)

        def step() -> None:
            steps.launch(100)
            torch.cuda.synchronize()
            steps.read(9)

        return launches(step)

    small, large = launched(SMALL), launched(LARGE)
    assert len(small) == len(large), f"{small}\n{large}"
    assert PER_LEVEL * DEPTH < len(small) <= PER_LEVEL * DEPTH + 24, small


# -- elsewhere, kernels are asked for, but not run --


class Operations(TorchDispatchMode):
    """Collects the names of what runs outside of kernels of our own."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view:
            self.names.append(func.__name__)
        return func(*args, **kwargs or {})


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU, launches themselves are counted")
@WAYS
def test_a_step_asks_for_the_same_launches_whatever_the_tree(
    drafting: Drafting, sampling: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    from triton.runtime.interpreter import InterpretedFunction

    monkeypatch.setattr(dispatch, "seeds", seeds)

    def step_of(tree: SpeculationTree) -> Step:
        fixed = FixedModel.random(tree.size, VOCABULARY, "cpu")
        model: Any = FixedModel(on_cuda(fixed.logits))
        return StepSpec(tree, sampling, drafting).build(model, model)

    def asked(tree: SpeculationTree) -> tuple[list[str], list[str]]:
        step, kernels = step_of(tree), []
        monkeypatch.setattr(InterpretedFunction, "run", lambda self, *_, **__: kernels.append(self.fn.__name__))
        last, prefix, generator = torch.tensor([1, 4]), Prefix.of(9, "cpu"), torch.Generator()
        step.advance(last, prefix, 1000, generator)  # what is made once
        kernels.clear()
        with Operations() as operations:
            step.advance(last, prefix, 1000, generator)
        return kernels, [name for name in operations.names if not name.startswith(("empty", "detach"))]

    small = asked(SMALL)
    assert len(small[0]) == PER_LEVEL * DEPTH + OF_OUR_OWN[sampling.top_p]
    others = 1 + MORE_IN_DRAFTING + AFTER_THE_TARGET - OF_OUR_OWN[1.0] + (sampling.top_p < 1)  # the first is the root's token
    assert len(small[1]) == others, small[1]
    for tree in (UNEVEN, LARGE):
        assert asked(tree) == small
