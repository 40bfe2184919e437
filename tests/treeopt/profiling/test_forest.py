"""Forests of texts, against continuing every prompt by itself."""

import pytest
import torch
from torch import Tensor

from tests.reference.pairs import VOCABULARY, tiny_pair
from tests.reference.tiny import CONFIGS, config_of, known, module_of
from treeopt.profiling.continuation import continue_prompts
from treeopt.profiling.forest import Forest
from treeopt.profiling.texts import even_parts, parts_of
from treespec.data.prompts import Prompt
from treespec.decoding.rules import Sampling
from treespec.decoding.sampling import prompt_generator
from treespec.errors import ModelError
from treespec.models.tree_model import TreeModel

FAMILIES = [family for family in CONFIGS if known(family)]
GEN_LEN = 20
LENGTHS = (9, 3, 1, 9, 14)
SAMPLINGS = [Sampling(), Sampling(1.0), Sampling(0.7, 0.8)]


def prompts_of(lengths: tuple[int, ...] = LENGTHS, vocabulary: int = VOCABULARY, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, vocabulary, (length,), generator=generator).tolist() for length in lengths]


def streams(count: int, device: str, first: int = 0) -> list[torch.Generator]:
    return [prompt_generator(0, index, device) for index in range(first, first + count)]


def one_by_one(
    model: TreeModel, prompts: list[list[int]], sampling: Sampling, eos: frozenset[int], first: int = 0
) -> list[tuple[list[int], int]]:
    """The text of each prompt up to its end, and the number of tokens that count."""
    found = []
    for prompt, stream in zip(prompts, streams(len(prompts), str(model.device), first), strict=True):
        ids = torch.tensor([prompt], device=model.device)
        texts, valid = continue_prompts(model.module, ids, GEN_LEN, sampling, [stream], eos)
        count = int(valid.sum())
        found.append((texts[0, len(prompt) :][:count].tolist(), count))
    return found


def texts_of(grown: tuple[Tensor, Tensor]) -> list[tuple[list[int], int]]:
    written, valid = grown
    counts = valid.sum(1).tolist()
    assert all(row[:count].all() for row, count in zip(valid, counts, strict=True)), "a text has no holes"
    return [(row[:count].tolist(), count) for row, count in zip(written, counts, strict=True)]


def slots_for(prompts: list[list[int]]) -> int:
    return sum(len(prompt) + GEN_LEN for prompt in prompts)


def check(model: TreeModel, sampling: Sampling, eos: frozenset[int]) -> None:
    """Three forests of one state: other prompts, fewer of them, and the first ones again."""
    prompts, others = prompts_of(), prompts_of((4, 8, 5, 2, 6), seed=1)
    forest = Forest(model, slots_for(prompts), GEN_LEN, sampling, eos)
    for batch, first in ((prompts, 0), (others, 5), (prompts[:3], 0), (prompts, 0)):
        grown = forest.grow(batch, streams(len(batch), str(model.device), first))
        assert texts_of(grown) == one_by_one(model, batch, sampling, eos, first)


@pytest.mark.parametrize("eos", [frozenset(), frozenset({5, 17, 40})])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_texts_are_those_of_every_prompt_by_itself(sampling: Sampling, eos: frozenset[int]) -> None:
    check(tiny_pair().target, sampling, eos)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_texts_of_every_family(family: str) -> None:
    model = TreeModel(module_of(config_of(family)), name=family)
    prompts = prompts_of(vocabulary=61)
    grown = Forest(model, slots_for(prompts), GEN_LEN, Sampling(), frozenset()).grow(prompts, streams(5, "cpu"))
    assert texts_of(grown) == one_by_one(model, prompts, Sampling(), frozenset())


def test_prompts_longer_than_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut within a prompt, at its end, and with passes that end no prompt."""
    model, prompts = tiny_pair().target, prompts_of((10, 2, 9, 25, 4))
    wanted = one_by_one(model, prompts, Sampling(), frozenset())
    for rows in (1, 4, 7, 10, 12):
        monkeypatch.setattr("treeopt.profiling.forest._ROWS_AT_ONCE", rows)
        forest = Forest(model, slots_for(prompts), GEN_LEN, Sampling(), frozenset())
        assert texts_of(forest.grow(prompts, streams(5, "cpu"))) == wanted, rows


def test_what_the_model_holds_stays() -> None:
    model = tiny_pair().target
    model.allocate(30)
    before = model.prefill(torch.tensor([5, 6, 7, 8]))
    generation, held = model.generation, [model._require(30).rows(layer)[0].clone() for layer in range(2)]
    prompts = prompts_of()
    Forest(model, slots_for(prompts), GEN_LEN, Sampling(), frozenset()).grow(prompts, streams(5, "cpu"))
    assert model.generation == generation
    assert all(torch.equal(model._require(30).rows(layer)[0], rows) for layer, rows in enumerate(held))
    assert torch.equal(model.prefill(torch.tensor([5, 6, 7, 8])), before)


def test_a_forest_stops_once_all_texts_have_ended() -> None:
    model, prompts = tiny_pair().target, prompts_of()
    eos = frozenset(range(VOCABULARY))
    told: list[int] = []
    forest = Forest(model, slots_for(prompts) + 5 * 80, GEN_LEN + 80, Sampling(), eos)
    assert [count for _, count in texts_of(forest.grow(prompts, streams(5, "cpu"), told.append))] == [1] * 5
    assert max(told) < 20


def test_logits_that_are_not_finite_are_an_error() -> None:
    model, prompts = tiny_pair().target, prompts_of()
    with torch.no_grad():
        model.module.lm_head.weight[0] = float("nan")
    with pytest.raises(ModelError, match="the target's logits are not finite"):
        Forest(model, slots_for(prompts), GEN_LEN, Sampling(), frozenset()).grow(prompts, streams(5, "cpu"))


def test_parts_are_even_and_fit() -> None:
    batch = [(i, Prompt(i, "", tuple(range(length)))) for i, length in enumerate((3, 3, 5, 9, 9))]
    assert parts_of(batch, 4, 1000) == [slice(0, 5)]
    assert parts_of(batch, 4, 35) == [slice(0, 2), slice(2, 5)]
    assert parts_of(batch, 4, 13) == [slice(i, i + 1) for i in range(5)]
    assert [part.stop - part.start for part in even_parts(200, 4)] == [50] * 4
    assert [part.stop - part.start for part in even_parts(7, 3)] == [2, 2, 3]


@pytest.mark.gpu
@pytest.mark.parametrize("eos", [frozenset(), frozenset({5, 17, 40})])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_captured_texts_are_those_of_every_prompt_by_itself(sampling: Sampling, eos: frozenset[int]) -> None:
    check(tiny_pair(device="cuda").target, sampling, eos)


@pytest.mark.gpu
@pytest.mark.parametrize("family", FAMILIES)
def test_captured_greedy_texts_of_every_family(family: str) -> None:
    model = TreeModel(module_of(config_of(family)).to("cuda"), name=family)
    prompts = prompts_of(vocabulary=61)
    grown = Forest(model, slots_for(prompts), GEN_LEN, Sampling(), frozenset()).grow(prompts, streams(5, "cuda"))
    assert texts_of(grown) == one_by_one(model, prompts, Sampling(), frozenset())
