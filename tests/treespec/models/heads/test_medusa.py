"""Medusa heads propose on every level what the slow implementation of that head proposes; others are refused."""

import re
from pathlib import Path

import pytest
import torch

from tests.reference.head_files import HT, MEDUSA_CONFIG, Change, V, medusa_shapes, refusal, target, tensors, write
from tests.reference.heads import medusa
from treespec.decoding.protocol import FINAL_STATE, ParallelHead
from treespec.errors import ModelError
from treespec.models.heads.loading import load_head
from treespec.trees.placement import Prefix


@pytest.mark.parametrize("file", ["medusa_lm_head.pt", "medusa_lm_head.safetensors", "model.safetensors"])
@pytest.mark.parametrize(("layers", "matrix"), [(1, True), (2, True), (0, True), (1, False)])
def test_every_level_has_the_logits_of_its_head(layers: int, matrix: bool, file: str, tmp_path: Path) -> None:
    of, weights = target(), tensors(medusa_shapes(5, layers, matrix=matrix))
    name = write(tmp_path, {**MEDUSA_CONFIG, "medusa_num_layers": layers}, weights, file)
    head = load_head(name, of)
    states = torch.randn(3, 1, HT, generator=torch.Generator().manual_seed(0))
    assert isinstance(head, ParallelHead)
    assert (head.kind, head.state_layers, head.target_ids) == ("medusa", (FINAL_STATE,), None)
    wide = {name: value.double() for name, value in weights.items()}
    for length in (1, 2, 3):
        found = below(head, states, length)
        assert found.shape == (head.levels, head.vocabulary_size) == (5, V)
        for level in range(5):
            wanted = medusa(wide, states[length - 1, 0].double(), level, layers, of.lm_head.double())
            torch.testing.assert_close(found[level].double(), wanted, rtol=1e-4, atol=1e-4)


def below(head: ParallelHead, states: torch.Tensor, length: int) -> torch.Tensor:
    """What is proposed below a root after so many tokens of a text with these states."""
    return head.propose(states, torch.tensor([0]), Prefix.of(length, "cpu"))


@pytest.mark.parametrize("prefix", ["medusa_head.", "medusa_heads."])
def test_names_may_have_a_prefix(prefix: str, tmp_path: Path) -> None:
    weights = tensors(medusa_shapes(3, 1))
    states = torch.ones(1, 1, HT)
    plain = load_head(write(tmp_path / "plain", MEDUSA_CONFIG, weights), target())
    other = load_head(write(tmp_path / "other", MEDUSA_CONFIG, {prefix + name: value for name, value in weights.items()}), target())
    assert isinstance(plain, ParallelHead)
    assert isinstance(other, ParallelHead)
    assert below(other, states, 1).equal(below(plain, states, 1))


def test_the_heads_of_the_files_count_and_not_those_of_the_config(tmp_path: Path) -> None:
    five = load_head(write(tmp_path / "five", MEDUSA_CONFIG, tensors(medusa_shapes(5, 1))), target())
    assert five.levels == 5
    assert five.notes == (f"{tmp_path / 'five'}: medusa_num_heads in config.json is 2, but the files hold 5 heads, all of which are used",)
    two = load_head(write(tmp_path / "two", MEDUSA_CONFIG, tensors(medusa_shapes(2, 1))), target())
    assert (two.levels, two.notes) == (2, ())


BAD: dict[str, tuple[Change, str]] = {
    "fewer heads than are told": (
        lambda c, w: c.update(medusa_num_heads=4),
        ": medusa_num_heads in config.json is 4, but it must be at most 3: the files hold no more heads; ",
    ),
    "another number of layers": (
        lambda c, w: c.update(medusa_num_layers=2),
        ": medusa_num_layers in config.json is 2, but it must be that of the files, whose heads have 1 layer; ",
    ),
    "a head left out": (
        lambda c, w: [w.pop(name) for name in [*w] if name.startswith("1.")],
        " holds 2 heads up to number 2, but not number 1; ",
    ),
    "a matrix left out": (lambda c, w: w.pop("1.1.weight"), " lacks 1.1.weight, which a set of Medusa heads has; "),
    "a bias left out": (lambda c, w: w.pop("2.0.linear.bias"), " lacks 2.0.linear.bias, which a set of Medusa heads has; "),
    "another shape": (
        lambda c, w: w.update({"1.0.linear.weight": torch.ones(HT, HT + 1)}),
        rf" holds 1.0.linear.weight of the shape \[{HT}, {HT + 1}\], but .* ask for \[{HT}, {HT}\]; ",
    ),
    "more tensors": (
        lambda c, w: w.update({"0.0.linear.scale": torch.ones(1)}),
        " holds 0.0.linear.scale, which a set of Medusa heads has not: ",
    ),
    "no number of heads": (
        lambda c, w: c.update(medusa_num_heads="5"),
        ": medusa_num_heads in config.json is '5', but it must be a whole number",
    ),
}


@pytest.mark.parametrize("bad", BAD)
def test_heads_that_contradict_themselves_are_refused(bad: str, tmp_path: Path) -> None:
    change, said = BAD[bad]
    message = refusal(tmp_path, MEDUSA_CONFIG, tensors(medusa_shapes(3, 1)), "model.safetensors", change)
    assert re.match(said, message), message


def test_heads_for_another_target_are_refused_by_name(tmp_path: Path) -> None:
    name = write(tmp_path / "width", MEDUSA_CONFIG, tensors(medusa_shapes(2, 1)))
    with pytest.raises(
        ModelError,
        match=rf"is a set of Medusa heads for a target of hidden size {HT} \(0.0.linear.weight\), but target the-target has {HT + 2}; use a head made",
    ):
        load_head(name, target(HT + 2))
    shapes = {name: (V + 3, HT) if name.endswith(".1.weight") else shape for name, shape in medusa_shapes(2, 1).items()}
    with pytest.raises(
        ModelError,
        match=rf"is a set of Medusa heads for a target of {V + 3} tokens \(0.1.weight\), but target the-target has {V}; use a head",
    ):
        load_head(write(tmp_path / "tokens", MEDUSA_CONFIG, tensors(shapes)), target())


def test_heads_that_read_no_tokens_have_no_embedding(tmp_path: Path) -> None:
    name = write(tmp_path, MEDUSA_CONFIG, tensors(medusa_shapes(2, 1)))
    with pytest.raises(ModelError, match="read no tokens, but `embedding` is 'own'; leave it out"):
        load_head(name, target(), embedding="own")
