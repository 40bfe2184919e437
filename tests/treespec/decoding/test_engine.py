"""Steps that run ahead of their reading change nothing; on a GPU, captured steps are eager steps."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.reference.pairs import tiny_pair
from tests.reference.pipelined import PipelinedSteps
from tests.reference.tabular import TabularModel, noisy_rule, random_rule
from treespec.decoding.drafting import Drafting
from treespec.decoding.engine import CacheBudget, CapturedSteps, Engine
from treespec.decoding.loop import Request, StepRecord, decode, decode_autoregressive, decode_speculative
from treespec.decoding.plans import DynamicBudget, Plan
from treespec.decoding.rules import Sampling
from treespec.decoding.sampling import prompt_generator
from treespec.decoding.step import AutoregressiveStep, Step, StepSpec
from treespec.decoding.timing import CapturedTimer, now
from treespec.models.tree_model import TreeModel
from treespec.trees.tree import SpeculationTree

RULE = random_rule(11, 0)
TREE = SpeculationTree.from_branches([[3], [2, 1, 0], [1, 1, 1]])
PLANS: dict[str, tuple[Plan, Drafting]] = {
    "topk": (TREE, Drafting()),
    "swor": (TREE, Drafting("swor")),
    "swr": (TREE, Drafting("swr")),
    "swor traversal": (TREE, Drafting("swor", verifier="traversal")),
    "swr traversal": (TREE, Drafting("swr", verifier="traversal")),
    "swor cold": (TREE, Drafting("swor", 0.0)),
    "dynamic": (DynamicBudget(8, 3, 4), Drafting()),
    "chain": (SpeculationTree.chain(2), Drafting()),
}
WHOLE = pytest.mark.parametrize(("plan", "drafting"), PLANS.values(), ids=PLANS)


def tabular() -> tuple[TabularModel, TabularModel]:
    return TabularModel(11, RULE), TabularModel(11, noisy_rule(RULE, 11, 1, 0.6))


def pipelined(step: Step, request: Request, ahead: int, plan: Plan | None, draft: TabularModel | None) -> tuple[list[StepRecord], int]:
    """(records, steps launched) of the production loop over steps that are read `ahead` of them late."""
    steps = PipelinedSteps(step, ahead)
    slots = request.slots(1 if plan is None else plan.size)
    CacheBudget.of(slots, plan).allocate(step.target, draft, captured=True)
    records = list(decode(steps, request, slots, prompt_generator(0, 0, "cpu"), depth=0 if plan is None else plan.depth))
    return records, steps.launched


@WHOLE
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0, 0.9)], ids=["greedy", "sampled"])
def test_reading_one_step_late_changes_nothing(plan: Plan, drafting: Drafting, sampling: Sampling) -> None:
    request = Request((1, 2, 3), 40, sampling=sampling)
    target, draft = tabular()
    wanted = list(decode_speculative(target, draft, plan, request, prompt_generator(0, 0, "cpu"), drafting=drafting))
    target, draft = tabular()
    found, launched = pipelined(StepSpec(plan, sampling, drafting).build(target, draft), request, 1, plan, draft)
    assert [r.tokens for r in found] == [r.tokens for r in wanted]
    assert [r.accepted for r in found] == [r.accepted for r in wanted]
    assert launched == len(found) - 1, "no step is launched in vain; the first record is the prompt's"


@pytest.mark.parametrize("gen_len", [1, 2, 17])
def test_autoregressive_steps_are_never_launched_for_nothing(gen_len: int) -> None:
    target, _ = tabular()
    found, launched = pipelined(AutoregressiveStep(target, Sampling()), Request((1, 2, 3), gen_len), 1, None, None)
    assert sum(len(r.tokens) for r in found) == gen_len
    assert launched == gen_len - 1


def test_what_comes_after_the_end_of_a_text_is_dropped() -> None:
    target, draft = tabular()
    free = [t for r in decode_speculative(target, draft, TREE, Request((1, 2, 3), 40)) for t in r.tokens]
    eos = free[7]
    request = Request((1, 2, 3), 40, frozenset({eos}))
    target, draft = tabular()
    found, _ = pipelined(StepSpec(TREE).build(target, draft), request, 1, TREE, draft)
    assert [t for r in found for t in r.tokens] == free[: free.index(eos) + 1]


@pytest.mark.parametrize("capacity", [4, 5, 9, 20])
def test_whole_trees_at_the_last_slots_leave_the_text_alone(capacity: int) -> None:
    request = Request((1, 2, 3), 40, capacity=capacity)
    target, draft = tabular()
    wanted = [t for r in decode_speculative(target, draft, TREE, request) for t in r.tokens]
    target, draft = tabular()
    found, _ = pipelined(StepSpec(TREE).build(target, draft), request, 1, TREE, draft)
    assert [t for r in found for t in r.tokens] == wanted


@WHOLE
@pytest.mark.parametrize("drafted", [4, 5, 9, 20])
def test_steps_that_are_read_late_end_where_the_draft_can_read_no_further(plan: Plan, drafting: Drafting, drafted: int) -> None:
    """Whole trees are drafted as long as the first node has a position; then the target goes on alone, on the same text and random stream."""
    request = Request((1, 2, 3), 30, drafted=drafted)
    target, draft = tabular()
    wanted = [t for r in decode_autoregressive(target, request) for t in r.tokens]
    target, draft = tabular()
    eager = list(decode_speculative(target, draft, plan, request, prompt_generator(0, 0, "cpu"), drafting=drafting))
    target, draft = tabular()
    spec, slots = StepSpec(plan, request.sampling, drafting), request.slots(plan.size)
    steps, alone = (PipelinedSteps(each.build(target, draft), 1) for each in (spec, StepSpec(None)))
    CacheBudget.of(slots, plan).allocate(target, draft, captured=True)
    late = list(decode(steps, request, slots, prompt_generator(0, 0, "cpu"), alone, plan.depth))
    for records in (eager, late):
        assert [t for r in records for t in r.tokens] == wanted
        lengths = [2 + sum(len(r.tokens) for r in records[:i]) for i in range(1, len(records))]
        late_by = 0 if records is eager else 1  # a step may have been launched before the last one was read
        first = next(i for i, length in enumerate(lengths) if length >= drafted)
        assert next(i for i, r in enumerate(records[1:]) if r.alone) - first in range(late_by + 1)
        assert all(r.alone for r in records[2 + first + late_by :])
    assert alone.launched == sum(r.alone for r in late)


@pytest.mark.gpu
@WHOLE
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0, 0.9)], ids=["greedy", "sampled"])
def test_captured_steps_go_on_alone_behind_the_positions_of_the_draft(plan: Plan, drafting: Drafting, sampling: Sampling) -> None:
    pair = tiny_pair(device="cuda")
    engine = Engine(pair.target, pair.draft)
    request = Request((5, 9, 2, 7), 40, sampling=sampling, drafted=20)
    records = [
        list(decode_speculative(pair.target, pair.draft, plan, request, prompt_generator(0, 0, "cuda"), drafting=drafting, engine=engine))
        for _ in range(2)
    ]
    assert engine.eager() is None
    assert [r.tokens for r in records[0]] == [r.tokens for r in records[1]], "kept steps begin anew"
    assert 0 < sum(r.alone for r in records[0]) <= 24
    if sampling.greedy:
        wanted = [t for r in decode_autoregressive(pair.target, request, engine=engine) for t in r.tokens]
        assert [t for r in records[0] for t in r.tokens] == wanted


def test_an_engine_that_cannot_capture_says_so_once_and_runs_eagerly() -> None:
    pair = tiny_pair()
    said: list[str] = []
    engine = Engine(pair.target, pair.draft, said.append)
    wanted = list(decode_speculative(pair.target, pair.draft, TREE, Request((1, 2), 9)))
    for _ in range(2):
        assert list(decode_speculative(pair.target, pair.draft, TREE, Request((1, 2), 9), engine=engine)) == wanted
    assert said == [f"{pair.target.name} runs eagerly: kernels are for CUDA"]


def test_a_model_that_says_nothing_of_captures_runs_eagerly() -> None:
    said: list[str] = []
    target, draft = tabular()
    wanted = list(decode_speculative(target, draft, TREE, Request((1, 2), 9)))
    assert list(decode_speculative(target, draft, TREE, Request((1, 2), 9), engine=Engine(target, draft, said.append))) == wanted
    assert said == ["TabularModel runs eagerly: it is no CapturableModel"]


# -- on a GPU -----------------------------------------------------------------------------------------------------------


def eager_pair() -> tuple[TreeModel, TreeModel]:
    """The tiny pair by the modules' own attention."""
    pair = tiny_pair(device="cuda")
    return TreeModel(pair.target.module, kernels=False), TreeModel(pair.draft.module, kernels=False)


