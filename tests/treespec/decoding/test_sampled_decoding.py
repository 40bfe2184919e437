"""Losslessness in practice: hundreds of thousands of seeded steps of the vectorised code follow the target's distribution."""

import pytest
import torch
from scipy.stats import chisquare

from tests.reference.many_steps import Markov, sequences
from tests.reference.mutants import ONE_OF_EACH, mutant
from tests.reference.pairs import tiny_pair
from tests.reference.tabular import TabularModel
from tests.reference.waits import Waits
from treespec.decoding.drafting import Drafting
from treespec.decoding.loop import Request, decode_speculative
from treespec.decoding.plans import DynamicBudget, Plan
from treespec.decoding.rules import Sampling
from treespec.decoding.sampling import distribution, prompt_generator
from treespec.decoding.step import Step, StepSpec
from treespec.kernels.outcome import Outcome
from treespec.trees.placement import Prefix
from treespec.trees.tree import SpeculationTree

VOCABULARY, LENGTH, ROOT = 32, 3, 0
COUNT = 130_000  # sequences; more than 200,000 steps
MODELS = Markov.random(VOCABULARY, 0)
ROWS = MODELS.target.tolist(), MODELS.draft.tolist()
TREE = SpeculationTree.from_paths([(0, 0), (0, 1), (1, 0), (2,)])
DRAFTINGS = [Drafting("topk"), *(Drafting(rule, verifier=verifier) for rule in ("swor", "swr") for verifier in ("sequential", "traversal"))]


def p_value(found: torch.Tensor, sampling: Sampling) -> float:
    """Chi-square over all sequences of 3 tokens; those that are expected less than 10 times are one cell."""
    p = distribution(MODELS.target.double(), sampling)
    expected = (p[ROOT][:, None, None] * p[:, :, None] * p).flatten() * len(found)
    codes = (found * torch.tensor([VOCABULARY**2, VOCABULARY, 1])).sum(1)
    counts = torch.bincount(codes, minlength=VOCABULARY**3).double()
    if counts[expected == 0].any():
        return 0.0
    often = expected >= 10
    observed = [*counts[often].tolist(), float(counts[~often].sum())]
    wanted = [*expected[often].tolist(), float(expected[~often].sum())]
    if wanted[-1] == 0:
        observed, wanted = observed[:-1], wanted[:-1]
    return float(chisquare(observed, [w * sum(observed) / sum(wanted) for w in wanted]).pvalue)


@pytest.mark.parametrize("sampling", [Sampling(1.0), Sampling(0.6, 0.9)], ids=["warm", "cool, top-p"])
@pytest.mark.parametrize("drafting", DRAFTINGS, ids=lambda d: f"{d.rule}-{d.verifier}")
def test_sequences_follow_the_target(drafting: Drafting, sampling: Sampling) -> None:
    found, steps, accepted = sequences(MODELS, TREE, sampling, drafting, ROOT, LENGTH, COUNT, seed=1)
    assert steps >= 200_000
    assert accepted > 0.3, "a draft that is hardly ever right tests little"
    assert p_value(found, sampling) > 1e-3


