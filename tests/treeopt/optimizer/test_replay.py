"""Replay against decoding, token for token, on models that notice every misplaced slot."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.reference.all_trees import trees_of
from tests.reference.tabular import Rule, TabularModel, noisy_rule, random_rule
from tests.reference.traces import trace_of
from treeopt.optimizer.replay import Replay, replay
from treespec.decoding.loop import Request, StepRecord, decode_speculative
from treespec.decoding.rules import Sampling
from treespec.decoding.sampling import prompt_generator
from treespec.errors import ModelError, ProfileError
from treespec.trees.tree import SpeculationTree

VOCABULARY = 7
PROMPTS = ((1, 2, 3), (4,), (0, 6), (5, 5, 5, 5), (2, 0, 1))

trees = st.lists(st.integers(0, 10**6), max_size=14).map(
    lambda picks: SpeculationTree.from_parents([-1, *(p % (i + 1) for i, p in enumerate(picks))])
)


def limited(rule: Rule, reads: int | None) -> Rule:
    """A draft that must not be asked about more tokens than it can read."""

    def answer(context: tuple[int, ...]) -> Sequence[float]:
        assert reads is None or len(context) <= reads
        return rule(context)

    return answer


def decoded(
    tree: SpeculationTree, target: Rule, draft: Rule, prompt: tuple[int, ...], request: Request, seed: int = 0
) -> tuple[list[int], list[StepRecord]]:
    """The text and the steps of decoding a prompt with a tree."""
    models = TabularModel(VOCABULARY, target), TabularModel(VOCABULARY, limited(draft, request.drafted))
    first, *steps = decode_speculative(*models, tree, replace(request, prompt=prompt), prompt_generator(seed, 0, "cpu"))
    return [*first.tokens, *(token for step in steps for token in step.tokens)], steps


def agree(found: Replay, all_steps: Sequence[Sequence[StepRecord]]) -> None:
    """The replay has the steps of decoding, and in each as many accepted tokens as count in the text."""
    expected = tuple(tuple(min(len(step.accepted or ()), len(step.tokens)) for step in steps) for steps in all_steps)
    assert found.accepted == expected
    assert found.steps.tolist() == [len(steps) for steps in all_steps]
    counted = [count for steps in expected for count in steps]
    assert found.steps_by_accepted == tuple(counted.count(depth) for depth in range(found.tree.depth + 1))
    tokens, steps = int(found.tokens.sum()) - len(all_steps), len(counted)
    if steps:
        assert found.tokens_per_step is not None
        assert found.tokens_per_step.mean == pytest.approx(tokens / steps)
    else:
        assert found.tokens_per_step is None


@settings(max_examples=150)
@given(
    tree=trees.filter(lambda tree: tree.max_branch <= VOCABULARY),
    seed=st.integers(0, 50),
    gen_len=st.integers(1, 25),
    noise=st.sampled_from([0.0, 0.4, 2.0]),
    eos=st.frozensets(st.integers(0, VOCABULARY - 1), max_size=2),
    temperature=st.sampled_from([0.0, 0.7]),
    levels=st.sampled_from([None, 2, 1]),
)
@example(tree=SpeculationTree.chain(9), seed=3, gen_len=7, noise=0.0, eos=frozenset(), temperature=0.0, levels=None)
@example(tree=SpeculationTree.chain(4), seed=3, gen_len=1, noise=0.0, eos=frozenset(), temperature=0.0, levels=None)
@example(tree=SpeculationTree.chain(4), seed=3, gen_len=9, noise=0.0, eos=frozenset(range(VOCABULARY)), temperature=0.0, levels=None)
@example(tree=SpeculationTree.k_ary(7, 1), seed=1, gen_len=20, noise=2.0, eos=frozenset(), temperature=0.7, levels=1)
def test_the_steps_are_those_of_decoding(
    tree: SpeculationTree, seed: int, gen_len: int, noise: float, eos: frozenset[int], temperature: float, levels: int | None
) -> None:
    """Greedy and sampled targets; texts of one token, ends in the middle of an accepted path, ties in the draft's logits (few `levels`)."""
    rule = random_rule(VOCABULARY, seed)
    draft = noisy_rule(rule, VOCABULARY, seed + 1, noise)
    if levels is not None:
        exact = draft
        draft = lambda context: [float(round(levels * logit)) for logit in exact(context)]  # noqa: E731
    request = Request((0,), gen_len, eos, Sampling(temperature))
    texts, steps = zip(*(decoded(tree, rule, draft, prompt, request, seed + i) for i, prompt in enumerate(PROMPTS)), strict=True)
    trace = trace_of(draft, VOCABULARY, PROMPTS, texts, gen_len, eos=eos, temperature=temperature)
    agree(replay(tree, trace), steps)