def tokens_of(records: list[StepRecord]) -> list[int]:
    return [token for record in records for token in record.tokens]


@pytest.mark.gpu
@WHOLE
@torch.inference_mode()
def test_captured_steps_are_eager_steps(plan: Plan, drafting: Drafting) -> None:
    """Greedily, token for token and step for step (float32), from prompt to prompt and beyond what was captured first."""
    pair = tiny_pair(device="cuda")
    target, draft = eager_pair()
    engine = Engine(pair.target, pair.draft)
    for prompt, gen_len in (((5, 9, 2, 7), 40), ((1, 2), 25), ((3,) * 30, 60), ((5, 9, 2, 7), 40)):
        request = Request(prompt, gen_len)
        streams = [prompt_generator(0, 0, "cuda") for _ in range(2)]
        wanted = list(decode_speculative(target, draft, plan, request, streams[0], drafting=drafting))
        found = list(decode_speculative(pair.target, pair.draft, plan, request, streams[1], drafting=drafting, engine=engine))
        assert tokens_of(found) == tokens_of(wanted)
        if not drafting.samples(request.sampling):
            assert [r.accepted for r in found] == [r.accepted for r in wanted]
    assert engine.eager() is None


@pytest.mark.gpu
@WHOLE
@torch.inference_mode()
def test_captured_sampling_is_reproducible_and_follows_the_prompts_stream(plan: Plan, drafting: Drafting) -> None:
    pair = tiny_pair(device="cuda")
    engine = Engine(pair.target, pair.draft)

    def run(index: int) -> list[int]:
        request = Request((5, 9, 2, 7), 40, sampling=Sampling(1.0))
        generator = prompt_generator(0, index, "cuda")
        return tokens_of(list(decode_speculative(pair.target, pair.draft, plan, request, generator, drafting=drafting, engine=engine)))  # type: ignore[arg-type]

    first = run(0)
    assert run(1) != first
    assert run(0) == first