def test_a_draft_temperature_of_its_own_changes_nothing() -> None:
    for temperature in (0.0, 0.3, 2.0):
        found, _, _ = sequences(MODELS, TREE, Sampling(1.0), Drafting("swor", temperature), ROOT, LENGTH, COUNT // 3, seed=2)
        assert p_value(found, Sampling(1.0)) > 1e-3


@pytest.mark.parametrize(("mistake", "replacement", "verifier"), ONE_OF_EACH)
def test_planted_mistakes_are_caught(mistake: str, replacement: bool, verifier: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"treespec.decoding.verifiers.{verifier}.residual_chain", mutant(mistake))
    drafting = Drafting("swr" if replacement else "swor", verifier=verifier)
    found, _, _ = sequences(MODELS, TREE, Sampling(1.0), drafting, ROOT, LENGTH, COUNT, seed=1)
    assert p_value(found, Sampling(1.0)) < 1e-6


PLANS: list[tuple[Plan, Drafting]] = [(TREE, drafting) for drafting in DRAFTINGS]
PLANS += [(TREE, Drafting("swor", 0.0)), (TREE, Drafting("swr", 0.0)), (DynamicBudget(6, 3, 3), Drafting())]
WHOLE = pytest.mark.parametrize(("plan", "drafting"), PLANS, ids=lambda x: str(x)[:72] if isinstance(x, Drafting) else type(x).__name__)


def decoded(plan: Plan, drafting: Drafting, sampling: Sampling, index: int, length: int = LENGTH) -> list[int]:
    """One whole run of decoding after the prompt (ROOT)."""
    target = TabularModel(VOCABULARY, lambda context: ROWS[0][context[-1]])
    draft = TabularModel(VOCABULARY, lambda context: ROWS[1][context[-1]])
    request = Request((ROOT,), length, sampling=sampling)
    records = decode_speculative(target, draft, plan, request, prompt_generator(3, index, "cpu"), drafting=drafting)
    return [token for record in records for token in record.tokens]


@WHOLE
def test_whole_runs_follow_the_target(plan: Plan, drafting: Drafting) -> None:
    sampling = Sampling(0.6, 0.9)
    runs = torch.tensor([decoded(plan, drafting, sampling, index) for index in range(1200)])
    assert p_value(runs, sampling) > 1e-3


@WHOLE
def test_seeds_reproduce_outputs_exactly(plan: Plan, drafting: Drafting) -> None:
    runs = [decoded(plan, drafting, Sampling(1.0), index, 25) for index in (0, 0, 1)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2], "another stream is another text"


@WHOLE
@pytest.mark.parametrize("sampling", [Sampling(0.0), Sampling(1.0, 1e-9)], ids=["greedy", "one token"])
def test_one_possible_token_leaves_one_text(plan: Plan, drafting: Drafting, sampling: Sampling) -> None:
    expected = [ROOT]
    while len(expected) < 20:
        expected.append(int(MODELS.target[expected[-1]].argmax()))
    assert decoded(plan, drafting, sampling, 0, 19) == expected[1:]


@WHOLE
def test_opposite_supports_never_break_decoding(plan: Plan, drafting: Drafting) -> None:
    """The target knows the even tokens only, the draft the odd ones: nothing is accepted and nothing is NaN."""
    none = -float("inf")
    target = TabularModel(8, lambda context: [0.0 if token % 2 == 0 else none for token in range(8)])
    draft = TabularModel(8, lambda context: [0.0 if token % 2 else none for token in range(8)])
    request = Request((0,), 30, sampling=Sampling(1.0))
    records = list(decode_speculative(target, draft, plan, request, prompt_generator(0, 0, "cpu"), drafting=drafting))
    assert {token for record in records for token in record.tokens} == {0, 2, 4, 6}
    if drafting.rule != "topk" and drafting.temperature != 0.0:
        assert all(len(record.tokens) == 1 for record in records)


def prepared(plan: Plan, drafting: Drafting, device: str) -> tuple[Step, torch.Tensor, int]:
    """(a step, its first argument, length): a tiny pair that has read a prompt."""
    models = tiny_pair(device=device)
    prompt = torch.tensor([5, 9, 2, 7], device=device)
    for model in (models.target, models.draft):
        model.allocate(100)
        model.prefill(prompt)
    step = StepSpec(plan, Sampling(1.0, 0.9), drafting).build(models.target, models.draft)
    return step, torch.tensor([7, 3], device=device), len(prompt)


def without_reading(step: Step, last: torch.Tensor, length: int, generator: torch.Generator) -> Outcome:
    """A step before its one read by the host."""
    return step.advance(last, Prefix.of(length, last.device), 90, generator)


@WHOLE
@torch.no_grad()
def test_nothing_waits_for_a_value_before_the_read(plan: Plan, drafting: Drafting) -> None:
    step, last, length = prepared(plan, drafting, "cpu")
    generator = prompt_generator(0, 0, "cpu")
    without_reading(step, last, length, generator)
    with Waits() as waits:
        advance = without_reading(step, last, length, generator)
    assert waits.found == []
    with waits:
        assert int(advance.report[-3]) >= 0
        advance.report[0] = 1
    assert waits.found == ["_local_scalar_dense", "copy_"], "a read and a number copied are seen"


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@WHOLE
@torch.inference_mode()
def test_nothing_waits_on_cuda(plan: Plan, drafting: Drafting) -> None:
    step, last, length = prepared(plan, drafting, "cuda")
    generator = prompt_generator(0, 0, "cuda")
    without_reading(step, last, length, generator)  # what is set up once may wait
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        advance = without_reading(step, last, length, generator)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(advance.read().tokens) >= 1


@pytest.mark.gpu
@WHOLE
@torch.inference_mode()
def test_seeds_reproduce_outputs_on_cuda(plan: Plan, drafting: Drafting) -> None:
    models = tiny_pair(device="cuda")
    target, draft = models.target, models.draft

    def run(index: int) -> list[tuple[int, ...]]:
        request = Request((5, 9, 2, 7), 40, sampling=Sampling(1.0))
        generator = prompt_generator(0, index, "cuda")
        records = decode_speculative(target, draft, plan, request, generator, drafting=drafting)
        return [record.tokens for record in records]

    first = run(0)
    assert run(0) == first
    assert run(1) != first