@given(
    tree=trees.filter(lambda tree: tree.max_branch <= VOCABULARY),
    seed=st.integers(0, 50),
    gen_len=st.integers(2, 25),
    noise=st.sampled_from([0.0, 0.4]),
    spare=st.integers(0, 16),
    draft_reads=st.integers(0, 40) | st.none(),
)
@example(tree=SpeculationTree.k_chains(2, 5), seed=0, gen_len=20, noise=0.0, spare=0, draft_reads=20)
@example(tree=SpeculationTree.chain(5), seed=0, gen_len=20, noise=0.0, spare=0, draft_reads=None)
def test_trees_are_cut_where_decoding_cuts_them(
    tree: SpeculationTree, seed: int, gen_len: int, noise: float, spare: int, draft_reads: int | None
) -> None:
    """The target has just the positions that the texts need, and `spare` ones; behind what the draft reads, nothing is drafted."""
    rule = random_rule(VOCABULARY, seed)
    draft, target_reads = noisy_rule(rule, VOCABULARY, seed + 1, noise), gen_len - 1 + spare
    texts, steps = [], []
    for prompt in PROMPTS:
        drafted = None if draft_reads is None else len(prompt) + draft_reads
        request = Request((0,) * len(prompt), gen_len, capacity=len(prompt) + target_reads, drafted=drafted)
        text, records = decoded(tree, rule, draft, prompt, request)
        texts.append(text)
        steps.append(records)
    trace = trace_of(draft, VOCABULARY, PROMPTS, texts, gen_len, target_reads=target_reads, draft_reads=draft_reads)
    agree(replay(tree, trace), steps)


@pytest.mark.parametrize("size", range(1, 7))
def test_every_tree_of_a_few_nodes(size: int) -> None:
    rule = random_rule(VOCABULARY, 5)
    draft, request = noisy_rule(rule, VOCABULARY, 6, 0.6), Request((0,), 18)
    texts = [decoded(SpeculationTree.chain(1), rule, draft, prompt, request)[0] for prompt in PROMPTS]
    trace = trace_of(draft, VOCABULARY, PROMPTS, texts, 18)
    for tree in trees_of(size):
        agree(replay(tree, trace), [decoded(tree, rule, draft, prompt, request)[1] for prompt in PROMPTS])


def test_a_step_that_the_end_of_a_text_cuts_counts() -> None:
    """Of ranks 0 0 1 0 2, the last of which is the EOS, a tree with a rank 2 accepts two and two, and a chain two and one."""
    trace = trace_of(lambda context: [3.0, 2.0, 1.0], 3, [(1,)], [[0, 0, 0, 1, 0, 2]], 9, eos=frozenset({2}))
    assert trace.ranks[:, 0].tolist() == [0, 0, 1, 0, 2]
    found = replay(SpeculationTree.from_paths([(0, 0), (0, 1), (0, 2), (1,)]), trace)
    assert found.nodes[:, 0].tolist() == [1, 3, 0, 1, 5]
    assert (found.accepted, found.steps.tolist(), found.steps_by_accepted) == (((2, 2),), [2], (0, 0, 2))
    assert replay(SpeculationTree.chain(2), trace).accepted == ((2, 1),)
    assert replay(SpeculationTree((-1,)), trace).accepted == ((0,) * 5,)


def test_the_interval_is_over_prompts() -> None:
    """Two texts of the same tokens per step have no spread; unequal ones have that of the linearised ratio estimator."""
    draft: Rule = lambda context: [2.0, 1.0, 0.0]  # noqa: E731
    even = trace_of(draft, 3, [(1,)] * 2, [[0, 0, 1, 0, 1]] * 2, 5)
    tree = SpeculationTree.chain(1)
    found = replay(tree, even).tokens_per_step
    assert found is not None
    assert (found.mean, found.standard_error, found.interval_95) == (2.0, 0.0, (2.0, 2.0))
    uneven = replay(tree, trace_of(draft, 3, [(1,)] * 2, [[0, 0, 1, 0, 1], [0, 1, 1, 1, 1]], 5)).tokens_per_step
    assert uneven is not None
    steps, mean = np.array([2, 4]), 8 / 6
    error = np.sqrt(2 * ((4 - steps * mean) ** 2).sum()) / 6
    assert (uneven.mean, uneven.standard_error) == (pytest.approx(mean), pytest.approx(error))
    assert uneven.interval_95 == pytest.approx((mean - 12.7062 * error, mean + 12.7062 * error), rel=1e-4)


def test_what_cannot_be_replayed_is_refused() -> None:
    trace = trace_of(lambda context: [2.0, 1.0], 2, [(1,)], [[0, 0, 1]], 3)
    with pytest.raises(ModelError, match="a node with 3 children, but the vocabulary has 2 tokens"):
        replay(SpeculationTree.k_ary(3, 1), trace)
    for rule in ("swor", "swr"):
        with pytest.raises(ProfileError, match=f"the trace is of {rule}, whose children are random.*profile with `drafting` topk"):
            replay(SpeculationTree.chain(1), trace_of(lambda context: [2.0, 1.0], 2, [(1,)], [[0, 0, 1]], 3, drafting=rule))