@pytest.mark.gpu
@torch.inference_mode()
def test_captured_autoregressive_decoding() -> None:
    pair = tiny_pair(device="cuda")
    target, _ = eager_pair()
    engine = Engine(pair.target)
    for prompt in ((5, 9, 2, 7), (1, 2)):
        request = Request(prompt, 50)
        assert tokens_of(list(decode_autoregressive(pair.target, request, engine=engine))) == tokens_of(
            list(decode_autoregressive(target, request))
        )


@pytest.mark.gpu
@pytest.mark.parametrize("slow", ["drafting", "target"])
@torch.inference_mode()
def test_a_captured_step_charges_its_time_to_the_part_that_takes_it(slow: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One model's passes are made to wait for 10 ms or more on the device: its parts take that, and all together no more than the replay."""
    pair = tiny_pair(device="cuda")
    model = pair.target if slow == "target" else pair.draft
    honest = model.forward

    def slowed(*arguments: Any, **options: Any) -> torch.Tensor:
        torch.cuda._sleep(30_000_000)  # cycles, at less than 3 GHz
        return honest(*arguments, **options)

    monkeypatch.setattr(model, "forward", slowed)
    CacheBudget(200, TREE.size, TREE.depth, TREE.size).allocate(pair.target, pair.draft, captured=True)
    steps = CapturedSteps(StepSpec(TREE).build(pair.target, pair.draft, CapturedTimer()), pair.target.device)
    for each in (pair.target, pair.draft):
        each.prefill(torch.tensor([5, 9, 2, 7], device="cuda"))
    steps.begin(torch.tensor([7, 1], device="cuda"), 4, None)
    started = now(pair.target.device)
    steps.launch(1)
    parts = steps.read(4)[2]
    elapsed = now(pair.target.device) - started
    assert [name for name, _ in parts] == ["drafting"] * TREE.depth + ["target", "acceptance", "cache"]
    assert all(seconds >= 0 for _, seconds in parts)
    assert sum(seconds for _, seconds in parts) <= elapsed
    assert {name for name, seconds in parts if seconds >= 0.01} == {slow}
    assert [seconds >= 0.01 for name, seconds in parts if name == slow] == [True] * (TREE.depth if slow == "drafting" else 1)


@pytest.mark.gpu
@torch.inference_mode()
def test_a_replay_never_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = tiny_pair(device="cuda")
    CacheBudget(200, TREE.size, TREE.depth, TREE.size).allocate(pair.target, pair.draft, captured=True)
    steps = CapturedSteps(StepSpec(TREE).build(pair.target, pair.draft), pair.target.device)
    steps.begin(torch.tensor([7, 1], device="cuda"), 4, None)
    torch.cuda.set_sync_debug_mode("error")
    try:
        steps.launch(1)
        steps.launch(1)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_a_model_that_waits_is_run_eagerly_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = tiny_pair(device="cuda")
    honest: Callable[..., torch.Tensor] = pair.target.forward

    def waits(*arguments: object, **options: object) -> torch.Tensor:
        logits = honest(*arguments, **options)
        assert float(logits.sum()) == float(logits.sum())
        return logits

    monkeypatch.setattr(pair.target, "forward", waits)
    said: list[str] = []
    engine = Engine(pair.target, pair.draft, said.append)
    records = list(decode_speculative(pair.target, pair.draft, TREE, Request((1, 2), 9), engine=engine))
    assert len(tokens_of(records)) == 9
    assert len(said) == 1
    assert "cannot be captured" in said[0]
    assert pair.target.name in said[0]
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    assert torch.rand(3, device="cuda").isfinite().all(), "the default generator of the device is usable after a refused capture"


def capturable_engine(monkeypatch: pytest.MonkeyPatch, error: RuntimeError | None) -> Engine:
    """An engine on the CPU whose captures raise `error`, or give steps that are nothing but an object."""

    def capture(*_: object) -> object:
        if error is not None:
            raise error
        return object()

    pair = tiny_pair()
    monkeypatch.setattr(pair.target, "eager_reason", "")
    monkeypatch.setattr("treespec.decoding.engine.CapturedSteps", capture)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    return Engine(pair.target)


def test_a_bug_in_a_capture_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = capturable_engine(monkeypatch, RuntimeError("shape '[2, 3]' is invalid for input of size 5"))
    with pytest.raises(RuntimeError, match="is invalid for input"):
        engine.steps(StepSpec(None), CacheBudget(8), None)
    assert engine.eager() is None


def test_refusals_are_told_once_for_every_rule_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = capturable_engine(monkeypatch, RuntimeError("CUDA error: operation not permitted when stream is capturing"))
    said: list[str] = []
    monkeypatch.setattr(engine, "_notice", said.append)
    for sampling in (Sampling(), Sampling(0.6), Sampling(0.7), Sampling(), Sampling(0.6, 0.9)):
        engine.steps(StepSpec(None, sampling), CacheBudget(8), None)
    assert [line.split("run eagerly ")[1].split(":")[0] for line in said] == [
        "(topk, temperature 0)",
        "(topk, temperature above 0)",
        "(topk, temperature above 0, top-p below 1)",
    ]


def test_a_refused_capture_is_logged_and_remembered_for_its_own_steps_only(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = capturable_engine(monkeypatch, RuntimeError("CUDA error: operation not permitted when stream is capturing"))
    refused, other = StepSpec(None), StepSpec(None, Sampling(1.0))
    assert type(engine.steps(refused, CacheBudget(8), None)).__name__ == "EagerSteps"
    assert "a step cannot be captured" in caplog.text
    monkeypatch.setattr("treespec.decoding.engine.CapturedSteps", lambda *_: "captured")
    assert type(engine.steps(refused, CacheBudget(8), None)).__name__ == "EagerSteps"
    assert engine.steps(other, CacheBudget(8), None) == "captured"


def test_an_engine_gives_up_the_steps_used_longest_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = capturable_engine(monkeypatch, None)

    def steps(key: int) -> object:
        return engine.steps(StepSpec(None, Sampling(key + 1.0)), CacheBudget(8), None)

    first, second = steps(0), steps(1)
    for key in range(2, 40):
        assert steps(0) is first, "what is used again and again stays"
        steps(key)
    assert steps(1) is not second
