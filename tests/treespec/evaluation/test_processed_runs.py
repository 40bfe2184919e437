"""Runs of targets whose generation config asks for logits processors: tree and baseline both write what `generate` writes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from tests.reference.pairs import prompt_set, tiny_pair
from treespec.decoding.drafting import Drafting
from treespec.decoding.plans import DynamicBudget, Plan
from treespec.decoding.rules import Sampling
from treespec.evaluation.runner import evaluate
from treespec.evaluation.settings import EvaluationSettings
from treespec.evaluation.ties import closeness
from treespec.models.pairs import Pair
from treespec.models.processed import ProcessedModel
from treespec.models.processors import as_generate
from treespec.trees.tree import SpeculationTree

PLANS: list[Plan] = [SpeculationTree.from_paths([(0, 0, 0), (0, 1), (1, 0)]), DynamicBudget.of(8, 3)]
SETTINGS = EvaluationSettings(gen_len=12, save_tokens=True)
ASKED: dict[str, Any] = {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "suppress_tokens": [5, 9], "forced_eos_token_id": 7}
PROMPTS = prompt_set()


def asking(**settings: Any) -> Pair:
    pair = tiny_pair()
    pair.target.module.generation_config = GenerationConfig(**settings)
    return pair


def generated(pair: Pair) -> list[tuple[int, ...]]:
    found = []
    for prompt in PROMPTS:
        ids = torch.tensor([prompt.ids])
        output = pair.target.module.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12)
        found.append(tuple(output[0, len(prompt.ids) :].tolist()))
    return found


@pytest.mark.parametrize("plan", PLANS, ids=["static", "dynamic"])
def test_outputs_are_those_of_generate(plan: Plan) -> None:
    pair, said = asking(**ASKED), []
    expected, plain = generated(pair), generated(asking())
    assert expected != plain
    report = evaluate(pair, plan, PROMPTS, SETTINGS, notice=said.append)
    assert [result.output for result in report.results] == expected
    assert report.lossless == "match"
    assert report.steps < 4 * 11, "a draft that is never right tests nothing"
    assert said == [report.settings["engine"]]
    asked = "repetition_penalty 1.5, no_repeat_ngram_size 2, forced_eos_token_id 7, suppress_tokens [5, 9]"
    assert said == [f"tiny runs eagerly: logits processors of its generation config run path by path ({asked})"]
    without = evaluate(pair, plan, PROMPTS, replace(SETTINGS, processors=False))
    assert [result.output for result in without.results] == plain
    assert (without.settings["processors"], without.settings["engine"]) == (False, "eager")


def test_the_baseline_alone_is_processed_too() -> None:
    pair = asking(**ASKED)
    report = evaluate(pair.alone(), None, PROMPTS, SETTINGS)
    assert [result.output for result in report.results] == generated(pair)


def test_a_journal_of_other_processors_is_not_gone_on_with(tmp_path: Path) -> None:
    first = evaluate(asking(repetition_penalty=1.5), PLANS[0], PROMPTS, SETTINGS, journal=tmp_path / "j")
    other = evaluate(asking(repetition_penalty=3.0), PLANS[0], PROMPTS, SETTINGS, journal=tmp_path / "j")
    assert [r.output for r in first.results] != [r.output for r in other.results]


def test_outputs_at_tiny_temperatures_are_determined_by_the_processed_logits() -> None:
    pair = asking(**ASKED)
    settings = replace(SETTINGS, sampling=Sampling(1e-6), drafting=Drafting("swor"))
    report = evaluate(pair, PLANS[0], PROMPTS, settings)
    assert report.lossless == "match"
    assert [result.output for result in report.results] == generated(pair)


def test_ties_are_looked_for_in_the_processed_logits() -> None:
    """A token that the processors rule out is no tie, however near it was; where one token is left, the gap is a number still."""
    pair = asking(suppress_tokens=[3])
    context, target = list(PROMPTS.prompts[0].ids), as_generate(pair.target, PROMPTS.prompts[0].ids, 12)
    assert isinstance(target, ProcessedModel)
    best = int(target.score(torch.tensor([context]), len(context) - 1)[0, -1].argmax())
    assert not closeness(pair.target, context, [best, 3], process=target.process).tie
    found = closeness(
        pair.target, context, [best], process=lambda text, logits: logits.where(torch.arange(len(logits)) == best, -torch.inf)
    )
    assert found.tie
    assert found.logit_gap > 1e300
