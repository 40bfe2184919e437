"""Decoding with heads: the target's own text, from drafts that are those of the slow implementations at every node of every step."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.reference.head_pairs import FAMILIES, KINDS, LEVELS, PARALLEL, HeadPair, head_pair, seen_steps
from tests.reference.states import states_of
from treespec.decoding.drafting import Drafting
from treespec.decoding.engine import Engine
from treespec.decoding.loop import Request, StepRecord, decode_autoregressive, decode_speculative
from treespec.decoding.plans import DynamicBudget, Plan
from treespec.decoding.readers import Drafted
from treespec.decoding.rules import Sampling
from treespec.decoding.sampling import prompt_generator
from treespec.errors import ModelError
from treespec.models.heads.eagle3 import Eagle3Head
from treespec.trees.placement import Placement, Prefix
from treespec.trees.tree import SpeculationTree

TREE = SpeculationTree.from_branches([[4], [3, 2, 1, 0], [2, 1, 1, 0, 0, 0]])
PLANS: dict[str, Plan] = {"static": TREE, "dynamic": DynamicBudget(14, 3, 5)}
PROMPT = [5, 17, 3, 44, 51, 8, 20, 33, 9]  # longer than the sliding window of the tiny models
EVERY = [*KINDS, *PARALLEL]
ONE_OF_EACH = ["eagle3 official", "eagle official", "medusa", "dflash official"]
Make = Callable[..., HeadPair]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """(kind of head, family) -> a pair."""
    return lambda kind, family="llama", **options: head_pair(kind, family, tmp_path, **options)


def tokens_of(records: list[StepRecord]) -> list[int]:
    return [token for record in records for token in record.tokens]


def generated(pair: HeadPair, prompt: list[int], length: int) -> list[int]:
    ids = torch.tensor([prompt], device=pair.module.device)
    with torch.no_grad():
        found = pair.module.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=length, do_sample=False, pad_token_id=0)
    return found[0, len(prompt) :].tolist()


def exact_states(pair: HeadPair, text: list[int]) -> torch.Tensor:
    return states_of(pair.module, torch.tensor(text)).double()


@pytest.mark.parametrize(
    ("kind", "family"),
    [*((kind, "llama") for kind in EVERY), *((kind, family) for kind in ONE_OF_EACH for family in FAMILIES if family != "llama")],
)
def test_texts_are_those_of_generate(kind: str, family: str, make: Make) -> None:
    pair = make(kind, family)
    accepted = set()
    for plan in PLANS.values():
        for prompt in ([7], [9, 4], PROMPT):
            records = list(decode_speculative(pair.target, pair.draft, plan, Request(tuple(prompt), 24)))
            assert tokens_of(records) == generated(pair, prompt, 24)
            accepted |= {len(record.accepted or ()) for record in records}
    assert len(accepted) > 1, "a head that is never right tests nothing"


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("kind", EVERY)
def test_every_node_of_every_step_has_the_logits_of_the_slow_implementation(kind: str, plan: Plan, make: Make) -> None:
    pair = make(kind)
    steps = seen_steps(pair, plan, PROMPT[:4], 7)
    assert max(step.accepted for step in steps[:-1]) > 0, "something is read again after it was accepted"
    ids = pair.draft.head.target_ids
    for step in (steps[0], *steps[-3:]):
        states = exact_states(pair, step.text)
        for path, logits in step.nodes:
            wanted = pair.slow(states, step.text, path)
            found = logits if ids is None else logits[ids]
            torch.testing.assert_close(found.double(), wanted, rtol=0, atol=2e-3 * float(wanted.std()))
            assert ids is None or int(logits.isfinite().sum()) == len(ids)
        assert len({path for path, _ in step.nodes}) == len(step.nodes) > plan.depth


@pytest.mark.parametrize("rule", ["swor", "swr"])
@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_sampled_children_come_with_the_distributions_of_the_slow_implementation(kind: str, rule: str, make: Make) -> None:
    """These are what the verifiers are exact for, by the enumeration."""
    pair = make(kind)
    ids = pair.draft.head.target_ids
    for step in seen_steps(pair, TREE, PROMPT[:4], 3, Drafting(rule, 0.7), Sampling(1.0)):
        states, q = exact_states(pair, step.text), step.proposal.q
        assert q is not None
        assert q.shape == (TREE.levels[-1].start, pair.target.vocabulary_size)
        for row, (path, _) in zip(q, step.nodes, strict=True):
            wanted = torch.zeros(len(row), dtype=torch.float64)
            wanted[slice(None) if ids is None else ids] = (pair.slow(states, step.text, path) / 0.7).softmax(-1)
            torch.testing.assert_close(row.double(), wanted, rtol=0, atol=1e-3)
        children = [step.proposal.tokens[[*TREE.children[node]]] for node in range(TREE.levels[-1].start)]
        assert all(bool((q[node][tokens] > 0).all()) for node, tokens in enumerate(children))


@pytest.mark.parametrize("drafting", [Drafting(), Drafting("swor"), Drafting("swr", verifier="traversal")], ids=str)
@pytest.mark.parametrize("kind", ["eagle3 official", "medusa", "dflash official"])
def test_sampled_texts_hold_likely_tokens_only_and_repeat_with_their_seed(kind: str, drafting: Drafting, make: Make) -> None:
    pair = make(kind)
    request = Request(tuple(PROMPT), 30, sampling=Sampling(0.3))
    texts = [
        tokens_of(list(decode_speculative(pair.target, pair.draft, TREE, request, prompt_generator(0, turn, "cpu"), drafting=drafting)))
        for turn in (0, 1, 0)
    ]
    assert texts[0] == texts[2] != texts[1]


class Twice:
    """A reader that has another one read everything a second time, with a length that only the device knows, as in captured steps."""

    def __init__(self, reader: Any) -> None:
        self.reader, self.choices, self.begin, self.keep = reader, reader.choices, reader.begin, reader.keep

    def read(self, tokens: Tensor, place: Placement, tree: Drafted, level: int) -> Tensor:
        above, read = vars(self.reader).copy(), self.reader.read
        wanted: Tensor = read(tokens, place, tree, level)
        below = vars(self.reader).copy()
        vars(self.reader).update(above)
        found = read(tokens, replace(place, prefix=Prefix(place.prefix.length)), tree, level)
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
        for name in {"_features", "_levels"} & {*below}:
            torch.testing.assert_close(vars(self.reader)[name], below[name], rtol=1e-3, atol=1e-3)
        return wanted


@pytest.mark.parametrize(
    ("kind", "plan", "prompt"),
    [
        ("eagle3 official", "static", [7]),
        ("eagle3 eagle-3.1", "dynamic", PROMPT),
        ("eagle3 speculators", "static", PROMPT),
        ("eagle3 speculators-two-layers", "dynamic", [7]),
        ("eagle two-layers", "dynamic", PROMPT),
        ("dflash official", "static", PROMPT),
        ("dflash official", "dynamic", [7]),
    ],
)
def test_a_length_that_only_the_device_knows_changes_nothing(kind: str, plan: str, prompt: list[int], make: Make, device: str) -> None:
    """The head's levels by tree attention, and all of an EAGLE-3 head by kernels: in Triton's interpreter, and on a GPU."""
    pytest.importorskip("triton")
    pair = make(kind, device=device)
    head = pair.draft.head
    assert len(seen_steps(pair, PLANS[plan], prompt, 2, through=Twice)) == 2
    assert not isinstance(head, Eagle3Head) or head._fused is not None, "kernels were to compute its levels"


@pytest.mark.parametrize("kind", ["medusa", "dflash official"])
def test_a_plan_beyond_the_levels_that_are_proposed_at_once_is_refused(kind: str, make: Make) -> None:
    pair = make(kind)
    with pytest.raises(ModelError, match=rf"proposes {LEVELS} levels, but the tree has a depth of 5; take one of depth {LEVELS} or less"):
        next(decode_speculative(pair.target, pair.draft, SpeculationTree.chain(5), Request((1, 2), 4)))


# -- on a GPU -----------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("kind", EVERY)
@torch.inference_mode()
def test_captured_steps_are_eager_steps(kind: str, plan: Plan, family: str, make: Make) -> None:
    """Greedily in float32, from prompt to prompt and beyond the caches that were captured first."""
    pair = make(kind, family, device="cuda", kernels=True)
    engine = Engine(pair.target, pair.draft)
    for prompt, gen_len in (((5, 9, 2, 7), 24), ((7,), 12), ((3,) * 30, 40), ((5, 9, 2, 7), 24)):
        request = Request(prompt, gen_len)
        found = tokens_of(list(decode_speculative(pair.target, pair.draft, plan, request, engine=engine)))
        assert engine.eager() is None
        assert found == generated(pair, list(prompt), gen_len)
        assert found == tokens_of(list(decode_speculative(pair.target, pair.draft, plan, request)))
    assert pair.draft.generation >= 2


@pytest.mark.gpu
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("kind", ONE_OF_EACH)
@torch.inference_mode()
def test_captured_steps_in_float16_are_eager_steps(kind: str, plan: Plan, make: Make) -> None:
    """Text for text, greedily, with a draft that is right now and then. Logits differ by rounding, so the accepted tokens of a step may."""
    pair = make(kind, device="cuda", kernels=True, dtype=torch.float16)
    engine, accepted = Engine(pair.target, pair.draft), set()
    for prompt in ((5, 9, 2, 7), (7,), (3,) * 30):
        request = Request(prompt, 24)
        found = list(decode_speculative(pair.target, pair.draft, plan, request, engine=engine))
        assert engine.eager() is None
        assert tokens_of(found) == tokens_of(list(decode_speculative(pair.target, pair.draft, plan, request)))
        assert tokens_of(found) == tokens_of(list(decode_autoregressive(pair.target, request)))
        accepted |= {len(record.accepted or ()) for record in found}
    assert len(accepted) > 1, "a head that is never right tests nothing"


@pytest.mark.gpu
@pytest.mark.parametrize("drafting", [Drafting("swor"), Drafting("swr"), Drafting("swor", verifier="traversal")], ids=str)
@pytest.mark.parametrize("kind", ["eagle3 official", "medusa", "dflash official"])
@torch.inference_mode()
def test_captured_sampling_follows_the_prompts_stream(kind: str, drafting: Drafting, make: Make) -> None:
    pair = make(kind, device="cuda", kernels=True)
    engine = Engine(pair.target, pair.draft)

    def run(index: int) -> list[int]:
        request = Request((5, 9, 2, 7), 40, sampling=Sampling(0.5))
        generator = prompt_generator(0, index, "cuda")
        return tokens_of(list(decode_speculative(pair.target, pair.draft, TREE, request, generator, drafting=drafting, engine=engine)))

    first = run(0)
    assert run(1) != first
    assert run(0) == first
    assert engine.eager() is None


@pytest.mark.gpu
@torch.inference_mode()
def test_two_heads_of_one_target_are_captured_in_turn(tmp_path: Path) -> None:
    pair = head_pair("eagle3 official", "llama", tmp_path / "one", device="cuda", kernels=True)
    other = head_pair("medusa", "llama", tmp_path / "other", device="cuda", kernels=True)
    second = type(pair.draft)(other.draft.head, pair.target)
    engines = [Engine(pair.target, pair.draft), Engine(pair.target, second)]
    wanted = tokens_of(list(decode_autoregressive(pair.target, Request((5, 9, 2, 7), 24))))
    for turn in (0, 1, 0, 1):
        draft = (pair.draft, second)[turn]
        assert tokens_of(list(decode_speculative(pair.target, draft, TREE, Request((5, 9, 2, 7), 24), engine=engines[turn]))) == wanted
        assert engines[turn].eager() is None
