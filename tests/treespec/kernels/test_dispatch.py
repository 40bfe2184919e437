"""Functions that draw choose a kernel where it applies, and the plain twin everywhere else; what the kernel gives is what defines it."""

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.reference.on_cuda import on_cuda, seeds
from treespec.decoding.proposal import Proposal
from treespec.decoding.rules import Sampling
from treespec.decoding.verifiers.base import Verdict
from treespec.decoding.verifiers.sequential import Sequential
from treespec.decoding.verifiers.traversal import Traversal
from treespec.kernels import dispatch, distribution, inverse, plain, racing, residual, settling_sampled
from treespec.kernels.inverse import reference_inverse
from treespec.kernels.racing import reference_race
from treespec.kernels.vocabulary import LARGEST_COUNT, LARGEST_VOCABULARY
from treespec.trees.tensors import StaticTensors
from treespec.trees.tree import SpeculationTree

pytestmark = [pytest.mark.usefixtures("poison"), pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")]
KERNELS = [
    (racing, "race"),
    (racing, "race_by_weight"),
    (racing, "race_children"),
    (inverse, "draw_children"),
    (distribution, "distribution"),
    (residual, "run_chains"),
    (settling_sampled, "settle_sampled"),
]
TWINS = ["race", "distribution", "sample_children"]


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of kernels and plain twins in the order in which dispatch calls them. Nothing is computed."""
    calls: list[str] = []

    def replace(module: Any, name: str, said: str) -> None:
        def record(*arguments: Any, **options: Any) -> Tensor | tuple[Tensor, Tensor]:
            inspect.signature(right).bind(*arguments, **options)
            calls.append(said)
            return torch.zeros(1, 1) if module is plain else (torch.zeros(1, 1), torch.zeros(1))

        right = getattr(module, name)
        monkeypatch.setattr(module, name, record)

    for module, name in KERNELS:
        replace(module, name, f"kernel {name}")
    for name in TWINS:
        replace(plain, name, f"plain {name}")
    return calls


def star(children: int) -> StaticTensors:
    return StaticTensors.on(SpeculationTree.from_branches([[children]]), "cpu")


def logits_of(vocabulary: int = 100, dtype: torch.dtype = torch.float32, *, cuda: bool = True) -> Tensor:
    logits = torch.zeros(1, vocabulary, dtype=dtype)
    return on_cuda(logits) if cuda else logits


def sample(logits: Tensor, children: int, *, replacement: bool, seed: Tensor | None = None, temperature: float = 0.7) -> None:
    tree = star(children)
    tokens, largest = torch.zeros(tree.size, dtype=torch.int64), torch.zeros(1)
    dispatch.sample_children(logits, tree, 0, tokens, largest, temperature, replacement=replacement, generator=None, seed=seed)


SEED = torch.tensor([5])
BEYOND = pytest.mark.parametrize(
    "logits",
    [logits_of(cuda=False), logits_of(dtype=torch.float64), logits_of(LARGEST_VOCABULARY + 1), on_cuda(torch.zeros(9, 2).T[:1])],
    ids=["not on CUDA", "float64", "vocabulary", "rows in pieces"],
)


def test_the_limits_are_those_that_the_pages_state() -> None:
    assert (LARGEST_COUNT, LARGEST_VOCABULARY, residual.LARGEST_FAMILY) == (64, 262_144, 64)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_children_are_sampled_by_kernels_up_to_their_limits(dtype: torch.dtype, chosen: list[str]) -> None:
    sample(logits_of(LARGEST_VOCABULARY, dtype), 64, replacement=False, seed=SEED)
    sample(logits_of(LARGEST_VOCABULARY, dtype), 65, replacement=True, seed=SEED)
    assert chosen == ["kernel race_children", "kernel draw_children"]


@BEYOND
@pytest.mark.parametrize("replacement", [False, True])
def test_children_are_sampled_by_the_twin_beyond(logits: Tensor, replacement: bool, chosen: list[str]) -> None:
    sample(logits, 3, replacement=replacement, seed=SEED)
    assert chosen == ["plain sample_children"]


def test_copies_of_the_most_likely_token_come_from_the_twin(chosen: list[str]) -> None:
    sample(logits_of(), 3, replacement=True, seed=SEED, temperature=0.0)
    assert chosen == ["plain sample_children"]


def test_more_children_than_the_race_gives_and_no_seed_go_to_the_twin(chosen: list[str]) -> None:
    sample(logits_of(), 65, replacement=False, seed=SEED)
    sample(logits_of(), 3, replacement=False)
    sample(logits_of(), 3, replacement=True)
    assert chosen == ["plain sample_children"] * 3


def test_distributions_are_computed_by_kernels_up_to_their_limits(chosen: list[str]) -> None:
    dispatch.distribution(logits_of(LARGEST_VOCABULARY, torch.float16), 0.6, 0.9)
    dispatch.choose(logits_of(LARGEST_VOCABULARY), 0.6, 1.0, None, SEED)
    dispatch.choose(logits_of(), 0.6, 0.9, None, SEED)
    assert chosen == ["kernel distribution", "kernel race", "kernel distribution", "kernel race_by_weight"]


@BEYOND
def test_distributions_are_computed_by_the_twin_beyond(logits: Tensor, chosen: list[str]) -> None:
    dispatch.distribution(logits, 0.6)
    dispatch.choose(logits, 0.6, 0.9, None, SEED)
    assert chosen == ["plain distribution", "plain distribution", "plain race"]


def test_no_kernel_is_asked_for_the_distribution_at_temperature_0(chosen: list[str]) -> None:
    dispatch.distribution(logits_of(), 0.0)
    assert chosen == ["plain distribution"]


def finish(
    tree: SpeculationTree,
    seed: Tensor | None = SEED,
    target: torch.dtype = torch.float32,
    draft: torch.dtype = torch.float32,
    *,
    whole: bool = True,
) -> bool:
    """Whether kernels finish the step."""
    tensors = StaticTensors.on(tree, "cpu")
    tokens, rows = torch.zeros(tree.size, dtype=torch.int64), tree.levels[-1].start
    p, q = torch.zeros(tree.size, 9, dtype=target), torch.zeros(rows, 9, dtype=draft)
    p = p if whole else p.T.contiguous().T
    outcome = dispatch.finish_sampled(tokens, p, q, tensors, p[:, 0], q[:, 0], SEED, seed, replacement=False, leaves_first=True)
    return outcome is not None


def test_steps_are_finished_by_kernels_up_to_their_limits(chosen: list[str]) -> None:
    assert finish(SpeculationTree.chain(511))
    assert finish(SpeculationTree.from_branches([[64]]))
    assert finish(SpeculationTree((-1,)))
    assert chosen == ["kernel run_chains", "kernel settle_sampled"] * 3


def test_no_kernel_finishes_a_step_beyond(chosen: list[str]) -> None:
    assert not finish(SpeculationTree.chain(512))
    assert not finish(SpeculationTree.from_branches([[65]]))
    assert not finish(SpeculationTree.chain(3), seed=None)
    assert not finish(SpeculationTree.chain(3), target=torch.float64)
    assert not finish(SpeculationTree.chain(3), draft=torch.float64)
    assert not finish(SpeculationTree.chain(3), whole=False)
    assert chosen == []


def test_there_are_seeds_for_kernels_alone() -> None:
    for device in ("cpu", "mps", "xpu"):
        assert dispatch.seeds(None, 3, torch.device(device)) is None


@pytest.mark.gpu
def test_seeds_come_from_the_generator() -> None:
    def drawn(seed: int, count: int) -> list[int]:
        found = dispatch.seeds(torch.Generator("cuda").manual_seed(seed), count, torch.device("cuda"))
        assert found is not None
        assert found.dtype == torch.int64
        return found.tolist()

    assert drawn(1, 5) == drawn(1, 5)
    assert len({*drawn(1, 5), *drawn(2, 5)}) == 10


@pytest.mark.skipif(torch.cuda.is_available(), reason="the logits only say that they are on a GPU")
def test_what_is_chosen_computes_what_defines_it() -> None:
    """Each level's nodes draw by its own seed and write into their own children."""
    tree = StaticTensors.on(SpeculationTree.from_branches([[2], [3, 1]]), "cpu")
    logits = on_cuda(3 * torch.randn(2, 50, generator=torch.Generator().manual_seed(0)))
    for replacement, reference in (
        (False, lambda: reference_race(logits, 3, 0.7, 5)[0]),
        (True, lambda: reference_inverse(logits, 3, 0.7, 5)),
    ):
        tokens, largest = torch.full((tree.size,), -7), torch.full((3,), -7.0)
        dispatch.sample_children(logits, tree, 1, tokens, largest, 0.7, replacement=replacement, generator=None, seed=SEED)
        wanted = reference()
        assert tokens.tolist() == [-7] * 3 + wanted[0].tolist() + wanted[1, :1].tolist()
        assert largest.tolist() == [-7.0, *logits.amax(-1).tolist()]
    assert dispatch.choose(logits, 0.7, 1.0, None, SEED)[0].tolist() == reference_race(logits, 1, 0.7, 5)[0][:, 0].tolist()
    for top_p in (1.0, 0.8):
        p, largest = dispatch.distribution(logits, 0.7, top_p)
        torch.testing.assert_close(p, plain.distribution(logits, 0.7, top_p), check_device=False)
        assert largest.tolist() == logits.amax(-1).tolist()
    tokens, largest = dispatch.choose(logits, 0.7, 0.8, None, SEED)
    kept = plain.distribution(logits, 0.7, 0.8)
    assert tokens.tolist() == reference_race(kept.log(), 1, 1.0, 5)[0][:, 0].tolist()
    assert largest.tolist() == logits.amax(-1).tolist()


@pytest.mark.parametrize("kind", [Sequential, Traversal])
def test_kernels_do_not_take_the_place_of_a_verifier_that_weighs_in_its_own_way(
    kind: type[Sequential | Traversal], chosen: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "seeds", seeds)

    class Own(kind):  # type: ignore[misc, valid-type]
        def weigh(self, *arguments: Any, **options: Any) -> Verdict:
            raise LookupError("my own")

    class Named(kind):  # type: ignore[misc, valid-type]
        order = kind.order

        def mean_accepted(self, verdict: Verdict) -> Tensor:
            return verdict.chance.sum()

    tree = star(3)
    proposal = Proposal(tree, torch.tensor([0, 1, 2, 3]), torch.zeros(1), torch.full((1, 9), 1 / 9))
    for verifier in (kind(), Named()):
        verifier.verify(proposal, on_cuda(torch.zeros(4, 9)), Sampling(1.0), SEED, None)
        assert chosen[-2:] == ["kernel run_chains", "kernel settle_sampled"]
    chosen.clear()
    with pytest.raises(LookupError, match="my own"):
        Own().verify(proposal, torch.full((4, 9), 1.0), Sampling(1.0), SEED, None)
    assert not any("chains" in name for name in chosen)
