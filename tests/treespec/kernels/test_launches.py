"""A sampled step takes a handful of launches, and as many for a tree of 256 nodes as for one of 16 of the same depth."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.reference.on_cuda import on_cuda, seeds
from treespec.decoding.drafting import Drafting
from treespec.decoding.engine import CapturedSteps
from treespec.decoding.rules import Sampling
from treespec.decoding.step import Step, StepSpec
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


class FixedModel:
    """A model that launches nothing: it gives logits that are there already."""

    def __init__(self, rows: int, device: str) -> None:
        logits = torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(0)).expand(rows, -1).half().to(device).contiguous()
        self.logits = logits if logits.is_cuda else on_cuda(logits)
        self.vocabulary_size, self.device = VOCABULARY, self.logits.device

    def forward(self, tokens: Tensor, place: object, keep: Tensor | None = None) -> Tensor:
        return self.logits[: tokens.shape[0]]

    def move(self, prefix: Prefix, offsets: Tensor, first: int) -> None:
        pass


def step_of(width: int, drafting: Drafting, sampling: Sampling, device: str) -> Step:
    """Of a tree of so many nodes on every level below its root."""
    tree = SpeculationTree.from_parents([-1, *[0] * width, *range(1, 1 + width * (DEPTH - 1))])
    assert (tree.size, tree.depth) == (1 + width * DEPTH, DEPTH)
    model: Any = FixedModel(tree.size, device)
    return StepSpec(tree, sampling, drafting).build(model, model)


@pytest.mark.gpu
@WAYS
def test_a_captured_step_takes_as_many_launches_for_every_tree_of_a_depth(drafting: Drafting, sampling: Sampling) -> None:
    def launched(width: int) -> list[str]:
        steps = CapturedSteps(step_of(width, drafting, sampling, "cuda"), torch.device("cuda"))
        steps.begin(torch.tensor([1, 4], device="cuda"), 9, None)
        for _ in range(2):
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
                steps.launch(100)
                torch.cuda.synchronize()
            steps.read(9)
        return [event.name for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]

    small, large = launched(3), launched(51)
    assert len(small) == len(large), f"{small}\n{large}"
    assert 2 * DEPTH < len(small) <= 2 * DEPTH + 24, small


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
def test_a_step_asks_for_as_many_launches_for_every_tree_of_a_depth(
    drafting: Drafting, sampling: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels are asked for, but not run."""
    from triton.runtime.interpreter import InterpretedFunction

    monkeypatch.setattr(dispatch, "seeds", seeds)

    def asked(width: int) -> tuple[list[str], list[str]]:
        step, kernels = step_of(width, drafting, sampling, "cpu"), []
        monkeypatch.setattr(InterpretedFunction, "run", lambda self, *_, **__: kernels.append(self.fn.__name__))
        last, prefix, generator = torch.tensor([1, 4]), Prefix.of(9, "cpu"), torch.Generator()
        step.advance(last, prefix, 1000, generator)  # what is made once
        kernels.clear()
        with Operations() as operations:
            step.advance(last, prefix, 1000, generator)
        return kernels, [name for name in operations.names if not name.startswith(("empty", "detach"))]

    small, large = asked(3), asked(51)
    assert small == large
    assert len(small[0]) == 2 * DEPTH + (8 if sampling.top_p < 1 else 7)
    assert len(small[1]) <= 10, small[1]
